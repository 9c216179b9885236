"""One connection: TCP by asyncio, TLS and WebSocket without I/O on top of it, frames in and out within limits.

    bytes -> Tls -> WebSocket (websockets' protocol without I/O) -> Assembly -> envelopes
    envelopes -> Outbox -> WebSocket -> Tls -> bytes

Everything here runs in the thread of one event loop. A connection ends once, with a reason for people; the other side
is told by the code and the reason of WebSocket's close frame, after which what still comes is thrown away unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from logging import CRITICAL, Logger
from typing import Protocol, cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from confide.errors import ProtocolError
from confide.net.ending import FINAL, Code, Ending, one_line, short
from confide.net.exchange import Envelope
from confide.net.frames import Assembly, Outbox
from confide.net.limits import Account, Limits
from confide.net.tls import Peer, Tls, TlsRefused
from confide.wire import MESSAGE_COST_BYTES

#: What websockets gets to log to: it would write down frames.
SILENT = Logger("confide silent", CRITICAL + 1)
#: A peer gets this long to read why it was dropped.
LINGER_SECONDS = 2.0
#: Answers to pings wait in here too: a peer that asks and does not read is dropped beyond it.
LARGEST_BUFFER_BYTES = 8 << 20
_HIGH_WATER_BYTES = 256 << 10
_FRAMES_PER_TURN = 8
_BROKE = "the connection broke off"
_NO_WEBSOCKET = "it does not speak WebSocket"


class Owner(Protocol):
    """Who has connections: told of what happens on them, in the loop's thread."""

    limits: Limits

    def made(self, connection: Connection) -> bool:
        """The socket is there; return whether there is room for it."""
        ...

    def secured(self, connection: Connection, certificate: bytes | None) -> int:
        """TLS is up, and this is the peer's verified certificate; return the largest message that it may send."""
        ...

    def opened(self, connection: Connection) -> None:
        """WebSocket is up."""
        ...

    def message(self, connection: Connection, data: bytes | bytearray) -> None:
        """A WebSocket message came. A ProtocolError drops the connection."""
        ...

    def ended(self, connection: Connection, ending: Ending) -> None:
        """The connection has ended; nothing else will come of it."""
        ...

    def lost(self, connection: Connection) -> None:
        """The socket is gone, too."""
        ...


