"""A broker of keys: the key of a sealed model goes to code that the policy names, and to nobody else.

    server                                              broker
    challenge                                    ->
                                                 <-     nonce, 32 bytes, good once and for a minute
    id of the key, bundle: evidence over claims with
    the nonce, a key of this moment, the model   ->
                                                        verify under the policy; write the audit line to the disk
                                                 <-     the file's key, sealed to the key in the claims

The broker verifies by itself, with the verifier that clients use. It holds no session: nonce, evidence and key are of
one request, so there is no token to steal.

Paper: RFC 9334 (background-check model with the relying party as its own verifier). The flow is that of the Key Broker
Service of Confidential Containers (request, challenge, attestation, response); docs/broker.md has the differences.

Guarantees:
    A key leaves only after evidence over an unused nonce of this broker held under the policy, for the purpose "unseal"
    and the model that was sealed under this key, and after a line about it is on the disk.
    What leaves opens only with the private half of the key in that evidence.
    A refusal names one check; neither it nor a line of the audit has a byte of a key.

Leaks: to whoever asks, which ids of keys are there (they stand in the sealed files) and which check fails. To the
broker's operator everything: the keys are the operator's.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from confide.crypto.keys import KEY_BYTES
from confide.crypto.random import Randomness
from confide.errors import AttestationError, IntegrityError, ProtocolError, UsageError
from confide.tee.channel import context_of, seal
from confide.tee.evidence import NONCE_BYTES, Bundle, Provider
from confide.tee.policy import Policy
from confide.tee.sealed import FileKey, Head
from confide.tee.verify import Verdict, verify
from confide.wire import Store, decode

#: What the key that a server shows to a broker is for.
PURPOSE = "unseal"

NONCE_SECONDS = 60
#: Beyond that the oldest leaves. A flood of challenges must bring as many within the moment between an honest server's
#: two requests to make it ask again; refusing new ones instead would let a few shut everybody out for a minute.
MOST_NONCES = 1 << 16

_ID = re.compile(r"[0-9a-f]{64}")
_ENTRIES = "sealed/"
_ENTRY_BYTES = 1 << 12
_DETAIL_LETTERS = 256
_CODE = ("measurement", "signer")


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    secret: bytes
    model: str
    graph_sha256: str
    made: str

    def __repr__(self) -> str:
        return f"_Entry({self.model}, secret)"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key of a broker: which file it opens, of which model, since when (UTC)."""

    key: FileKey
    model: str
    graph_sha256: str
    made: str


