"""Run what a page shows: its blocks in their order, in one shell and one folder, as a reader would who types along.

    ```sh                  runs in bash with `set -euo pipefail`
    ```python              runs as a program of its own
    ```toml file=job.toml  becomes that file, whatever its language
    ```text                is what the blocks before it have printed, line by line; numbers and hashes may differ
    ```sh no-run           is shown only

Ports that a page names become free ones, the same in all of its blocks.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"(?<![\d.])8[04]\d\d(?!\d)")
_LOOSE = re.compile(r"[0-9a-f]{8,}|[-+]?\d[\d,.:]*(?:e-?\d+)?|\.\.\.|\s+")
_MARK = "@@ block "


@dataclass(frozen=True)
class Block:
    """One fenced block of a page, and the line on which it begins."""

    line: int
    language: str
    flags: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The file that it shows, if it shows one."""
        return next((flag.removeprefix("file=") for flag in self.flags if flag.startswith("file=")), None)


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for fence in FENCE.finditer(text):
        language, *flags = fence["info"].split() or [""]
        yield Block(text[: fence.start()].count("\n") + 1, language, tuple(flags), fence["text"])


@dataclass(frozen=True)
class Ran:
    """What a page's blocks came to: all that was printed, and by line of the page what each block printed."""

    code: int
    output: str
    printed: Mapping[int, str]
    differing: tuple[str, ...] = field(default=())


def run_page(page: Path, folder: Path, *, changed: Mapping[str, str] | None = None, seconds: float = 600) -> Ran:
    """Run the blocks of a page in a folder; every process that they leave behind is ended.

    Args:
        page: a Markdown file.
        folder: where to run; files that the page takes for granted are there already.
        changed: texts of the page that become others first, to make it quicker. Each must be there.
        seconds: after which it is given up.
    """
    text = page.read_text()
    for old, new in (changed or {}).items():
        assert old in text, f"{page.name} does not say {old!r} any more"
        text = text.replace(old, new)
    blocks = [block for block in blocks_of(text) if "no-run" not in block.flags]
    script = folder.parent / f"{folder.name}.sh"
    script.write_text(_script(blocks, _free_ports(blocks)))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    running = subprocess.Popen(
        ["bash", str(script)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(running.pid)
        output, _ = running.communicate()
        output += f"\ngiven up after {seconds:g} s"
    finally:
        _end(running.pid)
    printed = {int(part.split("\n", 1)[0]): part.split("\n", 1)[1] for part in output.split(_MARK)[1:]}
    return Ran(running.returncode, output, printed, tuple(_differing(blocks, printed)))


def _end(group: int) -> None:
    """End the processes of one page, which have a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)


def _script(blocks: list[Block], ports: Mapping[str, str]) -> str:
    lines = ["set -euo pipefail", "trap 'jobs -p | xargs -r kill 2> /dev/null || true; wait' EXIT"]
    for block in blocks:
        text = _PORT.sub(lambda found: ports[found[0]], block.text)
        end = f"END_OF_BLOCK_{block.line}"
        if block.file:
            lines.append(f"mkdir -p $(dirname {block.file}); cat > {block.file} << '{end}'\n{text}{end}")
        elif block.language == "python":
            lines.append(f"echo '{_MARK}{block.line}'\npython - << '{end}'\n{text}{end}")
        elif block.language in ("sh", "bash"):
            lines.append(f"echo '{_MARK}{block.line}'\n{text}")
    return "\n".join(lines)


def _free_ports(blocks: list[Block]) -> dict[str, str]:
    named = sorted({port for block in blocks for port in _PORT.findall(block.text)})
    held = [socket.socket() for _ in named]  # all at once, so that no two are the same
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return {port: str(one.getsockname()[1]) for port, one in zip(named, held, strict=True)}
    finally:
        for one in held:
            one.close()


def _differing(blocks: list[Block], printed: Mapping[int, str]) -> Iterator[str]:
    """Yield each line of a `text` block that the blocks since the one before have not printed."""
    said = ""
    for block in blocks:
        said += printed.get(block.line, "")
        if block.language != "text" or block.file:
            continue
        for number, line in enumerate(block.text.splitlines(), block.line + 1):
            if not re.search(_loosely(line), said):
                yield f"line {number}: {line}"
        said = ""


def _loosely(line: str) -> str:
    """Return a pattern of a line in which numbers and hashes may be others, spaces more or fewer, and ... anything."""
    pattern, at = "", 0
    for found in _LOOSE.finditer(line.strip()):
        pattern += re.escape(line.strip()[at : found.start()])
        word = found[0]
        if word == "...":
            pattern += r"[^\n]*"
        elif word.isspace():
            pattern += r"\s+"
        else:
            pattern += r"[0-9a-f]+" if re.fullmatch(r"[0-9a-f]{8,}", word) else r"[-+]?\d[\d,.:]*(?:e-?\d+)?"
        at = found.end()
    return pattern + re.escape(line.strip()[at:])
