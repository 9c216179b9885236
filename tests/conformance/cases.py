"""What every aggregator is tried on: a small federation, faults, crashes. No test lives here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from scipy import stats

from confide.crypto.random import SeededRandomness, public_stream
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.tee.aggregate import Tee
from confide.tee.aggregate_enclave import Released
from confide.wire import Fault, MemoryStore, Message, Party, Step, Transcript, run


class RecordingStore(MemoryStore):
    """A store that remembers the secrets of everything ever committed to it."""

    def __init__(self) -> None:
        super().__init__()
        self._ever: set[bytes] = set()

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        super().commit(changes)
        for value in changes.values():
            self._ever |= set(leaves(value or b""))

    def secrets(self) -> set[bytes]:
        """Return every run of 16 bytes in any byte string that was ever kept, apart from what `leaves` passes over."""
        return set[bytes]().union(*map(windows, self._ever))


def leaves(value: object) -> Iterator[bytes]:
    """Yield the byte strings inside nested MessagePack, without those under "context", "keys" and "links".

    The first two are public digests. A link is what one pair shares by design; the tests of the amortised sum show that
    each has its own.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("context", "keys", "links"):
                yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, bytes):
        try:
            inner = msgspec.msgpack.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            inner = None
        yield from leaves(inner) if isinstance(inner, dict | list) else (value,)


def windows(data: bytes, width: int = 16) -> set[bytes]:
    """Return every run of `width` bytes in `data`."""
    return {data[start : start + width] for start in range(len(data) - width + 1)}


def as_started_again(aggregator: Aggregator) -> Aggregator:
    """Return the aggregator as new processes have it: the memory of an enclave is empty, as every run here is "run"."""
    if not isinstance(aggregator, Tee):
        return aggregator
    fresh = copy(aggregator)
    fresh._inside, fresh._enclaves = {}, replace(aggregator._enclaves, released=Released())
    return fresh


@dataclass
class Federation:
    """Parties with stores that have been through set-up; repeatable from `seed`.

    Args:
        aggregator: under test.
        clients, quorum: of the cohort.
        seed: of every party's randomness, each its own stream.
    """

    aggregator: Aggregator
    clients: int = 4
    quorum: int = 3
    seed: str = "conformance"
    stores: dict[str, RecordingStore] = field(init=False)
    setup: Transcript = field(init=False)

    def __post_init__(self) -> None:
        self.aggregator = as_started_again(self.aggregator)
        self.cohort = Cohort(tuple(f"silo-{index}" for index in range(self.clients)), self.quorum)
        self.roles = self.cohort.parties(self.aggregator.roles)
        self.stores = {name: RecordingStore() for name in self.roles}
        self.rngs = {name: SeededRandomness(f"{self.seed}/{name}") for name in self.roles}
        parties = {
            name: self.aggregator.setup(role, name, self.cohort, self.stores[name], self.rngs[name])
            for name, role in self.roles.items()
        }
        self.setup = run(parties, stores=self.stores)
        for name in self.roles:
            self.setup.output(name)

    def session(self, number: int = 1, *, length: int = 12, bound: int = 1000, attempt: int = 0) -> Session:
        return Session("run", number, self.cohort, length, bound, attempt, model_hash=bytes(32))

    def vectors(self, session: Session) -> dict[str, Vector]:
        rng = public_stream(session.round, "vectors")
        draw = {name: rng.integers(-session.bound, session.bound + 1, session.length) for name in self.cohort.clients}
        return {name: vector.astype(np.int64) for name, vector in draw.items()}

    def party(self, name: str, session: Session, vectors: Mapping[str, Vector]) -> Party:
        return self.aggregator.party(
            self.roles[name], name, session, vectors.get(name), self.stores[name], self.rngs[name]
        )

    def parties(self, session: Session, vectors: Mapping[str, Vector]) -> dict[str, Party]:
        return {name: self.party(name, session, vectors) for name in self.roles}

    def sum(self, session: Session, vectors: Mapping[str, Vector], fault: Fault | None = None) -> Transcript:
        return run(self.parties(session, vectors), stores=self.stores, fault=fault)

    def client_tags(self) -> list[str]:
        """Return the tags that a client sends in a sum, in order."""
        fresh = Federation(self.aggregator, self.clients, self.quorum, f"{self.seed}/tags")
        session = fresh.session()
        return tags_of(fresh.sum(session, fresh.vectors(session)), self.cohort.clients[0])


def tags_of(transcript: Transcript, name: str) -> list[str]:
    return list(dict.fromkeys(message.tag for message in transcript.messages if message.src == name))


def assert_is_sum(sums: Sums, aggregator: Aggregator, vectors: Mapping[str, Vector]) -> frozenset[str]:
    """Check that each row is the ideal sum over the members that it names, and return all of them."""
    everybody: frozenset[str] = frozenset()
    for row, members in zip(sums.values, sums.members, strict=True):
        ideal = np.sum([vectors[name] for name in members], axis=0)
        np.testing.assert_array_equal(row, ideal)
        assert not everybody & members
        everybody |= members
    assert sums.values.dtype == np.int64
    return everybody


def crashing(build: Callable[[], Party], at: int, *, sent: bool) -> Generator[Step, Mapping[str, Message], object]:
    """Play the party that `build` makes, kill it at its step number `at`, and build it again from its store.

    Args:
        sent: True kills it after the messages of that step have left, else between the commit and the sending.
    """
    party, count = build(), 0
    step = next(party)
    while True:
        crash = count == at
        received = yield (Step(save=step.save) if crash and not sent else step)
        count += 1
        try:
            if crash:
                awaited = step.await_tag if sent and step.wait_for else ""
                party = build()
                step = next(party)
                if not received or step.await_tag != awaited:
                    continue
                if step.send:  # the network delivers again what was not acknowledged
                    yield Step(send=step.send, save=step.save)
            step = party.send(received)
        except StopIteration as stop:
            return stop.value


def bytes_are_uniform(body: bytes) -> bool:
    """Chi-square of the bytes, 255 degrees of freedom, two-sided; a false alarm has probability 2e-6."""
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=255)
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    return bool(low < stats.chisquare(counts).statistic < high)


def largest_body(transcript: Transcript, name: str) -> bytes:
    """Return the largest body that `name` sent: the one that carries its vector."""
    return max((message.body for message in transcript.messages if message.src == name), key=len)
