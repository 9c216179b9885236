"""A pretrained encoder in an ONNX file: what was learned from public data, as features of an image.

The file takes grey values from 0 to 1 as float32 of shape (n, channels, height, width), one channel or the same in all
three; what it was trained with besides (a mean, a deviation, another range) is part of the file. Images of another size
are brought to the file's by linear interpolation. Images run through it one at a time on one thread, so that what comes
out of an image has nothing to do with the others. The file is named by its SHA-256, and nothing outside it is loaded.

Paper: F. Tramer and D. Boneh, "Differentially private learning needs better features (or much more data)" (arXiv
2011.11660), section 5, for encoders from public data under privacy.
"""

# onnxruntime has no types.
# pyright: basic

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import MissingExtra, ModelError
from confide.model.exact import exact_product, on_grid

Matrix = NDArray[np.float64]

#: Of a file that is read.
LARGEST_BYTES = 1 << 30

_BITS = 24  # interpolation adds up to at most 1


class Encoder:
    """An encoder that is ready to run.

    Args:
        body: the ONNX file.

    Raises:
        ModelError: it is none that onnxruntime can run, or takes and gives something else.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, body: bytes) -> None:
        self.sha256 = hashlib.sha256(body).hexdigest()
        self._session = _session(body)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(outputs) != 1 or len(shape) != 4 or shape[1] not in (1, 3):
            raise ModelError(
                "Expected an encoder with one output and one input of shape (n, 1 or 3, height, width); export it so"
            )
        self._input, self._channels = inputs[0].name, int(shape[1])
        self._sides = tuple(side if isinstance(side, int) and side > 0 else None for side in shape[2:])

    @staticmethod
    def read(path: Path) -> Encoder:
        """Return the encoder in a file.

        Raises:
            ModelError: the file is absent or larger than 1 GiB; or as above.
        """
        try:
            if path.stat().st_size > LARGEST_BYTES:
                raise ModelError(f"Expected an encoder of at most {LARGEST_BYTES} bytes at {path}")
            return Encoder(path.read_bytes())
        except OSError as error:
            raise ModelError(f"Expected an encoder (ONNX) at {path}; {error.strerror}") from None

    def outputs(self, height: int, width: int) -> int:
        """Return the number of features of an image of this size."""
        return self.apply(np.zeros((1, height, width))).shape[1]

    def apply(self, images: Matrix) -> Matrix:
        """Return the features, shape (n, outputs), of grey images from 0 to 1, shape (n, height, width), n >= 1.

        Raises:
            ModelError: they are not finite, or onnxruntime fails.
        """
        rows = [self._one(image) for image in images]
        found = np.stack(rows)
        if not np.isfinite(found).all():
            raise ModelError("Expected finite features; this encoder gives others, take another one")
        return found

    def _one(self, image: Matrix) -> Matrix:
        height, width = (side or own for side, own in zip(self._sides, image.shape, strict=True))
        x = resized(image, height, width).astype(np.float32)
        given = np.broadcast_to(x, (1, self._channels, height, width)).copy()
        try:
            (found,) = self._session.run(None, {self._input: given})
        except Exception as error:
            raise ModelError(f"Expected an encoder that runs on one image; onnxruntime says: {error}") from None
        return np.asarray(found, np.float64).reshape(-1)


def resized(image: Matrix, height: int, width: int) -> Matrix:
    """Return an image from 0 to 1 at another size, by linear interpolation between the centres of its pixels."""
    if image.shape == (height, width):
        return image
    across = exact_product(image, _BITS, _between(image.shape[1], width), _BITS)
    return exact_product(across.T, _BITS, _between(image.shape[0], height), _BITS).T


def _between(old: int, new: int) -> Matrix:
    """Return the weights of `old` pixels in each of `new`, shape (old, new); the edge goes on beyond its centre."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0.0, old - 1.0)
    return on_grid(np.maximum(0.0, 1.0 - np.abs(at - np.arange(old)[:, None])), _BITS)


def _session(body: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "encoder") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(body, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"Expected an encoder as ONNX, whole in one file; onnxruntime says: {error}") from None
