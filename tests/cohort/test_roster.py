"""Identities and the pinned roster."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.cohort.roster import IDENTITY, ROSTER, identity, pinned
from confide.crypto.random import SeededRandomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort
from confide.secagg import Masked, Roster
from confide.wire import Fault, MemoryStore, Transcript, alter, decode, drop, encode, run

COHORT = Cohort(("a", "b", "c"), quorum=2)


class Parties:
    """Stores and randomness of everybody; `setup` runs the exchange."""

    def __init__(self) -> None:
        self.stores = {name: MemoryStore() for name in ("server", *COHORT.clients)}

    def setup(self, fault: Fault | None = None, cohort: Cohort = COHORT) -> Transcript:
        roles = {"server": "server"} | dict.fromkeys(cohort.clients, "client")
        parties = {
            name: Masked().setup(role, name, cohort, self.stores[name], SeededRandomness(name))
            for name, role in roles.items()
        }
        return run(parties, stores=self.stores, fault=fault)


def test_everybody_pins_the_same_roster_and_sees_one_fingerprint() -> None:
    parties = Parties()
    done = parties.setup()
    rosters = [pinned(store) for store in parties.stores.values()]
    assert len({roster.encode() for roster in rosters}) == 1
    assert set(done.outputs.values()) == {rosters[0].fingerprint}
    expected = hashlib.sha256(b"confide roster v1\0" + rosters[0].encode()).hexdigest()
    assert rosters[0].fingerprint == expected
    assert rosters[0].indices() == {"a": 1, "b": 2, "c": 3}


def test_the_roster_shows_the_public_half_of_each_stored_identity() -> None:
    parties = Parties()
    parties.setup()
    for name in COHORT.clients:
        seed = parties.stores[name].get(IDENTITY)
        assert seed is not None
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        assert pinned(parties.stores["server"]).keys()[name] == public == identity(parties.stores[name]).public
    assert parties.stores["server"].get(IDENTITY) is None


def test_a_second_set_up_keeps_identities_and_roster() -> None:
    parties = Parties()
    first = parties.setup().outputs
    assert parties.setup().outputs == first


def test_a_roster_put_into_the_store_beforehand_is_honoured() -> None:
    parties, elsewhere = Parties(), Parties()
    elsewhere.setup()
    genuine = pinned(elsewhere.stores["server"])
    parties.stores["a"].commit({ROSTER: genuine.encode()})
    assert not parties.setup().failures  # the same seeds give the same identities
    assert pinned(parties.stores["a"]) == genuine


@pytest.mark.parametrize("who", ["a", "server"])
def test_a_roster_that_differs_from_the_pinned_one_is_refused_and_the_pin_stays(who: str) -> None:
    parties = Parties()
    other = Roster((("a", bytes(32)), ("b", b"\1" * 32), ("c", b"\2" * 32)))
    parties.stores[who].commit({ROSTER: other.encode()})
    done = parties.setup()
    assert isinstance(done.failures[who], ProtocolError)
    assert "compare fingerprints" in str(done.failures[who])
    assert pinned(parties.stores[who]) == other
    assert all(parties.stores[name].get(ROSTER) is None for name in COHORT.clients if who == "server")


def test_a_new_cohort_needs_a_new_pin() -> None:
    parties = Parties()
    parties.setup()
    done = parties.setup(cohort=Cohort(("a", "b"), 2))
    assert set(done.failures) == {"server", "a", "b"}


@pytest.mark.parametrize(
    "lie",
    [
        lambda members: members[:2],
        lambda members: (*members, ("d", b"\3" * 32)),
        lambda members: (members[1], members[0], members[2]),
        lambda members: (("a", b"\3" * 32), *members[1:]),
        lambda members: (members[0], ("b", members[0][1]), members[2]),
        lambda members: (members[0], ("b", b"short"), members[2]),
        lambda members: (members[0], members[0], members[2]),
    ],
)
def test_a_roster_that_is_not_this_cohort_s_is_refused(lie: Callable[[Any], Any]) -> None:
    def change(body: bytes) -> bytes:
        return msgspec.msgpack.encode({"members": lie(decode(body, Roster, max_bytes=1000).members)})

    parties = Parties()
    done = parties.setup(alter(change, dst="a"))
    assert isinstance(done.failures["a"], ProtocolError)
    assert parties.stores["a"].get(ROSTER) is None
    assert "b" in done.outputs


def test_a_swapped_key_of_somebody_else_is_what_first_use_cannot_see_and_fingerprints_can() -> None:
    """The gap that the guarantee names: compare fingerprints, or put the roster into the store beforehand."""

    def change(body: bytes) -> bytes:
        members = decode(body, Roster, max_bytes=1000).members
        return encode(Roster((*members[:2], ("c", b"\3" * 32))))

    done = Parties().setup(alter(change, dst="a"))
    assert not done.failures
    assert done.output("a") != done.output("b")


@pytest.mark.parametrize("body", [b"", b"garbage", encode(Roster(())), bytes(5000)])
def test_a_client_without_a_proper_key_is_named(body: bytes) -> None:
    done = Parties().setup(alter(lambda _: body, src="b"))
    with pytest.raises(Aborted, match="from b; set that client up again"):
        done.output("server")


def test_two_clients_with_one_identity_are_named() -> None:
    parties = Parties()
    for name in ("a", "c"):
        parties.stores[name].commit({IDENTITY: bytes(32)})
    with pytest.raises(Aborted, match="from c;"):
        parties.setup().output("server")


def test_set_up_needs_everybody() -> None:
    done = Parties().setup(drop(src="b"))
    assert set(done.failures) == {"server", "a", "b", "c"}


def test_a_store_without_set_up_has_neither_identity_nor_roster() -> None:
    for read in (pinned, identity):
        with pytest.raises(UsageError, match="run the aggregator's setup first"):
            read(MemoryStore())


def test_a_roster_of_repeats_cannot_be_made() -> None:
    for members in ((("a", bytes(32)), ("a", b"\1" * 32)), (("a", bytes(32)), ("b", bytes(32))), (("a", b""),)):
        with pytest.raises(ValueError, match="different names and different keys"):
            Roster(members)
