"""One party of a training on shares, moved by the messages that arrive for it, without I/O.

Unlike `net.exchange` it keeps nothing that was sent: a training sends gigabytes, and a lost link ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from confide.errors import ProtocolError
from confide.wire import Inbox, Message, Party, Step

#: Messages of one peer that may wait; an honest one is ahead by a few.
MOST_WAITING = 16


class Moving:
    """One party.

    Args:
        me: its name.
        send: is given what it sends.
        ended: is given its output.
    """

    def __init__(self, me: str, send: Callable[[Message], None], ended: Callable[[Any], None]) -> None:
        self._me, self._send, self._ended = me, send, ended
        self._inbox, self._step = Inbox(), Step()
        self._waiting = Counter[str]()
        self._party: Party | None = None
        #: How often the party has moved.
        self.moves = 0

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Return whose messages it waits for."""
        return tuple(self._inbox.missing(self._step)) if self._party is not None else ()

    def start(self, party: Party) -> None:
        """Start it; what has arrived before is there. Raises ConfideError as the party does."""
        self._party = party
        self._move(None)
        self._advance()

    def put(self, message: Message) -> None:
        """Take a message in.

        Raises:
            ProtocolError: a peer says what none would say, or the party cannot go on with it.
        """
        if message.dst != self._me:
            raise ProtocolError(f"Expected messages to {self._me}")
        if not self._inbox.knows(message):
            self._waiting[message.src] += 1
            if self._waiting[message.src] > MOST_WAITING:
                raise ProtocolError(f"Expected at most {MOST_WAITING} messages of {message.src} ahead of time")
        self._inbox.put(message)
        self._advance()

    def close(self) -> None:
        """End it without an output."""
        if self._party is not None:
            self._party.close()
            self._party = None

    def _advance(self) -> None:
        while self._party is not None and (received := self._inbox.ready(self._step)) is not None:
            for src in received:
                self._waiting[src] -= 1
            self._move(received)

    def _move(self, received: Mapping[str, Message] | None) -> None:
        assert self._party is not None
        self.moves += 1
        try:
            self._step = next(self._party) if received is None else self._party.send(received)
        except StopIteration as end:
            self._party = None
            self._ended(end.value)
            return
        self._inbox.await_step(self._step)
        for message in self._step.send:
            self._send(message)
