"""From a model to a program: what each layer is, as operations on shares.

    layer         rounds                    how
    linear, conv  0, its result is SHARED   one product with opened weights; the bias is added
    average pool  0                         a sum; the power of 2 next to its count goes into the scale, the rest into
                                            the weights that follow
    max pool      2 for each halving        a tournament on differences, first along rows, then along columns
    ReLU          1, 2 if it is not open    sign, and a selection that truncates
    square        0
    polynomial    2 for each doubling       powers by doubling, then one product with opened coefficients
    smooth        0                         a Fourier series of the opened value
    softmax, layer norm, attention, argmax, trees: `functions`
    residual      those of its longer side  the side with the coarser scale is held finer

A value that the next product takes is opened at scale 16 first: one round after a ReLU, which truncates, and two after
another product. Weights have up to 4 bits more, which takes no round and no byte of an opening or a comparison. The
output is told at scale 16: what lies below would tell more about weights than a prediction does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from confide.errors import ModelError, ProtocolError
from confide.model.graph import (
    Argmax,
    Attention,
    AveragePool,
    Conv,
    Gelu,
    Graph,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    Polynomial,
    Problem,
    Relu,
    Residual,
    Sigmoid,
    Softmax,
    Square,
    Tanh,
    Trees,
)
from confide.mpc.architecture import (
    MOST_DEGREE,
    WEIGHT_SCALE,
    WHOLE_BITS,
    AnyPart,
    Architecture,
    AveragePart,
    ConvPart,
    LinearPart,
    MaxPart,
    NormPart,
    PolynomialPart,
    ReluPart,
    ResidualPart,
    SmoothPart,
    SquarePart,
    TreesPart,
    computed,
    end_of,
    image_of,
    named,
    variable_of,
)
from confide.mpc.building import Builder
from confide.mpc.compared import ComparedPart, compared_part, write_compared
from confide.mpc.operations import SCALE, Kind, Program
from confide.mpc.periodic import Series
from confide.mpc.ranges import Ranges
from confide.mpc.series import activation_series

#: Finest scale at which a value is a factor of a product as it is; finer ones are truncated first.
_FINEST_FACTOR = 24
_POWER_SCALE = 20
#: |v| 2^scale of every value stays below 2^_ROOM_BITS, half of what a truncation takes.
_ROOM_BITS = 61


Place = tuple[Literal["before", "after"], str]
Scales = dict[Place, int]


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program, and what multiplies the weights that it loads.

    Args:
        program: for so many rows.
        factors: by the name of a load, where it is not 1.
        scales: the finest scale at which a layer's result, or what goes into a layer, is held, by ("after" or "before",
            the layer's name).
    """

    program: Program
    factors: dict[str, float]
    scales: Scales


@dataclass(frozen=True, slots=True)
class _Held:
    """A value on its way: `factor` times what operation `at` makes, 1 <= factor < 2, shape (rows, features)."""

    at: int
    factor: float = 1.0


# --- from a graph -----------------------------------------------------------------------------------------------------


def check(graph: Graph, ranges: Ranges | None = None) -> list[Problem]:
    """Return what of a graph cannot be computed on shares, each with its replacement.

    Args:
        graph: any.
        ranges: of the values before each layer, from `confide.mpc.ranges`; None: not looked at.
    """
    found: list[Problem] = []
    for name, layer in named(computed(graph)):
        where = f"layer {name} ({type(layer).__name__})"
        match layer:
            case Polynomial() if layer.degree > MOST_DEGREE:
                reason = f"its degree is above {MOST_DEGREE}"
                found.append(Problem(where, reason, f"fit one of degree {MOST_DEGREE} or less"))
            case Residual():
                pass
            case _:
                try:
                    _part(layer, name, ranges or Ranges(), ())
                except ModelError as error:
                    found.append(Problem(where, "it is not computed on shares with these ranges", str(error)))
    return found + ([] if ranges is None else ranges.problems(graph))


def architecture_of(graph: Graph, ranges: Ranges | None = None, *, weight_scale: int = WEIGHT_SCALE) -> Architecture:
    """Return what is public of a graph.

    Args:
        graph: any that `check` has no problem with.
        ranges: windows and intervals of its layers; None for the usual ones.
        weight_scale: most fraction bits of weights; fewer are taken if ranges leave no room for them.

    Raises:
        ModelError: the first of its problems.
    """
    if problems := check(graph, ranges):
        raise ModelError(f"Expected a model that can be computed on shares; {problems[0]}")
    parts = _parts(computed(graph), "", ranges or Ranges())
    made = Architecture(graph.features, graph.outputs, parts, end_of(graph), weight_scale)
    while made.weight_scale > SCALE and not _has_room(made, ranges or Ranges()):
        made = msgspec.structs.replace(made, weight_scale=made.weight_scale - 1)
    made.require()
    return made


