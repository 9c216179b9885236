"""List the files below folders with their hashes, as `sgx.trusted_files` of Gramine: the same files, the same text.

    python3 collect.py /usr/lib/python3.11 /srv/confide/site model.confide > trusted.toml

Bytecode is left out: Python writes it with dates inside, and reads the sources without it. Links are followed, since an
enclave opens what they lead to. A file that cannot be written in a manifest is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

LEFT_OUT = {"__pycache__"}


def files(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield every file below `roots` once."""
    seen: set[Path] = set()
    for root in roots:
        if not root.exists():
            raise SystemExit(f"collect.py: {root} is not there")
        for path in [root] if root.is_file() else root.rglob("*"):
            if path.is_file() and not LEFT_OUT & set(path.parts) and path.suffix != ".pyc" and path not in seen:
                seen.add(path)
                yield path


def entry(path: Path) -> str:
    """Return the line of one file."""
    name = path.as_posix()
    if any(letter in name for letter in '"\\\n{}') or not name.isprintable():
        raise SystemExit(f"collect.py: a manifest cannot name {name!r}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f'  {{ uri = "file:{name}", sha256 = "{digest}" }},\n'


def collect(roots: Iterable[Path]) -> str:
    """Return the lines of all files below `roots`, sorted by name."""
    return "".join(sorted(map(entry, files(roots))))


def main() -> None:
    """Read the folders from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path)
    sys.stdout.write(collect(parser.parse_args().roots))


if __name__ == "__main__":
    main()
