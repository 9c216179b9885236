"""Gradients of single records to integers of bounded norm, and their exact sum: lemma 5 of docs/protocols/dp-sgd.md."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from confide.errors import UsageError
from confide.train.torch_layers import Gradient, Outer
from confide.train.torch_state import Resident

_EXACT = 1 << 24  # integers up to it are exact in single precision

#: The largest grid: a record's integers are exact in single precision.
LARGEST_GRID = _EXACT


def default_grid(module: nn.Module, length: int) -> int:
    """Return a power of two s at which rounding costs about 2 % of the clip norm at most.

    50 sqrt(length) do for entries, 800 times the root of a weight's size for an outer product's two factors.
    """
    sizes = [layer.weight.numel() for layer in module.modules() if type(layer) is nn.Linear]
    least = max(2500 * length, 800**2 * max(sizes, default=0))
    return min(LARGEST_GRID, 1 << (math.isqrt(least - 1)).bit_length())


class Rounding:
    """Gradients to integers of norm at most s, and their sum.

    Everything is single precision, where integers up to 2^24 are exact: sums are taken over blocks of 2^24 / s records.
    A sum of d squares in whatever order is off by a factor within 1 ± d 2^-24, which both the radius R and the check of
    the integers' norm leave room for.

    Args:
        resident: whose parameters.
        clip_norm, grid: C and s.
    """

    def __init__(self, resident: Resident, *, clip_norm: float, grid: int) -> None:
        if not math.sqrt(resident.sent_count) <= grid <= LARGEST_GRID:
            raise UsageError(f"Expected grid={grid} from sqrt(parameters)={resident.sent_count**0.5:.0f} to 2^24")
        self._clip_norm, self._grid, self._block = clip_norm, grid, _EXACT // grid
        self._steps: dict[int, float] = {}
        square, widest = resident.sent_count / 4, 1
        for part, place in zip(resident.parts, resident.places, strict=True):
            if part.tensor.dim() == 2:
                outputs, inputs = part.tensor.shape
                steps = 2.0 ** round(math.log2(math.sqrt(grid * math.sqrt(inputs / outputs)) / 2))
                self._steps[place.start] = steps = max(1.0, min(steps, float(grid)))
                square += ((steps + math.sqrt(inputs) / 2) * math.sqrt(outputs) / 2) ** 2  # |a| |rounding of d|
                widest = max(widest, inputs + outputs)
        room = (resident.sent_count + widest + 64) * 2.0**-23
        self._largest_square = grid * grid * (1 - room)
        self._radius = (grid * math.sqrt(max(0.0, 1 - room)) - math.sqrt(square)) * (1 - room)
        if self._radius <= 0:
            raise UsageError(f"Expected a finer grid than {grid}; its default is default_grid(module, length)")

    def add(self, found: list[tuple[slice, Gradient]], present: Tensor, total: Tensor) -> int:
        """Add the integers of the records that are `present` to `total`; return how many were neither zero nor wild.

        Args:
            found: from `RecordGradients.of`.
            present: bool, shape (slots,).
            total: float64, shape (length,), integers.
        """
        found = [(place, _single(value)) for place, value in found]
        norm = sum((_squares(value) for _, value in found), torch.zeros(len(present), dtype=torch.float64)).sqrt()
        usable = present & (norm > 0) & torch.isfinite(norm)
        largest = self._clip_norm * self._radius / self._grid
        scale = torch.clamp(largest / norm, max=1.0) * (self._grid / self._clip_norm)
        scale = torch.where(usable, scale, 0.0)
        rounded = [(place, self._rounded(place, value, scale)) for place, value in found]
        squares = sum((_squares(value) for _, value in rounded), torch.zeros_like(norm))
        kept = (squares <= self._largest_square).float()  # all of them, by the radius; and none beyond, by this line
        for at in range(0, len(present), self._block):
            rows = slice(at, at + self._block)
            for place, value in rounded:
                if isinstance(value, Outer):
                    total[place] += ((value.left[rows] * kept[rows, None]).T @ value.right[rows]).flatten()
                else:
                    total[place] += kept[rows] @ value[rows]
        return int(usable.sum())

    def _rounded(self, place: slice, value: Gradient, scale: Tensor) -> Gradient:
        if not isinstance(value, Outer):
            return _integers(value, scale)
        steps = self._steps[place.start]
        length = _square(value.right).sqrt()
        reach = torch.where(length > 0, length, 1.0)
        right = _integers(value.right, torch.where(scale > 0, steps / reach, 0.0))
        whole = _square(right).sqrt()  # the norm that rounding has left
        return Outer(_integers(value.left, torch.where(whole > 0, scale * length / whole, 0.0)), right)


def _single(value: Gradient) -> Gradient:
    return Outer(value.left.float(), value.right.float()) if isinstance(value, Outer) else value.float()


def _square(rows: Tensor) -> Tensor:
    """Return each row's sum of squares, float64 of a sum in single precision."""
    norms = cast("Tensor", torch.linalg.vector_norm(rows, dim=1))  # pyright: ignore[reportUnknownMemberType]
    return norms.double().square()


def _squares(value: Gradient) -> Tensor:
    return _square(value.left) * _square(value.right) if isinstance(value, Outer) else _square(value)


def _integers(rows: Tensor, scale: Tensor) -> Tensor:
    """Return each row times its scale, rounded to integers; what is no number is zero."""
    return (rows * scale.float()[:, None]).round_().nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
