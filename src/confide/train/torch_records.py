"""The gradient of each record of a batch, from one pass forwards and one backwards, as integers of bounded norm.

Autograd gives the gradient at each layer's output, which holds one row for each record, and stops there: the weights'
gradients of the whole batch are never formed. A layer's input and that row give the record's gradient of its weights:

    Linear on rows        outer product of both, kept as its two factors
    Conv1d, Conv2d        product of the row with the patches of the input
    GroupNorm, LayerNorm  sum of the row times the normalised input
    anything else         the layer's own vector-Jacobian product, one record at a time (torch.func)

**Integers.** A record's whole gradient g, of norm v, is scaled to norm at most R steps and rounded, R below the grid s
by what rounding can add. A gradient that is held whole is rounded entry by entry. An outer product d aᵀ is rounded by
its factors: a to A steps, d to what is left, so that the record's integers are the outer product of two short vectors,
and the sum over records is a matrix product of integers, which stays exact in any order as long as blocks of records
are small enough. The norm of the integers is checked, so one record moves the sum by at most s (lemma 5 of
docs/protocols/dp-sgd.md).

**What one record's integers depend on.** On the record, the model, the fixed shape of the batch and the slot in it
where the record lies; never on other records' values. Matrix products may round a row by its slot. `probe` finds out on
public random records whether they do: if not, slots are filled in order; if so, each record draws its slot by itself,
so that no record's slot depends on who else is there, and batches are filled less well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from confide.crypto.random import Randomness
from confide.dp.mechanisms import Clipped
from confide.errors import ModelError, UsageError
from confide.train.torch_layers import RULES, Gradient, Outer, transformed
from confide.train.torch_rounding import Rounding
from confide.train.torch_state import Resident, tensor_of

Vector = NDArray[np.int64]

#: (what the module returns for a batch, the batch's y) -> each record's own loss, shape (n,).
RecordLoss = Callable[[Tensor, Tensor], Tensor]

_CLOSE = 1e-3  # relative distance between a gradient and that of a batch of one, from float32's rounding


class RecordGradients:
    """The clipped integer sum over records of a module's loss gradient.

    Args:
        resident: the module with its parameters.
        loss: each record's own loss.
        slots: records of one pass; every pass has this shape, and slots without a record count as zero.
    """

    def __init__(self, resident: Resident, loss: RecordLoss, slots: int) -> None:
        if slots < 1:
            raise UsageError(f"Expected slots={slots} of at least 1; 64 suits most networks")
        self._resident, self._loss, self._slots = resident, loss, slots
        self._places: dict[nn.Module, dict[str, slice]] = {}
        for part, place in zip(resident.parts, resident.places, strict=True):
            path, _, leaf = part.name.rpartition(".")
            self._places.setdefault(resident.module.get_submodule(path), {})[leaf] = place
        self._seen: list[tuple[nn.Module, Tensor, Tensor]] | None = None
        for layer in self._places:
            layer.register_forward_hook(self._keep)
        self._probed: dict[object, bool] = {}

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._seen is not None:
            self._seen.append((layer, inputs[0].detach(), output))

    def of(self, x: Tensor, y: Tensor) -> list[tuple[slice, Gradient]]:
        """Return each record's gradient of each trained parameter, with its place in the flat vector."""
        self._seen = []
        try:
            losses, seen = self._loss(self._resident.module(x), y), self._seen
        finally:
            self._seen = None
        if losses.shape != (len(x),):
            raise ModelError(
                f"Expected one loss for each of {len(x)} records, got shape {tuple(losses.shape)}; take "
                'reduction="none" and sum over everything but the records'
            )
        if len(seen) != len(self._places):
            raise ModelError("Expected every trained layer to be called once in a pass; give each call its own layer")
        rows = _gradients(losses.sum(), [output for _, _, output in seen])
        found: list[tuple[slice, Gradient]] = []
        with torch.no_grad():
            for (layer, given, output), row in zip(seen, rows, strict=True):
                row = torch.zeros_like(output) if row is None else row
                gradients = RULES.get(type(layer), transformed)(layer, given, row)
                found += [(place, gradients[leaf]) for leaf, place in self._places[layer].items()]
        return found

    @torch.no_grad()
    def clipped_sum(
        self, x: NDArray[Any], y: NDArray[Any], chosen: Vector, *, clip_norm: float, grid: int, rng: Randomness
    ) -> Clipped:
        """Return the sum over the records `chosen` of (x, y), each clipped and rounded to the grid before summing.

        Args:
            x, y: all records of the party.
            chosen: int64, which of them; none is fine.
            clip_norm: the norm C that `grid` steps stand for.
            grid: s, from sqrt(parameters) to 2^24.
            rng: the party's own; draws slots where rounding depends on them.

        Raises:
            UsageError: torch was told to round matrix products to fewer bits.
        """
        if torch.get_float32_matmul_precision() != "highest":
            raise UsageError('Expected exact products of integers; call torch.set_float32_matmul_precision("highest")')
        with torch.autocast("cpu", enabled=False):  # whose products have fewer bits than integers need
            return self._summed(x, y, chosen, clip_norm=clip_norm, grid=grid, rng=rng)

    def _summed(
        self, x: NDArray[Any], y: NDArray[Any], chosen: Vector, *, clip_norm: float, grid: int, rng: Randomness
    ) -> Clipped:
        rounding = Rounding(self._resident, clip_norm=clip_norm, grid=grid)
        total = torch.zeros(self._resident.sent_count, dtype=torch.float64)
        exact, ignored = np.zeros(self._resident.sent_count, np.int64), 0
        for at, rows in enumerate(self._passes(x, y, chosen, rng)):
            present = tensor_of(rows >= 0)
            batch, wanted = (self._batch(values, rows) for values in (x, y))
            with torch.enable_grad():
                found = self.of(batch, wanted)
            ignored += int(present.sum()) - rounding.add(found, present, total)
            if at % 1024 == 1023:  # long before 2^53
                exact += total.numpy().astype(np.int64)
                total.zero_()
        return Clipped(exact + total.numpy().astype(np.int64), grid, clip_norm, ignored)

    def _batch(self, values: NDArray[Any], rows: Vector) -> Tensor:
        """Return the records of a pass, zero where a slot has none; floats as wide as the module's."""
        picked = np.zeros((len(rows), *values.shape[1:]), values.dtype)
        picked[rows >= 0] = values[rows[rows >= 0]]
        batch = tensor_of(picked)
        return batch.to(self._resident.flat.dtype if batch.is_floating_point() else torch.int64)

    def _passes(self, x: NDArray[Any], y: NDArray[Any], chosen: Vector, rng: Randomness) -> Iterator[Vector]:
        """Yield which record lies in each slot of a pass, int64, shape (slots,), -1 for none."""
        size = self._slots
        if self.probe(x, y):
            count = -(-len(chosen) // size)
            filled = np.full(count * size, -1, np.int64)
            filled[: len(chosen)] = chosen
            yield from filled.reshape(count, size)
            return
        words = np.frombuffer(rng.bytes(8 * len(chosen)), "<u8")  # nearly uniform will do: the law is the same for all
        drawn = (words % np.uint64(size)).astype(np.int64)
        order = np.argsort(drawn, kind="stable")
        first = np.searchsorted(drawn[order], np.arange(size))
        depth = np.arange(len(chosen)) - first[drawn[order]]
        filled = np.full((int(depth.max(initial=-1)) + 1, size), -1, np.int64)
        filled[depth, drawn[order]] = chosen[order]
        yield from filled

    def probe(self, x: NDArray[Any], y: NDArray[Any]) -> bool:
        """Return whether a record's gradient is the same bits in every slot, found out on public random records.

        Args:
            x, y: nothing but their shapes and types are read.

        Raises:
            ModelError: a record's gradient is not that of a batch of one, so records mix or a parameter is missed; or
                what other slots hold changes it.
        """
        key = (x.shape[1:], x.dtype, y.shape[1:], y.dtype, torch.get_num_threads())
        if key not in self._probed:
            self._probed[key] = self._probe(x, y)
        return self._probed[key]

    def _probe(self, x: NDArray[Any], y: NDArray[Any]) -> bool:
        size, draw = self._slots, torch.Generator().manual_seed(1)
        batch = self._batch(np.zeros((size, *x.shape[1:]), x.dtype), np.arange(size))
        wanted = self._batch(np.zeros((size, *y.shape[1:]), y.dtype), np.arange(size))
        if batch.is_floating_point():
            batch = torch.randn(batch.shape, generator=draw, dtype=batch.dtype)
        with torch.enable_grad():
            mixed = self.of(batch, wanted)
            for slot in {0, size - 1}:
                self._compare(mixed, slot, batch[slot : slot + 1], wanted[slot : slot + 1])
            same = self.of(batch[:1].expand_as(batch).contiguous(), wanted)
        if not all(torch.equal(a[0], b[0]) for a, b in zip(_tensors(mixed), _tensors(same), strict=True)):
            raise ModelError("Expected a record's gradient not to depend on the others in its batch; it does, by bits")
        return all(torch.equal(values, values[:1].expand_as(values)) for values in _tensors(same))

    def _compare(self, found: list[tuple[slice, Gradient]], slot: int, x: Tensor, y: Tensor) -> None:
        """Refuse gradients that are not those of a batch of one."""
        module = self._resident.module
        own = [getattr(layer, leaf) for layer, leaves in self._places.items() for leaf in leaves]
        places = [place for leaves in self._places.values() for place in leaves.values()]
        alone = _gradients(self._loss(module(x), y).sum(), own)
        wanted, ours = (torch.zeros(self._resident.sent_count, dtype=torch.float64) for _ in range(2))
        for place, value in zip(places, alone, strict=True):
            if value is not None:
                wanted[place] = value.flatten().double()
        for place, value in found:
            ours[place] = (value.dense() if isinstance(value, Outer) else value)[slot].double()
        if not _norm(ours - wanted) <= _CLOSE * _norm(wanted) + 1e-12:
            raise ModelError(
                "Expected each record's gradient to be that of a batch of one; the module mixes records, changes "
                "itself as it runs, or uses a parameter outside its own layer's call"
            )


def _gradients(loss: Tensor, of: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradient at each of these tensors, None where it plays no part."""
    return torch.autograd.grad(loss, of, allow_unused=True)


def _norm(values: Tensor) -> float:
    return math.sqrt(float(torch.dot(values, values)))


def _tensors(found: list[tuple[slice, Gradient]]) -> Iterator[Tensor]:
    for _, value in found:
        yield from (value.left, value.right) if isinstance(value, Outer) else (value,)
