"""Runs the server's application under uvicorn: the socket, TLS, and the bounds that lie below ASGI."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryptography import x509

from confide.errors import MissingExtra, UsageError
from confide.net.http import is_loopback
from confide.serve.limits import Limits

if TYPE_CHECKING:
    import uvicorn


_HEALTH = (b"/v2/health/live", b"/v2/health/ready")


class Application(Protocol):
    """An ASGI application with bounds: `confide.serve.server.Server`, `confide.serve.broker.BrokerServer`."""

    @property
    def limits(self) -> Limits:
        """Return its bounds."""
        ...

    @property
    def certificates(self) -> bool:
        """Return whether its callers are named by their certificates."""
        ...

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI scope."""
        ...


def serve(
    app: Application,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    certificate: Path | None = None,
    private_key: Path | None = None,
    client_ca: Path | None = None,
    insecure_plain_http: bool = False,
    share_port: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve `app` until SIGINT or SIGTERM; requests that have begun are finished.

    Args:
        app: from `create_app`.
        host, port: the address; port 0 takes a free one.
        certificate, private_key: PEM files; with them the server speaks TLS (1.2 or newer) only.
        client_ca: PEM file of the authorities that may certify clients; every connection then needs such a certificate.
        share_port: True lets other server processes of this user listen at the same port; the system spreads
            connections over them (SO_REUSEPORT).
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
    if client_ca is not None and certificate is None:
        raise UsageError("Expected certificate and private_key with client_ca: client certificates need TLS")
    if app.certificates and client_ca is None:
        raise UsageError("Expected client_ca for an application whose callers are named by their certificates")
    program = _program(app, certificate, private_key, client_ca)
    listener = _listen(host, port, share_port=share_port)
    with listener:
        scheme = "http" if certificate is None else "https"
        shown = f"[{host}]" if ":" in host else host
        if ready:
            ready(f"{scheme}://{shown}:{listener.getsockname()[1]}")
        loops = _loop_factory(program, app.limits)
        with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loops) as runner:
            runner.run(program.serve(sockets=[listener]))  # uvicorn raises the signal again once it has stopped


