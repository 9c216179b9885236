"""What the tests of the amortised sum share: federations, set-ups, lies. No test lives here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec
import numpy as np

from confide.cohort.roster import pinned
from confide.crypto.random import SeededRandomness
from confide.crypto.ring import unpack
from confide.ideal import Cohort, Session
from confide.secagg import Amortised, MaskedSums, amortised_keys
from confide.secagg.amortised_keys import PEERS, KeyBook, PublicKeys
from confide.secagg.amortised_terms import VECTOR, AmortisedTerms, Upload
from confide.wire import Fault, MemoryStore, Message, Transcript, alter, decode, encode, run
from conformance.cases import Federation, assert_is_sum

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def federation(
    clients: int = 4, quorum: int = 3, *, rounds_per_epoch: int = 32, epochs: int = 3, hybrid: bool = True
) -> Federation:
    aggregator = Amortised(rounds_per_epoch=rounds_per_epoch, epochs=epochs, hybrid=hybrid, unsafe_quorum=True)
    return Federation(aggregator, clients, quorum)


def opened(body: bytes, kind: type[_Struct]) -> _Struct:
    return decode(body, kind, max_bytes=1 << 30)


def tamper(kind: type[_Struct], change: Callable[[_Struct], _Struct], *, tag: str, src: str, dst: str) -> Fault:
    return alter(lambda body: encode(change(opened(body, kind))), src=src, dst=dst, tag=tag)


def all_of(faults: Iterable[Fault]) -> Fault:
    """Deliver what all of them let pass."""
    every = list(faults)

    def fault(message: Message) -> list[tuple[int, Message]]:
        kept = [list(one(message)) for one in every]  # each must see every message
        return [(0, message)] if all(kept) else []

    return fault


def sums(parties: Federation, fault: Fault | None = None, number: int = 1) -> tuple[MaskedSums, Transcript]:
    session = parties.session(number)
    vectors = parties.vectors(session)
    done = parties.sum(session, vectors, fault)
    output: MaskedSums = done.output("server")
    assert_is_sum(output, parties.aggregator, vectors)
    return output, done


def terms(parties: Federation, session: Session, epoch: int = 0) -> AmortisedTerms:
    digest = amortised_keys.book(parties.stores["server"]).digest
    return AmortisedTerms(session, pinned(parties.stores["server"]), digest, epoch)


def upload_of(done: Transcript, name: str, session: Session) -> np.ndarray:
    body = next(m.body for m in done.messages if (m.src, m.tag) == (name, VECTOR))
    return unpack(opened(body, Upload).words, 32, session.length).copy()


def wide(parties: Federation, number: int, **fields: int) -> Session:
    return parties.session(number, length=30_000, bound=(2**32 - 1) // (2 * parties.clients), **fields)


def zeros(parties: Federation, session: Session, fault: Fault | None = None) -> Transcript:
    return parties.sum(session, dict.fromkeys(parties.cohort.clients, np.zeros(session.length, np.int64)), fault)


def book_lie(change: Callable[[dict[str, PublicKeys]], dict[str, PublicKeys]]) -> Fault:
    return tamper(KeyBook, lambda body: KeyBook(change(body.members)), tag=PEERS, src="server", dst="silo-0")


def set_up(
    fault: Fault | None = None, *, hybrid: bool = True, others: Mapping[str, bool] | None = None
) -> tuple[Transcript, dict[str, MemoryStore]]:
    """Set up three clients, each with `hybrid` unless `others` say otherwise."""
    cohort = Cohort(("silo-0", "silo-1", "silo-2"), 2)
    roles = {"server": "server"} | dict.fromkeys(cohort.clients, "client")
    stores = {name: MemoryStore() for name in roles}
    kinds = {me: Amortised(epochs=2, hybrid=(others or {}).get(me, hybrid), unsafe_quorum=True) for me in roles}
    parties = {me: kinds[me].setup(role, me, cohort, stores[me], SeededRandomness(me)) for me, role in roles.items()}
    return run(parties, stores=stores, fault=fault), stores
