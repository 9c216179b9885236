"""Runs the server's application under uvicorn: the socket, TLS, and the bounds that lie below ASGI."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.errors import MissingExtra, UsageError
from confide.net.http import is_loopback
from confide.serve.limits import Limits
from confide.serve.server import Server

if TYPE_CHECKING:
    import uvicorn


_HEALTH = (b"/v2/health/live", b"/v2/health/ready")


def serve(
    app: Server,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    certificate: Path | None = None,
    private_key: Path | None = None,
    insecure_plain_http: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve `app` until SIGINT or SIGTERM; requests that have begun are finished.

    Args:
        app: from `create_app`.
        host, port: the address; port 0 takes a free one.
        certificate, private_key: PEM files; with them the server speaks TLS (1.2 or newer) only.
        insecure_plain_http: True allows another address than loopback without TLS: queries of the plain backend, API
            keys and kits are then open to the network, and whoever sits on it can change them.
        ready: called with the URL once connections are accepted.

    Raises:
        UsageError: the address cannot be taken, the certificate does not fit, or TLS is missing.
        MissingExtra: uvicorn is not installed.
    """
    if (certificate is None) != (private_key is None):
        raise UsageError("Expected both certificate and private_key, or neither")
    if certificate is None and not is_loopback(host) and not insecure_plain_http:
        raise UsageError(
            f"Expected a certificate for host={host}: without TLS anybody between could read and change what is sent; "
            "give certificate and private_key, or insist with insecure_plain_http"
        )
    program = _program(app, certificate, private_key)
    listener = _listen(host, port)
    with listener:
        scheme = "http" if certificate is None else "https"
        shown = f"[{host}]" if ":" in host else host
        if ready:
            ready(f"{scheme}://{shown}:{listener.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
            program.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise UsageError(f"Expected port={port} from 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio leaves it out for a listener like this
        return listener
    except OSError:
        raise UsageError(f"Expected host={host} and port={port} to be free and ours; choose another port") from None


def _program(app: Server, certificate: Path | None, private_key: Path | None) -> uvicorn.Server:
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("uvicorn", "serve") from None
    limits = app.limits
    config = uvicorn.Config(
        app,
        http=_bounded_protocol(limits),
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        log_config={"version": 1, "loggers": {"uvicorn": {"level": "CRITICAL"}}},  # its tracebacks can hold inputs
        access_log=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=max(1, round(limits.idle_seconds)),
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
        h11_max_incomplete_event_size=limits.header_bytes,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError):
        raise UsageError("Expected certificate and private_key to be PEM files that belong together") from None
    return uvicorn.Server(config)


def _bounded_protocol(limits: Limits) -> Any:
    """Return uvicorn's HTTP protocol with the bounds it lacks: time and size of a request's headers, time of a reply.

    A connection with unsent bytes is cut after `reply_seconds`, so clients that do not read cannot keep the others out;
    the health endpoints answer however many connections are open. Without httptools uvicorn's h11 protocol is taken,
    which bounds the size of headers by itself but no time.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class BoundedProtocol(HttpToolsProtocol):
        _header_bytes = 0
        _deadline: asyncio.TimerHandle | None = None  # set while headers are due
        _cut: asyncio.TimerHandle | None = None  # set while the client has bytes to take

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=1)  # writing is paused while anything is unsent; 0 confuses TLS
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._got_headers()
            self._taken()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._expect_headers()

        def on_headers_complete(self) -> None:
            self._got_headers()
            self.limit_concurrency = None if self.url in _HEALTH else limits.connections
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._cut_if_closing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._cut_if_closing()

        def send_400_response(self, msg: str) -> None:
            super().send_400_response(msg)
            self._cut_if_closing()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._must_take()

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.transport.is_closing():
                self._taken()

        def data_received(self, data: bytes) -> None:
            due = self._deadline is not None
            super().data_received(data)
            if due and self._deadline is not None and not self.transport.is_closing():
                self._header_bytes += len(data)
                if self._header_bytes > limits.header_bytes:
                    self.send_400_response("Expected shorter headers.")

        def _expect_headers(self) -> None:
            self._got_headers()
            self._header_bytes = 0
            self._deadline = self.loop.call_later(limits.header_seconds, self._give_up)

        def _give_up(self) -> None:
            self.transport.close()
            self._cut_if_closing()

        def _got_headers(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _must_take(self) -> None:
            if self._cut is None:
                self._cut = self.loop.call_later(limits.reply_seconds, self.transport.abort)

        def _taken(self) -> None:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

        def _cut_if_closing(self) -> None:
            if self.transport.is_closing():  # which waits for the last byte, and under TLS for a farewell: for ever
                self._must_take()

    return BoundedProtocol
