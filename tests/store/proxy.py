"""A way to a PostgreSQL server that breaks on request: at a word of the client's, and with which end left standing."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Listens in `folder` as the server in `target` does, and passes bytes on.

    Args:
        cut_at: the connection to the client breaks after the first bytes that contain this were passed on; None: never.
        keep_server_side: the server hears nothing of it.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder, self._target = folder, target
        self.cut_at: bytes | None = None
        self.swallow = False  # what contains `cut_at` is not passed on
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / _SOCKET))
        self._listener.listen()
        self._start(self._accept)

    def url(self, url: str) -> str:
        return url.replace(str(self._target), str(self.folder))

    def cut(self) -> None:
        """Break the connection to every client; the server's sessions stay."""
        for client in self._open[::2]:
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for one in self._open:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._open):
            one.close()

    def _start(self, job, *arguments) -> None:
        self._threads.append(threading.Thread(target=job, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._target / _SOCKET))
            self.connections += 1
            self._open += [client, server]
            self._start(self._pass, client, server, True)
            self._start(self._pass, server, client, False)

    def _pass(self, src: socket.socket, dst: socket.socket, from_client: bool) -> None:
        while True:
            try:
                data = src.recv(1 << 16)
                cut = from_client and self.cut_at is not None and self.cut_at in data
                if cut:
                    self.cut_at = None
                    src.shutdown(socket.SHUT_RDWR)  # first, so that no reply gets through
                if data and not (cut and self.swallow):
                    dst.sendall(data)
            except OSError:
                return
            if not data:
                return
