"""Build the site: python -m sitebuild [--out FOLDER] [--links] [--facts].

Ends with code 1 where Sphinx warns, a link or an anchor leads nowhere, or a page would ask the network.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from sitebuild import build, facts

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Build, check, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    parser.add_argument("--links", action="store_true", help="ask for every link to other sites (needs a network)")
    parser.add_argument(
        "--facts", action="store_true", help="write what pages take from the code anew, and build nothing"
    )
    given = parser.parse_args()
    if given.facts:
        for page in facts.write(ROOT):
            print(f"docs: {page.relative_to(ROOT)} is written anew")
        return 0
    begin = time.perf_counter()
    wrong, outside = build.build(ROOT, given.out)
    wrong += facts.faults(ROOT)
    for line in wrong:
        print(f"docs: {line}", file=sys.stderr)
    if given.links and not wrong:
        wrong = build.dead(outside)
        for line in wrong:
            print(f"docs: {line}", file=sys.stderr)
    pages = len(list(given.out.rglob("*.html")))
    took = time.perf_counter() - begin
    print(
        f"docs: {pages} pages, {len(outside)} links to other sites, {len(wrong)} faults, {took:.0f} s: {given.out}/index.html"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
