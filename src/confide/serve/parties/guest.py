"""The client's end: the server is dialled and asked, then everybody of its offer is dialled, then sessions are ordered.

`Guest` is called from any thread, and waits there; the work is done in the loop's thread, where messages arrive.
"""

from __future__ import annotations

import ssl
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
from confide.wire import Message, Party, Store

_AGAIN_SECONDS = 0.3
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
    ) -> None:
        self._asked = Ask(model, backend)
        self._context, self._proxy, self._rng, self._timeout = context, proxy, rng, timeout_seconds
        self._offer: Offer | None = None
        self._answered = False
        self._waiters: list[Answer[Offer]] = []
        self._trouble: dict[str, str] = {}
        self.seen: dict[str, list[tuple[Message, int]]] = {}
        self.broke: list[BaseException] = []
        self.circle = Circle(
            me, store, self, bounds=bounds, broken=self.broke.append, seen=self._saw, say=lambda text: None
        )
        self.circle.mesh.post(self._begin, url)

    def close(self) -> None:
        """Leave."""
        self.circle.close()

    # --- from any thread ----------------------------------------------------------------------------------------------

    def offer(self) -> Offer:
        """Return the server's offer once everybody of it is there.

        Raises:
            UsageError, ProtocolError: somebody is not there in time, or refuses.
            PrivacyError: roles that must not collude share a machine.
        """
        offer = self._offer
        if offer is not None and not self._absent(offer.seats):  # looked at from here: a change of threads takes time
            return offer
        answer = Answer[Offer]()
        self.circle.mesh.post(self._want, answer)
        try:
            return answer.result(self._timeout)
        except TimeoutError:
            raise UsageError(self._missing()) from None

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
            seen = self.seen.pop(session, [])
        return ended, seen

    # --- what it hears ------------------------------------------------------------------------------------------------

    def greeted(self, peer: str) -> None:
        self._trouble.pop(peer, None)
        if peer == COORDINATOR:
            self._offer, self._answered = None, True
            self.circle.tell(peer, self._asked)
        else:
            self._check_all()

    def told(self, peer: str, body: msgspec.Struct) -> None:
        if peer != COORDINATOR or not isinstance(body, Offer | Refused):
            raise ProtocolError("Expected an offer, from the server")
        if isinstance(body, Refused):
            if not body.again:
                return self._fail(ProtocolError(f"The server refuses: {_plain(body.reason)}"))
            self._trouble[peer] = _plain(body.reason)
            self.circle.mesh.later(_AGAIN_SECONDS, self._ask_again)
            return None
        try:
            self._take(body)
        except ConfideError as error:
            self._fail(error)
        return None

    def ordered(self, peer: str, session: str, order: Order) -> None:
        raise ProtocolError("Expected no order to a client")

    def lost(self, peer: str, reason: str) -> None:
        self._trouble[peer] = reason
        if peer == COORDINATOR:
            self._offer = None
        if (why := self.circle.mesh.given_up(peer)) is not None:
            self._fail(IntegrityError(f"No connection to {peer}: {why}"))
        elif peer == COORDINATOR and not self._answered:  # rather a wrong address than a server that starts anew
            self._fail(UsageError(self._missing()))
        elif "Expected organisations apart" in reason:
            self._fail(ProtocolError(f"{peer} refuses: {_plain(reason)}"))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _begin(self, url: str) -> None:
        try:
            self.circle.dial(COORDINATOR, "coordinator", url, self._context, self._proxy)
        except ConfideError as error:
            self._trouble[COORDINATOR] = str(error)
            self._fail(error)

    def _want(self, answer: Answer[Offer]) -> None:
        if self._offer is not None and not self._absent(self._offer.seats):
            answer.give(self._offer)
            return
        self._waiters.append(answer)
        if (why := self.circle.mesh.given_up(COORDINATOR)) is not None:
            self._fail(IntegrityError(f"No connection to the server: {why}"))
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
                return self._fail(
                    IntegrityError(f"Expected {seat.name} with the identity that the server's offer names")
                )
        waiters, self._waiters = self._waiters, []
        for answer in waiters:
            answer.give(offer)

    def _absent(self, seats: Sequence[Seat]) -> list[Seat]:
        return [seat for seat in seats if self.circle.hello(seat.name) is None]

    def _fail(self, error: ConfideError) -> None:
        waiters, self._waiters = self._waiters, []
        for answer in waiters:
            answer.fail(error)

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