def _has_room(architecture: Architecture, ranges: Ranges) -> bool:
    """Return whether windows and the values of all layers fit the ring; 2^12 stands for a range that is not known."""
    try:
        found = lowered(architecture, 1)
    except ProtocolError:
        return False
    sides = {"before": ranges.before, "after": ranges.after}
    for (side, name), scale in found.scales.items():
        largest = max(map(abs, sides[side][name])) if name in sides[side] else 2.0**WHOLE_BITS
        if math.ldexp(largest, scale) > 2.0**_ROOM_BITS:
            return False
    return True


def _parts(layers: tuple[Layer, ...], prefix: str, ranges: Ranges) -> tuple[AnyPart, ...]:
    return tuple(_part(layer, f"{prefix}{number}", ranges, layers[number + 1 :]) for number, layer in enumerate(layers))


def _part(layer: Layer, name: str, ranges: Ranges, behind: Sequence[Layer]) -> AnyPart:
    match layer:
        case Linear(weight, _):
            return LinearPart(weight.shape[1], weight.shape[0])
        case Conv():
            return ConvPart(image_of(layer), len(layer.bias), layer.kernel, layer.stride, layer.padding)
        case AveragePool():
            return AveragePart(image_of(layer), layer.kernel, layer.stride)
        case MaxPool():
            return MaxPart(image_of(layer), layer.kernel, layer.stride, layer.padding, ranges.whole_bits(name))
        case Relu():
            return ReluPart(ranges.whole_bits(name))
        case Square():
            return SquarePart()
        case Polynomial():
            return PolynomialPart(layer.degree, *variable_of(layer))
        case Sigmoid() | Tanh() | Gelu():
            series = activation_series(layer, *ranges.bounds(name))
            return SmoothPart(type(layer).__name__.lower(), series.period, series.cosines, series.sines)
        case Residual(body, shortcut):
            return ResidualPart(_parts(body, f"{name}.body.", ranges), _parts(shortcut, f"{name}.shortcut.", ranges))
        case Softmax() | LayerNorm() | Attention() | Argmax() | Trees():
            return compared_part(layer, name, ranges, behind)


# --- to a program -----------------------------------------------------------------------------------------------------


def program_for(architecture: Architecture, rows: int) -> Program:
    """Return the program that computes predictions of `rows` records: an input "x" (rows, features), an output "y".

    Raises:
        ProtocolError: the description is none of a model, or the program is too large.
    """
    return lowered(architecture, rows).program


def lowered(architecture: Architecture, rows: int) -> Lowered:
    """Return the program with the factors of its weights. Raises ProtocolError as `program_for` does."""
    build = Builder("input")
    writer = _Writer(build, architecture.weight_scale, {}, {})
    try:
        held = _Held(build.input("x", (rows, architecture.features)))
        held = writer.chain(architecture.parts, "", held)
        build.label = "output"
        writer.told(writer.settled(held, ("after", str(len(architecture.parts) - 1))))
    except ModelError as error:  # of a description that is none: a graph's was checked
        raise ProtocolError(f"Expected the description of a model; {error}") from None
    program = build.program()
    if program.values[-1].shape != (rows, architecture.outputs):
        raise ProtocolError(f"Expected a description of a model with {architecture.outputs} outputs")
    return Lowered(program, writer.factors, writer.scales)


