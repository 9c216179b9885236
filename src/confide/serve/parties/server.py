"""The server of a mode: it has the model, founds the circle, and counts what is asked.

    partner says hello   -> its seat is taken; with all seats taken, each partner gets its part of every model
    client asks          -> an offer, once every partner is ready
    client orders        -> set-up: passed on with the client's identity; a prediction: counted, then answered

**Leaks**: to partners, their parts, who asks, when, and how many rows; to clients, who the partners are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgspec

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ConfideError, ProtocolError, SetUpAgain, UsageError, nearest
from confide.guarantee import Guarantee
from confide.ideal import Backend, Kit
from confide.net.certificates import COORDINATOR
from confide.serve.access import Quota, RateLimit
from confide.serve.limits import Limits
from confide.serve.parties.circle import Circle
from confide.serve.parties.messages import Ask, Offer, Order, Part, Refused, Revoked, Seat, Taken, short
from confide.serve.parties.seats import MEMBER_ROLES, model_id, proof_of, voided
from confide.serve.parties.sessions import Cast, Ended
from confide.serve.parties.standing import Standing, departed
from confide.serve.parties.stockroom import Place, StockLimits, Stockroom
from confide.wire import Party, Step, Store

IDENTITY_BYTES = 32


@runtime_checkable
class HoldsReady(Protocol):
    """A backend that makes what is in stock ready in memory between predictions."""

    def hold_ready(self, role: str, kit: Kit, store: Store, run: bytes, *, rows: int) -> int:
        """Make the next deals in stock ready; return how many are."""
        ...


@runtime_checkable
class LimitsRows(Protocol):
    """A kit that refuses larger programs than its holder serves, whatever an order says."""

    def limit_rows(self, rows: int) -> None:
        """Refuse more rows from now on."""
        ...


@runtime_checkable
class ForRows(Protocol):
    """A kit of which a session gets what serves the rows that were ordered, and no others."""

    def for_rows(self, rows: int) -> Kit:
        """Return a kit that refuses programs of other rows."""
        ...


#: Where the server keeps what models' ids are salted with: who was set up stays so over its restarts.
_SALT = "model-ids/salt"
#: Roles of a federation whose members may ask.
ASKING_ROLES = ("client", "node", "analyst")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One model under one backend, prepared.

    Args:
        name: the model's.
        backend: its parties.
        kits: of each role.
        client_kit: the bytes of `ClientKit`.
        max_rows: of one prediction.
        guarantee: as it is served, with partners apart.
    """

    name: str
    backend: Backend
    kits: Mapping[str, Kit]
    client_kit: bytes
    max_rows: int
    guarantee: Guarantee

    def id(self, salt: bytes) -> bytes:
        """Return the id under which it is ordered: salted, so that nobody else can try guesses of the weights on it."""
        return model_id(self.name, self.backend.name, self.kits, salt=salt)


@dataclass(slots=True)
class _Model:
    id: bytes
    prepared: Prepared
    ready: set[str] = field(default_factory=set[str])
    promised: Guarantee | None = None


def _kept_salt(store: Store) -> bytes:
    salt = store.get(_SALT)
    if salt is None:
        salt = SystemRandomness().bytes(32)
        store.commit({_SALT: salt})
    return salt


