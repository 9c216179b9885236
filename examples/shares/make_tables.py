"""Two tables about the same patients for columns.toml: a clinic's, with diagnoses, and a laboratory's.

    python make_tables.py FOLDER

The 569 biopsies of the Wisconsin Diagnostic Breast Cancer set; 520 of the patients came to the clinic, 540 have values
at the laboratory, and neither table has the other's order.
"""

from __future__ import annotations

import csv
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer


def main(folder: Path) -> None:
    """Write clinic.csv, laboratory.csv and schema.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    records, rng = load_breast_cancer(), np.random.default_rng(1)
    names = [str(name) for name in records.feature_names]
    numbers = rng.choice(np.arange(10_000, 99_999), len(records.data), replace=False)
    for place, columns, count in (("clinic", range(10), 520), ("laboratory", range(10, 30), 540)):
        with (folder / f"{place}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            diagnosis = ["diagnosis"] if place == "clinic" else []
            writer.writerow(["patient", *(names[column] for column in columns), *diagnosis])
            for row in rng.permutation(len(records.data))[:count]:
                said = [records.target_names[records.target[row]]] if diagnosis else []
                writer.writerow([f"P-{numbers[row]}", *(float(records.data[row, column]) for column in columns), *said])
    shutil.copy(str(files("confide.data") / "breast_cancer.schema.toml"), folder / "schema.toml")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
