"""Set-up of an encrypted sum: the keyholder's keys reach the clients, who pin them; a tag secret reaches each in a box.

    client    -> server      secagg/identity   its Ed25519 identity        } the roster's own
    server    -> client      secagg/roster     the roster                  } set-up
    client    -> server      he/hello          its X25519 key, signed
    server    -> keyholder   he/hellos         the roster and everybody's keys
    keyholder -> server      he/enrolment      its public keys; for each client the tag secret in a box
    server    -> client      he/welcome        the keyholder's public keys, the client's box

The secret keys are in the keyholder's store and nowhere else. The tag secret decides what the keyholder opens and hides
nothing of a vector. Every client can open its own box, so it keeps the box as it came and opens it in each session.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from confide.cohort import roster
from confide.crypto.keys import (
    KEY_BYTES,
    SEAL_BYTES,
    SIGNATURE_BYTES,
    AgreementKey,
    check_agreement_key,
    derive,
    label,
    seal,
    unseal,
    verify,
)
from confide.crypto.random import Randomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.he.seal import Context, Evaluation, Needs, PublicKeys
from confide.he.sum_layout import RINGS
from confide.ideal import Cohort
from confide.wire import Message, Party, Step, Store, decode, encode

#: Where the keyholder keeps its secrets, where everybody keeps its public keys, where a client keeps its own.
SECRETS = "he/keyholder"
KEYS = "he/keys"
CLIENT_SEED = "he/client seed"
BOX = "he/box"

HELLO, HELLOS, ENROLMENT, WELCOME = "he/hello", "he/hellos", "he/enrolment", "he/welcome"

#: All that a sum needs: to encrypt under the public key.
NEEDS = Needs(encryption=True)

_KEYS_BYTES = 1024 + sum(16 * ring.degree + 512 for ring in RINGS)


_Kept = TypeVar("_Kept", bound=msgspec.Struct)


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keyholder's public keys; in a store under `KEYS` they are a pin.

    Args:
        agreement: X25519, for boxes.
        encryption: BFV, one for each of `RINGS`.
    """

    agreement: bytes
    encryption: tuple[PublicKeys, ...]

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of the keys, 32 bytes."""
        return hashlib.sha256(b"confide he keys v1\0" + encode(self)).digest()


class Secrets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the keyholder alone knows, in its store alone. No repr shows it.

    Args:
        agreement: the seed of its X25519 key.
        tag: the tag secret, which clients know too.
        decryption: BFV secret keys as SEAL writes them, one for each of `RINGS`.
    """

    agreement: bytes
    tag: bytes
    decryption: tuple[bytes, ...]

    def __repr__(self) -> str:
        return "Secrets()"


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's X25519 key, signed by its identity."""

    key: bytes
    signature: bytes


