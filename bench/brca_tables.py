"""Tables of six regions for examples/survival/: the records of TCGA-BRCA with FLamby's split, one table for each."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples" / "survival"
BRCA = Path(__file__).parents[1] / "../shared/data/tcga_brca"
REGIONS = ("region-1", "region-2", "region-3", "region-4", "region-5", "region-6")


def brca_tables(folder: Path) -> Path | None:
    """Write the tables beside a copy of the jobs; return the job without privacy, or None where the records are absent.

    A region's training records are in its own table, the test records of all in test.csv, with a column `region`.
    """
    if not (BRCA / "brca.csv.gz").is_file():
        return None
    for one in EXAMPLES.glob("*.toml"):
        shutil.copy(one, folder / one.name)
    with gzip.open(BRCA / "train_test_split.csv.gz", "rt") as file:
        folds = {row["pid"]: row["fold2"] for row in csv.DictReader(file)}
    with gzip.open(BRCA / "brca.csv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["pid"] in folds]
    columns = [name for name in rows[0] if name not in ("pid", "E")]
    tables: dict[str, list[list[str]]] = {name: [] for name in (*REGIONS, "test")}
    for row in rows:
        fold, _, region = folds[row["pid"]].partition("_")
        name = REGIONS[int(region)]
        cells = [*(row[column] for column in columns), str(int(float(row["E"]))), name]
        tables[name if fold == "train" else "test"].append(cells)
    for name, records in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([[*columns, "E", "region"], *records])
    return folder / "brca.toml"
