"""The listening side of `stream`, inside its loop: who may connect, who is there, and who was not let in."""

from __future__ import annotations

import asyncio
import resource
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from confide.errors import ProtocolError
from confide.net.connection import Connection
from confide.net.ending import Code, Ending
from confide.net.exchange import Envelope
from confide.net.frames import LARGEST_FRAME_BYTES
from confide.net.limits import Account, Limits
from confide.net.link import Arrived, Joined, Left
from confide.net.loop import Mail, reason_of
from confide.net.tls import Peer, Tls, read_peer

LARGEST_ENROLMENT_BYTES = 64 << 10
_TICK_SECONDS = 0.5
_SCRATCH_BYTES = 256 << 10
_REFUSALS_KEPT = 100
#: File descriptors that are left to the rest of the process.
_SPARE_DESCRIPTORS = 64

#: Says why a peer may not be here, or None. Called in the link's thread: quick, and without the caller's locks.
Admit = Callable[[Peer], str | None]
#: Answers an enrolment. Called in the link's thread: quick, and without the caller's locks.
Enrol = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody who was not let in.

    Args:
        seconds: when, in seconds since 1970.
        address: from where.
        name: what its certificate says, "" if it showed none that holds.
        reason: one line for people.
    """

    seconds: float
    address: str
    name: str
    reason: str


class Listener:
    """All connections of a host; everything but the constructor runs in the loop's thread.

    Args:
        context: what it shows and trusts.
        admit, enrol: as `Host` has them.
        limits: what peers may do.
        mail: where events go.
    """

    def __init__(self, context: ssl.SSLContext, admit: Admit, enrol: Enrol | None, limits: Limits, mail: Mail) -> None:
        self.limits = limits
        self.refused: deque[Refusal] = deque(maxlen=_REFUSALS_KEPT)
        self._context, self._admit, self._enrol, self._mail = context, admit, enrol, mail
        self._members: dict[str, Connection] = {}
        self._accounts: dict[str, Account] = {}
        self._all: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}  # the oldest first
        self._per_address, self._strangers_per_address = Counter[str](), Counter[str]()
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS
        self._most = max(1, min(limits.connections, descriptors))

    async def start(self, address: str, port: int) -> int:
        """Listen; return the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make, address, port, backlog=512)
        self._tick()
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """End every connection and the listening; peers are told."""
        assert self._server is not None
        self._server.close()
        if self._ticking is not None:
            self._ticking.cancel()
        for connection in list(self._all):
            connection.close(Code.STOPS, "the coordinator stops")
        deadline = time.monotonic() + 1.0
        while self._all and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        while self._all:
            for connection in list(self._all):
                connection.abort()
            await asyncio.sleep(0.005)
        await self._server.wait_closed()

    def deliver(self, peer: str, envelope: Envelope) -> None:
        """Send an envelope if its peer is there."""
        if connection := self._members.get(peer):
            connection.send(envelope)

    def waiting_bytes(self, name: str) -> int:
        """Return what waits to leave for a peer."""
        connection = self._members.get(name)
        return 0 if connection is None else connection.waiting_bytes

    def peer(self, name: str) -> Peer | None:
        """Return whom the certificate of a peer who is there is for."""
        connection = self._members.get(name)
        return None if connection is None else connection.peer

    def address(self, name: str) -> str:
        """Return the address of a peer who is there, else ""."""
        connection = self._members.get(name)
        return "" if connection is None else connection.address

    def drop(self, peer: str, reason: str, code: Code) -> None:
        """End a peer's connection if there is one."""
        if connection := self._members.get(peer):
            connection.close(code, reason)

    def recheck(self) -> None:
        """Drop whom `admit` refuses now."""
        for connection in list(self._members.values()):
            if reason := self._reason(connection.peer):
                connection.close(Code.REFUSED, reason)

    # --- what a connection tells --------------------------------------------------------------------------------------

    def made(self, connection: Connection) -> bool:
        address, limits = connection.address, self.limits
        self._all.add(connection)
        self._strangers[connection] = None
        self._per_address[address] += 1
        self._strangers_per_address[address] += 1
        if self._per_address[address] > limits.connections_per_address:
            return False
        if self._strangers_per_address[address] > limits.strangers_per_address:
            return False
        if len(self._all) > self._most or len(self._strangers) > limits.strangers:
            self._make_room()
        return connection in self._all and len(self._all) <= self._most

    def secured(self, connection: Connection, certificate: bytes | None) -> int:
        if certificate is None:
            return LARGEST_ENROLMENT_BYTES
        try:
            connection.peer = read_peer(certificate)
            connection.refusal = self._reason(connection.peer) or ""
        except ProtocolError as error:
            connection.refusal = str(error)
        return LARGEST_FRAME_BYTES

    def opened(self, connection: Connection) -> None:
        peer = connection.peer
        if peer is None:
            return  # its clock runs on, until it has enrolled
        connection.keep_identity()
        self._known(connection)
        now = asyncio.get_running_loop().time()
        connection.use(self._accounts.setdefault(peer.name, Account(self.limits, now)))
        if earlier := self._members.get(peer.name):
            earlier.close(Code.REPLACED, f"somebody else has connected as {peer.name}")
        self._members[peer.name] = connection
        self._mail.put(Joined(peer.name, peer.role))

    def message(self, connection: Connection, data: bytes | bytearray) -> None:
        peer = connection.peer
        if peer is None:
            return self._answer(connection, bytes(data))
        envelope = connection.assembly.put(data)
        if envelope is None:
            return None
        if envelope.message.src != peer.name:
            raise ProtocolError(f"Expected messages of {peer.name} alone over its connection")
        connection.count(envelope)
        self._mail.put(Arrived(peer.name, envelope), connection.account)

    def ended(self, connection: Connection, ending: Ending) -> None:
        peer = connection.peer
        if peer is not None and self._members.get(peer.name) is connection:
            del self._members[peer.name]
            self._mail.put(Left(peer.name, ending.reason))
        elif ending.code != Code.DONE:
            name = peer.name if peer else ""
            self.refused.append(Refusal(time.time(), connection.address, name, ending.reason))

    def lost(self, connection: Connection) -> None:
        self._known(connection)
        if connection in self._all:
            self._all.remove(connection)
            self._per_address[connection.address] -= 1
            if not self._per_address[connection.address]:
                del self._per_address[connection.address]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _make(self) -> Connection:
        return Connection(self, Tls(self._context, host=None), None, self._scratch)

    def _make_room(self) -> None:
        """Drop the oldest stranger of the address that has most of them: whoever floods loses places, not others."""
        most = max(self._strangers_per_address.values())
        for stranger in self._strangers:
            if self._strangers_per_address[stranger.address] == most:
                stranger.give_up(Ending("there are too many connections"))
                stranger.abort()
                return self.lost(stranger)  # its place is free at once

    def _known(self, connection: Connection) -> None:
        if connection in self._strangers:
            del self._strangers[connection]
            self._strangers_per_address[connection.address] -= 1
            if not self._strangers_per_address[connection.address]:
                del self._strangers_per_address[connection.address]

    def _reason(self, peer: Peer | None) -> str | None:
        if peer is None or peer.role == "coordinator":
            return "Expected the certificate of a member; a coordinator's is for listening"
        return reason_of(lambda: self._admit(peer))

    def _answer(self, connection: Connection, body: bytes) -> None:
        enrol = self._enrol
        if enrol is None:
            raise ProtocolError("Expected a certificate")
        replies: list[bytes] = []
        if refusal := reason_of(lambda: replies.append(enrol(body))):
            return connection.close(Code.REFUSED, refusal)
        connection.reply(replies[0])
        connection.close(Code.DONE, "")

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in list(self._all):
            connection.tick(loop.time())
        held = sum(account.held_bytes for account in self._accounts.values())
        held += sum(connection.assembly.bytes for connection in self._all)
        if held > self.limits.total_bytes and self._members:
            greediest = max(self._members.values(), key=lambda one: one.assembly.bytes + one.account.held_bytes)
            greediest.close(Code.BUSY, "the coordinator has no room for more now")
        self._ticking = loop.call_later(_TICK_SECONDS, self._tick)