class Server:
    """What the server does with what it hears.

    Args:
        models: what is served; all under backends with the same roles.
        partners: the member of each role besides client and server.
        store: the server's.
        limits: `batch_rows`, quotas and rate.
        quota: counts rows; None does not.
        rng: of the parties.
        standing: what people see.
        stock_limits: of what lies in the store for clients.
    """

    def __init__(
        self,
        models: Sequence[Prepared],
        partners: Mapping[str, str],
        *,
        store: Store,
        limits: Limits,
        quota: Quota | None,
        rng: Randomness,
        standing: Standing,
        stock_limits: StockLimits | None = None,
    ) -> None:
        salt = _kept_salt(store)
        self._models = {id_: _Model(id_, model) for model in models for id_ in [model.id(salt)]}
        for model in models:
            limit_rows(model.kits["server"], model.max_rows)
        wanted = {role for model in models for role in model.backend.roles} - {"client", "server"}
        if wanted != set(partners):
            options = ", ".join(f"--{role} NAME" for role in sorted(wanted))
            wrong = [f"--{role} is missing" for role in sorted(wanted - set(partners))]
            wrong += [f"--{role} is one too many" for role in sorted(set(partners) - wanted)]
            raise UsageError(f"Expected members of the federation as {options}; {', '.join(wrong)}")
        self.partners, self._store, self._limits, self._quota = dict(partners), store, limits, quota
        self._rate = RateLimit(limits.requests_per_second) if limits.requests_per_second else None
        self._rng, self.standing = rng, standing
        self._seats: dict[str, Seat] = {}
        self._revoked: tuple[bytes, ...] = ()
        self._stock_limits = stock_limits or StockLimits()
        self._stockroom: Stockroom | None = None
        self.circle: Circle

    # --- what it hears ------------------------------------------------------------------------------------------------

    def greeted(self, peer: str) -> None:
        role = next((role for role, name in self.partners.items() if name == peer), None)
        facts, hello = self.circle.facts(peer), self.circle.hello(peer)
        assert facts is not None
        assert hello is not None
        if self.circle.insecure != self.standing.insecure:
            self.standing.insecure = self.circle.insecure
            self._promise([model for model in self._models.values() if model.ready == set(self.partners)])
        if role is None:
            if facts.role not in ASKING_ROLES:
                raise ProtocolError(
                    f"Expected a client, or a {facts.role} that this server was told of; {peer} is none"
                )
            return
        if facts.role != MEMBER_ROLES[role]:
            raise UsageError(f"Expected {peer} to be a member as {MEMBER_ROLES[role]}, it is one as {facts.role}")
        self.circle.tell(peer, Revoked(self._revoked))
        self._seats[role] = Seat(role, peer, hello.url, facts.identity)
        self.circle.say(f"{peer}, the {role}, is there")
        if set(self._seats) == set(self.partners):
            for model in self._models.values():
                model.ready.clear()
                self._deal_out(model)

    def revoke(self, identities: tuple[bytes, ...]) -> None:
        """Have the partners let none of these members in; it holds for partners who come later, too."""
        if identities != self._revoked:
            self._revoked = identities
            for seat in self._seats.values():
                self.circle.tell(seat.name, Revoked(identities))

    def lost(self, peer: str, reason: str) -> None:
        for role, seat in list(self._seats.items()):
            if seat.name == peer:
                del self._seats[role]
                for model in self._models.values():
                    model.ready.discard(role)
                self.circle.say(departed(f"{peer}, the {role},", reason))

    def told(self, peer: str, body: msgspec.Struct) -> None:
        if isinstance(body, Ask):
            self.circle.tell(peer, self._offer(body))
        elif isinstance(body, Taken) and (role := self._role_of(peer)) and (model := self._models.get(body.model)):
            if body.refusal:
                self.circle.say(f"{peer}, the {role}, does not take part: {body.refusal}")
            elif body.proof != proof_of(model.prepared.kits[role]):
                raise ProtocolError(f"Expected the {role} to have the half that belongs to {model.prepared.name}")
            else:
                model.ready.add(role)
                if model.ready == set(self.partners):
                    self.circle.say(f"{model.prepared.name} is served under {model.prepared.backend.name}")
                    self._promise([model])
        else:
            raise ProtocolError("Expected a question from a client, or a partner's answer")

    def ordered(self, peer: str, session: str, order: Order) -> None:
        model, facts = self._models.get(order.model), self.circle.facts(peer)
        if model is None:
            raise ProtocolError("Expected a model that is served; ask for its kit again")
        if facts is None or facts.role not in ASKING_ROLES or order.client != peer:
            raise ProtocolError("Expected an order from the client itself")
        prepared = model.prepared
        mark = set_up_key(order.model, peer)
        cast = cast_of(order, "server", {"server": COORDINATOR, **self.partners})
        prefix = part_of(order.model, prepared.backend.name, peer)
        store = self.circle.sessions.view(prefix)
        place = Place(
            prefix=prefix, client=peer, backend=prepared.backend, role="server", kit=prepared.kits["server"], mark=mark,
            run=lambda: run_of(self._store.get(mark)),
        )  # fmt: skip
        try:
            self._admit(peer, order, model)
            taken = self.stockroom.admit(place, order)
        except ConfideError as error:
            return refuse_all(self.circle, session, cast, prefix, error)

        def done(ended: Ended) -> None:
            self.standing.ended(order, ended)
            self.stockroom.came(place, taken)
            set_up = set_up_mark(facts.identity, order, ended)
            if set_up is not None:
                self._store.commit({mark: set_up})
            self._count_beyond(order, ended, prepared.name)
            make_ready_after(self.circle, order, ended, backend, kit, store, self._store.get(mark))

        backend, kit = prepared.backend, prepared.kits["server"]

        def build() -> Party:
            known = (self._store.get(mark) or b"")[:IDENTITY_BYTES]
            if order.kind != "setup" and known != facts.identity:  # a name may have been given anew
                raise SetUpAgain(f"Expected that {peer} was set up with the server; set up again")
            party = party_of(order, backend, "server", kit, store, self._rng)
            if order.kind == "setup":
                for name in self.partners.values():
                    self.circle.order(name, session, msgspec.structs.replace(order, identity=facts.identity))
            return party

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
            models = self._models.values()
            served = tuple(part_of(one.id, one.prepared.backend.name, "").removesuffix("/") for one in models)
            self._stockroom = Stockroom(
                self.circle.me.name,
                self._store,
                self.circle.sessions.view,
                self._stock_limits,
                lambda prefix: prefix.startswith(served),
            )
        return self._stockroom

    # --- inside -------------------------------------------------------------------------------------------------------

    def _admit(self, peer: str, order: Order, model: _Model) -> None:
        """Refuse what a client may not order now."""
        if self._rate is not None:
            self._rate.take(peer)
        self._check_ready(model)
        prepared = model.prepared
        if not 0 <= order.rows <= prepared.max_rows or (order.kind == "predict" and not order.rows):
            raise ProtocolError(f"Expected 1 to {prepared.max_rows} rows at a time; send fewer")
        if order.kind == "predict" and self._quota is not None:
            self._quota.charge(peer, prepared.name, order.rows)

    def _promise(self, models: Sequence[_Model]) -> None:
        """Say what holds now that everybody is there, and again when less does; the same is said once."""
        for model in models:
            guarantee = model.prepared.guarantee
            if self.circle.insecure:
                guarantee = voided(guarantee, self.circle.insecure)
            if guarantee != model.promised:
                model.promised = guarantee
                name = model.prepared.backend.name
                for line in guarantee.lines():
                    self.circle.say(f"{name}: {line}")

    def _role_of(self, peer: str) -> str | None:
        return next((role for role, seat in self._seats.items() if seat.name == peer), None)

    def _seats_in_order(self) -> tuple[Seat, ...]:
        me = self.circle.me
        return (Seat("server", me.name, me.url, me.identity), *(self._seats[role] for role in sorted(self._seats)))

    def _deal_out(self, model: _Model) -> None:
        prepared, seats = model.prepared, self._seats_in_order()
        for seat in self._seats.values():
            kit = prepared.kits[seat.role].encode()
            backend, insecure = prepared.backend.name, self.circle.insecure
            self.circle.tell(
                seat.name, Part(model.id, prepared.name, backend, seat.role, kit, seats, insecure, prepared.max_rows)
            )

    def _offer(self, asked: Ask) -> Offer | Refused:
        found = [
            model
            for model in self._models.values()
            if asked.model in ("", model.prepared.name) and asked.backend in ("", model.prepared.backend.name)
        ]
        if not found or (len(found) > 1 and not asked.model):
            known = sorted({model.prepared.name for model in self._models.values()})
            if asked.model in ("", *known) and (asked.model or len(known) == 1):
                modes = sorted({model.prepared.backend.name for model in self._models.values()})
                return Refused(f"Expected backend= one of {', '.join(modes)}{nearest(asked.backend, modes)}")
            return Refused(f"Expected model= one of {', '.join(known)}{nearest(asked.model, known)}")
        try:
            self._check_ready(found[0])
        except ConfideError as error:
            return Refused(short(str(error)), again=True)
        prepared = found[0].prepared
        return Offer(found[0].id, prepared.client_kit, self._seats_in_order(), self.circle.insecure)

    def _check_ready(self, model: _Model) -> None:
        if missing := sorted(set(self.partners) - model.ready):
            absent = ", ".join(f"{self.partners[role]} (the {role})" for role in missing)
            raise ProtocolError(f"Expected {absent} to be there and ready; ask again when it runs")

    def _count_beyond(self, order: Order, ended: Ended, name: str) -> None:
        """Count rows that a client had answered beyond what it ordered, and send it away."""
        answered = ended.output if isinstance(ended.output, int) else 0
        if order.kind == "predict" and answered > order.rows:
            self.circle.mesh.drop(order.client, "Expected as many rows as were ordered")
            if self._quota is not None:
                try:
                    self._quota.charge(order.client, name, answered - order.rows)
                except ConfideError as error:
                    self.circle.say(f"{order.client} had {answered} rows answered, and ordered {order.rows}: {error}")


