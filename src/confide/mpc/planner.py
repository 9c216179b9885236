"""What a program will cost, layer by layer: rounds, bytes of each message, correlations, work; before anything is sent.

Bytes are those of the program's own messages, and equal what the wire counts in them exactly; the header of a
prediction's first message, what servers compare in theirs, and the frames of a transport come on top. Rounds count
the longest chain of messages; a round of two parties is one exchange, in which both send at once, and takes one one-way
delay.

    symbol   here              unit
    R        rounds            messages one after the other
    B        largest of sent   bytes in one direction

    time = R one-way delay + 8 B / rate + compute
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from confide.errors import UsageError
from confide.mpc.correlations import Layout
from confide.mpc.operations import Convolve, Kind, Load, MatMul, Multiply, Program, Reveal, Sign
from confide.mpc.party import schedule_of, sent_bytes
from confide.mpc.replicated_plan import HELPER, SERVER, THIRD, padded, plan_of
from confide.mpc.schedule import sends

Mode = Literal["mpc-dealer", "mpc-outsourced", "mpc-3pc"]
Link = tuple[str, str]

#: The roles of P0 and P1 in each mode, and who asks.
HOLDERS: Mapping[Mode, Link] = {
    "mpc-dealer": ("client", "server"),
    "mpc-outsourced": ("server", "helper"),
    "mpc-3pc": ("server", "helper"),
}
_SEED_BYTES = 16


def name_of(mode: str) -> Mode:
    """Return a mode's name as what `plan` takes. Raises UsageError if there is none of that name."""
    for known in HOLDERS:
        if known == mode:
            return known
    raise UsageError(f"Expected mode={mode!r} to be one of {', '.join(HOLDERS)}")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one layer, or a whole program, takes.

    Args:
        label: of the layer.
        rounds: how many rounds it begins that no layer before it did.
        sent: bytes by (from, to).
        keys_bytes: corrections of comparison keys, which the dealer sends to both parties.
        words_bytes: other corrections, which it sends to P1.
        comparisons, products: signs; multiplications and additions in products, at one party.
    """

    label: str
    rounds: int = 0
    sent: Mapping[Link, int] = field(default_factory=dict[Link, int])
    keys_bytes: int = 0
    words_bytes: int = 0
    comparisons: int = 0
    products: int = 0

    @property
    def largest(self) -> int:
        """Return the most bytes that one sends to one other."""
        return max(self.sent.values(), default=0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The costs of a program under a mode.

    Args:
        layers: in their order.
        total: of all together.
    """

    layers: tuple[Cost, ...]
    total: Cost

    def seconds(self, *, one_way_seconds: float, bits_per_second: float, compute_seconds: float = 0.0) -> float:
        """Return how long a prediction takes on a link, its correlations in stock.

        Args:
            one_way_seconds: delay of the link.
            bits_per_second: rate in each direction, above 0.
            compute_seconds: of one party, by measurement.
        """
        return self.total.rounds * one_way_seconds + 8 * self.total.largest / bits_per_second + compute_seconds

    def dealing_seconds(self, *, bits_per_second: float) -> float:
        """Return how long one prediction's correlations take on the link to P1."""
        return 8 * (self.total.keys_bytes + self.total.words_bytes) / bits_per_second


def plan(program: Program, mode: Mode = "mpc-dealer") -> Estimate:
    """Return what a program costs.

    Args:
        program: with labels, for layers; without, all is one layer.
        mode: "mpc-dealer": P0 brings the input, P1 the weights. "mpc-outsourced": both hold shares, a client brings and
            receives. "mpc-3pc": three servers; nothing is dealt ahead, what the third sends is in `sent`, and a
            prediction is the query, what the third sends first, the exchanges and the result.
    """
    if mode == "mpc-3pc":
        return _three_servers(program)
    layout = Layout.of(program, owned=mode == "mpc-dealer")
    schedule = schedule_of(layout)
    labels = program.labels or ("",) * len(program.operations)
    names = tuple(dict.fromkeys(labels))
    sent: dict[str, dict[Link, int]] = {name: {} for name in names}
    for number in range(len(program.operations)):
        for link, size in _messages(layout, mode, number).items():
            sent[labels[number]][link] = sent[labels[number]].get(link, 0) + size
    begun: dict[int, str] = {}
    for place, each in enumerate(schedule.rounds):
        begun[place] = labels[each.sends[0]]
    keys: dict[str, int] = {}
    words: dict[str, int] = {}
    for batch in layout.batches:
        keys[labels[batch.operation]] = keys.get(labels[batch.operation], 0) + batch.size_bytes
    for (number, _), segment in layout.segments.items():
        size = segment.count * segment.dtype.itemsize
        words[labels[number]] = words.get(labels[number], 0) + size
    layers = tuple(
        Cost(
            name,
            sum(label == name for label in begun.values()),
            sent[name],
            keys.get(name, 0),
            words.get(name, 0),
            _count(program, labels, name, comparisons=True),
            _count(program, labels, name, comparisons=False),
        )
        for name in names
    )
    return Estimate(layers, _total(layers, len(schedule.rounds), layout))


