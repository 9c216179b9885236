"""The network driver: WebSocket over TLS 1.3, one port at the coordinator, one outbound connection everywhere else.

`Host` listens and has many peers, `Join` keeps one connection to the coordinator; both are a `Link`. Each runs one
thread with an event loop, which encrypts, cuts, puts together, answers pings and keeps the limits, so that a connection
lives on while the party's own thread computes for minutes.

**Guarantees**: who a peer is comes from its certificate, issued by the federation's authority; what a member sends
under another's name is not delivered and ends its connection. Whatever peers send, memory stays within `Limits`, and
the others are served.

**Leaks**: sizes and times to whoever watches the network, and each side's address. Nothing is logged.
"""

from __future__ import annotations

import ssl

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import UsageError
from confide.net.caller import Caller, Dialled, Waits
from confide.net.dial import Address, Proxy
from confide.net.ending import Code
from confide.net.exchange import Envelope
from confide.net.limits import Limits
from confide.net.link import Event
from confide.net.listener import Admit, Enrol, Listener, Refusal
from confide.net.loop import LoopThread, Mailbox, Sender


class Host:
    """The coordinator's end: listens, and is a `Link` with many peers.

    Args:
        address: what to listen on, "127.0.0.1" or "0.0.0.0" for example.
        port: 0 takes a free one.
        context: with the coordinator's certificate and the federation's authority (`contexts.server_context`). It is
            set to TLS 1.3, and to ask for certificates.
        admit: says why a peer whose certificate holds may nevertheless not be here (revoked, unknown).
        enrol: answers the one message of a connection without a certificate; None lets nobody in without one. A
            ConfideError of it is told to the other side.
        limits: what peers may do.

    Raises:
        UsageError: nothing can listen there.
    """

    def __init__(
        self,
        address: str,
        port: int,
        context: ssl.SSLContext,
        *,
        admit: Admit,
        enrol: Enrol | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED if enrol is None else ssl.CERT_OPTIONAL
        self._mail = Mailbox()
        self._thread = LoopThread("confide host", self._mail.put)
        self._listener = Listener(context, admit, enrol, limits, self._mail)
        self._sender = Sender(self._thread, self._listener.deliver, limits)
        try:
            #: Where it listens.
            self.port = self._thread.call(self._listener.start(address, port))
        except OSError as error:
            self._thread.close(None)
            raise UsageError(f"Expected to listen at {address}:{port}; {error.strerror or error}") from None

    def send(self, peer: str, envelope: Envelope) -> None:
        self._sender.send(peer, envelope)

    def receive(self, timeout_seconds: float) -> Event | None:
        return self._mail.take(timeout_seconds, self._thread)

    def close(self) -> None:
        self._thread.close(self._listener.stop())

    def drop(self, peer: str, reason: str, *, final: bool = True) -> None:
        """End a peer's connection at once.

        Args:
            peer: its name; nothing happens if it is not there.
            reason: told to it, and in `Left`.
            final: tell it not to come again (revoked); else it may.
        """
        self._thread.post(self._listener.drop, peer, reason, Code.REFUSED if final else Code.DROPPED)

    def recheck(self) -> None:
        """Ask `admit` again about everybody who is there, and drop whom it refuses now."""
        self._thread.post(self._listener.recheck)

    def refusals(self) -> tuple[Refusal, ...]:
        """Return the latest of those who were not let in, oldest first."""
        return tuple(self._listener.refused)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# --- the other end ----------------------------------------------------------------------------------------------------


class Join:
    """A member's end: one outbound connection to the coordinator, opened again for ever; a `Link` with one peer.

    Each connection begins with `Joined`. `Left` comes when one ends, and when an attempt fails for another reason than
    the attempt before. What coming again cannot mend (revoked, a certificate that the coordinator does not take, a
    coordinator of another authority) ends the attempts: `given_up` says why, until `renewed` brings another context.
    A context that has worked once is not given up over a certificate, since a proxy or a clock on the way may be wrong.

    Args:
        url: the coordinator's address, "wss://host:port"; its certificate must be for that host.
        context: with the member's certificate and the federation's authority (`contexts.client_context`).
        proxy: "http://host:port" of an HTTP proxy on the way, or None.
        peer: what the coordinator is called in events and in `send`.
        limits: what the coordinator may do.
        first_seconds, longest_seconds: waits between attempts double from the one to the other, and are spread by half.
        rng: of the spread.

    Raises:
        UsageError: a URL or a proxy of another kind.
    """

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        *,
        proxy: str | None = None,
        peer: str = "server",
        limits: Limits | None = None,
        first_seconds: float = 0.2,
        longest_seconds: float = 30.0,
        rng: Randomness | None = None,
    ) -> None:
        limits = limits or Limits()
        to = Dialled(Address.parse(url), None if proxy is None else Proxy.parse(proxy), peer)
        waits = Waits(first_seconds, longest_seconds, rng or SystemRandomness())
        self._peer = peer
        self._mail = Mailbox()
        self._thread = LoopThread("confide join", self._mail.put)
        self._caller = Caller(to, context, limits, waits, self._mail)
        self._sender = Sender(self._thread, self._caller.deliver, limits)
        self._thread.post(self._caller.start)

    @property
    def given_up(self) -> str | None:
        """Return why no further attempt is made, or None."""
        return self._caller.given_up

    def send(self, peer: str, envelope: Envelope) -> None:
        if peer != self._peer:
            raise UsageError(f"Expected {self._peer!r}, the only peer here; got {peer[:80]!r}")
        self._sender.send(peer, envelope)

    def receive(self, timeout_seconds: float) -> Event | None:
        return self._mail.take(timeout_seconds, self._thread)

    def close(self) -> None:
        self._thread.close(self._caller.stop())

    def renewed(self, context: ssl.SSLContext, *, reconnect: bool = False) -> None:
        """Connect with `context` from the next time on; with `reconnect` now, else when the connection ends."""
        self._thread.post(self._caller.renewed, context, reconnect)

    def __enter__(self) -> Join:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
