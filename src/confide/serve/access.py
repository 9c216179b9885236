"""Who may ask, how fast and how often: API keys, a rate limit, and the query quota.

Encryption hides the query from the server, never the answers from the client: `features + 1` answers of a linear model
determine it. Only a count can bound that, and a count needs somebody to hold it against. Key ids are free, so the quota
counts the rows of each API key's holder.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import threading
import time
from collections.abc import Callable, Mapping

from confide.crypto.random import Randomness
from confide.errors import UsageError
from confide.serve.protocol import Refusal
from confide.wire import Store

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
                401, "unauthorised", "Expected the header Authorization: Bearer API_KEY; ask the operator for a key"
            )
        return found


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

    Rows are reserved in the store ahead, in blocks of a twentieth of the quota: a crash can only count too many.

    Args:
        rows: rows per caller and model.
        store: where the counts are kept; must not forget.
    """

    def __init__(self, rows: int, store: Store) -> None:
        self._rows = rows
        self._store = store
        self._block = max(1, rows // 20)
        self._used: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._lock = threading.Lock()

    def charge(self, caller: str, model: str, rows: int) -> None:
        """Count `rows` answers. Raises Refusal (429) if they would go beyond the quota; then nothing is counted."""
        key = f"{model}/{caller}"
        with self._lock:
            if key not in self._used:
                saved = int.from_bytes(self._store.get(key) or b"", "little")
                self._used[key] = self._reserved[key] = saved
            used = self._used[key] + rows
            if used > self._rows:
                raise Refusal(
                    429,
                    "quota",
                    f"Expected at most {self._rows} rows for one API key, because enough answers determine a model "
                    "under every technique; ask the operator for more",
                )
            if used > self._reserved[key]:
                reserved = min(self._rows, used + self._block)
                self._store.commit({key: reserved.to_bytes(8, "little")})
                self._reserved[key] = reserved
            self._used[key] = used