def cast_of(order: Order, role: str, names: Mapping[str, str]) -> Cast:
    """Return who takes part in a session: everybody, but for a dealer where correlations come from stock."""
    whole = {"client": order.client, **names}
    if order.kind == "predict" and not order.dealt:
        whole.pop("dealer", None)
    if role not in whole:
        raise ProtocolError("Expected an order for a session in which this process takes part")
    return Cast(role, whole)


def refuse_all(circle: Circle, session: str, cast: Cast, prefix: str, error: ConfideError) -> None:
    """Refuse a session at everybody whom its client ordered it from: they have begun, and what they send finds an end.

    Raises:
        ConfideError: `error`, where somebody is not there.
    """
    if any(circle.hello(name) is None for name in cast.others()):
        raise error

    def refusing() -> Party:
        raise error
        yield Step()

    circle.sessions.open(session, refusing(), cast, prefix=prefix, done=lambda ended: None)


def run_of(mark: bytes | None) -> bytes:
    """Return the run of a set-up that was written down, b"" if it is none."""
    try:
        return bytes.fromhex((mark or b"")[IDENTITY_BYTES:].decode())
    except ValueError:
        return b""


def limit_rows(kit: Kit, rows: int) -> None:
    """Have a kit refuse programs of more rows, if it can: a client's first message names them once more."""
    if isinstance(kit, LimitsRows):
        kit.limit_rows(rows)


