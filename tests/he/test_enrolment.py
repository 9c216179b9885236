"""Keys: how long they are good on both sides, what never travels, that secrets are what the security table is for."""

import inspect
import typing

import msgspec
import numpy as np
import pytest

import confide.he.enrolment
import confide.he.envelope
import confide.he.kits
import confide.he.replies
import confide.he.setup
from confide.errors import KeysExpired, ProtocolError, UsageError
from confide.he import Homomorphic
from confide.he.enrolment import LONGEST_SECONDS, SKEW_SECONDS, Dates, Enrolment
from confide.he.envelope import SealedQuery, SealedReply
from confide.he.parameters import Parameters
from confide.he.replies import LinearReply, NetworkReply, Query
from confide.he.seal import Context, Needs, PublicKeys, SecretKey, ntt_primes
from confide.he.seal_wire import SealReply
from confide.he.setup import KeyId, Owned
from confide.wire import alter, decode, encode
from he.oracle import Pair, corners, logistic, ternary_secret

GRAPH, DAY = logistic(1, 4), 86400


class Clock:
    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        return self.now


def pair_at(clock: Clock, **settings) -> Pair:
    return Pair(Homomorphic(clock=clock, key_lifetime_seconds=10 * DAY, **settings), GRAPH)


def test_a_client_does_not_ask_with_old_keys_and_makes_new_ones():
    clock = Clock()
    pair = pair_at(clock)
    first = pair.setup().output("client")
    clock.now += 10 * DAY - 1
    assert pair.setup().output("client") == first
    assert pair.predict(corners(1, 4)).output("client").shape == (1, 1)
    clock.now += 1
    with pytest.raises(KeysExpired):
        pair.predict(corners(1, 4))
    second = pair.setup().output("client")
    assert second != first
    assert pair.predict(corners(1, 4)).output("client").shape == (1, 1)


def test_a_server_does_not_answer_old_keys():
    clock = Clock()
    pair = pair_at(clock)
    pair.setup()
    pair.predict(corners(1, 4)).output("client")  # the kit has parsed them
    lax = Homomorphic(clock=lambda: 1.7e9)
    for late, refused in ((SKEW_SECONDS - 1, False), (SKEW_SECONDS, True)):
        server, client = Clock(), pair.backend
        server.now += 10 * DAY + late
        pair.backend = _Split(lax, Homomorphic(clock=server))
        failures = pair.predict(corners(1, 4)).failures
        assert isinstance(failures.get("server"), ProtocolError) is refused
        pair.backend = client


class _Split:
    """A client and a server whose clocks differ."""

    def __init__(self, client, server) -> None:
        self.of = {"client": client, "server": server}

    def predict(self, role, *rest):
        return self.of[role].predict(role, *rest)


@pytest.mark.parametrize(
    ("created", "expires"),
    [
        (-20 * DAY, -10 * DAY),
        (-20 * DAY, -SKEW_SECONDS),
        (SKEW_SECONDS + 1, DAY),
        (0, 0),
        (0, -1),
        (0, LONGEST_SECONDS + 1),
        (-(1 << 62), 1 << 61),
    ],
)
def test_a_server_takes_keys_of_this_time_only(created, expires):
    pair = pair_at(Clock())

    def other(body: bytes) -> bytes:
        dates = Dates(created=1_700_000_000 + created, expires=1_700_000_000 + expires)
        return encode(msgspec.structs.replace(decode(body, Enrolment, max_bytes=1 << 28), dates=dates))

    assert isinstance(pair.setup(fault=alter(other, tag="he/keys")).failures["server"], ProtocolError)
    assert not pair.stores["server"].keys()


def test_the_control_the_same_upload_with_dates_of_this_time():
    pair = pair_at(Clock())

    def other(body: bytes) -> bytes:
        dates = Dates(created=1_700_000_000 + SKEW_SECONDS, expires=1_700_000_000 + DAY)
        return encode(msgspec.structs.replace(decode(body, Enrolment, max_bytes=1 << 28), dates=dates))

    assert "server" not in pair.setup(fault=alter(other, tag="he/keys")).failures


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_for_envelopes_have_a_size(size):
    pair = pair_at(Clock())

    def other(body: bytes) -> bytes:
        return encode(msgspec.structs.replace(decode(body, Enrolment, max_bytes=1 << 28), authentication=bytes(size)))

    assert isinstance(pair.setup(fault=alter(other, tag="he/keys")).failures["server"], ProtocolError)


@pytest.mark.parametrize("seconds", [0, -1, LONGEST_SECONDS + 1])
def test_lifetimes_are_checked(seconds):
    with pytest.raises(UsageError):
        Homomorphic(key_lifetime_seconds=seconds)


# --- what never travels -----------------------------------------------------------------------------------------------

MESSAGES = (Enrolment, KeyId, SealedQuery, SealedReply, Query, LinearReply, NetworkReply, SealReply, PublicKeys)
STORED = {"Owned", "_Kept", "Known", "Dates", "_Public", "_Rows"}  # a store's, parts of others, the public kit


def structs(*modules) -> set[type]:
    found = {item for module in modules for _, item in inspect.getmembers(module, inspect.isclass)}
    return {item for item in found if issubclass(item, msgspec.Struct) and item.__module__.startswith("confide.he")}


def reached(kind: object, seen: set) -> set:
    """Every type that a value of `kind` can hold."""
    if kind in seen:
        return seen
    seen.add(kind)
    for part in typing.get_args(kind):
        reached(part, seen)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for hint in typing.get_type_hints(kind, include_extras=True).values():
            reached(hint, seen)
    return seen


def test_no_message_can_hold_a_secret_key():
    for message in MESSAGES:
        inside = reached(message, set())
        assert not {SecretKey, Owned, confide.he.enrolment._Kept} & inside
        plain = {part for part in inside if isinstance(part, type) and not issubclass(part, msgspec.Struct)}
        assert plain <= {bytes, str, int, tuple}


def test_the_messages_above_are_all_there_are():
    names = {
        kind.__name__
        for kind in structs(
            confide.he.kits, confide.he.replies, confide.he.enrolment, confide.he.envelope, confide.he.setup
        )
    }
    plans = {"LinearPlan", "NetworkPlan", "TreesPlan", "BatchPlan", "Parameters", "Needs", "FixedPoint", "Blocks"}
    assert names - plans <= {kind.__name__ for kind in MESSAGES} | STORED


def test_a_secret_key_has_no_wire_form():
    context = Context(Parameters(scheme="ckks", degree=2048, primes=ntt_primes(2048, (54,))))
    secret, _ = context.generate(bytes(16), Needs())
    for value in (secret, [secret], Query((secret,))):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            encode(value)  # type: ignore[arg-type]


def test_secrets_are_uniform_ternary_not_sparse():
    """The table is for these: a third each of -1, 0 and 1, within six standard deviations."""
    context = Context(Parameters(scheme="bfv", degree=4096, primes=ntt_primes(4096, (54, 55)), plain_modulus=257))
    secrets = [ternary_secret(context, context.generate(bytes(16), Needs())[0]) for _ in range(2)]
    assert secrets[0] != secrets[1]
    for secret in secrets:
        values, counts = np.unique(secret, return_counts=True)
        assert values.tolist() == [-1, 0, 1]
        assert (np.abs(counts - 4096 / 3) < 6 * np.sqrt(4096 * 2 / 9)).all()