class BrokerKeys:
    """The keys of sealed models in a store.

    Args:
        store: durable; encrypt it (`confide.store.sealed`).
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, key: FileKey, head: Head, *, now: float) -> None:
        """Keep the key of a file with this head. Raises StoreError if it is not kept."""
        made = _utc(now)
        entry = _Entry(secret=key.secret, model=head.model, graph_sha256=head.graph_sha256, made=made)
        self._store.commit({_ENTRIES + key.key_id: msgspec.msgpack.encode(entry)})

    def forget(self, key_id: str) -> None:
        """Delete a key: what it opens is opened by nobody any more."""
        self._store.commit({_ENTRIES + key_id: None})

    def find(self, key_id: str) -> KeyEntry | None:
        """Return a key, None if there is none by that name. Raises IntegrityError if the store was changed."""
        saved = self._store.get(_ENTRIES + key_id) if _ID.fullmatch(key_id) else None
        if saved is None:
            return None
        damaged = IntegrityError("Expected the broker's keys as they were written; restore the file from a backup")
        try:
            entry = decode(saved, _Entry, max_bytes=_ENTRY_BYTES)
        except ProtocolError:
            raise damaged from None
        key = FileKey(entry.secret)
        if len(entry.secret) != KEY_BYTES or key.key_id != key_id:
            raise damaged
        return KeyEntry(key, entry.model, entry.graph_sha256, entry.made)

    def ids(self) -> list[str]:
        """Return the names of all keys."""
        return [key.removeprefix(_ENTRIES) for key in self._store.keys(_ENTRIES)]


class Nonces:
    """Nonces that are out: each good once, for `NONCE_SECONDS`. Safe for threads.

    Args:
        rng: draws them.
        ticks: seconds that only grow.
        most: how many are out at one time; beyond that the oldest are forgotten.
    """

    def __init__(
        self, rng: Randomness, *, ticks: Callable[[], float] = time.monotonic, most: int = MOST_NONCES
    ) -> None:
        self._rng = rng
        self._ticks = ticks
        self._most = most
        self._out: dict[bytes, float] = {}  # until when; the oldest stands first
        self._lock = threading.Lock()

    def draw(self) -> bytes:
        """Return a new nonce."""
        nonce = self._rng.bytes(NONCE_BYTES)
        with self._lock:
            now = self._ticks()
            while self._out:
                oldest = next(iter(self._out))
                if len(self._out) < self._most and now <= self._out[oldest]:
                    break
                del self._out[oldest]
            self._out[nonce] = now + NONCE_SECONDS
        return nonce

    def spend(self, nonce: bytes) -> bool:
        """Return whether `nonce` was out and is still good; it is not any more, whatever comes of it."""
        with self._lock:
            until = self._out.pop(nonce, None)
        return until is not None and self._ticks() <= until

    def __len__(self) -> int:
        return len(self._out)


class Audit(Protocol):
    """Where a line about each request for a key goes."""

    def append(self, line: Mapping[str, object]) -> None:
        """Write a line; it is on the disk when this returns. Raises StoreError."""
        ...


class Broker:
    """Gives keys to attested servers. Safe for threads.

    Args:
        policy: what is accepted.
        keys: what there is to give.
        audit: gets a line about each request for a key, before the answer leaves.
        rng: draws nonces, and secrets of the sealing.
        allow_simulated: True if the operator asked for a simulation by an option of its own: the policy's table
            [simulated] is not enough. Anybody gets every key then.
        clock: seconds since the epoch.
        nonces: others than its own, for tests.

    Raises:
        UsageError: a simulation was asked for, and the policy has no table [simulated].
    """

    def __init__(
        self,
        policy: Policy,
        keys: BrokerKeys,
        audit: Audit,
        *,
        rng: Randomness,
        allow_simulated: bool = False,
        clock: Callable[[], float] = time.time,
        nonces: Nonces | None = None,
    ) -> None:
        if allow_simulated and policy.simulated is None:
            raise UsageError("Expected a policy with a table [simulated] with --attester simulated; leave it out")
        self.allow_simulated = allow_simulated
        self._policy = policy
        self._keys = keys
        self._audit = audit
        self._rng = rng
        self._clock = clock
        self._nonces = Nonces(rng) if nonces is None else nonces

    def challenge(self) -> bytes:
        """Return a nonce to make evidence with."""
        return self._nonces.draw()

    def release(self, key_id: str, body: bytes, *, address: str) -> bytes:
        """Return a key, sealed to the server that asks.

        Args:
            key_id: which; from anybody.
            body: a bundle; from anybody.
            address: of the asker, for the audit.

        Raises:
            AttestationError: refused; `check` names why.
            StoreError, IntegrityError: the audit or the keys cannot be read or written; nothing leaves.
        """
        seen = _Seen(key_id if _ID.fullmatch(key_id) else "")
        try:
            sealed = self._sealed(key_id, body, seen)
        except AttestationError as refused:
            self._write(seen, address, refused.check)
            raise
        except Exception:
            self._write(seen, address, "internal")
            raise
        self._write(seen, address, "")  # nothing leaves before this line is on the disk
        return sealed

    def _sealed(self, key_id: str, body: bytes, seen: _Seen) -> bytes:
        try:
            bundle = Bundle.decode(body)
            seen.provider = bundle.provider
            nonce = bytes.fromhex(bundle.read_claims().nonce)
        except (ProtocolError, ValueError):
            raise _refused("form") from None
        if not self._nonces.spend(nonce):
            raise _refused("nonce")
        entry = self._keys.find(key_id)
        if entry is None:
            raise _refused("key")
        seen.model = entry.model
        seen.verdict = verify(
            bundle, self._policy, now=self._clock(), nonce=nonce, purpose=PURPOSE,
            allow_simulated=self.allow_simulated, model_sha256=entry.graph_sha256,
        )  # fmt: skip
        claims = seen.verdict.require()
        try:
            public = bytes.fromhex(claims.public_key)
            context = context_of(PURPOSE, entry.graph_sha256)
            return seal(entry.key.secret, public, context=context, rng=self._rng)[0]
        except (ProtocolError, ValueError):
            raise _refused("public key") from None

    def _write(self, seen: _Seen, address: str, check: str) -> None:
        self._audit.append(
            {
                "time": _utc(self._clock()),
                "key_id": seen.key_id,
                "model": seen.model,
                "verdict": "refused" if check else "released",
                "check": check,
                "provider": seen.provider,
                "simulated": seen.provider is Provider.SIMULATED,
                "measurement": seen.measurement,
                "instance": seen.verdict.instance[:_DETAIL_LETTERS] if seen.verdict else "",
                "policy_sha256": self._policy.digest,
                "address": address,
            }
        )


@dataclass(slots=True)
class _Seen:
    """What is known of one request for a key; nothing of it is true unless the verdict holds."""

    key_id: str
    model: str = ""
    provider: Provider | None = None
    verdict: Verdict | None = None

    @property
    def measurement(self) -> str:
        """Return the code that the evidence names, or who signed it; bounded, and true only where a key left."""
        checks = self.verdict.checks if self.verdict else ()
        found = "; ".join(_shown(check.detail) for check in checks if check.name in _CODE)
        return found[:_DETAIL_LETTERS]


def _shown(detail: str) -> str:
    """Return what a check found, without what a policy would have."""
    shown = detail.removeprefix("the enclave shows ")
    return detail.removeprefix("measurement=") if shown == detail else shown.partition(";")[0]


def _refused(check: str) -> AttestationError:
    return AttestationError(check, "Expected a request that this broker may answer")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
