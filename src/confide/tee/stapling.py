"""Endorsements that are fetched when they are needed, and kept for as long as they hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from confide.errors import ConfideError
from confide.tee.attest import Attester
from confide.tee.endorsements import Answer, Sources, assemble, endorsed, valid_until, wanted
from confide.tee.evidence import Quoted

#: Fetches what URLs answer, by name: `confide.net.endorsements.fetch_endorsements`.
Fetch = Callable[[Mapping[str, str]], Mapping[str, Answer]]

#: Lists of what is revoked are asked for again after this, also where they would hold longer.
REFRESH_SECONDS = 24 * 3600
#: After a failure, while what is kept still holds.
_AGAIN_SECONDS = 600


@dataclass(frozen=True, slots=True)
class _Kept:
    urls: Mapping[str, str]
    endorsements: Mapping[str, bytes]
    renew: float
    until: float


class Stapler:
    """Adds endorsements to evidence, fetched from the vendors. For one thread at a time, as the enclave's quotes are.

    Args:
        attester: made the evidence; asked for its provider.
        fetch: goes out for the answers.
        sources: whose services are asked.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        attester: Attester,
        fetch: Fetch,
        *,
        sources: Sources | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._attester = attester
        self._fetch = fetch
        self._sources = sources or Sources()
        self._clock = clock
        self._kept: _Kept | None = None

    def __call__(self, quoted: Quoted) -> Quoted:
        """Return `quoted` with what was missing.

        Raises:
            UsageError, ServiceError: a service does not answer, and nothing that still holds is kept.
            ProtocolError: a service answers something else.
        """
        urls = wanted(self._attester.provider, quoted, sources=self._sources)
        return endorsed(quoted, given=self._endorsements(urls)) if urls else quoted

    def _endorsements(self, urls: Mapping[str, str]) -> Mapping[str, bytes]:
        now, kept = self._clock(), self._kept
        if kept is not None and kept.urls == urls and now < kept.renew:
            return kept.endorsements
        try:
            new = assemble(self._attester.provider, self._fetch(urls))
            ends = valid_until(new)
        except ConfideError:
            if kept is None or kept.urls != urls or now >= kept.until:
                raise
            self._kept = _Kept(urls, kept.endorsements, now + _AGAIN_SECONDS, kept.until)
            return kept.endorsements
        until = now + REFRESH_SECONDS if ends is None else ends
        self._kept = _Kept(urls, new, min(until, now + REFRESH_SECONDS), until)
        return new
