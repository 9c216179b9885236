"""The tables of TCGA-BRCA that bench/brca_tables.py writes, for tests; they skip where the records are absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import script


def brca(folder: Path) -> Path:
    """Write the tables and jobs into `folder`, and return it."""
    if script("brca_tables").brca_tables(folder) is None:
        pytest.skip("the records of TCGA-BRCA are not here")
    return folder