class Hellos(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The roster as it is written, and the keys of everybody in it."""

    roster: bytes
    hellos: dict[str, Hello]


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keyholder's public keys, and a box for each client."""

    keys: Keys
    boxes: dict[str, bytes]


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client gets of an enrolment."""

    keys: Keys
    box: bytes


def introduce(cohort: Cohort, store: Store) -> Party:
    """Return the server's set-up: collect identities and keys, show them to the keyholder, pass on what it answers.

    Raises:
        Aborted: a client sent no valid key; the text names it.
        ProtocolError: the store pins another roster or other keys.
    """
    yield from roster.register(cohort, store)
    listed = roster.pinned(store)
    received = yield Step(await_tag=HELLO, wait_for=cohort.clients)
    hellos: dict[str, Hello] = {}
    for name in cohort.clients:
        try:
            hellos[name] = decode(received[name].body, Hello, max_bytes=KEY_BYTES + SIGNATURE_BYTES + 64)
            _check_hello(listed, name, hellos[name])
        except ProtocolError:
            raise Aborted(f"Expected a signed agreement key from {name}; set that client up again") from None
    request = Message(cohort.server, cohort.helper, HELLOS, encode(Hellos(listed.encode(), hellos)))
    answered = yield Step(send=(request,), await_tag=ENROLMENT, wait_for=(cohort.helper,))
    limit = _KEYS_BYTES + _limit_bytes(cohort, KEY_BYTES + SEAL_BYTES)
    enrolment = decode(answered[cohort.helper].body, Enrolment, max_bytes=limit)
    if enrolment.boxes.keys() != set(cohort.clients):
        raise ProtocolError("Expected a box for each client from the keyholder")
    sent = {name: encode(Welcome(enrolment.keys, box)) for name, box in enrolment.boxes.items()}
    messages = tuple(Message(cohort.server, name, WELCOME, sent[name]) for name in cohort.clients)
    yield Step(send=messages, save=_pin(enrolment.keys, store))
    return fingerprint(listed, enrolment.keys)


def enrol_keyholder(cohort: Cohort, store: Store, rings: tuple[Context, ...], rng: Randomness) -> Party:
    """Return the keyholder's set-up: make keys on first use, pin the roster, box the tag secret for each client.

    Raises:
        ProtocolError: another roster is pinned, or a client's key is not signed by its identity.
    """
    received = yield Step(await_tag=HELLOS, wait_for=(cohort.server,))
    limit = 2 * _limit_bytes(cohort, KEY_BYTES + SIGNATURE_BYTES)
    hellos = decode(received[cohort.server].body, Hellos, max_bytes=limit)
    listed = decode(hellos.roster, roster.Roster, max_bytes=limit)
    if tuple(listed.keys()) != cohort.clients or store.get(roster.ROSTER) not in (None, listed.encode()):
        raise ProtocolError("Expected the pinned roster, or a first one of this cohort; compare fingerprints")
    if hellos.hellos.keys() != set(cohort.clients):
        raise ProtocolError("Expected a key of each client")
    saved, pin = store.get(SECRETS), store.get(KEYS)
    if saved is None or pin is None:
        secrets, keys = _draw(rings, rng)
    else:
        secrets, keys = decode(saved, Secrets, max_bytes=len(saved)), decode(pin, Keys, max_bytes=len(pin))
    agreement, boxes = AgreementKey(secrets.agreement), dict[str, bytes]()
    for name in cohort.clients:
        hello = hellos.hellos[name]
        _check_hello(listed, name, hello)
        info = _box_info(listed, keys, name, hello.key)
        # a box that is made again is the same: its key belongs to these keys and this roster, its content to them too
        boxes[name] = seal(derive(agreement.shared(hello.key), info), secrets.tag, associated=info)
    answer = Message(cohort.helper, cohort.server, ENROLMENT, encode(Enrolment(keys, boxes)))
    yield Step(send=(answer,), save={SECRETS: encode(secrets), KEYS: encode(keys), roster.ROSTER: listed.encode()})
    return fingerprint(listed, keys)


def enrol_client(me: str, cohort: Cohort, store: Store, rings: tuple[Context, ...], rng: Randomness) -> Party:
    """Return a client's set-up: enrol in the roster, pin the keyholder's keys, keep the box with the tag secret.

    Raises:
        ProtocolError: the keys are malformed or not the pinned ones, or the box does not open.
    """
    yield from roster.enrol(me, cohort, store, rng)
    listed = roster.pinned(store)
    seed = store.get(CLIENT_SEED) or rng.bytes(KEY_BYTES)
    own = AgreementKey(seed)
    signature = roster.identity(store).sign(_hello_text(listed, me, own.public))
    hello = Message(me, cohort.server, HELLO, encode(Hello(own.public, signature)))
    received = yield Step(send=(hello,), await_tag=WELCOME, wait_for=(cohort.server,), save={CLIENT_SEED: seed})
    welcome = decode(received[cohort.server].body, Welcome, max_bytes=_KEYS_BYTES + 256)
    check_keys(welcome.keys, rings)
    _open_box(listed, welcome.keys, me, own, welcome.box)
    yield Step(save=_pin(welcome.keys, store) | {BOX: welcome.box})
    return fingerprint(listed, welcome.keys)


def check_keys(keys: Keys, rings: tuple[Context, ...]) -> None:
    """Refuse public keys that no keyholder makes.

    Raises:
        ProtocolError: as said.
    """
    check_agreement_key(keys.agreement)
    if len(keys.encryption) != len(rings):
        raise ProtocolError(f"Expected {len(rings)} encryption keys of the keyholder")
    for ring, public in zip(rings, keys.encryption, strict=True):
        Evaluation(ring, public, NEEDS)


def pinned_keys(store: Store) -> Keys:
    """Return the keyholder's public keys in `store`. Raises UsageError if there are none."""
    return _pinned(store, KEYS, Keys)


def own_secrets(store: Store) -> Secrets:
    """Return the keyholder's secrets from its own store. Raises UsageError if there are none."""
    return _pinned(store, SECRETS, Secrets)


def tag_secret(me: str, listed: roster.Roster, keys: Keys, store: Store) -> bytes:
    """Return the tag secret from a client's box.

    Raises:
        UsageError: the store has no box.
        ProtocolError: the box does not belong to these keys.
    """
    seed, box = store.get(CLIENT_SEED), store.get(BOX)
    if seed is None or box is None:
        raise UsageError("Expected a box of the keyholder in the store; run the aggregator's setup first")
    return _open_box(listed, keys, me, AgreementKey(seed), box)


def fingerprint(listed: roster.Roster, keys: Keys) -> str:
    """Return what people compare: one hash of the roster and the keyholder's keys, in hex."""
    return hashlib.sha256(label("confide he setup v1", listed.digest, keys.digest)).hexdigest()


def _draw(rings: tuple[Context, ...], rng: Randomness) -> tuple[Secrets, Keys]:
    """Return fresh keys; SEAL draws its own from the operating system."""
    pairs = [ring.generate(rng.bytes(16), NEEDS) for ring in rings]
    secrets = Secrets(rng.bytes(KEY_BYTES), rng.bytes(KEY_BYTES), tuple(secret.to_bytes() for secret, _ in pairs))
    return secrets, Keys(AgreementKey(secrets.agreement).public, tuple(public for _, public in pairs))


def _pin(keys: Keys, store: Store) -> dict[str, bytes | None]:
    body, pin = encode(keys), store.get(KEYS)
    if pin not in (None, body):
        raise ProtocolError("Expected the keyholder's keys pinned in the store; ask it, then remove the old pin")
    return {KEYS: body}


def _pinned(store: Store, key: str, kind: type[_Kept]) -> _Kept:
    body = store.get(key)
    if body is None:
        raise UsageError("Expected the keyholder's keys in the store; run the aggregator's setup first")
    return decode(body, kind, max_bytes=len(body))


def _hello_text(listed: roster.Roster, name: str, key: bytes) -> bytes:
    return label("confide he hello v1", listed.digest, name, key)


def _check_hello(listed: roster.Roster, name: str, hello: Hello) -> None:
    check_agreement_key(hello.key)
    verify(listed.keys()[name], _hello_text(listed, name, hello.key), hello.signature)


def _box_info(listed: roster.Roster, keys: Keys, name: str, key: bytes) -> bytes:
    return label("confide he tag secret v1", listed.digest, keys.digest, name, key)


def _open_box(listed: roster.Roster, keys: Keys, me: str, own: AgreementKey, box: bytes) -> bytes:
    info = _box_info(listed, keys, me, own.public)
    return unseal(derive(own.shared(keys.agreement), info), box, associated=info)


def _limit_bytes(cohort: Cohort, per_client: int) -> int:
    return 128 + sum(len(name.encode()) + per_client + 64 for name in cohort.clients)
