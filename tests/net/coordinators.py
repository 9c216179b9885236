"""A coordinator that does nothing but answer strangers: what a connection without a certificate meets.

It is a server of the `websockets` package over the coordinator's TLS context; the port is a free one on 127.0.0.1.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from confide.errors import ProtocolError
from confide.net.contexts import server_context


def free_port() -> socket.socket:
    """Return a socket that listens on a free port, to found a federation with its address."""
    return socket.create_server(("127.0.0.1", 0))


@contextmanager
def answering(folder: Path, listener: socket.socket, answer: Callable[[bytes], bytes]) -> Iterator[None]:
    """Answer each connection's first message, or hang up with the reason."""

    def handle(connection: ServerConnection) -> None:
        try:
            body = connection.recv()
            connection.send(answer(body) if isinstance(body, bytes) else "text")
        except ProtocolError as error:
            connection.close(1008, str(error).encode()[:120].decode(errors="ignore"))
        except ConnectionClosed:
            pass

    with serve(handle, sock=listener, ssl=server_context(folder).context) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
