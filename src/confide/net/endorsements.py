"""What the makers of hardware say of it, fetched over HTTPS: certificates, lists of what is revoked, collateral.

Only a server that staples them comes here, and nothing is believed of the answers: whoever verifies evidence checks
their signatures and dates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx2

from confide.errors import ServiceError, UsageError

TIMEOUT_SECONDS = 10.0
#: The longest answers are lists of what is revoked.
MOST_BYTES = 1 << 18

#: Between tries; AMD's service asks for some seconds between questions.
_PAUSES_SECONDS = (2.0, 6.0)
_AGAIN = (429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a URL answered: its body, and its headers by their names in lower case."""

    body: bytes
    headers: Mapping[str, str]


def fetch_endorsements(
    urls: Mapping[str, str],
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    most_bytes: int = MOST_BYTES,
    transport: httpx2.BaseTransport | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Fetched]:
    """Return what each of `urls` answers, under the same names.

    Args:
        urls: all https; redirections are not followed.
        timeout_seconds: for each wait of each request.
        most_bytes: of each body.
        transport: another one in tests.
        pause: waits between tries.

    Raises:
        UsageError: a URL is not https, or nobody answers there.
        ServiceError: it answers with an error.

    **Leaks**: to the vendor, or to whose cache it is, which processor this server runs on.
    """
    for url in urls.values():
        if not url.startswith("https://"):
            raise UsageError(f"Expected an https:// URL for endorsements, got {url}")
    with httpx2.Client(timeout=timeout_seconds, follow_redirects=False, transport=transport) as client:
        return {name: _fetch(client, url, most_bytes, pause) for name, url in urls.items()}


def _fetch(client: httpx2.Client, url: str, most_bytes: int, pause: Callable[[float], None]) -> Fetched:
    for seconds in (*_PAUSES_SECONDS, None):
        try:
            status, fetched = _ask(client, url, most_bytes)
        except httpx2.TransportError as error:
            if seconds is None or "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise UsageError(
                    f"Expected an answer from {url}, got {type(error).__name__}; let this machine out to it, name a "
                    "cache that it reaches, or give the endorsements in a folder"
                ) from None
        else:
            if status == 200:
                return fetched
            if seconds is None or status not in _AGAIN:
                raise ServiceError(status, f"no endorsements at {url}; give them in a folder, or ask again later")
        pause(seconds)
    raise AssertionError


def _ask(client: httpx2.Client, url: str, most_bytes: int) -> tuple[int, Fetched]:
    """Return status and answer; the body of an error is not read."""
    with client.stream("GET", url) as response:
        body = bytearray()
        if response.status_code == 200:
            for part in response.iter_bytes():
                body += part
                if len(body) > most_bytes:
                    raise UsageError(f"Expected at most {most_bytes} bytes from {url}; is it the vendor's service?")
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status_code, Fetched(bytes(body), headers)
