"""From the pages of the repository to a checked site."""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from sphinx.cmd.build import build_main

from sitebuild import check, reference
from sitebuild.pages import Layout

_HERE = Path(__file__).parent
_PATIENCE_SECONDS = 20


def build(root: Path, out: Path, *, api: bool = True, jobs: int = 2) -> tuple[list[str], Mapping[str, list[str]]]:
    """Build the site of a repository.

    Args:
        root: of the repository.
        out: the site; what stands there is replaced.
        api: whether to write the reference, which takes most of the time.
        jobs: processes.

    Returns:
        what is wrong, and the links to other sites with the pages that have them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        staged, trees, made = (Path(scratch) / name for name in ("pages", "trees", "site"))
        staged.mkdir()
        if api:
            reference.write(root, staged)
        Layout(root, staged).write()
        said = Path(scratch) / "warnings"
        arguments = ["-W", "--keep-going", "-n", "-q", "-E", "-j", str(jobs), "-b", "html", "-c", str(_HERE)]
        code = build_main([*arguments, "-w", str(said), "-d", str(trees), str(staged), str(made)])
        warned = [line.replace(f"{staged}/", "") for line in said.read_text().splitlines() if line.strip()]
        if code and not warned:
            warned = [f"Sphinx ended with code {code}"]
        if not made.is_dir():
            return warned, {}
        wrong, outside = check.faults(made)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, out, ignore=shutil.ignore_patterns(".buildinfo*", "objects.inv.tmp"))
    (out / "links.txt").write_text(
        "".join(f"{link}\t{', '.join(sorted(set(at)))}\n" for link, at in sorted(outside.items()))
    )
    return [*warned, *wrong], outside


def dead(links: Mapping[str, list[str]]) -> list[str]:
    """Return the links to other sites that do not answer; needs a network."""
    found: list[str] = []
    for link, pages in sorted(links.items()):
        if not link.startswith(("https://", "http://")):
            continue
        request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0 (links of confide's documentation)"})
        try:
            urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS).close()
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            found.append(f"{', '.join(sorted(set(pages)))}: {link}: {error}")
    return found
