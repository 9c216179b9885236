"""The same parties over Flower: a federation whose members reach each other through a SuperLink and their SuperNodes.

Flower starts a new process for every message that a node gets, with nothing left of the one before, and runs code that
the SuperLink ships. Parties live for many messages and belong to their organisation. So they stay out of Flower: the
coordinator and each node are processes of their own, in confide's environment, and listen on a Unix socket; what runs
inside Flower is one short file (flower_app.py), which carries batches between the sockets and knows nothing of them.

    coordinator -- socket -- ServerApp -- SuperLink -- SuperNode -- ClientApp -- socket -- node

`net/batch.py` says what a batch is and what it proves. One exchange is one Flower message with its reply, per node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ProtocolError, UsageError
from confide.net.batch import MAX_BATCH_BYTES, HostBatches, Member, NodeBatches
from confide.net.exchange import Envelope
from confide.net.link import Event
from confide.net.local import Frame, Gone, Listener

#: Few, since each may make us keep one batch: the app and one that replaces it, and one more at the coordinator.
_APPS, _CLIENT_APPS = 3, 2

#: How often a coordinator looks who its members are.
_MEMBERS_SECONDS = 1.0

#: The Flower app: one module and what Flower must know of it.
_APP_MODULE = "flower_app"
_APP_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "confide-flower"
version = "1.0.0"
license = "Apache-2.0"
description = "Carries the batches of a confide federation between local sockets; holds no model, no data and no key"
dependencies = ["flwr>=1.42"]

[tool.flwr.app]
publisher = "confide"

[tool.flwr.app.components]
serverapp = "flower_app:server"
clientapp = "flower_app:client"

[tool.flwr.app.config]
# The coordinator's socket, on the machine where the SuperLink runs ServerApps.
confide-socket = "coordinator.sock"
# A node that has not answered after so long is given up; as long as the longest local training takes, and more.
answer-seconds = 3600.0
# How long the app waits for a coordinator that is not there, or was and went away.
patience-seconds = 3600.0
"""


class _Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the ServerApp says: who is online, what a node answered (the body), or why it did not."""

    kind: Literal["places", "reply", "failed"]
    node: int = 0
    places: tuple[int, ...] = ()
    reason: str = ""


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the ServerApp is told: ask a node (the batch is the body), or end the run."""

    kind: Literal["ask", "end"]
    node: int = 0


class _Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ClientApp is told: an empty text and the reply in the body, or why there is none."""

    refused: str = ""


_REPORT = msgspec.json.Decoder(_Report)


def _json(header: msgspec.Struct) -> bytes:
    return msgspec.json.encode(header)


class FlowerHost:
    """The coordinator's link: a `Link` whose peers are the members behind SuperNodes.

    Args:
        path: of the socket on which the ServerApp calls; its run config `confide-socket` says the same.
        key: the coordinator's identity.
        members: returns who may join, by name; asked again about every second, so that a revocation takes effect.
        me: the coordinator's name.
        mode: of the socket: who may call.
        beat_seconds, retry_seconds, max_bytes: see `HostBatches`.
        rng: draws nonces.
        say: told in one line why nobody has joined behind a SuperNode, once for each reason.

    Raises:
        UsageError: nobody can listen on `path`.

    **Guarantees** and **Leaks** are those of `HostBatches`.
    """

    def __init__(
        self,
        path: Path,
        key: SigningKey,
        members: Callable[[], Mapping[str, Member]],
        *,
        me: str = "server",
        mode: int = 0o600,
        beat_seconds: float = 30.0,
        retry_seconds: float = 10.0,
        max_bytes: int = MAX_BATCH_BYTES,
        rng: Randomness | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._members, self._asked_at, self._say = members, time.monotonic(), say
        self._told: dict[int, str] = {}
        self._batches = HostBatches(
            key,
            members(),
            rng or SystemRandomness(),
            me=me,
            beat_seconds=beat_seconds,
            retry_seconds=retry_seconds,
            max_bytes=max_bytes,
        )
        self._listener = Listener(path, mode=mode, max_bytes=max_bytes, most_callers=_APPS)
        self._app: int | None = None

    @property
    def requests(self) -> int:
        """Return how many Flower messages have been sent to nodes, hellos included."""
        return self._batches.requests

    @property
    def strangers(self) -> dict[int, str]:
        """Return why nobody has joined behind a SuperNode, by Flower's node id."""
        return self._batches.strangers

    def send(self, peer: str, envelope: Envelope) -> None:
        """Queue a message; it leaves when everything that has happened so far was received, with all others to `peer`.

        It is lost if the peer is not there.
        """
        self._batches.send(peer, envelope)

    def receive(self, timeout_seconds: float) -> Event | None:
        """Return the next event, or None if there is none within the time."""
        end = time.monotonic() + timeout_seconds
        while (event := self._batches.next_event()) is None:
            self._move(end)
            if time.monotonic() >= end:
                return self._batches.next_event()
        return event

    def close(self, *, end_run: bool = True, linger_seconds: float = 60.0) -> None:
        """End every connection, and remove the socket.

        Args:
            end_run: what was sent leaves, is answered, and then the run at the SuperLink ends; False leaves it there,
                waiting for the next coordinator, as after a crash.
            linger_seconds: how long for answers.
        """
        end = time.monotonic() + linger_seconds
        while end_run and self._app is not None and self._batches.busy and time.monotonic() < end:
            self._move(end)
        if self._app is not None and end_run:
            self._listener.send(self._app, _json(_Order("end")), b"")
        self._listener.close()

    def _move(self, end: float) -> None:
        """Send what is due, and take in what comes, until there is something or it is `end`."""
        now = time.monotonic()
        if now - self._asked_at >= _MEMBERS_SECONDS:
            self._asked_at = now
            self._batches.admit(self._members())
        if self._app is not None:
            for node, batch in self._batches.requests_due(now):
                self._listener.send(self._app, _json(_Order("ask", node)), batch)
        wait_seconds = min(end - now, _MEMBERS_SECONDS, self._batches.wait_seconds(now))
        for happened in self._listener.poll(max(0.0, wait_seconds)):
            self._take(happened)

    def _take(self, happened: Frame | Gone) -> None:
        if isinstance(happened, Gone):
            if happened.caller == self._app:
                self._app = None
                self._batches.places(())
            return
        try:
            report = _REPORT.decode(happened.header)
        except msgspec.MsgspecError:
            self._listener.hang_up(happened.caller)
            return
        if report.kind == "places":
            if self._app not in (None, happened.caller):  # a second run: the newest is the one that somebody wanted
                self._listener.hang_up(self._app)
                self._batches.places(())
            self._app = happened.caller
            self._batches.places(report.places)
        elif happened.caller == self._app:
            if report.kind == "reply":
                self._batches.replied(report.node, happened.body)
            else:
                self._batches.failed(report.node, _line(report.reason))
            self._tell(report.node)

    def _tell(self, node: int) -> None:
        """Say who is not taking part behind a SuperNode that has just been asked, unless it was said before."""
        reason = self._batches.strangers.get(node, "")
        if reason and reason != self._told.get(node):
            self._say(f"nobody has joined behind SuperNode {node}: {reason}")
        self._told[node] = reason


