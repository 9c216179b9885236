"""A partner of the server: a dealer, a helper or a third. It has no model of its own; the server brings its part.

    server sends a part    -> the others are dialled; "taken" once they are there
    server orders a set-up -> the client is known from then on, by its identity
    client orders          -> a prediction, or correlations dealt ahead, if it was set up

A dealer never learns more than shapes: its part is what `Backend.prepare` makes for its role.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec

from confide.crypto.random import Randomness
from confide.errors import ConfideError, ProtocolError, SetUpAgain
from confide.ideal import Backend, Kit
from confide.net.certificates import COORDINATOR
from confide.serve.parties.circle import Circle
from confide.serve.parties.messages import Order, Part, Revoked, Taken, short
from confide.serve.parties.seats import MEMBER_ROLES, proof_of, refusal
from confide.serve.parties.server import (
    ASKING_ROLES,
    IDENTITY_BYTES,
    cast_of,
    limit_rows,
    make_ready_after,
    part_of,
    party_of,
    refuse_all,
    run_of,
    set_up_key,
    set_up_mark,
)
from confide.serve.parties.sessions import Ended
from confide.serve.parties.standing import Standing, departed
from confide.serve.parties.stockroom import Place, StockLimits, Stockroom
from confide.serve.parties.turns import turns_of
from confide.wire import Party, Store

#: Who dials whom among partners: each dials those before it. Clients dial all of them, and all dial the server.
_ORDER = ("dealer", "helper", "third")


@runtime_checkable
class DealsInParts(Protocol):
    """A backend that says how much is dealt ahead in one session."""

    def deals_at_a_time(self, kit: Kit, *, rows: int) -> int:
        """Return for how many predictions of so many rows."""
        ...


@dataclass(slots=True)
class _Taken:
    part: Part
    backend: Backend
    kit: Kit
    missing: set[str]


class Partner:
    """What a partner does with what it hears.

    Args:
        store: its own.
        rng: of the parties.
        context: what it shows when it dials.
        load: returns a backend by name.
        stock: predictions that it deals ahead for, for one client and model.
        standing: what people see.
        stock_limits: of what lies in the store for clients.
    """

    def __init__(
        self,
        *,
        store: Store,
        rng: Randomness,
        context: Callable[[], ssl.SSLContext],
        load: Callable[[str], Backend],
        stock: int,
        standing: Standing,
        stock_limits: StockLimits | None = None,
    ) -> None:
        self._store, self._rng, self._context, self._load = store, rng, context, load
        self._stock, self.standing = stock, standing
        self._parts: dict[bytes, _Taken] = {}
        self._revoked: frozenset[bytes] = frozenset()
        self._served: set[str] = set()  # what stands before the clients of models that were served since this began
        self._stock_limits = stock_limits or StockLimits()
        self._stockroom: Stockroom | None = None
        self.circle: Circle

    # --- what it hears ------------------------------------------------------------------------------------------------

    def greeted(self, peer: str) -> None:
        self.standing.insecure = self.circle.insecure
        for taken in self._parts.values():
            if peer in taken.missing:
                taken.missing.discard(peer)
                self._answer(taken)

    def lost(self, peer: str, reason: str) -> None:
        if peer == COORDINATOR:
            self._parts.clear()  # it brings them again
        self.circle.say(departed(peer, reason))

    def refusal(self, name: str, identity: bytes) -> str | None:
        """Return why a member may not be here, or None; the server says who was revoked before it brings its parts."""
        return f"Expected a member, {name} was revoked" if identity in self._revoked else None

    def told(self, peer: str, body: msgspec.Struct) -> None:
        if peer == COORDINATOR and isinstance(body, Revoked):
            self._revoked = frozenset(body.identities)
            return self.circle.mesh.recheck()
        if not isinstance(body, Part) or peer != COORDINATOR:
            raise ProtocolError("Expected a part, from the server")
        try:
            self._take(body)
        except ConfideError as error:
            self.circle.say(f"does not take part in {body.name}: {error}")
            self.circle.tell(peer, Taken(body.model, short(str(error))))
        return None

    def ordered(self, peer: str, session: str, order: Order) -> None:
        taken = self._parts.get(order.model)
        if taken is None or taken.missing:
            raise ProtocolError(f"Expected a model that {self.circle.me.name} takes part in; ask again later")
        self._check(peer, order)
        part = taken.part
        names = {seat.role: seat.name for seat in part.seats}
        cast = cast_of(order, part.role, names)
        prefix = part_of(order.model, part.backend, order.client)
        key = set_up_key(order.model, order.client)
        place = Place(
            prefix=prefix, client=order.client, backend=taken.backend, role=part.role, kit=taken.kit, mark=key,
            run=lambda: run_of(self._store.get(key)),
        )  # fmt: skip
        try:
            self._admit(order, taken)
            takes = self.stockroom.admit(place, order)
        except ConfideError as error:
            return refuse_all(self.circle, session, cast, prefix, error)

        def done(ended: Ended) -> None:
            self.standing.ended(order, ended)
            self.stockroom.came(place, takes)
            mark = set_up_mark(order.identity, order, ended)
            if mark is not None:
                self._store.commit({key: mark})
            make_ready_after(self.circle, order, ended, taken.backend, taken.kit, store, self._store.get(key))

        store = self.circle.sessions.view(prefix)

        def build() -> Party:
            self._check_set_up(order)
            party = party_of(order, taken.backend, part.role, taken.kit, store, self._rng)
            return turns_of(self.circle, session, cast, party) if part.role == "dealer" else party

        self.circle.begin(
            session,
            build,
            cast,
            prefix=prefix,
            kind=order.kind,
            done=done,
        )
        return None

    @property
    def stockroom(self) -> Stockroom:
        """Return what counts what is kept for clients."""
        if self._stockroom is None:
            self._stockroom = Stockroom(
                self.circle.me.name,
                self._store,
                self.circle.sessions.view,
                self._stock_limits,
                lambda prefix: prefix.startswith(tuple(self._served)),
            )
        return self._stockroom

    # --- inside -------------------------------------------------------------------------------------------------------

    def _admit(self, order: Order, taken: _Taken) -> None:
        """Refuse what a client may not order."""
        part, backend = taken.part, taken.backend
        if order.rows > part.max_rows:
            raise ProtocolError(f"Expected at most {part.max_rows} rows at a time; send fewer")
        if order.kind != "deal" or part.role != "dealer":
            return
        if order.count > self._stock:
            raise ProtocolError(f"Expected at most {self._stock} predictions dealt ahead; the dealer's --stock says so")
        if isinstance(backend, DealsInParts) and order.rows:
            most = backend.deals_at_a_time(taken.kit, rows=order.rows)
            if order.count > most:
                raise ProtocolError(f"Expected at most {most} predictions of {order.rows} rows dealt for at a time")

    def _take(self, part: Part) -> None:
        me = self.circle.me
        mine = [seat for seat in part.seats if seat.role == part.role]
        if [(seat.name, seat.identity) for seat in mine] != [(me.name, me.identity)]:
            raise ProtocolError(f"Expected the seat of {me.name} among those of {part.name}")
        if MEMBER_ROLES.get(part.role) != me.role:
            raise ProtocolError(f"Expected a part for a {me.role}, got one for a {part.role}")
        if part.insecure and not me.one_machine:
            raise refusal(part.insecure)
        backend = self._load(part.backend)
        kit = backend.decode_kit(part.role, part.kit)
        limit_rows(kit, part.max_rows)
        before = [seat for seat in part.seats if seat.role in _ORDER[: _ORDER.index(part.role)]]
        for seat in before:
            self.circle.dial(seat.name, MEMBER_ROLES[seat.role], seat.url, self._context())
        others = {seat.name for seat in part.seats} - {me.name}
        missing = {name for name in others if self.circle.hello(name) is None}
        taken = self._parts[part.model] = _Taken(part, backend, kit, missing)
        self._served.add(part_of(part.model, part.backend, "").removesuffix("/"))
        self._answer(taken)

    def _answer(self, taken: _Taken) -> None:
        if not taken.missing:
            for seat in taken.part.seats:
                facts = self.circle.facts(seat.name)
                if facts is not None and facts.identity != seat.identity:
                    raise ProtocolError(f"Expected {seat.name} with the identity that the server knows")
            self.circle.say(f"takes part in {taken.part.name} as its {taken.part.role}, under {taken.part.backend}")
            self.circle.tell(COORDINATOR, Taken(taken.part.model, "", proof_of(taken.kit)))

    def _check(self, peer: str, order: Order) -> None:
        """Check that an order comes from who may give it."""
        facts = self.circle.facts(order.client)
        if peer == COORDINATOR:
            if order.kind != "setup" or len(order.identity) != IDENTITY_BYTES:
                raise ProtocolError("Expected an order to set a client up, from the server")
            if facts is None or facts.identity != order.identity or facts.role not in ASKING_ROLES:
                raise ProtocolError(f"Expected {order.client} to be connected to {self.circle.me.name} too")
        elif order.client != peer or order.kind == "setup" or facts is None:
            raise ProtocolError("Expected an order from the client itself")

    def _check_set_up(self, order: Order) -> None:
        """Check, when a session's turn has come, that its client was set up here, under the server's order."""
        facts = self.circle.facts(order.client)
        known = (self._store.get(set_up_key(order.model, order.client)) or b"")[:IDENTITY_BYTES]
        if order.kind != "setup" and (facts is None or known != facts.identity):
            raise SetUpAgain(f"Expected that {order.client} was set up with {self.circle.me.name}; set up again")
