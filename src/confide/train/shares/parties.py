"""Who takes part in a training on shares: owners of rows, two servers and a dealer, each a `Party`.

shares/rows     an owner to each server: a seed to server 0, its rows minus the seed's stream to server 1
shares/key      a server to the dealer: the key that both derive streams from
shares/go/N     server 0 to the dealer: run N begins, so the next can be dealt
shares/deal/N   the dealer to a server: the correlations of run N
shares/N/...    between the servers: the rounds of run N
shares/model    a server to every owner: its share of the weights, if they are opened
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.mpc.ahead import Fixed, Held, add_corrections, prepare
from confide.mpc.correlations import RUN_BYTES, DealId
from confide.mpc.dealer import Masked, Seeds, deal
from confide.mpc.operations import Kind, Load, Reveal
from confide.mpc.party import Outcome, Place, run_program
from confide.mpc.streams import KEY_BYTES, stream
from confide.train.shares.course import DEALER, SERVERS, Course, Plan, Run
from confide.wire import Array, Message, Party, Step, decode, encode

Words = NDArray[np.uint64]

ROWS, KEY, MODEL = "shares/rows", "shares/key", "shares/model"
DEALER_KEY_BYTES = 32

_X, _Y = 0, 1


class _Seed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seed: bytes

    def __repr__(self) -> str:
        return "_Seed()"


class _Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    x: Array
    y: Array | None

    def __repr__(self) -> str:
        return "_Rows()"


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: bytes

    def __repr__(self) -> str:
        return "_Key()"


class _Go(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int


class _Deal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run: bytes
    binding: bytes
    masks: bytes
    words: bytes
    corrections: tuple[bytes, ...]

    def __repr__(self) -> str:
        return "_Deal()"


class _Shares(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parts: dict[str, Array]

    def __repr__(self) -> str:
        return "_Shares()"


def owner(me: str, course: Course, x: Words, y: Words | None, rng: Randomness) -> Party:
    """Return the party of an owner; its output is the weights, uint64 by name, or None if they stay shares.

    Args:
        me: its name among `course.pieces`.
        x: uint64, shape (rows, columns) of its piece, at scale 16.
        y: uint64, shape (rows, outputs), at scale 16; None where another owner has the targets.
        rng: secret randomness.

    **Leaks** to each server: the sizes of its piece, which are public. Its share alone is uniform.
    """
    piece = course.pieces[me]
    sizes = (len(piece.rows), len(piece.columns)), (len(piece.rows), course.task.outputs)
    if x.shape != sizes[0] or (y is not None) != piece.targets or (y is not None and y.shape != sizes[1]):
        raise ProtocolError(f"Expected rows of shape {sizes[0]}, with targets if they are this owner's")
    seed = rng.bytes(KEY_BYTES)
    rest = x - _drawn(seed, _X, x.shape)
    of_targets = None if y is None else Array.of(y - _drawn(seed, _Y, y.shape))
    first = Message(me, SERVERS[0], ROWS, encode(_Seed(seed)))
    second = Message(me, SERVERS[1], ROWS, encode(_Rows(Array.of(rest), of_targets)))
    if not course.opened:
        yield Step(send=(first, second))
        return None
    received = yield Step(send=(first, second), await_tag=MODEL, wait_for=SERVERS)
    plan = Plan.of(_revelation(course))
    shapes = {
        one.name: plan.program.values[number].shape
        for number, one in enumerate(plan.program.operations)
        if isinstance(one, Reveal)
    }
    most = 8 * course.task.parameters + 256 * len(shapes) + 256
    parts = [decode(received[server].body, _Shares, max_bytes=most).parts for server in SERVERS]
    if any(part.keys() != shapes.keys() for part in parts):
        raise ProtocolError("Expected the weights of every layer from each server")
    return {name: np.add(*(part[name].numpy("uint64", shape) for part in parts)) for name, shape in shapes.items()}


def _revelation(course: Course) -> Any:
    return course.plan(Run(0, "revelation")).program


def _drawn(seed: bytes, nonce: int, shape: tuple[int, ...]) -> Words:
    return stream(seed, nonce, int(np.prod(shape, dtype=np.int64))).reshape(shape)


def dealer(course: Course, rng: Randomness, *, servers: tuple[str, str] = SERVERS) -> Party:
    """Return the party of the dealer; its output is the bytes that it dealt to each server.

    It learns `course` and which run begins when; never a row, a weight or anything that servers send each other.
    """
    received = yield Step(await_tag=KEY, wait_for=servers)
    keys = [decode(received[server].body, _Key, max_bytes=256).key for server in servers]
    if any(len(key) != DEALER_KEY_BYTES for key in keys):
        raise ProtocolError(f"Expected a key of {DEALER_KEY_BYTES} bytes from each server")
    seeds, run_id = Seeds(*keys), rng.bytes(RUN_BYTES)
    masks: dict[str, Masked] = {}
    dealt = dict.fromkeys(servers, 0)
    for run in course.runs:
        plan = course.plan(run)
        state = {name.removesuffix(f".{run.batch}"): mask for name, mask in _seen(masks, run).items()}
        loaded = _masks_id(plan, state)
        words, *corrections = deal(plan.layout, seeds, DealId(run_id, run.number), model={}, state=state)
        _keep(masks, state, plan, run)
        send: list[Message] = []
        for party, server in enumerate(servers):
            body = _Deal(run_id, plan.layout.binding, loaded, words if party else b"", tuple(corrections))
            send.append(Message(DEALER, server, f"shares/deal/{run.number}", encode(body)))
            dealt[server] += len(send[-1].body)
        received = yield Step(send=tuple(send), await_tag=f"shares/go/{run.number}", wait_for=servers[:1])
        go = decode(received[servers[0]].body, _Go, max_bytes=64)
        if go.number != run.number:
            raise ProtocolError(f"Expected run {run.number} to begin, got {go.number}")
    return dealt


@dataclass(frozen=True, slots=True)
class Trained:
    """What a server is left with.

    Args:
        parts: its shares of the weights (scale 16) and the biases (scale 32), uint64 by name.
        steps: that were taken.
    """

    parts: Mapping[str, Words] = field(repr=False)
    steps: int


#: Is told how many steps were taken, with what returns a server's shares after them.
Keep = Callable[[int, Callable[[], Mapping[str, Words]]], None]
#: Returns a party's own noise for one step, by name: uint64 words at the scales that the step adds them at.
Noise = Callable[[], Mapping[str, Words]]


def server(
    party: int,
    course: Course,
    start: Sequence[Mapping[str, Words]],
    rng: Randomness,
    *,
    noise: Noise | None = None,
    done: Callable[[Run], None] | None = None,
    resumed: Mapping[str, Words] | None = None,
    keep: Keep | None = None,
) -> Party:
    """Return the party of one of the two servers; its output is `Trained`.

    Args:
        party: 0 or 1.
        start: of each layer its starting `sum`, `w` and `b`, public words; party 0 holds them, party 1 zeros.
        rng: secret randomness of this server.
        noise: what it adds to each step's sums, if the task has noise.
        done: is called after every run.
        resumed: its own shares as `keep` was given them after `course.taken` steps, in place of `start`; both servers
            have theirs of one and the same step.
        keep: is called after every step, before anything that follows from it leaves, with the number of steps and
            a function that returns this server's shares of all that the next step needs.
    """
    me, names = SERVERS[party], SERVERS
    key = rng.bytes(DEALER_KEY_BYTES)
    x, y = yield from _gathered(party, course, Message(me, DEALER, KEY, encode(_Key(key))))
    fixed, state, steps = Fixed(), dict[str, Held](), course.taken
    outcome = Outcome()
    run_id: bytes | None = None
    for run in course.runs:
        plan = course.plan(run)
        received = yield Step(await_tag=f"shares/deal/{run.number}", wait_for=(DEALER,))
        given = _checked(received[DEALER], plan, party, run_id)
        run_id = given.run
        seen = {name.removesuffix(f".{run.batch}"): held for name, held in _seen(state, run).items()}
        if given.masks != _masks_id(plan, seen):  # other masks would give wrong results, and say nothing of it
            raise ProtocolError("Expected correlations for the values that are kept here")
        if run.stage == "step" and course.task.noise:
            if noise is None:
                raise ProtocolError("Expected noise for a task that has noise")
            seen |= {name: Held(None, words) for name, words in noise().items()}
        ready = prepare(plan.layout, party, key, DealId(run_id, run.number), given.words, fixed, state=seen)
        for place, body in enumerate(given.corrections):
            add_corrections(plan.layout, ready, place, body)
        inputs = _inputs(party, course, run, plan, x, y, start, resumed)
        go = Message(me, DEALER, f"shares/go/{run.number}", encode(_Go(run.number)))
        first = Step(send=(go,)) if party == 0 else None
        place = Place(party, names, f"shares/{run.number}")
        outcome = yield from run_program(
            place, plan.layout, plan.schedule, fixed, ready, inputs, state=seen, first=first
        )
        _keep(state, seen | outcome.state, plan, run)
        if run.stage == "step":
            steps += 1
            if keep is not None:
                keep(steps, lambda: _kept(party, course, state))
        if done is not None:
            done(run)
    if course.opened:
        body = encode(_Shares({name: Array.of(part) for name, part in outcome.outputs.items()}))
        yield Step(send=tuple(Message(me, owner, MODEL, body) for owner in course.pieces))
    return Trained(_parts(party, course, state), steps)


def _gathered(party: int, course: Course, key: Message) -> Generator[Step, Mapping[str, Message], tuple[Words, Words]]:
    """Return this server's shares of all rows and targets, in the pooled order."""
    owners = tuple(course.pieces)
    x = np.zeros((course.rows, course.task.features), np.uint64)
    y = np.zeros((course.rows, course.task.outputs), np.uint64)
    received = yield Step(send=(key,), await_tag=ROWS, wait_for=owners)
    for name, piece in course.pieces.items():
        sizes = (len(piece.rows), len(piece.columns)), (len(piece.rows), course.task.outputs)
        body = received[name].body
        if party == 0:
            seed = decode(body, _Seed, max_bytes=64).seed
            if len(seed) != KEY_BYTES:
                raise ProtocolError(f"Expected a seed of {KEY_BYTES} bytes from {name}")
            x[np.ix_(piece.rows, piece.columns)] = _drawn(seed, _X, sizes[0])
            if piece.targets:
                y[piece.rows] = _drawn(seed, _Y, sizes[1])
            continue
        most = 8 * sum(a * b for a, b in sizes) + 256
        told = decode(body, _Rows, max_bytes=most)
        if (told.y is not None) != piece.targets:
            raise ProtocolError(f"Expected targets from {name} if and only if they are its own")
        x[np.ix_(piece.rows, piece.columns)] = told.x.numpy("uint64", sizes[0])
        if told.y is not None:
            y[piece.rows] = told.y.numpy("uint64", sizes[1])
    return x, y