class Connection(asyncio.BufferedProtocol):
    """One end of one connection.

    Args:
        owner: who is told.
        tls: this end's.
        websocket: this end's, for the end that connects; the end that listens makes its own.
        scratch: where bytes from the network lie while they are looked at; all connections of a loop share it.
    """

    def __init__(self, owner: Owner, tls: Tls, websocket: ClientProtocol | None, scratch: bytearray) -> None:
        self.owner, self.limits, self.tls = owner, owner.limits, tls
        #: Set by the owner: who the peer is, and why it may not be here.
        self.peer: Peer | None = None
        self.refusal = ""
        self.address = ""
        self.outbox, self.assembly = Outbox(self.limits), Assembly(self.limits)
        self.ending: Ending | None = None
        self.is_open = False
        self._websocket: ClientProtocol | ServerProtocol | None = websocket
        self._scratch = scratch
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self.account = Account(self.limits, now)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pauses: set[str] = set()
        self._writing = True
        self._heard = self._moved = now
        self._pinged = False
        self._buffered = 0

    # --- what the owner does ------------------------------------------------------------------------------------------

    def send(self, envelope: Envelope) -> None:
        """Queue an envelope and write what can be written; a peer that does not read is dropped."""
        if self.is_open and self.ending is None:
            self.outbox.put(envelope)
            if self.outbox.bytes > self.limits.waiting_bytes:
                self.close(Code.DROPPED, f"more than {self.limits.waiting_bytes} bytes wait to be read")
            else:
                self._pump()

    @property
    def waiting_bytes(self) -> int:
        """Return what waits here to leave."""
        return self.outbox.bytes

    def reply(self, data: bytes) -> None:
        """Write one WebSocket message that is no frame of an envelope."""
        if self.is_open and self.ending is None and (websocket := self._speaking) is not None:
            websocket.send_binary(data)
            self._flush()

    def close(self, code: Code, reason: str, *, certificate: bool = False) -> None:
        """End this connection at once; the peer is told why, as far as it listens."""
        self._end(Ending(reason, final=code in FINAL, certificate=certificate, code=code), code)

    def give_up(self, ending: Ending) -> None:
        """End this connection without a word to the other side."""
        self._end(ending, None)

    @property
    def has_socket(self) -> bool:
        """Return whether there is a socket that has not gone yet."""
        return self._transport is not None

    def abort(self) -> None:
        """Give the socket up."""
        if self._transport is not None:
            self._transport.abort()

    def keep_identity(self) -> None:
        """Stop the clock of the handshake: the peer has shown who it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def use(self, account: Account) -> None:
        """Count on `account` from now on."""
        self.account = account
        self._wait_if_full()

    def count(self, envelope: Envelope) -> None:
        """Count a whole message as waiting to be taken; beyond the limit no more is read until `resume`."""
        self.account.arrived_bytes += len(envelope.message.body) + MESSAGE_COST_BYTES
        self._wait_if_full()

    def resume(self) -> None:
        """Read again if enough was taken."""
        if "full" in self._pauses and self.account.held_bytes <= self.limits.arrived_bytes // 2:
            self._unpause("full")

    def tick(self, now: float) -> None:
        """Look whether the peer is still there: it answers, and bytes for it move."""
        if self.ending is not None or not self.is_open or self._transport is None:
            return
        buffered = self._transport.get_write_buffer_size()
        if buffered == 0 or buffered < self._buffered:
            self._moved = now
        self._buffered = buffered
        self.resume()
        if self._pauses:
            self._heard = now  # it may have answered: nobody looked
        silent, silence = now - self._heard, self.limits.silence_seconds
        if silent > silence or now - self._moved > silence:
            self._end(Ending(f"nothing moved for {silence:g} seconds"), Code.DROPPED)
        elif silent > self.limits.ping_seconds and not self._pinged and (websocket := self._speaking) is not None:
            self._pinged = True
            websocket.send_ping(b"")
            self._flush()

    # --- what asyncio tells -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, with its clock."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_HIGH_WATER_BYTES)
        self.address = str((transport.get_extra_info("peername") or ("?",))[0])
        if not self.owner.made(self):
            self._end(Ending("there are too many connections"), None)
            return self.abort()
        seconds = self.limits.handshake_seconds
        late = Ending(f"it did not say who it is within {seconds:g} seconds")
        self._timer = self._loop.call_later(seconds, self._end, late, Code.DROPPED)
        self._guarded(self.tls.begin)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return memoryview(self._scratch)

    def buffer_updated(self, nbytes: int) -> None:
        """Look at `nbytes` that have come."""
        if self.ending is not None:
            return  # the other side still talks: it is heard until it hangs up, not listened to
        self._heard, self._pinged = self._loop.time(), False
        bucket = self.account.bytes
        if (left := bucket.take(nbytes, self._heard)) < 0:
            self._pause("rate")
            self._loop.call_later(-left / bucket.per_second, self._unpause, "rate")
        self._guarded(lambda: self._received(memoryview(self._scratch)[:nbytes]))

    def eof_received(self) -> bool:
        """The peer hung up: so does this end."""
        self._end(Ending(_BROKE), None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._end(Ending(_BROKE), None)
        self.keep_identity()
        self._transport = None
        self.owner.lost(self)

    def pause_writing(self) -> None:
        """The network is slower than we are."""
        self._writing = False

    def resume_writing(self) -> None:
        """The network can take more."""
        self._writing = True
        self._pump()

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _speaking(self) -> ClientProtocol | ServerProtocol | None:
        """Return the WebSocket if it takes messages: what has come with a close frame is looked at after that frame."""
        websocket = self._websocket
        speaks = websocket is not None and websocket.state is State.OPEN and websocket.close_rcvd is None
        return websocket if speaks else None

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except TlsRefused as error:
            self._end(Ending(str(error), certificate=error.certificate), None)
        except ProtocolError as error:
            self.close(Code.DROPPED, str(error))
        else:
            self._flush()

    def _received(self, data: memoryview) -> None:
        was_open = self.tls.open
        self.tls.put(data)
        if self.tls.open and not was_open:
            self._secured()
        while self.ending is None and (plain := self.tls.take()):
            websocket = self._websocket
            assert websocket is not None
            websocket.receive_data(plain)
            for event in websocket.events_received():
                if self.ending is None:
                    self._event(websocket, event)
            if websocket.handshake_exc is not None and self.ending is None:
                self._end(Ending(_NO_WEBSOCKET), None)
            if websocket.parser_exc is not None and self.ending is None:
                # Its text says what is wrong with the form of a frame, and never what is inside.
                self._end(Ending(f"Expected WebSocket: {str(websocket.parser_exc)[:100]}"), None)
        if self.tls.ended:
            self._end(Ending(_BROKE), None)

    def _secured(self) -> None:
        largest_bytes = self.owner.secured(self, self.tls.certificate())
        if self.ending is not None:
            return
        if self._websocket is None:
            self._websocket = ServerProtocol(max_size=largest_bytes, logger=SILENT)
        else:
            assert isinstance(self._websocket, ClientProtocol)
            self._websocket.send_request(self._websocket.connect())

    def _event(self, websocket: ClientProtocol | ServerProtocol, event: Request | Response | Frame) -> None:
        if isinstance(event, Frame):
            if self.account.frames.take(1, self._heard) < 0:
                raise ProtocolError(f"Expected at most {self.limits.frames_per_second:g} frames per second")
            if event.opcode is Opcode.CLOSE:
                self._hung_up(websocket)
            elif event.opcode in (Opcode.TEXT, Opcode.CONT) or not event.fin:
                raise ProtocolError("Expected binary WebSocket messages in one piece")
            elif event.opcode is Opcode.BINARY:
                self.owner.message(self, cast(bytes, event.data))
            return None
        if isinstance(event, Request):
            assert isinstance(websocket, ServerProtocol)
            if websocket.state is not State.CONNECTING:  # frames came with it, the last of which ends it
                return self._end(Ending(_NO_WEBSOCKET), None)
            refused = websocket.reject(HTTPStatus.FORBIDDEN, self.refusal) if self.refusal else None
            websocket.send_response(refused or websocket.accept(event))
        if websocket.state is State.OPEN:
            self.is_open = True
            self._flush()
            self.owner.opened(self)
        elif self.refusal:
            self._end(Ending(self.refusal, final=True), None)
        elif isinstance(event, Response) and event.status_code == HTTPStatus.FORBIDDEN:
            reason = bytes(event.body or b"").decode(errors="replace")
            self._end(Ending(one_line(reason) or "the other side refuses", final=True), None)
        else:
            self._end(Ending(_NO_WEBSOCKET), None)

    def _hung_up(self, websocket: ClientProtocol | ServerProtocol) -> None:
        close = websocket.close_rcvd
        assert close is not None
        reason = one_line(close.reason) or "the other side closed the connection"
        self._end(Ending(reason, final=close.code in FINAL, code=close.code), None)

    def _pump(self) -> None:
        websocket = self._speaking
        for _ in range(_FRAMES_PER_TURN):
            if not self._writing or self.ending is not None or websocket is None:
                return
            if (frame := self.outbox.take()) is None:
                return
            self._moved = self._loop.time()
            websocket.send_binary(frame)
            self._flush()
        self._loop.call_soon(self._pump)  # other connections have their turn

    def _flush(self) -> None:
        if self._transport is None:
            return
        if self._websocket is not None and self.tls.open:
            for data in self._websocket.data_to_send():
                if data:
                    self.tls.write(data)
        if not (out := self.tls.outgoing()):
            return
        self._transport.write(out)
        if self.ending is None and self._transport.get_write_buffer_size() > LARGEST_BUFFER_BYTES:
            self._end(Ending("it asks and does not read"), None)
            self.abort()

    def _end(self, ending: Ending, code: Code | None) -> None:
        """End once: say why (with a code), then stop writing, and hang up when the other side does or is too slow."""
        if self.ending is not None:
            return
        self.ending = ending
        self.keep_identity()
        self.owner.ended(self, ending)
        if code is not None and self.is_open and (websocket := self._speaking) is not None:
            websocket.send_close(code, short(ending.reason))
        self._flush()
        self.tls.close()
        self._flush()
        self.outbox, self.assembly = Outbox(self.limits), Assembly(self.limits)
        self._pauses.clear()
        if self._transport is not None:
            self._transport.resume_reading()
            if self._transport.can_write_eof():
                with suppress(OSError):  # the peer is gone already: there is nobody to tell
                    self._transport.write_eof()
            self._timer = self._loop.call_later(LINGER_SECONDS, self.abort)

    def _wait_if_full(self) -> None:
        if self.account.held_bytes > self.limits.arrived_bytes:
            self.account.resume = self.resume
            self._pause("full")
            self.resume()  # the other thread may have taken it before it could see that somebody waits

    def _pause(self, why: str) -> None:
        if not self._pauses and self._transport is not None:
            self._transport.pause_reading()
        self._pauses.add(why)

    def _unpause(self, why: str) -> None:
        self._pauses.discard(why)
        if not self._pauses and self._transport is not None:
            self._transport.resume_reading()
