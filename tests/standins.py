"""Small synthetic files in the raw formats of the tutorials' data sets, for machines that do not have the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

#: Of each hospital: records, the share of ill ones, what its numbers end in, how much of its last columns is missing.
HOSPITALS = {
    "cleveland": (303, 0.46, ".0", 0.01),
    "hungarian": (294, 0.36, "", 0.9),
    "switzerland": (123, 0.93, "", 0.6),
    "va": (200, 0.75, "", 0.85),
}


def heart_disease(folder: Path) -> None:
    """Write `processed.NAME.data` of four hospitals as UCI has them: no header, `?` for missing, label 0 to 4."""
    rng = np.random.default_rng(45)
    for name, (records, share, end, missing) in HOSPITALS.items():
        lines: list[str] = []
        for _ in range(records):
            ill = rng.random() < share

            def pick(values, ill_values, ill=ill, end=end):
                return f"{rng.choice(ill_values if ill else values)}{end}"

            def hole(cell, chance=missing):
                return "?" if rng.random() < chance else cell

            age = int(np.clip(rng.normal(57 if ill else 51, 8), 29, 77))
            pulse = int(np.clip(rng.normal(130 if ill else 155, 18), 71, 202))
            chol = "0" if name == "switzerland" else f"{int(np.clip(rng.normal(245, 45), 126, 500))}{end}"
            lines.append(
                ",".join(
                    [
                        f"{age}{end}",
                        pick([0, 0, 1], [0, 1, 1, 1]),
                        pick([1, 2, 2, 3, 3, 4], [1, 2, 3, 4, 4, 4, 4]),
                        f"{int(np.clip(rng.normal(132, 16), 94, 200))}{end}",
                        chol,
                        hole(pick([0, 0, 0, 1], [0, 0, 1]), missing / 3),
                        pick([0, 0, 2], [0, 1, 2, 2]),
                        f"{pulse}{end}",
                        pick([0, 0, 0, 0, 1], [0, 1, 1]),
                        f"{abs(rng.normal(1.6 if ill else 0.5, 0.7)):.1f}",
                        hole(pick([1, 1, 1, 2], [1, 2, 2, 3]), missing / 2),
                        hole(pick([0, 0, 0, 1], [0, 1, 2, 3])),
                        hole(pick([3, 3, 3, 7], [3, 6, 7, 7, 7])),
                        str(rng.integers(1, 5) if ill and name != "hungarian" else int(ill)),
                    ]
                )
            )
        (folder / f"processed.{name}.data").write_text("\n".join(lines) + "\n")


def pneumonia(folder: Path, *, train: int = 800, test: int = 200) -> None:
    """Write `pneumoniamnist.npz` as MedMNIST has it: lungs are two dark ellipses, and pneumonia makes them cloudy."""
    rng = np.random.default_rng(28)
    rows, columns = np.mgrid[:28, :28]
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", train), ("val", 40), ("test", test)):
        ill = rng.random(count) < (0.62 if part == "test" else 0.74)
        images = np.full((count, 28, 28), 150.0)
        for middle in (9, 19):
            inside = ((rows - 14) / 10) ** 2 + ((columns - middle) / 4) ** 2 < 1
            cloud = rng.normal(0, 35, (count, 28, 28)) + 50
            images = np.where(inside, 70 + ill[:, None, None] * cloud, images)
        images += rng.normal(0, 8, images.shape)
        arrays[f"{part}_images"] = np.clip(images, 0, 255).astype(np.uint8)
        arrays[f"{part}_labels"] = ill.astype(np.uint8)[:, None]
    np.savez(folder / "pneumoniamnist.npz", **arrays)


def creditcard(folder: Path, features: np.ndarray, frauds: np.ndarray) -> None:
    """Write `creditcard.csv` as Kaggle has it, of rows such as `creditcard_fraud_subset.npz` holds."""
    names = ["Time", *(f"V{number}" for number in range(1, 29)), "Amount", "Class"]
    with (folder / "creditcard.csv").open("w") as file:
        file.write(",".join(f'"{name}"' for name in names) + "\n")
        for row, fraud in zip(features.tolist(), frauds.tolist(), strict=True):
            file.write(f'{",".join(f"{value:.9g}" for value in row)},"{int(fraud)}"\n')


def invented_payments(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of that form: `V4`, `V11` and `V14` tell most frauds, as they do in the real file."""
    rng = np.random.default_rng(284807)
    frauds = rng.random(count) < 0.04
    rows = rng.normal(0, 1, (count, 30))
    rows[:, 0] = np.sort(rng.integers(0, 172_792, count))
    rows[:, 29] = np.round(np.exp(rng.normal(3, 1.3, count)), 2)
    for column, way in ((4, 4), (11, 4), (14, -6)):
        rows[frauds, column] += way
    return rows, frauds
