"""What an enclave's server shows beside its evidence: from a folder, or fetched from the vendor while it holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from confide.net.endorsements import Fetched, fetch_endorsements
from confide.tee.attest import Attester
from confide.tee.endorsements import assemble, endorsed, valid_until, wanted
from confide.tee.evidence import Quoted

#: Lists are issued anew before they end; what is older than this is fetched again.
_LONGEST_SECONDS = 24 * 3600.0


class Stapler:
    """Adds endorsements to evidence; safe for threads. It is a `confide.tee.enclave.Endorse`.

    Args:
        attester: whose evidence it is.
        given: from a folder, by name; they stand before what came with the evidence.
        fetch: True asks the vendor for what is missing.
        ask: fetches URLs by name; the network by default.
        clock: seconds since the epoch.

    Raises, when called:
        UsageError: a name that no verifier knows; or the vendor does not answer.
        ServiceError, ProtocolError: the vendor's answer is no endorsement.

    **Leaks**: with `fetch`, to the vendor which processor this server runs on.
    """

    def __init__(
        self,
        attester: Attester,
        *,
        given: Mapping[str, bytes],
        fetch: bool = False,
        ask: Callable[[Mapping[str, str]], Mapping[str, Fetched]] = fetch_endorsements,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._attester = attester
        self._given = dict(given)
        self._fetch = fetch
        self._ask = ask
        self._clock = clock
        self._kept: dict[str, bytes] = {}
        self._until = 0.0
        self._fetching = threading.Lock()

    def __call__(self, quoted: Quoted) -> Quoted:
        """Return `quoted` with what belongs to it."""
        together = endorsed(quoted, given=self._given)
        if not self._fetch:
            return together
        with self._fetching:
            if self._clock() >= self._until:
                self._renew(together)
            return endorsed(together, given=self._kept)

    def _renew(self, quoted: Quoted) -> None:
        provider, now = self._attester.provider, self._clock()
        self._kept = assemble(provider, self._ask(wanted(provider, quoted)))
        end = valid_until(self._kept)
        self._until = now + _LONGEST_SECONDS if end is None else min(end, now + _LONGEST_SECONDS)
