"""Tables of four hospitals for examples/learning/heart.toml: the records that FLamby keeps, one table for each."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples" / "learning"
HEART = Path(__file__).parents[1] / "../shared/data/heart_disease/heart_all4.csv.gz"
COLUMNS = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")


def hospital_tables(folder: Path) -> Path | None:
    """Write the tables of the job beside a copy of it; return where it is, or None where the records are absent."""
    if not HEART.is_file():
        return None
    for one in ("heart.toml", "heart.schema.toml"):
        shutil.copy(EXAMPLES / one, folder / one)
    with gzip.open(HEART, "rt") as file:
        rows = [row for row in csv.DictReader(file) if all(row[name] for name in COLUMNS)]
    for hospital in {row["hospital"] for row in rows}:
        with (folder / f"{hospital}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, "num"])
            writer.writerows(
                [*(f"{float(row[name]):g}" for name in COLUMNS), int(float(row["num"]) > 0)]
                for row in rows
                if row["hospital"] == hospital
            )
    return folder / "heart.toml"
