"""Who may ask, how fast and how often: API keys, a rate limit, and the query quota.

Encryption hides the query from the server, never the answers from the client: `features + 1` answers of a linear model
determine it. Only a count can bound that, and a count needs somebody to hold it against. Key ids are free, so the quota
counts the rows of each principal: the holder of an API key, or the subject of a client certificate.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confide.crypto.random import Randomness
from confide.errors import UsageError
from confide.serve.keys import CountingStore
from confide.serve.protocol import Refusal

_LONGEST_SUBJECT = 200
_KNOWN_CALLERS = 4096  # buckets kept by the rate limit; anonymous callers could otherwise fill the memory


def new_api_key(rng: Randomness) -> str:
    """Return a new API key of 256 random bits; show it once, keep only its hash."""
    return "confide-" + rng.bytes(32).hex()


def hash_api_key(api_key: str) -> str:
    """Return the hex SHA-256 of an API key, as `create_app(api_keys=...)` takes it; enough for 256 random bits."""
    return hashlib.sha256(api_key.encode()).hexdigest()


class ApiKeys:
    """Finds the holder of an API key in constant time.

    Args:
        hashes: hex SHA-256 of each key by its holder's name.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        for holder, value in hashes.items():
            if not re.fullmatch(r"[\w.-]{1,64}", holder) or not re.fullmatch(r"[0-9a-f]{64}", value):
                raise UsageError("Expected api_keys as {holder: hex SHA-256}; make a hash with hash_api_key")
        self._hashes = [(holder, bytes.fromhex(value)) for holder, value in hashes.items()]

    def holder(self, authorization: str | None) -> str:
        """Return who holds the key in an Authorization header.

        Raises:
            Refusal: 401.
        """
        scheme, _, api_key = (authorization or "").partition(" ")
        given = hashlib.sha256(api_key.strip().encode()).digest()
        found = ""
        for holder, known in self._hashes:  # every key is compared, whichever fits
            if hmac.compare_digest(given, known):
                found = holder
        if not found or scheme.lower() != "bearer":
            raise Refusal(
                401,
                "unauthorised",
                "Expected the header Authorization: Bearer API_KEY; ask the operator for a key and pass it with "
                "--api-key-file (in Python: api_key)",
            )
        return found


def certificate_holder(scope: Mapping[str, Any]) -> str:
    """Return the subject of the client certificate in an ASGI scope, which `listen` put there (ASGI's TLS extension).

    The subject is what the authority vouches for, whatever key it certifies: a renewed certificate has the same budget.

    Raises:
        Refusal: 401 without one.
    """
    extensions: Mapping[str, Mapping[str, Any]] = scope.get("extensions") or {}
    subject = extensions.get("tls", {}).get("client_cert_name") or ""
    if not subject:
        raise Refusal(401, "unauthorised", "Expected a client certificate with a subject; ask the operator for one")
    if len(subject) <= _LONGEST_SUBJECT and re.fullmatch(r"[\x20-\x7e]+", subject):
        return subject
    return "sha256:" + hashlib.sha256(subject.encode()).hexdigest()


class RateLimit:
    """A token bucket for each caller.

    Args:
        per_second: requests per second in the long run; a second's worth may come at once.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """Count one request of `caller`. Raises Refusal (429) if it comes too soon."""
        now = self._clock()
        tokens, since = self._buckets.pop(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)  # the latest caller stands last
        if len(self._buckets) > _KNOWN_CALLERS:
            del self._buckets[next(iter(self._buckets))]
        if not allowed:
            wait = math.ceil((1 - tokens) / self._per_second)
            text = f"Expected at most {self._per_second:g} requests per second; wait {wait} s"
            raise Refusal(429, "rate_limited", text, retry_after_seconds=wait)


class Quota:
    """Counts the rows that each caller has had answered, and refuses beyond a bound; survives a restart.

    Processes that share the store count together. Each reserves rows in the store ahead, a twentieth of what is left
    and so none at the end: what is answered never goes beyond the quota, a crash counts what was reserved as answered,
    and a process that ends in order gives it back.

    Args:
        rows: rows per caller and model; None does not count them.
        store: where the counts are kept; must not forget.
        total_rows: rows per caller over all models; None does not count them.
    """

    def __init__(self, rows: int | None, store: CountingStore, *, total_rows: int | None = None) -> None:
        self._rows = rows
        self._total_rows = total_rows
        self._store = store
        self._left: dict[str, int] = {}  # reserved and not answered yet
        self._lock = threading.Lock()

    def charge(self, caller: str, model: str, rows: int) -> None:
        """Count `rows` answers. Raises Refusal (429) if they would go beyond a quota; then nothing is counted."""
        with self._lock:
            if self._rows is not None:
                self._take(f"{model}/{caller}", rows, self._rows)
            if self._total_rows is not None:
                try:
                    self._take(f"*/{caller}", rows, self._total_rows)
                except BaseException:
                    if self._rows is not None:
                        self._left[f"{model}/{caller}"] += rows
                    raise

    def close(self) -> None:
        """Give back what was reserved and not answered."""
        with self._lock:
            for key, left in self._left.items():
                if left:
                    self._store.update(key, lambda saved, left=left: _count(_number(saved) - left))
            self._left.clear()

    def _take(self, key: str, rows: int, most: int) -> None:
        left = self._left.get(key, 0)
        if rows > left:
            ahead = 0

            def reserve(saved: bytes | None) -> bytes:
                nonlocal ahead
                used = _number(saved) - left + rows
                if used > most:
                    raise Refusal(
                        429,
                        "quota",
                        f"Expected at most {most} rows for one caller, because enough answers determine a model under "
                        f"every technique; {max(0, most - used + rows)} are left, ask for as many or the operator for "
                        "more",
                    )
                ahead = (most - used) // 20
                return _count(used + ahead)

            self._store.update(key, reserve)
            self._left[key] = ahead
        else:
            self._left[key] = left - rows


def _number(saved: bytes | None) -> int:
    return int.from_bytes(saved or b"", "little")


def _count(number: int) -> bytes:
    return number.to_bytes(8, "little")
