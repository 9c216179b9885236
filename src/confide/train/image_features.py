"""What [model] makes of a schema's columns of images."""

from __future__ import annotations

from typing import Any

from confide.data.schema import Image
from confide.errors import JobError
from confide.model.encoded import Encoded
from confide.model.encoder import Encoder
from confide.model.pixels import Pixels
from confide.model.whitening import Whitening
from confide.train.sections import ModelSection

#: Synthetic images that go through an encoder, which takes longer than a scattering transform.
_ENCODED = 1024


def pixels_of(column: Image, model: ModelSection, encoder: Encoder | None = None) -> Pixels | Encoded:
    """Return the rule of a column of images.

    Args:
        encoder: that model.encoder names; it stays with the rule.

    Raises:
        ModelError: images too small, or features too many, for what [model] asks.
        JobError: [model] names an encoder, and it is not here; or the schema wants pixels that it does not take.
    """
    place: dict[str, Any] = {"name": column.name, "height": column.height, "width": column.width}
    channels, whitening = 1, None
    if model.features.startswith("scattering"):
        channels = 1 + model.scales * model.angles + model.angles**2 * model.scales * (model.scales - 1) // 2
    if model.whiten != "none":
        whitening = Whitening.usual(model.whiten, column.height, column.width, channels=channels)
    if model.features != "columns" and column.to not in (None, (0.0, 1.0)):
        raise JobError(
            f'Expected pixels from 0 to 1 for model.features="{model.features}"; leave "to" out of the schema\'s '
            f"column {column.name!r}"
        )
    if model.features == "encoder":
        if encoder is None or whitening is None:
            raise JobError(
                'Expected data.tables with model.features="encoder": nodes have no way to get the encoder; name the '
                "tables, or take other features"
            )
        fewer = Whitening(images=whitening.images, count=min(_ENCODED, whitening.count))
        count = encoder.outputs(column.height, column.width)
        rule = Encoded(**place, low=column.low, high=column.high, sha256=encoder.sha256, count=count, whitening=fewer)
        return rule.opened(encoder)
    return Pixels(
        **place,
        low=column.low,
        high=column.high,
        scales=0 if model.features == "columns" else model.scales,
        angles=model.angles,
        averaged=model.features == "scattering-mean",
        groups=model.channel_groups,
        frequencies=model.frequencies,
        whitening=whitening,
        to=column.to or (0.0, 1.0),
    )
