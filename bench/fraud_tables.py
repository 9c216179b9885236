"""Card payments as the tables of four banks, for benchmarks: a part of the ULB credit-card fraud data set.

The columns V1 to V28 are principal components whose scale its authors have published as numbers of order one; the
bounds below are round numbers, and what lies outside counts as the nearer one. The intervals of Amount are round too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parents[1] / "../shared/data/creditcard_fraud/creditcard_fraud_subset.npz"
BANKS = ("north", "east", "south", "west")

_AMOUNTS = (1, 2, 5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 5000)
SCHEMA = "\n".join(
    [
        'name = "fraud"',
        'source = "description of the ULB card payments; round numbers"',
        '[label]\nname = "fraud"\nclasses = ["0", "1"]',
        "[columns]",
        'Time = { type = "number", unit = "seconds", low = 0, high = 172800, outside = "clip" }',
        *(f'V{number} = {{ type = "number", low = -30, high = 30, outside = "clip" }}' for number in range(1, 29)),
        'Amount = { type = "number", unit = "euros", low = 0, high = 10000, outside = "clip", '
        f"bins = {list(_AMOUNTS)} }}",
        "",
    ]
)

Arrays = dict[str, np.ndarray]


def payments() -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """Return numbers, labels and the columns' names; None where they are absent."""
    if not SOURCE.exists():
        return None
    with np.load(SOURCE) as archive:
        return (
            archive["X"].astype(np.float64),
            archive["y"].astype(np.int64),
            [str(name) for name in archive["columns"]],
        )


def fraud_tables(folder: Path, seed: int) -> tuple[Arrays, Arrays] | None:
    """Write schema.toml, a table of each bank, and test.npz with 30 % of each class; return both parts pooled.

    Args:
        seed: of the split, and of who holds which payments.
    """
    found = payments()
    if found is None:
        return None
    x, y, names = found
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    parts = [order[y[order] == label] for label in (0, 1)]
    test = np.concatenate([part[: round(0.3 * len(part))] for part in parts])
    kept = rng.permutation(np.concatenate([part[round(0.3 * len(part)) :] for part in parts]))
    for number, bank in enumerate(BANKS):
        _write(folder / f"{bank}.npz", x[kept[number::4]], y[kept[number::4]], names)
    _write(folder / "test.npz", x[test], y[test], names)
    (folder / "schema.toml").write_text(SCHEMA)
    return {"x": x[kept], "y": y[kept]}, {"x": x[test], "y": y[test]}


def _write(path: Path, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    np.savez(path, fraud=y, **{name: x[:, place] for place, name in enumerate(names)})