def set_up_mark(identity: bytes, order: Order, ended: Ended) -> bytes | None:
    """Return what to write down after a set-up: the client's identity, and what the set-up is called; b"" if it failed.

    None after anything else.
    """
    if order.kind != "setup":
        return None
    return b"" if ended.error is not None else identity + str(ended.output).encode()[:200]


def make_ready(
    circle: Circle, role: str, backend: Backend, kit: Kit, store: Store, set_up: str | None, *, rows: int
) -> None:
    """Have the backend make what is next in stock ready in memory, in the loop's thread, once an answer has left.

    Args:
        set_up: what the set-up is called: of such a backend the run, hexadecimal; without one nothing is made ready.
    """
    if not set_up or not isinstance(backend, HoldsReady):
        return

    def work() -> None:
        try:
            backend.hold_ready(role, kit, store, bytes.fromhex(set_up), rows=rows)
        except (ConfideError, ValueError) as error:
            circle.say(f"correlations could not be made ready ahead: {error}")

    circle.mesh.post(work)


def make_ready_after(
    circle: Circle, order: Order, ended: Ended, backend: Backend, kit: Kit, store: Store, mark: bytes | None
) -> None:
    """After a prediction from stock, however it ended, clear away what it used and make the next ones ready.

    Args:
        mark: what is known of the client's set-up.
    """
    if order.kind == "predict" and not order.dealt and mark:
        make_ready(circle, ended.cast.role, backend, kit, store, mark[IDENTITY_BYTES:].decode(), rows=order.rows)


def part_of(model: bytes, backend: str, client: str) -> str:
    """Return the prefix under which a process keeps what belongs to one client and model."""
    return f"parties/{backend}/{model.hex()[:32]}/{client}/"


def set_up_key(model: bytes, client: str) -> str:
    """Return where a process writes down that a client has been set up for a model."""
    return f"set-up/{model.hex()}/{client}"


def party_of(order: Order, backend: Backend, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
    """Return a role's party of a session, the client's of a prediction excepted.

    Raises:
        ConfideError: the backend deals nothing ahead, or cannot begin.
    """
    if order.kind == "setup":
        return backend.setup(role, kit, store, rng)
    if order.kind == "predict":  # what was ordered was counted: nothing else is answered
        ordered = kit.for_rows(order.rows) if isinstance(kit, ForRows) else kit
        return backend.predict(role, ordered, None, store, rng)
    deal: Callable[..., Party] | None = getattr(backend, "deal", None)
    if deal is None or not 1 <= order.count <= MOST_DEALT or not order.rows:
        raise ProtocolError(f"Expected 1 to {MOST_DEALT} predictions to deal for, under a backend with a dealer")
    return deal(role, kit, store, rng, rows=order.rows, count=order.count)


#: Predictions that are dealt for in one session.
MOST_DEALT = 64