def _three_servers(program: Program) -> Estimate:
    made = plan_of(program)
    labels = program.labels or ("",) * len(program.operations)
    names = tuple(dict.fromkeys(labels))
    sent: dict[str, dict[Link, int]] = {name: {} for name in names}

    def add(number: int, link: Link, size: int) -> None:
        own = sent[labels[number]]
        own[link] = own.get(link, 0) + size

    begun = [labels[0], labels[0]]
    for leaving in made.sends[1:]:
        begun.append(labels[leaving[0].operation] if leaving else labels[-1])
        for send in leaving:
            add(send.operation, (SERVER, HELPER), send.bytes)
            add(send.operation, (HELPER, SERVER), send.bytes)
    for (number, _), piece in made.pieces.items():
        if piece.message >= 0:
            add(number, (THIRD, HELPER), padded(piece.bytes))
    for number, length, _ in made.reveals:
        add(number, (SERVER, "client"), length)
        add(number, (HELPER, "client"), length)
    if made.reveals:
        begun.append(labels[made.reveals[-1][0]])
    for number, operation in enumerate(program.operations):
        if isinstance(operation, Load) and operation.origin == "input":
            for role, seeds, words in ((SERVER, 1, 1), (HELPER, 1, 1), (THIRD, 2, 0)):
                add(number, ("client", role), _SEED_BYTES * seeds + 8 * words * program.values[number].count)
    layers = tuple(
        Cost(
            name,
            begun.count(name),
            sent[name],
            comparisons=_count(program, labels, name, comparisons=True),
            products=_count(program, labels, name, comparisons=False),
        )
        for name in names
    )
    return Estimate(layers, _sum(layers, len(begun)))


def _messages(layout: Layout, mode: Mode, number: int) -> dict[Link, int]:
    """Return the bytes of an operation's messages by (from, to); nothing where nothing leaves."""
    first, second = HOLDERS[mode]
    program, operation = layout.program, layout.program.operations[number]
    found: dict[Link, int] = {}
    if sends(operation) and not (isinstance(operation, Load) and operation.kind is Kind.SHARED):
        found = {(first, second): sent_bytes(layout, 0, number), (second, first): sent_bytes(layout, 1, number)}
    if mode == "mpc-outsourced":
        size = 8 * program.values[number].count
        if isinstance(operation, Load) and operation.origin == "input":
            found |= {("client", first): _SEED_BYTES, ("client", second): size}
        elif isinstance(operation, Reveal):
            found |= {(first, "client"): size, (second, "client"): size}
    return {link: size for link, size in found.items() if size}


def _count(program: Program, labels: tuple[str, ...], name: str, *, comparisons: bool) -> int:
    found = 0
    for number, operation in enumerate(program.operations):
        if labels[number] != name:
            continue
        count = program.values[number].count
        match operation:
            case Sign():
                found += count if comparisons else 0
            case MatMul():
                shape = program.values[operation.a].shape
                inner = shape[-2] if operation.transpose_a else shape[-1]
                found += 0 if comparisons else count * inner
            case Convolve():
                kernels = program.values[operation.b].shape
                found += 0 if comparisons else count * kernels[1] * kernels[2] * kernels[3]
            case Multiply():
                found += 0 if comparisons else count
            case _:
                pass
    return found


def _total(layers: tuple[Cost, ...], rounds: int, layout: Layout) -> Cost:
    return replace(_sum(layers, rounds), keys_bytes=layout.keys_bytes, words_bytes=layout.words_bytes)


def _sum(layers: tuple[Cost, ...], rounds: int) -> Cost:
    sent: dict[Link, int] = {}
    for layer in layers:
        for link, size in layer.sent.items():
            sent[link] = sent.get(link, 0) + size
    comparisons, products = sum(one.comparisons for one in layers), sum(one.products for one in layers)
    return Cost("total", rounds, sent, comparisons=comparisons, products=products)
