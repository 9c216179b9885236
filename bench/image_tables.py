"""Tables of images for the jobs in examples/learning: a set's training part in four parts, and its test part."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples" / "learning"
SHARED = Path(__file__).parents[1] / "../shared/data"

#: By job: the archive, the names of its training and test images and labels, and what the schema calls the labels.
SOURCES = {
    "pneumonia": (
        "pneumoniamnist/pneumoniamnist.npz",
        ("train_images", "train_labels", "test_images", "test_labels"),
        "finding",
    ),
    "mnist": ("mnist/mnist.npz", ("x_train", "y_train", "x_test", "y_test"), "digit"),
}


def image_tables(name: str, folder: Path, parties: Sequence[str]) -> Path | None:
    """Write the tables of a job beside a copy of it; return where it is, or None where its images are absent."""
    source, names, label = SOURCES[name]
    if not (SHARED / source).is_file():
        return None
    for one in (f"{name}.toml", f"{name}.schema.toml"):
        shutil.copy(EXAMPLES / one, folder / one)
    with np.load(SHARED / source) as archive:
        x, y, test_x, test_y = (archive[one] for one in names)
    x, test_x = x.reshape(-1, 28, 28), test_x.reshape(-1, 28, 28)
    for number, party in enumerate(parties):
        np.savez(folder / f"{party}.npz", **{"scan": x[number :: len(parties)], label: y[number :: len(parties)]})
    np.savez(folder / "test.npz", **{"scan": test_x, label: test_y})
    return folder / f"{name}.toml"
