"""The connecting side of `stream`, inside its loop: attempts, the waits between them, and one enrolment."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass

from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.net.connection import SILENT, Connection, Owner
from confide.net.dial import Address, Proxy, dial, why
from confide.net.ending import Code, Ending
from confide.net.exchange import Envelope
from confide.net.frames import LARGEST_FRAME_BYTES
from confide.net.limits import Limits
from confide.net.link import Arrived, Joined, Left
from confide.net.loop import Mail
from confide.net.tls import Peer, Tls, read_peer

_SCRATCH_BYTES = 256 << 10
_TICK_SECONDS = 0.5
#: The role of whoever founded the federation.
COORDINATOR_ROLE = "coordinator"
#: A connection that lived this long was a good one: the waits begin anew.
_GOOD_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Waits:
    """The waits between attempts: they double from first to longest, each spread between half and one and a half."""

    first_seconds: float
    longest_seconds: float
    rng: Randomness

    def after(self, failures: int) -> float:
        """Return the seconds to wait after so many attempts in a row have failed."""
        seconds = min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures, 30))
        return seconds * (0.5 + self.rng.below(1 << 16) / (1 << 16))


@dataclass(frozen=True, slots=True)
class Dialled:
    """Where somebody who listens is, through which proxy, and who must answer there.

    Args:
        name: what it is called here; of a member, what its certificate must say.
        role: what its certificate must say.
    """

    address: Address
    proxy: Proxy | None
    name: str
    role: str = COORDINATOR_ROLE


def _connection(owner: Owner, to: Dialled, context: ssl.SSLContext, scratch: bytearray) -> Connection:
    websocket = ClientProtocol(parse_uri(to.address.url), max_size=LARGEST_FRAME_BYTES, logger=SILENT)
    return Connection(owner, Tls(context, host=to.address.host), websocket, scratch)


async def _dial(connection: Connection, to: Dialled, limits: Limits) -> None:
    """Give a connection its socket, or end it with the reason why there is none."""
    try:
        async with asyncio.timeout(limits.handshake_seconds):
            await dial(connection, to.address, to.proxy)
    except (OSError, ProtocolError) as error:  # a TimeoutError is an OSError
        place = f"{to.address.host}:{to.address.port}"
        connection.give_up(Ending(why(error, place)))


def _check_dialled(connection: Connection, certificate: bytes | None, to: Dialled) -> None:
    """End a connection at whose other end is somebody else than was dialled."""
    try:
        connection.peer = None if certificate is None else read_peer(certificate)
    except ProtocolError:
        connection.peer = None
    peer, of_member = connection.peer, to.role != COORDINATOR_ROLE
    if peer is None or peer.role != to.role or (of_member and peer.name != to.name):
        wanted = f"that of {to.name}, a {to.role}" if of_member else "that of a coordinator"
        connection.give_up(Ending(f"its certificate is not {wanted}", certificate=True))


class Caller:
    """Keeps one connection; everything but the constructor runs in the loop's thread.

    Args:
        to: where to connect.
        context: what this side shows and trusts.
        limits: what the coordinator may do.
        waits: between attempts.
        mail: where events go.
    """

    def __init__(self, to: Dialled, context: ssl.SSLContext, limits: Limits, waits: Waits, mail: Mail) -> None:
        self.limits = limits
        #: Why no further attempt is made, or None; the other thread reads it.
        self.given_up: str | None = None
        self._to, self._context, self._waits, self._mail = to, context, waits, mail
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._connection: Connection | None = None
        self._sockets: set[Connection] = set()
        self._over: asyncio.Future[Ending] | None = None
        self._opened_at = 0.0
        self._proven = False
        self._told = ""
        self._wake: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    # --- what Join asks -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect."""
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())
        self._task.add_done_callback(self._broke)

    async def stop(self) -> None:
        """End the connection and every attempt; the coordinator is told."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for connection in list(self._sockets):
            connection.close(Code.DONE, "this member stops")
        for _ in range(100):
            if not self._sockets:
                return
            await asyncio.sleep(0.005)
        while self._sockets:
            for connection in list(self._sockets):
                connection.abort()
            await asyncio.sleep(0.005)

    @property
    def peer(self) -> Peer | None:
        """Return whom the certificate at the other end is for, if there is a connection."""
        return None if self._connection is None else self._connection.peer

    @property
    def peer_address(self) -> str:
        """Return the address that was dialled, "" if there is no connection or a proxy stands between."""
        return "" if self._connection is None or self._to.proxy is not None else self._connection.address

    def deliver(self, peer: str, envelope: Envelope) -> None:
        """Send an envelope if there is a connection."""
        if self._connection is not None:
            self._connection.send(envelope)

    @property
    def waiting_bytes(self) -> int:
        """Return what waits to leave."""
        return 0 if self._connection is None else self._connection.waiting_bytes

    def renewed(self, context: ssl.SSLContext, reconnect: bool) -> None:
        """Use `context` from the next connection on."""
        self._context, self._proven = context, False
        connected = self._connection is not None and self._connection.is_open
        if self._wake is not None and (reconnect or not connected):
            self._wake.set()
        if reconnect and self._connection is not None:
            self._connection.close(Code.DONE, "this member shows another certificate")

    # --- what a connection tells --------------------------------------------------------------------------------------

    def made(self, connection: Connection) -> bool:
        self._sockets.add(connection)
        return True

    def secured(self, connection: Connection, certificate: bytes | None) -> int:
        _check_dialled(connection, certificate, self._to)
        return LARGEST_FRAME_BYTES

    def opened(self, connection: Connection) -> None:
        connection.keep_identity()
        self._opened_at = asyncio.get_running_loop().time()
        self._proven, self._told = True, ""
        self._mail.put(Joined(self._to.name, self._to.role))

    def message(self, connection: Connection, data: bytes | bytearray) -> None:
        envelope = connection.assembly.put(data)
        if envelope is not None:
            connection.count(envelope)
            self._mail.put(Arrived(self._to.name, envelope), connection.account)

    def ended(self, connection: Connection, ending: Ending) -> None:
        if self._over is not None and connection is self._connection:
            self._connection = None
            if connection.is_open or ending.reason != self._told:
                self._told = ending.reason
                self._mail.put(Left(self._to.name, ending.reason))
            self._over.set_result(ending)

    def lost(self, connection: Connection) -> None:
        self._sockets.discard(connection)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._wake is not None
        failures = 0
        while True:
            self._wake.clear()
            ending = await self._attempt()
            good = self._opened_at and loop.time() - self._opened_at > _GOOD_SECONDS
            failures = 0 if good else failures + 1
            seconds: float | None = self._waits.after(failures - 1 if failures else 0)
            if ending.final or (ending.certificate and not self._proven):
                self.given_up = ending.reason
                seconds, failures = None, 0
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)
            self.given_up = None

    def _broke(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._mail.put(error)

    async def _attempt(self) -> Ending:
        loop = asyncio.get_running_loop()
        self._opened_at = 0.0
        self._over = loop.create_future()
        connection = self._connection = _connection(self, self._to, self._context, self._scratch)
        await _dial(connection, self._to, self.limits)
        while not self._over.done():
            await asyncio.wait([self._over], timeout=_TICK_SECONDS)
            connection.tick(loop.time())
        return self._over.result()