def _checked(message: Message, plan: Plan, party: int, run_id: bytes | None) -> _Deal:
    """Return a deal whose lengths are the program's."""
    layout = plan.layout
    most = (layout.words_bytes if party else 0) + layout.keys_bytes + 16 * len(layout.batches) + 256
    given = decode(message.body, _Deal, max_bytes=most)
    if given.binding != layout.binding or len(given.corrections) != len(layout.batches):
        raise ProtocolError("Expected correlations of this run's program")
    if len(given.run) != RUN_BYTES or run_id not in (None, given.run):
        raise ProtocolError("Expected one run of the dealer from beginning to end")
    return given


def _masks_id(plan: Plan, state: Mapping[str, Masked | Held]) -> bytes:
    """Return a hash of which deals made the masks of what a program loads, as the dealer or a server has them."""
    digest = hashlib.sha256(b"confide shares masks v1\0")
    for operation in plan.program.operations:
        if isinstance(operation, Load) and operation.origin == "state" and operation.kind is Kind.OPEN:
            held = state.get(operation.name)
            digest.update(operation.name.encode() + b"\0" + (b"" if held is None else held.label) + b"\0")
    return digest.digest()


def _inputs(
    party: int,
    course: Course,
    run: Run,
    plan: Plan,
    x: Words,
    y: Words,
    start: Sequence[Mapping[str, Words]],
    resumed: Mapping[str, Words] | None,
) -> Mapping[str, Words]:
    """Return this party's shares of what a run loads from outside."""
    if run.stage == "admission":
        rows = course.batches[run.batch]
        return {"x": x[rows], "y": y[rows]}
    wanted = {one.name for one in plan.program.operations if isinstance(one, Load)}
    if run.stage == "beginning" and resumed is not None:
        return {name: resumed[name] for name in wanted}
    if run.stage == "beginning" and party == 0:
        return {
            f"{kind}{layer}": words
            for layer, parts in enumerate(start, 1)
            for kind, words in parts.items()
            if f"{kind}{layer}" in wanted
        }
    return {}


