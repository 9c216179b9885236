"""How a server of a sum takes what clients send: one message of each, as they come; who misbehaves has a name."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import NoReturn

from confide.errors import Aborted, ProtocolError
from confide.wire import Message, Step

#: The fewest vectors in a sum: a sum of two shows each of the two the other's vector.
SMALLEST_SUM = 3


class Collector:
    """Collects the messages of each stage and remembers who sent a malformed one.

    `blamed` says what each named client did.
    """

    def __init__(self) -> None:
        self.blamed: dict[str, str] = {}

    def collect(
        self,
        tag: str,
        sources: Iterable[str],
        accept: Callable[[str, bytes], None],
        send: tuple[Message, ...] = (),
        *,
        enough: Callable[[], bool] = lambda: False,
    ) -> Generator[Step, Mapping[str, Message], None]:
        """Send, then accept one message of each source, as they come; a malformed one makes its sender a dropout."""
        waiting = dict.fromkeys(sources)
        while waiting and not enough():
            received = yield Step(send=send, await_tag=tag, wait_for=tuple(waiting), each=True)
            if not received:
                return
            send = ()
            for name, message in received.items():
                del waiting[name]
                try:
                    accept(name, message.body)
                except ProtocolError as error:
                    self.blame(name, f"sent a malformed {tag}: {error}")

    def blame(self, name: str, what: str) -> None:
        """Remember what `name` did first."""
        self.blamed.setdefault(name, what)

    def abort(self, text: str) -> NoReturn:
        """End the sum, naming whoever misbehaved."""
        raise Aborted(text + "".join(f"; {name} {what}" for name, what in self.blamed.items()))
