"""The client's end: the server is dialled and asked, then everybody of its offer is dialled, then sessions are ordered.

`Guest` is called from any thread, and waits there; the work is done in the loop's thread, where messages arrive.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from confide.crypto.random import Randomness
from confide.errors import ConfideError, IntegrityError, ProtocolError, UsageError
from confide.net.certificates import COORDINATOR
from confide.net.mesh import Answer
from confide.serve.parties.circle import Circle, Me
from confide.serve.parties.messages import Ask, Kind, Offer, Order, Refused, Seat
from confide.serve.parties.seats import MEMBER_ROLES, refusal
from confide.serve.parties.server import cast_of
from confide.serve.parties.sessions import Bounds, Ended
from confide.serve.steps import WAITING
from confide.wire import Message, Party, Store

_AGAIN_SECONDS = 0.3
#: Stands among peers where this client itself has ended.
_CLOSED = ""
#: After so long a caller hears for whom it waits.
_QUIET_SECONDS = 1.0
#: Messages of the last session that are kept for a transcript.
_MOST_SEEN = 100_000


class Guest:
    """One client's links to all organisations of one server.

    Args:
        me: the client.
        url: "wss://host:port" of the server.
        context: what it shows.
        store: its own.
        model, backend: which to ask for, "" for the server's.
        rng: for the ids of sessions.
        proxy: "http://host:port" of an HTTP proxy to all of them.
        bounds: of sessions.
        timeout_seconds: for everybody to be there.
        waits: told in one line for whom a caller's thread waits, in that thread.
    """

    def __init__(
        self,
        me: Me,
        url: str,
        context: ssl.SSLContext,
        store: Store,
        *,
        model: str,
        backend: str,
        rng: Randomness,
        proxy: str | None = None,
        bounds: Bounds | None = None,
        timeout_seconds: float = 30.0,
        waits: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._asked, self._waits, self._url = Ask(model, backend), waits, url
        self._context, self._proxy, self._rng, self._timeout = context, proxy, rng, timeout_seconds
        self._offer: Offer | None = None
        self._checked: Offer | None = None  # the same, once everybody of it has come and is who it names
        self._answered = False
        self._waiters: list[Answer[Offer]] = []
        self._runs: set[Answer[Ended]] = set()
        self._trouble: dict[str, str] = {}
        self._replaced = ""  # why another process of the same identity took this one's place
        #: What waiting does not mend, by peer: who asks hears of it at once, until that peer says something else.
        self._final: dict[str, ConfideError] = {}
        self.seen: dict[str, list[tuple[Message, int]]] = {}
        self.broke: list[BaseException] = []
        self.circle = Circle(
            me, store, self, bounds=bounds, broken=self.broke.append, seen=self._saw, say=lambda text: None
        )
        self.circle.mesh.post(self._begin, url)

    def close(self) -> None:
        """Leave; whoever waits in another thread hears of it."""
        self.circle.mesh.call(self._closed)
        self.circle.close()

    # --- from any thread ----------------------------------------------------------------------------------------------

    def offer(self) -> Offer:
        """Return the server's offer once everybody of it is there.

        Raises:
            UsageError, ProtocolError: somebody is not there in time, or refuses.
            PrivacyError: roles that must not collude share a machine.
        """
        offer = self._usable()
        if offer is not None:  # looked at from here: a change of threads takes time
            return offer
        answer, told, end = Answer[Offer](), "", time.monotonic() + self._timeout
        self.circle.mesh.post(self._want, answer)
        while (left := end - time.monotonic()) > 0:
            try:
                return answer.result(min(_QUIET_SECONDS, left))
            except TimeoutError:
                if (who := self._awaited()) not in ("", told):
                    told = who
                    self._waits(WAITING + who)
        raise UsageError(self._missing())

    def stock(self, name: str) -> int:
        """Return how many predictions a dealer says that it deals ahead for."""
        hello = self.circle.hello(name)
        return 0 if hello is None else hello.stock

    def run(
        self,
        kind: Kind,
        build: Callable[[], Party],
        *,
        prefix: str,
        rows: int = 0,
        count: int = 0,
        dealt: Callable[[], bool] = lambda: True,
    ) -> tuple[Ended, list[tuple[Message, int]]]:
        """Order a session, take part in it, and return how it ended, with the messages seen here and their sizes.

        Args:
            kind: what it is for.
            build: makes the client's party, in the loop's thread.
            prefix: of its store.
            rows, count: of the order.
            dealt: whether the dealer takes part; asked in the loop's thread.

        Raises:
            ConfideError: it could not begin.
        """
        offer = self.offer()
        session = f"{self.circle.me.name}/{kind}/{self._rng.bytes(16).hex()}"
        answer = Answer[Ended]()
        self._runs.add(answer)
        if _CLOSED in self._final:
            raise self._final[_CLOSED]

        def begin() -> None:
            me = self.circle.me
            try:
                order = Order(kind, offer.model, me.name, b"", rows, count, dealt())
                cast = cast_of(order, "client", {seat.role: seat.name for seat in offer.seats})

                def built() -> Party:
                    party = build()
                    for name in [COORDINATOR] if kind == "setup" else cast.others():
                        self.circle.order(name, session, order)
                    return party

                self.seen[session] = []
                self.circle.begin(session, built, cast, prefix=prefix, kind=kind, done=answer.give)
            except Exception as error:
                answer.fail(error)

        self.circle.mesh.post(begin)
        try:
            ended = answer.result(2 * self.circle.sessions.bounds.session_seconds)
        except TimeoutError:
            raise UsageError("Expected an answer while this client was open; it was closed first") from None
        finally:
            self._runs.discard(answer)
            seen = self.seen.pop(session, [])
        if ended.error is not None and self._replaced:
            raise UsageError(self._replaced)
        return ended, seen

    # --- what it hears ------------------------------------------------------------------------------------------------

    def greeted(self, peer: str) -> None:
        self._trouble.pop(peer, None)
        self._final.pop(peer, None)
        if peer == COORDINATOR:
            self._offer, self._answered, self._replaced = None, True, ""
            self.circle.tell(peer, self._asked)
        else:
            self._check_all()

    def told(self, peer: str, body: msgspec.Struct) -> None:
        if peer != COORDINATOR or not isinstance(body, Offer | Refused):
            raise ProtocolError("Expected an offer, from the server")
        if isinstance(body, Refused):
            if not body.again:
                return self._refused(peer, ProtocolError(f"The server refuses: {_plain(body.reason)}"))
            self._trouble[peer] = _plain(body.reason)
            self.circle.mesh.later(_AGAIN_SECONDS, self._ask_again)
            return None
        try:
            self._take(body)
        except ConfideError as error:
            self._refused(peer, error)
        return None

    def ordered(self, peer: str, session: str, order: Order) -> None:
        raise ProtocolError("Expected no order to a client")

    def lost(self, peer: str, reason: str) -> None:
        self._trouble[peer], self._checked = reason, None
        if "somebody else has connected as" in reason:
            self._replaced = (
                f"Expected one process at a time for each identity: {_plain(reason)} at {peer}; invite a second client "
                "for a second process"
            )
        if peer == COORDINATOR:
            self._offer = None
        self.circle.mesh.later(_AGAIN_SECONDS, lambda: self._given_up(peer))  # it is told after this
        if peer == COORDINATOR and not self._answered:  # rather a wrong address than a server that starts anew
            self._fail(UsageError(self._missing()))
        elif "Expected organisations apart" in reason:
            self._refused(peer, ProtocolError(f"{peer} refuses: {_plain(reason)}"))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _begin(self, url: str) -> None:
        try:
            self.circle.dial(COORDINATOR, "coordinator", url, self._context, self._proxy)
        except ConfideError as error:
            self._trouble[COORDINATOR] = str(error)
            self._fail(error)

    def _given_up(self, peer: str) -> None:
        if self.circle.hello(peer) is None and (why := self.circle.mesh.given_up(peer)) is not None:
            self._refused(peer, IntegrityError(f"No connection to {peer}: {why}"))

    def _want(self, answer: Answer[Offer]) -> None:
        offer = self._usable()
        if offer is not None:
            answer.give(offer)
            return
        self._waiters.append(answer)
        self._given_up(COORDINATOR)
        if self._final:
            self._fail(next(iter(self._final.values())))
        elif not self._answered and COORDINATOR in self._trouble:
            self._fail(UsageError(self._missing()))

    def _ask_again(self) -> None:
        if self._offer is None and self.circle.hello(COORDINATOR) is not None:
            self.circle.tell(COORDINATOR, self._asked)

    def _take(self, offer: Offer) -> None:
        roles = [seat.role for seat in offer.seats]
        if roles[:1] != ["server"] or len(set(roles)) != len(roles) or not set(roles) <= set(MEMBER_ROLES):
            raise ProtocolError("Expected an offer with a seat for each role")
        if offer.insecure and not self.circle.me.one_machine:
            raise refusal(_plain(offer.insecure))
        self._offer = offer
        self._trouble.pop(COORDINATOR, None)
        self._final.pop(COORDINATOR, None)
        for seat in offer.seats[1:]:
            self.circle.dial(seat.name, MEMBER_ROLES[seat.role], seat.url, self._context, self._proxy)
        self._check_all()

    def _check_all(self) -> None:
        offer = self._offer
        if offer is None or self._absent(offer.seats):
            return None
        for seat in offer.seats:
            facts = self.circle.facts(seat.name)
            if facts is not None and facts.identity != seat.identity:
                return self._refused(
                    seat.name, IntegrityError(f"Expected {seat.name} with the identity that the server's offer names")
                )
        self._checked = offer
        self._final.clear()
        waiters, self._waiters = self._waiters, []
        for answer in waiters:
            answer.give(offer)

    def _absent(self, seats: Sequence[Seat]) -> list[Seat]:
        return [seat for seat in seats if self.circle.hello(seat.name) is None]

    def _usable(self) -> Offer | None:
        """Return the offer if everybody of it is there and has the identity that it names."""
        offer = self._checked
        return offer if offer is not None and offer is self._offer and not self._absent(offer.seats) else None

    def _refused(self, peer: str, error: ConfideError) -> None:
        """Fail whoever waits now and whoever asks later."""
        self._final[peer], self._checked = error, None
        self._fail(error)

    def _closed(self) -> None:
        error = UsageError("Expected an answer while this client was open; it was closed first")
        self._refused(_CLOSED, error)
        for answer in list(self._runs):
            answer.fail(error)

    def _fail(self, error: ConfideError) -> None:
        waiters, self._waiters = self._waiters, []
        for answer in waiters:
            answer.fail(error)

    def _awaited(self) -> str:
        """Return for whom an offer waits, in words; "" for nobody."""
        offer = self._offer
        if offer is not None:
            return ", ".join(f"{seat.name} (the {seat.role})" for seat in self._absent(offer.seats))
        if self.circle.hello(COORDINATOR) is None:
            return f"the server at {self._url}"
        said = self._trouble.get(COORDINATOR, "")
        return said.removeprefix("Expected ").partition(" to be there")[0] or "the server's offer"

    def _missing(self) -> str:
        offer, trouble = self._offer, dict(self._trouble)
        if offer is None and self.circle.hello(COORDINATOR) is None:
            reason = trouble.get(COORDINATOR, "it does not answer")
            return f"Expected a server at that address: {reason}; check that it runs and that the URL is right"
        if offer is None:
            return f"Expected an offer of the server in time: {trouble.get(COORDINATOR, 'it did not answer')}"
        told = [
            f"{seat.name} (the {seat.role}) at {seat.url}: {trouble.get(seat.name, 'no answer')}"
            for seat in self._absent(offer.seats)
        ]
        return f"Expected everybody to answer in time; missing: {'; '.join(told) or 'nobody any more, ask again'}"

    def _saw(self, session: str, message: Message) -> None:
        seen: Any = self.seen.get(session)
        if seen is not None and len(seen) < _MOST_SEEN:
            seen.append((Message(message.src, message.dst, message.tag, b""), len(message.body)))


def _plain(text: str) -> str:
    """Return what somebody else said, fit to be printed."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:500]