def _seen(state: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return what is held that a run may load: what all batches share, and what is of its own."""
    return {name: held for name, held in state.items() if "." not in name or name.endswith(f".{run.batch}")}


def _keep(state: dict[str, Any], found: Mapping[str, Any], plan: Plan, run: Run) -> None:
    """Put what a run kept where later ones look for it; rows under the number of their batch."""
    for name in ("x", "y") if run.stage == "admission" else found:
        if name in found and not (run.stage == "step" and name in ("x", "y", "n1")):
            state[f"{name}.{run.batch}" if run.stage == "admission" else name] = found[name]


def _kept(party: int, course: Course, state: Mapping[str, Held]) -> dict[str, Words]:
    """Return this party's shares of weights, sums, biases and velocities: what `beginning` takes in."""
    found: dict[str, Words] = {}
    for name, shape in shapes_kept(course).items():
        held, zeros = state[name], np.zeros(shape, np.uint64)
        if held.opened is None:
            found[name] = zeros if held.share is None else held.share
        else:
            whole = held.opened if party else zeros
            found[name] = whole if held.share is None else whole - held.share
    return found


def shapes_kept(course: Course) -> dict[str, tuple[int, ...]]:
    """Return what a server keeps of a step, by name, with its shape."""
    program = course.plan(Run(0, "beginning")).program
    return {
        one.name: program.values[number].shape for number, one in enumerate(program.operations) if isinstance(one, Load)
    }


def _parts(party: int, course: Course, state: Mapping[str, Held]) -> dict[str, Words]:
    """Return this party's shares of the weights as the last step left them."""
    parts: dict[str, Words] = {}
    for layer in range(1, len(course.task.widths)):
        weight, bias = state[f"w{layer}"], state.get(f"b{layer}")
        assert weight.opened is not None
        whole = weight.opened if party else np.zeros_like(weight.opened)
        parts[f"w{layer}"] = whole if weight.share is None else whole - weight.share
        share = None if bias is None else bias.share
        parts[f"b{layer}"] = np.zeros(course.task.widths[layer], np.uint64) if share is None else share
    return parts