class FlowerJoin:
    """A member's link: a `Link` whose one peer is the coordinator.

    What the member sends while it handles an event leaves in the reply to the exchange that brought the event. That
    reply is sent when `receive` is called and nothing more waits: so handle each event to its end before the next call.

    Args:
        path: of the socket on which ClientApps call; the SuperNode's node config `confide-socket` says the same.
        me, role: the member's name, and "node", "helper" or "analyst".
        key: its identity.
        coordinator: the coordinator's public identity key, 32 bytes.
        server: the coordinator's name.
        mode: of the socket: 0o600 lets the member's own user call, 0o660 its group, for a SuperNode under another user.
        max_bytes: of a request.
        rng: draws nonces.

    Raises:
        UsageError: nobody can listen on `path`.

    **Guarantees** and **Leaks** are those of `NodeBatches`.
    """

    def __init__(
        self,
        path: Path,
        me: str,
        key: SigningKey,
        coordinator: bytes,
        *,
        role: str = "node",
        server: str = "server",
        mode: int = 0o600,
        max_bytes: int = MAX_BATCH_BYTES,
        rng: Randomness | None = None,
    ) -> None:
        self._batches = NodeBatches(
            me, role, key, coordinator, rng or SystemRandomness(), server=server, max_bytes=max_bytes
        )
        self._server = server
        self._listener = Listener(path, mode=mode, max_bytes=max_bytes, most_callers=_CLIENT_APPS)

    def send(self, peer: str, envelope: Envelope) -> None:
        """Queue a message for the next reply; only the coordinator can be sent to."""
        if peer == self._server:
            self._batches.send(envelope)

    def receive(self, timeout_seconds: float) -> Event | None:
        """Return the next event, or None if there is none within the time."""
        end = time.monotonic() + timeout_seconds
        while (event := self._batches.next_event()) is None:
            self._reply()
            for happened in self._listener.poll(max(0.0, end - time.monotonic())):
                self._take(happened)
            if time.monotonic() >= end:
                return self._batches.next_event()
        return event

    def close(self) -> None:
        """Send the reply that is due, end every connection and remove the socket."""
        self._reply()
        self._listener.close()

    def _reply(self) -> None:
        if due := self._batches.reply_due():
            caller, reply = due
            self._listener.send(caller, _json(_Verdict()), reply)

    def _take(self, happened: Frame | Gone) -> None:
        if isinstance(happened, Gone):
            self._batches.gone(happened.caller)
            return
        try:
            given_up = self._batches.request(happened.caller, happened.body)
        except ProtocolError as error:
            self._listener.send(happened.caller, _json(_Verdict(str(error))), b"")
            return
        if given_up not in (None, happened.caller):
            self._listener.hang_up(given_up)


def write_app(folder: Path) -> None:
    """Write the Flower app into `folder`, which is made: what `flwr run` ships to the SuperNodes.

    Raises:
        UsageError: the folder has something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"Expected a new or an empty folder; {folder.name} has something in it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(_APP_PROJECT)
    source = Path(__file__).with_name(f"{_APP_MODULE}.py")
    (folder / source.name).write_bytes(source.read_bytes())


def _line(text: str) -> str:
    """Return a text from outside as one short line for people."""
    return "".join(char if char.isprintable() else " " for char in text[:200])
