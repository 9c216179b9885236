"""The command line, in this process."""

from __future__ import annotations

import pytest

from confide.cli import main


@pytest.fixture
def run(capsys):
    """Run the command line, expect its exit code, and return what it wrote to stdout and stderr."""

    def run(*arguments, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.err
        return shown.out, shown.err

    return run
