"""What travels in a sum of two-server shares, and what all its parties agree on before the first message."""

from __future__ import annotations

import hashlib

import msgspec

from confide.cohort import roster
from confide.cohort.collect import SMALLEST_SUM
from confide.cohort.journal import Journal
from confide.cohort.parcel import Parcel, check_parcel, open_parcel, parcel_bytes, seal_parcel
from confide.crypto.keys import KEY_BYTES, AgreementKey, SigningKey, derive, label
from confide.crypto.masks import add_mask
from confide.crypto.random import Randomness
from confide.crypto.ring import Words, word_dtype
from confide.errors import Aborted, UsageError
from confide.ideal import Cohort, Session
from confide.secagg.norm_bound import NormBound
from confide.secagg.norm_check import Evidence, NormCheck, Opening
from confide.wire import Store, decode

#: Where the helper keeps the seed of its key, where everybody keeps the public half, and where the main server keeps
#: the secret that says where proofs are looked at.
HELPER_SEED = "shares/helper seed"
HELPER_KEY = "shares/helper key"
POINT_SEED = "shares/point seed"

UPLOAD, RECEIVED, MASKS = "shares/upload", "shares/received", "shares/masks"

PARCEL_BYTES = parcel_bytes(KEY_BYTES)


class HelperKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The helper's public X25519 key; in a store under `HELPER_KEY` it is a pin."""

    key: bytes


class Upload(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """All that a client sends: the helper's share, sealed; the main server's, packed; with a norm bound, evidence."""

    parcel: Parcel
    words: bytes
    evidence: Evidence | None = None


class Received(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Whose words the main server holds, with their parcels; with a norm bound its half of the checks and the point."""

    parcels: dict[str, Parcel]
    openings: dict[str, Opening] = {}
    point: bytes = b""


class Masks(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The set that both servers have, the sum of its masks, packed, and who did not pass the check of the norm."""

    names: tuple[str, ...]
    words: bytes
    failed: tuple[str, ...] = ()


def journal_key(run: str) -> str:
    """Return where clients and helper keep the journal of `run`."""
    return f"shares/journal/{run}"


def limit_bytes(cohort: Cohort, per_client: int) -> int:
    """Return the most bytes that a body with `per_client` bytes for each client of the cohort may have."""
    return 64 + sum(len(name.encode()) + per_client + 32 for name in cohort.clients)


class Terms:
    """A session with the pinned keys, and what follows from them without a message.

    Args:
        session: what is summed.
        store: with the roster and the helper's key.
        bound: of every client's norm, or None.

    Raises:
        UsageError: no set-up, strangers in the cohort, or a ring that does not fit the words, the bound or the field.
    """

    def __init__(self, session: Session, store: Store, bound: NormBound | None = None) -> None:
        listed, pin = roster.pinned(store), store.get(HELPER_KEY)
        if pin is None:
            raise UsageError("Expected the helper's key in the store; run the aggregator's setup first")
        self.session, self.cohort = session, session.cohort
        self.identities, self.helper_key = listed.keys(), decode(pin, HelperKey, max_bytes=len(pin)).key
        strangers = [name for name in self.cohort.clients if name not in self.identities]
        if strangers:
            raise UsageError(f"Expected clients of the pinned roster, not {', '.join(strangers)}; run setup with them")
        self.bits = max(1, session.ring_bits, bound.ring_bits if bound else 0)
        self.dtype = word_dtype(self.bits)
        agreed = label("confide shares v1", session.context, self.cohort.helper, listed.digest, self.helper_key)
        if bound is not None:
            agreed += label("norm", bound.norm, bound.rows, bound.excess_percent, bound.ratio_percent)
        self.context = hashlib.sha256(agreed).digest()
        self.quorum = max(SMALLEST_SUM, self.cohort.quorum)
        self.norm = None if bound is None else NormCheck(self.context, bound, self.bits)
        self.words_bytes = (session.length * self.bits + 7) // 8

    def seal_seed(
        self, name: str, seed: bytes, identity: SigningKey, rng: Randomness, *, signed: bytes = b""
    ) -> Parcel:
        """Return `seed` of the client `name` in a box that only the helper opens, for this session alone.

        Args:
            signed: what the signature is to cover beside the parcel.
        """
        return seal_parcel(
            seed, self.helper_key, context=self.context, sender=name, identity=identity, rng=rng, signed=signed
        )

    def check(self, name: str, parcel: Parcel, *, signed: bytes = b"") -> None:
        """Check form and signature of a parcel of `name`; `signed` as in `seal_seed`.

        Raises:
            ProtocolError: the holder of the pinned identity did not make it for this session.
        """
        identity = self.identities[name]
        check_parcel(
            parcel, secret_bytes=KEY_BYTES, context=self.context, sender=name, identity=identity, signed=signed
        )

    def open_seed(self, name: str, parcel: Parcel, key: AgreementKey, *, signed: bytes = b"") -> bytes:
        """Return the seed in a parcel of `name`; the helper's.

        Raises:
            ProtocolError: as `check`, or the box does not open.
        """
        self.check(name, parcel, signed=signed)
        return open_parcel(parcel, key, context=self.context, sender=name)

    def add_share(self, words: Words, name: str, seed: bytes, *, negate: bool = False) -> None:
        """Add PRG(seed), the helper's share of the client `name`, or take it away."""
        add_mask(words, derive(seed, label(self.context, "share", name)), negate=negate)

    def require(self, names: tuple[str, ...], where: str) -> None:
        """Check that a sum over `names` may be released; each server does so by itself.

        Raises:
            Aborted: too few.
        """
        if len(names) < self.quorum:
            raise Aborted(f"Expected shares of at least {self.quorum} clients at the {where}, got {len(names)}")

    @property
    def journal(self) -> Journal:
        """Return this session's place in the journal of a client or the helper."""
        return Journal(journal_key(self.session.run), self.session, self.context)