@dataclass(slots=True)
class _Writer:
    """Layers as they are written down."""

    build: Builder
    weight_scale: int
    factors: dict[str, float]
    scales: Scales

    def chain(self, parts: tuple[AnyPart, ...], prefix: str, held: _Held) -> _Held:
        """Write layers one after the other."""
        for number, part in enumerate(parts):
            name = f"{prefix}{number}"
            self.build.label = f"{name} {type(part).__struct_config__.tag}"
            held = self.layer(part, name, held)
            self.scales["after", name] = self.build.scale(held.at)
        return held

    def layer(self, part: AnyPart, name: str, held: _Held) -> _Held:
        """Write one layer and return what it gives."""
        at: Place = ("before", name)
        match part:
            case LinearPart(inputs, outputs):
                x = self.factor_of_product(held.at)
                weight = self.weight(name, (outputs, inputs), x, held.factor)
                return _Held(self.biased(name, self.build.matmul(x, weight, transpose_b=True), outputs))
            case ConvPart():
                return self.convolution(part, name, held)
            case AveragePart():
                return self.average(part, held)
            case MaxPart():
                return _Held(self.largest(part, held.at), held.factor)
            case ReluPart(bits):  # relu(c x) = c relu(x) for c > 0
                return _Held(self.build.relu(held.at, whole_bits=bits), held.factor)
            case SquarePart():
                x = self.factor_of_product(held.at)
                square, factor = self.build.multiply(x, x), held.factor**2
                return _Held(square, factor) if factor < 2 else _Held(self.build.times(square, 2), factor / 2)
            case PolynomialPart():
                return _Held(self.polynomial(part, name, self.settled(held, at)))
            case SmoothPart(_, period, cosines, sines):
                x = self.opened_at(self.settled(held, at), SCALE)
                return _Held(self.build.periodic(x, Series(period, cosines, sines)))
            case ResidualPart(body, shortcut):
                return self.residual(body, shortcut, name, held)
            case _:
                return _Held(self.compared(part, name, self.settled(held, at)))

    def compared(self, part: ComparedPart, name: str, x: int) -> int:
        """Write a layer that compares numbers, and its bias."""
        y = write_compared(self.build, part, name, x)
        match part:
            case TreesPart():
                return self.biased(name, y, part.outputs)
            case NormPart(channels, positions, False):
                shape = self.build.shape(y)
                images = self.build.reshape(y, (shape[0], channels, positions))
                return self.build.reshape(self.biased(name, images, channels), shape)
            case _:
                return y

    def weight(self, name: str, shape: tuple[int, ...], x: int, factor: float = 1.0) -> int:
        """Load weights of x that make up for a factor of it; the finer x is, the coarser they are, down to scale 16."""
        if factor != 1:
            self.factors[f"{name}.weight"] = factor
        scale = max(SCALE, self.weight_scale + SCALE - self.build.scale(x))
        return self.build.weight(f"{name}.weight", shape, scale=scale)

    def biased(self, name: str, y: int, count: int) -> int:
        """Return y plus a bias for each of its `count` entries along axis 1, at the scale of y."""
        build, shape = self.build, self.build.shape(y)
        bias = build.bias(f"{name}.bias", (count,), scale=build.scale(y))
        return build.plus(y, build.broadcast(build.reshape(bias, (count, *(1 for _ in shape[2:]))), shape))

    def convolution(self, part: ConvPart, name: str, held: _Held) -> _Held:
        build = self.build
        images = build.reshape(self.factor_of_product(held.at), (build.shape(held.at)[0], *part.image))
        weight = self.weight(name, (part.outputs, part.image[0], *part.kernel), images, held.factor)
        y = build.convolve(images, weight, stride=part.stride, padding=part.padding)
        return _Held(self.flat(self.biased(name, y, part.outputs)))

    def average(self, part: AveragePart, held: _Held) -> _Held:
        """Return the sums over windows, the power of 2 at or above their count in the scale, the rest as a factor."""
        build, (channels, height, width) = self.build, part.image
        rows, (down, right) = build.shape(held.at)[0], part.kernel
        if part.kernel == (height, width):
            sums = build.sum(build.reshape(held.at, (rows, channels, height * width)), 2)
        else:
            images = build.reshape(held.at, (rows, *part.image))
            out = (height - down) // part.stride[0] + 1, (width - right) // part.stride[1] + 1
            images = self.added(_windows(build, images, 3, right, part.stride[1], out[1]))
            sums = self.flat(self.added(_windows(build, images, 2, down, part.stride[0], out[0])))
        exponent = math.ceil(math.log2(down * right))
        factor = held.factor * 2.0**exponent / (down * right)
        if factor >= 2:
            factor, exponent = factor / 2, exponent - 1
        if exponent < 0:
            return _Held(build.times(sums, 1 << -exponent), factor)
        return _Held(build.times(sums, 1, rescaled=exponent), factor)

    def added(self, values: list[int]) -> int:
        """Return the sum of values of one shape."""
        total = values[0]
        for value in values[1:]:
            total = self.build.plus(total, value)
        return total

    def largest(self, part: MaxPart, at: int) -> int:
        """Return the largest of each window: along rows first, then along columns."""
        build, (_, height, width), (top, left, bottom, right) = self.build, part.image, part.padding
        out_height = (height + top + bottom - part.kernel[0]) // part.stride[0] + 1
        out_width = (width + left + right - part.kernel[1]) // part.stride[1] + 1
        images = build.reshape(build.open(at), (build.shape(at)[0], *part.image))
        used = min(height, (out_height - 1) * part.stride[0] + part.kernel[0] - top)
        images = build.part(images, 2, 0, used)
        for axis, before, kernel, stride, out in (
            (3, left, part.kernel[1], part.stride[1], out_width),
            (2, top, part.kernel[0], part.stride[0], out_height),
        ):
            # A window that reaches outside holds the row or column at the edge: repeated, it changes no maximum.
            size = build.shape(images)[axis]
            after = max(0, (out - 1) * stride + kernel - before - size)
            first, last = build.part(images, axis, 0, 1), build.part(images, axis, size - 1, size)
            padded = build.concatenate([*[first] * before, images, *[last] * after], axis)
            windows = _windows(build, padded, axis, kernel, stride, out)
            images = build.maximum(windows, whole_bits=part.whole_bits)
        return self.flat(images)

    def polynomial(self, part: PolynomialPart, name: str, x: int) -> int:
        """Return a polynomial of v = (x - middle) / 2^exponent: v^k from v^(k/2), all of a level in the same rounds."""
        build, scale = self.build, _POWER_SCALE
        shifted = build.shift(x, -part.middle)
        if part.exponent < 0:
            shifted = build.times(shifted, 1 << -part.exponent)
        else:
            shifted = build.times(shifted, 1, rescaled=part.exponent)
        powers = {1: self.opened_at(shifted, scale)}
        for power in range(2, part.degree + 1):
            product = build.multiply(powers[power // 2], powers[power - power // 2])
            powers[power] = self.opened_at(product, scale)
        shape, count = build.shape(x), math.prod(build.shape(x))
        columns = build.concatenate([build.reshape(each, (count, 1)) for each in powers.values()], 1)
        y = build.matmul(columns, self.weight(name, (part.degree, 1), columns))
        return build.reshape(self.biased(name, y, 1), shape)

    def residual(self, body: tuple[AnyPart, ...], shortcut: tuple[AnyPart, ...], name: str, held: _Held) -> _Held:
        build = self.build
        held = _Held(build.open(held.at), held.factor)  # once for both sides
        ends = [
            self.settled(self.chain(side, f"{name}.{which}.", held), ("after", f"{name}.{which}.{len(side) - 1}"))
            for side, which in _sides(body, shortcut)
        ]
        build.label = f"{name} residual"
        scale = max(map(build.scale, ends))
        return _Held(build.plus(*(build.at_scale(end, scale) for end in ends)))

    def settled(self, held: _Held, place: Place) -> int:
        """Return a value itself, where a factor cannot wait for weights, and note its scale."""
        at = held.at
        if held.factor != 1:
            at = self.build.times_real(at, held.factor, bits=16 if self.build.scale(at) <= SCALE else 12)
        self.scales[place] = self.build.scale(at)
        return at

    def factor_of_product(self, a: int) -> int:
        """Return a value OPEN at a scale at which it is multiplied as it is."""
        return self.build.open(a) if self.build.scale(a) <= _FINEST_FACTOR else self.opened_at(a, SCALE)

    def opened_at(self, a: int, scale: int) -> int:
        """Return a value OPEN at a scale."""
        return self.build.open(self.build.at_scale(a, scale))

    def flat(self, images: int) -> int:
        """Return images as one row for each record."""
        shape = self.build.shape(images)
        return self.build.reshape(images, (shape[0], math.prod(shape[1:])))

    def told(self, y: int) -> None:
        """Tell the output at scale 16."""
        build = self.build
        if build.kind(y) is Kind.OPEN:  # only shares can be told
            y = build.truncate(build.times(y, 2, rescaled=1), 1)
        build.reveal(y, "y", bits=max(build.scale(y) - SCALE, 0))


def _sides(
    body: tuple[AnyPart, ...], shortcut: tuple[AnyPart, ...]
) -> tuple[tuple[tuple[AnyPart, ...], str], tuple[tuple[AnyPart, ...], str]]:
    return (body, "body"), (shortcut, "shortcut")


def _windows(build: Builder, a: int, axis: int, kernel: int, stride: int, out: int) -> list[int]:
    """Return the first numbers of all windows along an axis, then the second ones, and so on."""
    return [build.part(a, axis, place, place + (out - 1) * stride + 1, stride) for place in range(kernel)]
