"""What travels in a sum inside an enclave, and what all its parties agree on before the first message."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from confide.cohort import roster
from confide.cohort.collect import SMALLEST_SUM
from confide.cohort.journal import Journal
from confide.cohort.robust import fewest
from confide.crypto.keys import KEY_BYTES, SIGNATURE_BYTES, label, verify
from confide.crypto.ring import pack, unpack, word_dtype
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort, Session, Vector
from confide.tee.channel import PUBLIC_KEY_BYTES, REQUEST_BYTES
from confide.tee.evidence import MAX_BUNDLE_BYTES, NONCE_BYTES, Bundle
from confide.wire import Array, Store, decode

#: Where everybody keeps what the enclave has shown.
SHOWN = "tee/enclave"

NONCE, ASKED, EVIDENCE = "tee/nonce", "tee/asked", "tee/evidence"
UPLOAD, RESULT = "tee/upload", "tee/result"

#: What robust rules compute in: integers up to here are exact as float64.
_EXACT_BITS = 53


def relay_tag(count: int) -> str:
    """Return the tag under which the server passes the upload number `count` on, from 0."""
    return f"tee/relayed/{count}"


@dataclass(frozen=True, slots=True)
class Rule:
    """How vectors become one.

    Args:
        name: as `confide.cohort.robust.combine` knows it; "mean" is the exact sum.
        liars: how many of the vectors may be arbitrary; 0 of a mean.
    """

    name: str = "mean"
    liars: int = 0

    def __post_init__(self) -> None:
        if self.liars < 0 or (self.name == "mean" and self.liars):
            raise UsageError(f"Expected liars={self.liars} to be 0 or more, and 0 with a mean, which outvotes nobody")
        fewest(self.name, self.liars)

    @property
    def fewest(self) -> int:
        """Return how many vectors it needs to outvote the liars."""
        return fewest(self.name, self.liars)

    @property
    def exact(self) -> bool:
        """Return whether the result is the sum of the vectors."""
        return self.name == "mean"


class Nonce(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client draws, so that evidence is newer than it."""

    nonce: bytes


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the enclave is asked with: who the clients are, and their nonces by name."""

    roster: bytes
    nonces: dict[str, bytes]


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the enclave shows; public.

    Args:
        bundle: `Bundle`, encoded.
        signer: Ed25519 key that signs its results, bound into the evidence.
        nonces: of all clients, by name in the cohort's order; the evidence is over a hash of them.
    """

    bundle: bytes
    signer: bytes
    nonces: dict[str, bytes]


class Upload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a client sends: its vector, packed and sealed to the enclave; its signature over that."""

    sealed: bytes
    signature: bytes


class Relayed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An upload as the server passes it on, with whose it is; without a name: there are no more."""

    name: str = ""
    sealed: bytes = b""
    signature: bytes = b""


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the enclave lets out of one round.

    Args:
        values: int64, shape (length,).
        members: whose vectors are in it, in the cohort's order.
        refused: whose body did not open, or held no vector of this session.
        attempt: in which the vectors were taken: the session's own, or an earlier one of the same round.
        signature: of the enclave, over the session and the rest; none until it is sent.
    """

    values: Array
    members: tuple[str, ...]
    refused: tuple[str, ...]
    attempt: int
    signature: bytes = b""


def public_key_of(shown: Shown) -> bytes:
    """Return the key that the enclave's claims name. Raises ProtocolError if they are none, or it is none."""
    try:
        key = bytes.fromhex(Bundle.decode(shown.bundle).read_claims().public_key)
    except ValueError:
        key = b""
    if len(key) != PUBLIC_KEY_BYTES or len(shown.signer) != KEY_BYTES:
        raise ProtocolError("Expected the keys of an enclave in what it shows")
    return key


def joint_nonce(nonces: dict[str, bytes]) -> bytes:
    """Return the 32 bytes that the evidence is over: whoever knows its own nonce among them knows that it is new."""
    return hashlib.sha256(label("confide tee nonces v1", *(part for pair in nonces.items() for part in pair))).digest()


def checked_nonces(nonces: dict[str, bytes], cohort: Cohort) -> dict[str, bytes]:
    """Return the nonces. Raises ProtocolError unless there is one of every client, in the cohort's order."""
    if tuple(nonces) != cohort.clients or any(len(nonce) != NONCE_BYTES for nonce in nonces.values()):
        raise ProtocolError(f"Expected a nonce of {NONCE_BYTES} bytes of every client")
    return nonces


def agreed(cohort: Cohort, listed: roster.Roster, rule: Rule, signer: bytes) -> str:
    """Return what an enclave's claims name in place of a model: hex SHA-256 of what it shall do, and for whom."""
    parts = [cohort.server, cohort.helper, cohort.quorum, rule.name, rule.liars, listed.digest, signer]
    return hashlib.sha256(label("confide tee aggregate v1", *parts, *cohort.clients)).hexdigest()


