"""Set-up: a run, the keys that the dealer shares with the parties, and the weights, masked and opened once.

    parties -> dealer   {name}/hello   the program's hash
    dealer -> parties   {name}/keys    the run, and the receiver's key
    party -> party      {name}/model   W^ = W + r_W, or a share of it, r_W = -A from streams under the keys

A run belongs to one client and one version of the weights: A comes from the run's keys, so other weights mean another
set-up. The dealer knows A and never sees W^; the parties see W^ and hold shares of A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, SetUpAgain, UsageError
from confide.mpc.ahead import Fixed, Held
from confide.mpc.correlations import RUN_BYTES, Layout, Words, model_seed
from confide.mpc.dealer import Seeds, model_mask_share
from confide.mpc.kits import AnyKit, ModelKit, kit_id
from confide.mpc.messages import FORMAT, KEY_BYTES, SMALL_BYTES, Hello, Keys, expect_binding, expect_format
from confide.mpc.operations import Kind
from confide.wire import Message, Party, Step, Store, decode, encode


@dataclass(frozen=True, slots=True)
class Mode:
    """Who is who in a mode with a dealer.

    Args:
        name: the registry name.
        holders: the roles of P0 and P1, who compute.
        owned: whether P0 is the client and P1 owns the model.
    """

    name: str
    holders: tuple[str, str]
    owned: bool

    @property
    def roles(self) -> tuple[str, ...]:
        """Return everyone who takes part."""
        return (*self.holders, "dealer") if self.owned else ("client", *self.holders, "dealer")

    def party(self, role: str) -> int | None:
        """Return 0 or 1 for who computes, None for who only asks."""
        return self.holders.index(role) if role in self.holders else None

    @property
    def askers(self) -> tuple[str, ...]:
        """Return whom the client asks."""
        return tuple(role for role in self.holders if role != "client")

    @property
    def enrolled(self) -> tuple[str, ...]:
        """Return everyone to whom the dealer sends keys at set-up."""
        return self.roles[:-1]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a role keeps of a run. No repr shows it.

    Args:
        run: its id.
        key: shared with the dealer; b"" at who only asks.
        model_id: which half of which model; "" where there is none.
    """

    run: bytes
    key: Annotated[bytes, msgspec.Meta(max_length=KEY_BYTES)]
    model_id: str

    def __repr__(self) -> str:
        return f"Record({self.run[:4].hex()})"


class DealerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the dealer keeps of a run: both keys. No repr shows it."""

    client: bytes
    server: bytes

    def __repr__(self) -> str:
        return "DealerRecord()"

    @property
    def seeds(self) -> Seeds:
        """Return the keys."""
        return Seeds(self.client, self.server)


def record_path(mode: Mode, role: str, run: bytes) -> str:
    """Return where a role keeps a run."""
    return f"{mode.name}/{role}/{run.hex()}/record"


def opened_path(mode: Mode, role: str, run: bytes) -> str:
    """Return where who computes keeps W^ of all masked weights: little-endian words, in the order of their names."""
    return f"{mode.name}/{role}/{run.hex()}/opened"


def latest_path(mode: Mode, role: str, kit: AnyKit) -> str:
    """Return where the client keeps the name of the run that it uses with a kit."""
    return f"{mode.name}/{role}/latest/{kit_id(kit)}"


# --- set-up -----------------------------------------------------------------------------------------------------------


def setup_dealer(mode: Mode, kit: AnyKit, store: Store, rng: Randomness) -> Party:
    """Return the dealer's party of a set-up: draws a run and keys, and returns the run's name."""
    received = yield Step(await_tag=f"{mode.name}/hello", wait_for=mode.enrolled)
    for message in received.values():
        hello = decode(message.body, Hello, max_bytes=SMALL_BYTES)
        expect_format(hello.format)
        expect_binding(hello.binding, kit.plans.of(1).layout.binding)
    run, keys = rng.bytes(RUN_BYTES), (rng.bytes(KEY_BYTES), rng.bytes(KEY_BYTES))
    by_role = dict.fromkeys(mode.enrolled, b"") | dict(zip(mode.holders, keys, strict=True))
    send = tuple(Message("dealer", role, f"{mode.name}/keys", encode(Keys(run, key))) for role, key in by_role.items())
    yield Step(send, save={record_path(mode, "dealer", run): encode(DealerRecord(*keys))})
    return run.hex()


def setup_party(mode: Mode, role: str, kit: AnyKit, store: Store) -> Party:
    """Return the party of everyone else: takes the key, opens the masked weights, and returns the run's name."""
    layout = kit.plans.of(1).layout
    hello = Message(role, "dealer", f"{mode.name}/hello", encode(Hello(FORMAT, layout.binding)))
    received = yield Step((hello,), await_tag=f"{mode.name}/keys", wait_for=("dealer",))
    keys = decode(received["dealer"].body, Keys, max_bytes=SMALL_BYTES)
    party = mode.party(role)
    if len(keys.key) != (0 if party is None else KEY_BYTES):
        raise ProtocolError("Expected a key from the dealer, if and only if this role computes")
    if (
        store.get(record_path(mode, role, keys.run)) is not None
    ):  # other weights under one A would show their difference
        raise ProtocolError("Expected a run that was never set up here; set up again")
    opened = b""
    if party is not None:
        opened = yield from _open_model(mode, party, kit, layout, keys)
    model_id = kit.model_id if isinstance(kit, ModelKit) else ""
    save: dict[str, bytes | None] = {
        record_path(mode, role, keys.run): encode(Record(keys.run, keys.key, model_id)),
        opened_path(mode, role, keys.run): opened,
        latest_path(mode, role, kit): keys.run,
    }
    yield Step(save=save)
    return keys.run.hex()


