"""A client's keys under its own roof and at the server: how long they are good, and the key for envelopes beside them.

    at the client   `Mine`        the secret key, dates, the key for envelopes: in its store, in no message
    on the wire     `Enrolment`   public keys, dates, the key for envelopes
    at the server   `Known`       dates and the key for envelopes, read before the public keys are

Clocks are the caller's: everything here takes `now` in seconds since 1970.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass

import msgspec

from confide.crypto.random import Randomness
from confide.errors import KeysExpired, ProtocolError
from confide.he.envelope import Channel
from confide.he.seal import Context, Evaluation, Needs, PublicKeys, SecretKey
from confide.he.seal_wire import WireForm, packed_keys
from confide.he.setup import MAX_KEYS_BYTES, Owned, is_key_id, known_path
from confide.wire import Store, decode, encode

KEY_BYTES = 32

#: How long keys are good unless the client says otherwise, and at most.
LIFETIME_SECONDS = 30 * 86400
LONGEST_SECONDS = 366 * 86400

#: How far the clocks of client and server may be apart.
SKEW_SECONDS = 300

_MOST_KNOWN_BYTES = 256
_MOST_CHANNELS = 1024


class Dates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when to when keys are good, in seconds since 1970, as their owner says.

    Args:
        created, expires: created < expires <= created + `LONGEST_SECONDS`.
    """

    created: int
    expires: int

    def current(self, now: float) -> bool:
        """Return True if keys of these dates are good at `now` by the clock of their owner."""
        return self.created - SKEW_SECONDS <= now < self.expires

    def check(self, now: float) -> None:
        """Refuse dates that are not of this time, by the clock of a server.

        Raises:
            ProtocolError: expired, not yet good, or good for too long.
        """
        if not 0 < self.expires - self.created <= LONGEST_SECONDS:
            raise ProtocolError(f"Expected keys that are good for at most {LONGEST_SECONDS // 86400} days")
        if not self.created - SKEW_SECONDS <= now < self.expires + SKEW_SECONDS:
            raise ProtocolError("Expected keys that are good now; check the clocks, or set up again")


class Enrolment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client uploads.

    Args:
        kit: SHA-256 of the client kit that the keys were made for; keys are numbers alone, and do not say.
        dates: of the keys.
        authentication: 32 random bytes for envelopes; the only secret in an upload, shared with the server.
        keys: public.
        form: of the keys: packed, or as SEAL writes them.
    """

    kit: bytes
    dates: Dates
    authentication: bytes
    keys: PublicKeys
    form: WireForm = "packed"

    def __repr__(self) -> str:
        return "Enrolment()"


class Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server reads before it reads the keys: small, so that a stranger's question costs it nothing."""

    dates: Dates
    authentication: bytes

    def __repr__(self) -> str:
        return "Known()"


# --- at the client ----------------------------------------------------------------------------------------------------


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client's keys in its own store, inside `Owned`."""

    dates: Dates
    authentication: bytes
    secret: bytes

    def __repr__(self) -> str:
        return "_Kept()"


@dataclass(frozen=True, slots=True)
class Mine:
    """A client's keys, ready for use.

    Args:
        key_id: of the public ones.
        dates: as they were uploaded.
        secret: never leaves.
        channel: for envelopes.
    """

    key_id: str
    dates: Dates
    secret: SecretKey
    channel: Channel

    def checked(self, now: float) -> Mine:
        """Return self if the keys are good at `now`. Raises KeysExpired if they are not."""
        if not self.dates.current(now):
            raise KeysExpired("Expected keys that have not expired; set up again")
        return self


