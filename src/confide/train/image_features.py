"""What [model] makes of a schema's columns of images."""

from __future__ import annotations

from confide.data.schema import Image
from confide.model.pixels import Pixels
from confide.model.whitening import Whitening
from confide.train.sections import ModelSection


def pixels_of(column: Image, model: ModelSection) -> Pixels:
    """Return the rule of a column of images.

    Raises:
        ModelError: images too small, or features too many, for what [model] asks.
    """
    whitening = None if model.whiten == "none" else Whitening.usual(model.whiten, column.height, column.width)
    return Pixels(
        name=column.name,
        height=column.height,
        width=column.width,
        low=column.low,
        high=column.high,
        scales=0 if model.features == "columns" else model.scales,
        angles=model.angles,
        averaged=model.features == "scattering-mean",
        groups=model.channel_groups,
        frequencies=model.frequencies,
        whitening=whitening,
    )
