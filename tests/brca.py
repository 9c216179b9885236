"""The tables of TCGA-BRCA that bench/brca_tables.py writes, for tests; they skip where the records are absent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def brca(folder: Path) -> Path:
    """Write the tables and jobs into `folder`, and return it."""
    sys.path.insert(0, str(BENCH))
    try:
        from brca_tables import brca_tables
    finally:
        sys.path.remove(str(BENCH))
    if brca_tables(folder) is None:
        pytest.skip("the records of TCGA-BRCA are not here")
    return folder