def make(
    context: Context, needs: Needs, *, kit: bytes, now: float, lifetime_seconds: int, rng: Randomness
) -> tuple[bytes, bytes]:
    """Return fresh keys for a client kit: what the client's store keeps, and what is uploaded."""
    secret, public = context.generate(rng.bytes(16), needs)
    dates, authentication = Dates(created=int(now), expires=int(now) + lifetime_seconds), rng.bytes(KEY_BYTES)
    kept = _Kept(dates=dates, authentication=authentication, secret=secret.to_bytes())
    return encode(kept), encode(
        Enrolment(kit=hashlib.sha256(kit).digest(), dates=dates, authentication=authentication, keys=public)
    )


def current(owned: Owned, now: float) -> bool:
    """Return True if keys in a client's store are good at `now`."""
    return decode(owned.secret, _Kept, max_bytes=MAX_KEYS_BYTES).dates.current(now)


def mine(owned: Owned, context: Context, *, kit: bytes) -> Mine:
    """Return the keys in a client's store, parsed. Raises ProtocolError if they are not of these parameters."""
    kept = decode(owned.secret, _Kept, max_bytes=MAX_KEYS_BYTES)
    channel = Channel(kept.authentication, kit=kit, key_id=owned.key_id)
    return Mine(owned.key_id, kept.dates, context.secret(kept.secret), channel)


# --- at the server ----------------------------------------------------------------------------------------------------


def record(body: bytes, *, kit: bytes, now: float) -> bytes:
    """Return what a server keeps beside an upload. Raises ProtocolError unless it is of this time, for this kit."""
    enrolment = decode(body, Enrolment, max_bytes=MAX_KEYS_BYTES)
    if enrolment.kit != hashlib.sha256(kit).digest():
        raise ProtocolError("Expected keys for the model's kit; fetch the kit again and set up")
    enrolment.dates.check(now)
    if len(enrolment.authentication) != KEY_BYTES:
        raise ProtocolError(f"Expected {KEY_BYTES} bytes of authentication")
    return encode(Known(dates=enrolment.dates, authentication=enrolment.authentication))


def uploaded(body: bytes, context: Context, needs: Needs) -> PublicKeys:
    """Return the public keys in an upload, packed: those that came packed are not checked yet.

    Raises:
        ProtocolError: no upload, or keys in SEAL's form that are not the ones that are needed.
    """
    enrolment = decode(body, Enrolment, max_bytes=MAX_KEYS_BYTES)
    return packed_keys(enrolment.keys, context, needs) if enrolment.form == "seal" else enrolment.keys


def public_keys(body: bytes, context: Context, needs: Needs) -> Evaluation:
    """Return the public keys in an upload. Raises ProtocolError on anything but the keys that a plan needs."""
    return Evaluation(context, uploaded(body, context, needs), needs)


class Channels:
    """The channels to the owners of keys that are in a server's store; the keys themselves are not touched.

    What is derived from the key for envelopes is kept for the latest of them: HKDF and the hash of the kit take longer
    than a tag. What the store says counts, at every question; safe for threads.

    Args:
        backend: the registry name.
        kit: the client kit's bytes.
    """

    def __init__(self, backend: str, kit: bytes) -> None:
        self._backend = backend
        self._kit = kit
        self._kept: dict[str, tuple[bytes, Known, Channel]] = {}  # by key id; the latest stands last
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return "Channels()"

    def get(self, key_id: str, store: Store, *, now: float) -> Channel:
        """Return the channel to the owner of the keys called `key_id`.

        Raises:
            ProtocolError: no such keys, or expired ones.
        """
        body = store.get(known_path(self._backend, key_id)) if is_key_id(key_id) else None
        with self._lock:
            kept = self._kept.pop(key_id, None)
            if body is None:
                raise ProtocolError("Expected the id of keys that are here; set up first")
            if kept is None or kept[0] != body:
                known = decode(body, Known, max_bytes=_MOST_KNOWN_BYTES)
                kept = body, known, Channel(known.authentication, kit=self._kit, key_id=key_id)
            self._kept[key_id] = kept
            while len(self._kept) > _MOST_CHANNELS:
                del self._kept[next(iter(self._kept))]
        kept[1].dates.check(now)
        return kept[2]
