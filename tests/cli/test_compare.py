"""`confide compare` on the command line."""

from __future__ import annotations

import pytest

from confide.cli import main
from confide.compare.settings import PRIVATE_WARNING

JOB = """
[data]
set = "breast-cancer"

[train]
rounds = 2

[compare]
seeds = 1
queries = 2
sizes = []
check_link = false
clients = 0
"""


NODES = """
[data]
schema = "s.toml"
nodes = ["a", "b", "c"]
[train]
quorum = 3
[privacy]
expected_records = 100
"""


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_a_job_is_compared_and_written(tmp_path, capsys):
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    assert run(job, "--only", "masked", "--only", "inference/plain", "--out", tmp_path / "report") == 0
    said = capsys.readouterr()
    assert "masked" in said.out
    assert "Linear, Sigmoid" in said.out
    assert PRIVATE_WARNING not in said.out
    written = {"cells", "view.html", *(f"compare.{kind}" for kind in ("csv", "html", "json", "md"))}
    assert {path.name for path in (tmp_path / "report").iterdir()} == written


def test_what_does_not_fit_is_printed_with_its_reason(tmp_path, capsys):
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    assert run(job, "--only", "training/groups", "--only", "training/masked+dp") == 0
    said = capsys.readouterr().out
    assert "not measured: training/groups: Expected at least 3 groups" in said
    assert "not measured: training/masked+dp: the job has no [privacy]" in said
    assert (tmp_path / "job.compare" / "compare.json").is_file()


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (JOB.replace("seeds = 1", "seed = 1"), (), 'Unknown key "compare.seed"'),
        (JOB, ("--only", "maskd"), 'did you mean "masked"'),
        ('[data]\nschema = "s.toml"\nnodes = ["a", "b"]\n', (), "Expected [privacy] in a comparison across real nodes"),
        (NODES, (), "Expected a federation for a job with data.nodes"),
        (JOB.replace("breast-cancer", "brest-cancer"), (), "brest-cancer"),
        ("[data\n", (), "Expected TOML"),
    ],
)
def test_what_a_user_can_mend_is_one_line(tmp_path, capsys, text, options, said):
    job = tmp_path / "job.toml"
    job.write_text(text)
    assert run(job, *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