def _open_model(mode: Mode, party: int, kit: AnyKit, layout: Layout, keys: Keys) -> Party:
    """Open W^ and return it as bytes: from the owner to the other, or a share each way."""
    mine = _masked_share(kit, layout, party, keys)
    me, other = mode.holders[party], mode.holders[1 - party]
    tag = f"{mode.name}/model"
    send = () if mine is None else (Message(me, other, tag, mine.astype("<u8", copy=False).tobytes()),)
    sends_too = not mode.owned or party == 0
    received = yield Step(send, await_tag=tag, wait_for=(other,) if sends_too else ())
    count = sum(layout.program.values[number].count for number, _ in layout.model(Kind.OPEN))
    if not sends_too:
        assert mine is not None
        return mine.astype("<u8", copy=False).tobytes()
    body = received[other].body
    if len(body) != 8 * count:
        raise ProtocolError(f"Expected {8 * count} bytes of masked weights, got {len(body)}")
    theirs = np.frombuffer(body, "<u8")
    return body if mine is None else np.add(mine, theirs).astype("<u8", copy=False).tobytes()


def _masked_share(kit: AnyKit, layout: Layout, party: int, keys: Keys) -> Words | None:
    """Return this party's share of all W^ in one vector; None for a client, who has none."""
    if not isinstance(kit, ModelKit):
        return None
    seed = model_seed(keys.key, keys.run)
    parts = [
        np.add(kit.model[load.name], model_mask_share(seed, place, load)).reshape(-1)
        for place, (_, load) in enumerate(layout.model(Kind.OPEN))
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


# --- what was set up --------------------------------------------------------------------------------------------------


def own_record(mode: Mode, role: str, kit: AnyKit, store: Store) -> Record:
    """Return the run that a client uses with a kit. Raises UsageError if there is none."""
    run = store.get(latest_path(mode, role, kit))
    body = None if run is None else store.get(record_path(mode, role, run))
    if body is None:
        raise UsageError("Expected keys for this model in the store; run setup first")
    return decode(body, Record, max_bytes=SMALL_BYTES)


def known_record(mode: Mode, role: str, kit: AnyKit, store: Store, run: bytes) -> Record:
    """Return a run that somebody asks under. Raises SetUpAgain if it is not here, or for other weights."""
    body = store.get(record_path(mode, role, run))
    if body is None:
        raise SetUpAgain("Expected a run that is set up here; set up first")
    record = decode(body, Record, max_bytes=SMALL_BYTES)
    if isinstance(kit, ModelKit) and record.model_id != kit.model_id:
        raise SetUpAgain("Expected a run for the weights that are served now; set up again")
    return record


def dealer_record(mode: Mode, store: Store, run: bytes) -> DealerRecord:
    """Return the dealer's keys of a run. Raises SetUpAgain if it is not here."""
    body = store.get(record_path(mode, "dealer", run))
    if body is None:
        raise SetUpAgain("Expected a run that is set up here; set up first")
    return decode(body, DealerRecord, max_bytes=SMALL_BYTES)


def fixed_of(mode: Mode, role: str, kit: AnyKit, store: Store, record: Record, rows: int) -> Fixed:
    """Return what follows from the model at a party, for programs of `rows` rows under a run's masks."""
    party = mode.party(role)
    assert party is not None

    def make(layout: Layout) -> Fixed:
        weights = kit.model if isinstance(kit, ModelKit) and kit.plans.owned else None
        opened = store.get(opened_path(mode, role, record.run))
        if opened is None:
            raise ProtocolError("Expected the masked weights in the store; set up again")
        return Fixed.of(layout, party, _held(kit, layout, record, opened), weights=weights)

    return kit.plans.fixed(record.run, rows, make)


def _held(kit: AnyKit, layout: Layout, record: Record, body: bytes) -> Mapping[str, Held]:
    words = np.frombuffer(body, "<u8").astype(np.uint64, copy=False)
    found: dict[str, Held] = {}
    offset, seed = 0, model_seed(record.key, record.run)
    for place, (_, load) in enumerate(layout.model(Kind.OPEN)):
        count = int(np.prod(load.shape, dtype=np.int64))
        opened = words[offset : offset + count].reshape(load.shape)
        offset += count
        found[load.name] = Held(opened, model_mask_share(seed, place, load) if isinstance(kit, ModelKit) else None)
    for _, load in layout.model(Kind.SHARED):
        found[load.name] = Held(None, kit.model[load.name] if isinstance(kit, ModelKit) else None)
    return found
