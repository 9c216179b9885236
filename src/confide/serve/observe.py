"""What a server tells about its requests: JSON log lines with an allow-list of fields, and metrics for Prometheus.

Neither ever holds a path, a query string, a body, a header or the text of an exception that a request raised: all of
them can carry an input.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, TextIO

import msgspec

from confide.errors import MissingExtra
from confide.serve.work import Figures

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_BYTES = tuple(float(4**power) for power in range(4, 14))  # 256 B to 64 MiB: buckets, since an exact size can identify
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


@dataclass(slots=True)
class Observed:
    """One request, filled in while it is handled; every field is safe to show to the operator.

    Args:
        request_id: random, in the error body too.
        route: the endpoint's name, never the path; "unknown" if there is none.
        model, backend: as the server knows them, "" if the request named none that exists.
        protection: of an enclave, "hardware" or "simulated"; "" for other backends.
        caller: the holder of the API key, or the subject of the client certificate; "" without either.
        status: the HTTP status; 499 if the client went away.
        code: "ok", or the refusal's code.
        failure: type and place of an unexpected exception, never its text.
    """

    request_id: str
    method: str
    begun: float
    route: str = "unknown"
    model: str = ""
    backend: str = ""
    protection: str = ""
    caller: str = ""
    status: int = 499
    code: str = "disconnected"
    request_bytes: int = 0
    reply_bytes: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a server stands when its metrics are asked for.

    Args:
        waiting: requests that wait for a worker or are at one.
        stored_bytes: of the key store.
        figures: of the work.
    """

    waiting: int
    stored_bytes: int
    figures: Figures


class Observer:
    """Writes one log line per request and counts it.

    Args:
        log: where JSON lines go; None writes none.
        metrics: True counts for Prometheus. Raises MissingExtra without prometheus-client.
    """

    def __init__(self, log: TextIO | None, *, metrics: bool) -> None:
        self._log = log
        self._writing = threading.Lock()
        self._metrics = _Metrics() if metrics else None

    def finish(self, seen: Observed) -> None:
        """Write and count one request."""
        seconds = time.perf_counter() - seen.begun
        if self._metrics:
            self._metrics.count(seen, seconds)
        if self._log is not None:
            line = {
                "request_id": seen.request_id,
                "method": seen.method if seen.method in _METHODS else "other",
                "route": seen.route,
                "model": seen.model,
                "backend": seen.backend,
                "caller": seen.caller,
                "status": seen.status,
                "code": seen.code,
                "request_bytes": seen.request_bytes,
                "reply_bytes": seen.reply_bytes,
                "seconds": round(seconds, 6),
            }
            if seen.protection:
                line["protection"] = seen.protection
            if seen.failure:
                line["failure"] = seen.failure
            self._write(line)

    def not_replaced(self, failure: str) -> None:
        """Write that a worker process could not be replaced; `failure` was there before any request was."""
        self._write({"code": "worker_not_replaced", "failure": failure})

    def _write(self, line: Mapping[str, object]) -> None:
        if self._log is not None:
            stamped = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **line}
            with self._writing:
                self._log.write(msgspec.json.encode(stamped).decode() + "\n")
                self._log.flush()

    @property
    def counts(self) -> bool:
        """Return True if metrics are on."""
        return self._metrics is not None

    def exposition(self, standing: Standing) -> bytes:
        """Return the metrics in Prometheus's text format; b"" if they are off."""
        return self._metrics.exposition(standing) if self._metrics else b""


class _Metrics:
    """Counters in a registry of their own."""

    def __init__(self) -> None:
        try:
            import prometheus_client
        except ImportError:
            raise MissingExtra("prometheus-client", "serve") from None
        self._registry: CollectorRegistry = prometheus_client.CollectorRegistry()
        self._generate = prometheus_client.generate_latest
        labels = ["model", "backend", "protection", "code"]
        self._requests = prometheus_client.Counter(
            "confide_requests", "Requests answered", labels, registry=self._registry
        )
        self._seconds = prometheus_client.Histogram(
            "confide_request_seconds",
            "Seconds from headers to reply",
            labels,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._received = prometheus_client.Histogram(
            "confide_request_bytes", "Bytes of request bodies", labels, buckets=_BYTES, registry=self._registry
        )

        gauge = partial(prometheus_client.Gauge, registry=self._registry)
        self._gauges = {
            "waiting": gauge("confide_requests_waiting", "Requests that wait for a worker or are at one"),
            "workers": gauge("confide_workers", "Worker processes that there should be"),
            "alive": gauge("confide_workers_alive", "Worker processes that are ready or at work"),
            "restarts": gauge("confide_worker_restarts", "Worker processes that were replaced since the start"),
            "loaded_keys": gauge("confide_loaded_keys", "Clients' keys that are parsed, in all workers"),
            "loaded_bytes": gauge("confide_loaded_keys_bytes", "Memory that their numbers take"),
            "stored_bytes": gauge("confide_key_store_bytes", "Bytes of the key store"),
        }

    def count(self, seen: Observed, seconds: float) -> None:
        labels = (seen.model, seen.backend, seen.protection, seen.code)
        self._requests.labels(*labels).inc()
        self._seconds.labels(*labels).observe(seconds)
        self._received.labels(*labels).observe(seen.request_bytes)

    def exposition(self, standing: Standing) -> bytes:
        figures = standing.figures
        now = {"waiting": standing.waiting, "stored_bytes": standing.stored_bytes, **asdict(figures)}
        for name, gauge in self._gauges.items():
            gauge.set(now[name])
        return self._generate(self._registry)