def shown_bytes(cohort: Cohort) -> int:
    """Return the most bytes in what an enclave shows to a cohort."""
    return MAX_BUNDLE_BYTES + 256 + nonces_bytes(cohort)


def nonces_bytes(cohort: Cohort) -> int:
    """Return the most bytes of names with 32 bytes of each, twice: a roster and nonces."""
    return 128 + 2 * sum(len(name.encode()) + KEY_BYTES + 24 for name in cohort.clients)


class Terms:
    """A session with the pinned roster and the enclave's keys, and what follows from them without a message.

    Args:
        session: what is summed.
        store: with the roster and what the enclave has shown.
        rule: of the sum.

    Raises:
        UsageError: no set-up, strangers in the cohort, or values that the rule cannot compute with.
    """

    def __init__(self, session: Session, store: Store, rule: Rule) -> None:
        listed, pin = roster.pinned(store), store.get(SHOWN)
        if pin is None:
            raise UsageError("Expected an enclave's evidence in the store; run the aggregator's setup first")
        self.session, self.cohort, self.rule = session, session.cohort, rule
        self.identities = listed.keys()
        strangers = [name for name in self.cohort.clients if name not in self.identities]
        if strangers:
            raise UsageError(f"Expected clients of the pinned roster, not {', '.join(strangers)}; run setup with them")
        if not rule.exact and session.ring_bits > _EXACT_BITS:
            raise UsageError(
                f"Expected sums below 2^{_EXACT_BITS} for rule={rule.name!r}; lower the bound or the precision"
            )
        shown = decode(pin, Shown, max_bytes=len(pin))
        self.public_key = public_key_of(shown)
        self.signer = shown.signer
        self.context = hashlib.sha256(
            label(
                *("confide tee session v1", session.context, self.cohort.helper, listed.digest),
                *(rule.name, rule.liars, self.public_key, self.signer),
            )
        ).digest()
        self.about = hashlib.sha256(
            label(
                *("confide tee sum v1", replace(session, attempt=0).context, self.cohort.helper, listed.digest),
                *(rule.name, rule.liars),
            )
        ).digest()
        self.bits = max(1, (2 * session.bound).bit_length())
        word_dtype(self.bits)
        self.quorum = max(SMALLEST_SUM, self.cohort.quorum, rule.fewest)
        self.packed_bytes = (session.length * self.bits + 7) // 8

    def sealing(self, name: str) -> bytes:
        """Return what the box of the client `name` is bound to beside the enclave's key."""
        return label("aggregate", self.context, name)

    def signed(self, name: str, sealed: bytes) -> bytes:
        """Return what the client `name` signs."""
        return label("confide tee upload v1", self.context, name, sealed)

    def check(self, name: str, sealed: bytes, signature: bytes) -> None:
        """Check the form of an upload, and that the client `name` of the roster made it for this session.

        Raises:
            ProtocolError: it has another length, or the signature does not hold.
        """
        if len(sealed) != REQUEST_BYTES + self.packed_bytes:
            raise ProtocolError(f"Expected {self.packed_bytes} bytes, sealed")
        verify(self.identities[name], self.signed(name, sealed), signature)

    @property
    def upload_bytes(self) -> int:
        """Return the most bytes in an upload, or in one that is passed on."""
        names = max(len(name.encode()) for name in self.cohort.clients)
        return REQUEST_BYTES + self.packed_bytes + SIGNATURE_BYTES + names + 96

    @property
    def result_bytes(self) -> int:
        """Return the most bytes in a result."""
        names = sum(len(name.encode()) + 8 for name in self.cohort.clients)
        return 8 * self.session.length + SIGNATURE_BYTES + names + 192

    def pack(self, vector: Vector) -> bytes:
        """Return a vector that fits the session, packed."""
        return pack(vector.astype(word_dtype(self.bits)), self.bits)  # two's complement

    def unpack(self, packed: bytes) -> Vector:
        """Return the vector in `packed`.

        Raises:
            ProtocolError: it is none of this session.
        """
        words = unpack(packed, self.bits, self.session.length).astype(np.uint64)
        shift = np.uint64(64 - self.bits)
        values = (words << shift).view(np.int64) >> np.int64(shift)
        try:
            return self.session.checked(values)
        except UsageError as error:
            raise ProtocolError(str(error)) from None

    def released(self, result: Result) -> bytes:
        """Return what the enclave signs."""
        digest = hashlib.sha256(result.values.data).digest()
        names = label("members", *result.members) + label("refused", *result.refused)
        counts = (result.attempt, len(result.members), len(result.refused))
        return label("confide tee result v2", self.context, digest, *counts, names)

    def require(self, members: tuple[str, ...], where: str) -> None:
        """Check that a sum over `members` may be released.

        Raises:
            Aborted: too few.
        """
        if len(members) < self.quorum:
            raise Aborted(f"Expected vectors of at least {self.quorum} clients at the {where}, got {len(members)}")

    @property
    def journal(self) -> Journal:
        """Return this session's place in the journal of a client."""
        return Journal(f"tee/journal/{self.session.run}", self.session, self.context)
