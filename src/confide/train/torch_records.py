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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap  # pyright: ignore[reportUnknownVariableType]
from torch.nn import functional

from confide.crypto.random import Randomness
from confide.dp.mechanisms import Clipped
from confide.errors import ModelError, UsageError
from confide.train.torch_state import Resident, tensor_of

Vector = NDArray[np.int64]

#: (what the module returns for a batch, the batch's y) -> each record's own loss, shape (n,).
RecordLoss = Callable[[Tensor, Tensor], Tensor]

_EXACT = 1 << 24  # integers up to it are exact in single precision

#: The largest grid: a record's integers are exact in single precision.
LARGEST_GRID = _EXACT

_CLOSE = 1e-3  # relative distance between a gradient and that of a batch of one, from float32's rounding


@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    """Rank-one gradients of a weight: record i has left[i] right[i]ᵀ.

    Args:
        left: shape (n, outputs).
        right: shape (n, inputs).
    """

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """Return the gradients, shape (n, outputs * inputs)."""
        return (self.left[:, :, None] * self.right[:, None, :]).flatten(1)


Gradient = Tensor | Outer
Rule = Callable[[Any, Tensor, Tensor], dict[str, Gradient]]


def _linear(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    if x.dim() == 2:
        return {"weight": Outer(g, x), "bias": g}
    g, x = g.flatten(1, -2), x.flatten(1, -2)
    return {"weight": torch.bmm(g.transpose(1, 2), x).flatten(1), "bias": g.sum(1)}


def _convolution(layer: nn.Conv1d | nn.Conv2d, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    size, stride, dilation = ([*value] for value in (layer.kernel_size, layer.stride, layer.dilation))
    padding = [0] * len(size) if layer.padding == "valid" else layer.padding
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
        sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        x, padding = functional.pad(x, sides), [0] * len(size)
    padding = [int(side) for side in padding]
    if len(size) == 1:  # a row of height one
        x, size, stride, dilation, padding = x[:, :, None], [1, *size], [1, *stride], [1, *dilation], [0, *padding]
    patches = functional.unfold(x, tuple(size), tuple(dilation), tuple(padding), tuple(stride))
    n, groups = len(x), layer.groups
    patches = patches.view(n * groups, -1, patches.shape[2])
    rows = g.reshape(n * groups, g.shape[1] // groups, -1)
    return {"weight": torch.bmm(rows, patches.transpose(1, 2)).view(n, -1), "bias": g.flatten(2).sum(2)}


def _by_channel(g: Tensor, normalised: Tensor) -> dict[str, Gradient]:
    def summed(values: Tensor) -> Tensor:
        return values.flatten(2).sum(2) if values.dim() > 2 else values

    return {"weight": summed(g * normalised), "bias": summed(g)}


def _group_norm(layer: nn.GroupNorm, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    return _by_channel(g, functional.group_norm(x, layer.num_groups, eps=layer.eps))


def _instance_norm(layer: nn.InstanceNorm2d, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    return _by_channel(g, functional.instance_norm(x, eps=layer.eps))


def _layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    shape = list(layer.normalized_shape)
    normalised = functional.layer_norm(x, shape, eps=layer.eps)
    n, width = len(x), math.prod(shape)
    return {"weight": (g * normalised).reshape(n, -1, width).sum(1), "bias": g.reshape(n, -1, width).sum(1)}


def _embedding(layer: nn.Embedding, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    n, width = len(x), layer.embedding_dim
    places, rows = x.reshape(n, -1, 1).expand(-1, -1, width), g.reshape(n, -1, width)
    if layer.padding_idx is not None:
        rows = torch.where(places == layer.padding_idx, 0.0, rows)
    return {"weight": rows.new_zeros(n, layer.num_embeddings, width).scatter_add(1, places, rows).flatten(1)}


def _transformed(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    """Return the gradients of any layer's own parameters, by a vector-Jacobian product for each record."""
    own = {name: parameter.detach() for name, parameter in layer.named_parameters(recurse=False)}

    def product(values: dict[str, Tensor], one: Tensor, row: Tensor) -> Tensor:
        return (cast("Tensor", functional_call(layer, values, (one[None],)))[0] * row).sum()

    found = cast("dict[str, Tensor]", vmap(grad(product), in_dims=(None, 0, 0))(own, x, g))
    return {name: values.flatten(1) for name, values in found.items()}


#: By the layer's very type: a class of one's own may do anything.
RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.Embedding: _embedding,
}


def default_grid(module: nn.Module, length: int) -> int:
    """Return a power of two s at which rounding costs about 2 % of the clip norm at most.

    50 sqrt(length) do for entries, 800 times the root of a weight's size for an outer product's two factors.
    """
    sizes = [layer.weight.numel() for layer in module.modules() if type(layer) is nn.Linear]
    least = max(2500 * length, 800**2 * max(sizes, default=0))
    return min(LARGEST_GRID, 1 << (math.isqrt(least - 1)).bit_length())


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
                gradients = RULES.get(type(layer), _transformed)(layer, given, row)
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
    return torch.linalg.vector_norm(rows, dim=1).double().square()


def _squares(value: Gradient) -> Tensor:
    return _square(value.left) * _square(value.right) if isinstance(value, Outer) else _square(value)


def _integers(rows: Tensor, scale: Tensor) -> Tensor:
    """Return each row times its scale, rounded to integers; what is no number is zero."""
    return (rows * scale.float()[:, None]).round_().nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
