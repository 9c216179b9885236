"""What runs inside: a key that never leaves, and evidence about it for whoever asks.

A key lives `lifetime_seconds`. After half of that a new one is shown to those who ask, so that everybody has at least
half a life; the old one opens what was sealed to it until its end, and is forgotten then.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from confide.crypto.random import Randomness
from confide.errors import SetUpAgain, UsageError
from confide.tee.attest import Attester
from confide.tee.channel import EnclaveKey, Opened, context_of
from confide.tee.evidence import NONCE_BYTES, Bundle, Claims, Purpose, Quoted, report_data

#: Six hours: what was recorded is opened by nobody after that, whatever becomes of the machine.
LIFETIME_SECONDS = 6 * 3600
_LONGEST_SECONDS = 24 * 3600
_EARLY_SECONDS = 60  # clocks differ

#: What adds endorsements to evidence; the names are in `confide.tee.verify`.
Endorse = Callable[[Quoted], Quoted]


@dataclass(frozen=True, slots=True, eq=False)
class _Epoch:
    key: EnclaveKey
    key_id: str
    begin: float
    end: float
    end_ticks: float  # by a clock that nobody sets back


class Enclave:
    """The key of an enclave, and evidence about it. Safe for threads.

    Args:
        attester: signs for the hardware.
        purpose: of the key.
        model_sha256: hex; what the claims say of the model.
        rng: draws the keys.
        endorse: adds endorsements to evidence; None adds none to those that came with it.
        lifetime_seconds: of a key, at most a day.
        clock: seconds since the epoch, which the host may set.
        ticks: seconds that only grow.

    **Guarantees**: the secret half of a key is in no repr, no file and no message.
    Evidence is made anew for each nonce.
    """

    def __init__(
        self,
        attester: Attester,
        *,
        purpose: Purpose,
        model_sha256: str,
        rng: Randomness,
        endorse: Endorse | None = None,
        lifetime_seconds: float = LIFETIME_SECONDS,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < lifetime_seconds <= _LONGEST_SECONDS:
            raise UsageError(f"Expected lifetime_seconds={lifetime_seconds:g} above 0 and at most {_LONGEST_SECONDS}")
        self.attester = attester
        self.purpose: Purpose = purpose
        self.model_sha256 = model_sha256
        self._rng = rng
        self._endorse = endorse
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._ticks = ticks
        self._epochs: list[_Epoch] = []  # the newest last
        self._turning = threading.Lock()
        self._quoting = threading.Lock()  # hardware signs one at a time

    def bundle(self, nonce: bytes) -> Bundle:
        """Return evidence about the newest key, made for `nonce`.

        Args:
            nonce: the asker's 32 bytes; b"" for evidence that anybody may be shown.

        Raises:
            UsageError: the hardware refuses.
        """
        assert len(nonce) in (0, NONCE_BYTES)
        epoch = self._newest()
        claims = Claims(
            purpose=self.purpose,
            public_key=epoch.key.public.hex(),
            model_sha256=self.model_sha256,
            code_version=_version(),
            not_before=int(epoch.begin) - _EARLY_SECONDS if nonce else int(epoch.begin),
            not_after=int(epoch.end),
            nonce=nonce.hex(),
        ).encode()
        with self._quoting:
            quoted = self.attester.quote(report_data(claims))
            quoted = quoted if self._endorse is None else self._endorse(quoted)
        return Bundle(
            provider=self.attester.provider,
            evidence=quoted.evidence,
            endorsements=quoted.endorsements,
            claims=claims,
        )

    def open(self, key_id: str, sealed: bytes, *, about: str = "") -> Opened:
        """Return what was sealed to the key called `key_id`.

        Args:
            key_id: see `key_id_of`.
            sealed: a request.
            about: what it is bound to beside purpose and model; see `context_of`.

        Raises:
            SetUpAgain: that key is no more; the asker must be shown a new one.
            ProtocolError: nobody sealed this to it.
        """
        context = context_of(self.purpose, self.model_sha256, about)
        return self._find(key_id).key.open(sealed, context=context)

    def holds(self, key_id: str) -> bool:
        """Return whether the key called `key_id` opens what is sealed to it."""
        try:
            self._find(key_id)
        except SetUpAgain:
            return False
        return True

    def _find(self, key_id: str) -> _Epoch:
        with self._turning:  # or a key that is made at the same time would be forgotten
            living = self._living()
        for epoch in living:
            if epoch.key_id == key_id:
                return epoch
        raise SetUpAgain("Expected a key that this enclave has; ask it for evidence again")

    def _living(self) -> list[_Epoch]:
        """Forget the keys whose time is over, and return the others."""
        now, ticks = self._clock(), self._ticks()
        self._epochs = [epoch for epoch in self._epochs if now < epoch.end and ticks < epoch.end_ticks]
        return self._epochs

    def _newest(self) -> _Epoch:
        with self._turning:
            now, half, living = self._clock(), self._lifetime_seconds / 2, self._living()
            if not living or now >= living[-1].begin + half or self._ticks() >= living[-1].end_ticks - half:
                key = EnclaveKey(self._rng)
                ends = (now + self._lifetime_seconds, self._ticks() + self._lifetime_seconds)
                self._epochs = [*living, _Epoch(key, key_id_of(key.public), now, *ends)]
            return self._epochs[-1]


def key_id_of(public: bytes) -> str:
    """Return hex SHA-256 of an enclave's public key: how it is named."""
    return hashlib.sha256(public).hexdigest()


def _version() -> str:
    try:
        return metadata.version("confide")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "0"
