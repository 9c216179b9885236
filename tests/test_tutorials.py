"""The quickstart and the tutorials: every block of them runs, in its order, and prints what the page shows."""

from __future__ import annotations

from pathlib import Path

from pages import run_page

DOCS = Path(__file__).parents[1] / "docs"


def test_the_quickstart(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    ran = run_page(DOCS / "quickstart.md", folder, seconds=300)
    assert ran.code == 0, ran.output
    assert not ran.differing, ran.output
