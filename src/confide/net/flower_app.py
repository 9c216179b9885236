"""What runs inside Flower: carries batches between a SuperLink's messages and the local sockets of confide.

This one file is the Flower app, with Flower and the standard library alone: nothing of confide needs to be installed
where Flower is. It understands no batch, holds no key and sees no data; what it can do wrong is to lose something.

* The ServerApp calls the coordinator's socket. It says which SuperNodes are online, sends one message for each batch
  that it is told to send, and hands every reply over. It outlives a coordinator that ends and starts again.
* The ClientApp, started anew for each message, hands the message to the node's socket and returns what comes back.
"""

# Flower lives in an environment of its own, which no type checker of ours sees.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedFunctionDecorator=false

from __future__ import annotations

import json
import select
import socket
import struct
import time
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

_LENGTHS = struct.Struct("<IQ")
_RECORD = "confide"
#: A socket that is not there yet: how often it is tried, and how long by a ClientApp, whose SuperNode waits for it.
_RETRY_SECONDS = 0.5
_CLIENT_PATIENCE_SECONDS = 30.0
#: How often replies are asked for: at first, and after a long wait; how often the online SuperNodes are.
_POLL_SECONDS, _SLOWEST_POLL_SECONDS, _PLACES_SECONDS = 0.1, 1.0, 2.0


# --- frames, as in confide/net/local.py -------------------------------------------------------------------------------


def _connect(path: str, patience_seconds: float) -> socket.socket | None:
    end = time.monotonic() + patience_seconds
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            return sock
        except OSError:
            sock.close()
        if time.monotonic() > end:
            return None
        time.sleep(_RETRY_SECONDS)


def _send(sock: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(header).encode()
    sock.sendall(b"".join((_LENGTHS.pack(len(text), len(body)), text, body)))


def _receive(sock: socket.socket) -> tuple[dict[str, Any], bytes]:
    header_bytes, body_bytes = _LENGTHS.unpack(_exactly(sock, _LENGTHS.size))
    return json.loads(_exactly(sock, header_bytes)), _exactly(sock, body_bytes)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, have = memoryview(data), 0
    while have < count:
        more = sock.recv_into(view[have:])
        if not more:
            raise ConnectionError("confide's process has closed its socket")
        have += more
    return bytes(data)


# --- batches inside Flower's messages ---------------------------------------------------------------------------------


def _wrap(batch: bytes) -> RecordDict:
    # An array, not a config value: Flower cuts arrays into chunks.
    return RecordDict({_RECORD: ArrayRecord({_RECORD: Array("uint8", (len(batch),), "confide.batch", batch)})})


def _unwrap(message: Message) -> bytes:
    return message.content[_RECORD][_RECORD].data


# --- the node ---------------------------------------------------------------------------------------------------------

client = ClientApp()


@client.query()
def hand_over(message: Message, context: Context) -> Message:
    """Give a message to the node's own process, and return its reply."""
    path = str(context.node_config.get("confide-socket", ""))
    sock = _connect(path, _CLIENT_PATIENCE_SECONDS) if path else None
    if sock is None:
        raise ConnectionError("no confide node listens on the socket that the node config calls confide-socket")
    with sock:
        _send(sock, {}, _unwrap(message))
        header, reply = _receive(sock)
    if header.get("refused"):
        raise PermissionError(header["refused"])
    return Message(_wrap(reply), reply_to=message)


# --- the coordinator --------------------------------------------------------------------------------------------------

server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Serve one coordinator after the other, until one says that the run is over or none comes."""
    config = context.run_config
    path, patience_seconds = str(config["confide-socket"]), float(config["patience-seconds"])
    while (sock := _connect(path, patience_seconds)) is not None:
        with sock:
            try:
                if _Carrier(grid, sock, float(config["answer-seconds"])).run():
                    return
            except (ConnectionError, BrokenPipeError):
                time.sleep(_RETRY_SECONDS)


class _Carrier:
    """Carries for one coordinator process; what an earlier one asked is not its business."""

    def __init__(self, grid: Grid, sock: socket.socket, answer_seconds: float) -> None:
        self.grid, self.sock, self.answer_seconds = grid, sock, answer_seconds
        self.asked: dict[str, int] = {}  # node ids by message id
        self.places: list[int] | None = None
        self.places_at = self.moved_at = float("-inf")

    def run(self) -> bool:
        """Return True when the coordinator says that the run is over."""
        while True:
            self.look_around()
            asks: list[tuple[int, bytes]] = []
            waited = self.poll_seconds()
            while select.select([self.sock], [], [], 0 if asks else waited)[0]:
                header, body = _receive(self.sock)
                if header["kind"] == "end":
                    return True
                asks.append((header["node"], body))
            if asks:
                self.ask(asks)
            self.collect()

    def poll_seconds(self) -> float:
        """Return how long to wait for orders: replies come within seconds, or after a long training."""
        if not self.asked:
            return _PLACES_SECONDS
        return min(_SLOWEST_POLL_SECONDS, max(_POLL_SECONDS, 0.02 * (time.monotonic() - self.moved_at)))

    def look_around(self) -> None:
        if time.monotonic() - self.places_at < _PLACES_SECONDS:
            return
        self.places_at = time.monotonic()
        places = sorted(self.grid.get_node_ids())
        if places != self.places:
            self.places = places
            _send(self.sock, {"kind": "places", "places": places})

    def ask(self, asks: list[tuple[int, bytes]]) -> None:
        messages = [
            Message(_wrap(batch), dst_node_id=node, message_type=MessageType.QUERY, ttl=self.answer_seconds)
            for node, batch in asks
        ]
        message_ids = list(self.grid.push_messages(messages)) or [None] * len(asks)
        for message_id, (node, _) in zip(message_ids, asks, strict=True):
            if message_id:
                self.asked[message_id] = node
            else:
                self.fail(node, "the SuperLink took no message for it")
        self.moved_at = time.monotonic()

    def collect(self) -> None:
        if not self.asked:
            return
        for reply in self.grid.pull_messages(list(self.asked)):
            node = self.asked.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                continue
            self.moved_at = time.monotonic()
            if reply.has_error():
                self.fail(node, str(reply.error.reason))
            else:
                _send(self.sock, {"kind": "reply", "node": node}, _unwrap(reply))

    def fail(self, node: int, reason: str) -> None:
        _send(self.sock, {"kind": "failed", "node": node, "reason": reason[:200]})