def _listen(host: str, port: int, *, share_port: bool) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise UsageError(f"Expected port={port} from 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024, reuse_port=share_port)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio leaves it out for a listener like this
        return listener
    except OSError:
        raise UsageError(f"Expected host={host} and port={port} to be free and ours; choose another port") from None


def _program(
    app: Application, certificate: Path | None, private_key: Path | None, client_ca: Path | None
) -> uvicorn.Server:
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("uvicorn", "serve") from None
    limits = app.limits
    config = uvicorn.Config(
        app,
        http=_bounded_protocol(limits, must=client_ca is not None),
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
        ssl_ca_certs=None if client_ca is None else str(client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if client_ca is None else ssl.CERT_REQUIRED,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError):
        also = "" if client_ca is None else ", and client_ca one with certificates"
        raise UsageError(f"Expected certificate and private_key to be PEM files that belong together{also}") from None
    return uvicorn.Server(config)


def _loop_factory(program: uvicorn.Server, limits: Limits) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes uvicorn's event loop, which gives TLS handshakes no longer than headers, instead of a minute.

    Connections count from the handshake's end; until then they take file descriptors, of which there are more now.
    """

    def factory() -> asyncio.AbstractEventLoop:
        _raise_open_files()
        loop = (program.config.get_loop_factory() or asyncio.new_event_loop)()
        if program.config.ssl is not None:
            bounded = partial(loop.create_server, ssl_handshake_timeout=limits.header_seconds)
            loop.create_server = bounded  # type: ignore[method-assign]
        return loop

    return factory


def _raise_open_files() -> None:
    """Let this process open as many files and connections as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _HeadFirst:
    """A transport that keeps the head of an answer until its body comes: one piece on the wire, one wake-up there.

    Args:
        transport: the connection's; everything but the writing of heads is its own.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or keep the head of an answer; an application sends a body right behind it, or none at all."""
        if not self._head and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100 "):
            self._head = data
            return
        head, self._head = self._head, b""
        self._transport.write(b"".join([head, data]) if head else data)

    def flush(self) -> None:
        """Write what is kept."""
        head, self._head = self._head, b""
        if head:
            self._transport.write(head)

    def close(self) -> None:
        """Close after writing what is kept."""
        self.flush()
        self._transport.close()


class _Alarm:
    """Calls back once after some seconds, unless it is stopped before."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None], *, anew: bool = False) -> None:
        """Call `act` later; an alarm that is on already stays as it is, unless it shall start anew."""
        if anew:
            self.stop()
        if self._handle is None:
            self._handle = loop.call_later(self._seconds, act)

    def stop(self) -> None:
        """Do not call."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def _subject(transport: Any) -> str | None:
    """Return the subject of the client certificate of a connection, as RFC 4514 writes it; None without one."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    return None if certificate is None else x509.load_der_x509_certificate(certificate).subject.rfc4514_string()


class _Beside:
    """Counts what a connection sends that is no body: headers, and trailers or the frames of chunks behind them.

    Args:
        most_bytes: of headers; and of what stands behind them, beyond the size of the body: chunks of a few bytes come
            with as many that frame them.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.behind_headers = False
        self._were_behind = self._begun = False
        self._bytes = 0

    def message_begins(self) -> None:
        self._begun, self.behind_headers, self._bytes = True, False, 0

    def headers_complete(self) -> None:
        self.behind_headers, self._bytes = True, 0

    def body(self, size_bytes: int) -> None:
        """Count a piece of a body, which is in what `too_much` counts too."""
        self._bytes -= 2 * size_bytes

    def too_much(self, size_bytes: int) -> bool:
        """Count a piece after it was parsed, unless headers began or ended in it. Returns True beyond the bound."""
        crossed = self._were_behind != self.behind_headers or (self._begun and self.behind_headers)
        self._were_behind, self._begun = self.behind_headers, False
        self._bytes += 0 if crossed else size_bytes
        return self._bytes > self._most_bytes


def _without_httptools(*, must: bool) -> str:
    if must:
        raise MissingExtra("httptools", "serve") from None
    return "h11"


def _tls_scope(subject: str | None) -> dict[str, Any]:
    """Return what a scope says of a client certificate, as ASGI's TLS extension has it; {} without one."""
    return {} if subject is None else {"extensions": {"tls": {"client_cert_name": subject}}}


def _bounded_protocol(limits: Limits, *, must: bool) -> Any:
    """Return uvicorn's HTTP protocol with the bounds it lacks: time and size of headers and trailers, time of a reply.

    A connection with unsent bytes is cut after `reply_seconds`, so clients that do not read cannot keep the others out;
    the health endpoints answer however many connections are open. Without httptools uvicorn's h11 protocol is taken,
    which bounds the size of headers by itself but no time. It also puts the subject of a client certificate into the
    scope, as ASGI's TLS extension has it; for that this protocol is a `must`.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return _without_httptools(must=must)

    class BoundedProtocol(HttpToolsProtocol):
        def connection_made(self, transport: Any) -> None:
            self._headers_due = _Alarm(limits.header_seconds)
            self._beside = _Beside(limits.header_bytes)
            self._reply_due = _Alarm(limits.reply_seconds)  # on while the client has bytes to take
            self._scope: Any = _tls_scope(_subject(transport))
            self._joined: Any = _HeadFirst(transport)
            super().connection_made(self._joined)
            transport.set_write_buffer_limits(high=1)  # writing is paused while anything is unsent; 0 confuses TLS
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_due.stop()
            self._reply_due.stop()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._beside.message_begins()
            self.scope.update(self._scope)
            self._expect_headers()

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._beside.behind_headers:  # else a trailer, which nobody reads and uvicorn would keep
                super().on_header(name, value)

        def on_body(self, body: bytes) -> None:
            self._beside.body(len(body))
            super().on_body(body)

        def on_headers_complete(self) -> None:
            self._headers_due.stop()
            self._beside.headers_complete()
            self.limit_concurrency = None if self.url in _HEALTH else limits.connections
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            self._joined.flush()
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
            self._reply_due.start(self.loop, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.transport.is_closing():
                self._reply_due.stop()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._beside.too_much(len(data)) and not self.transport.is_closing():
                self.send_400_response("Expected shorter headers and trailers.")

        def _expect_headers(self) -> None:
            self._headers_due.start(self.loop, self._give_up, anew=True)

        def _give_up(self) -> None:
            self.transport.close()
            self._cut_if_closing()

        def _cut_if_closing(self) -> None:
            if self.transport.is_closing():  # which waits for the last byte, and under TLS for a farewell: for ever
                self._reply_due.start(self.loop, self.transport.abort)

    return BoundedProtocol
