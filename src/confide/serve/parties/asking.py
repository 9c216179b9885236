"""The steps of `Client` and `AsyncClient` where several organisations answer: the same names, over links that stay.

What is waited for is `Work`, which a client carries out in the caller's thread or beside its event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import AskAgain, ConfideError, IntegrityError, ProtocolError, SetUpAgain, UsageError
from confide.ideal import Backend, Kit
from confide.model.encoder import Encoder
from confide.net.certificates import fingerprint
from confide.net.contexts import client_context
from confide.net.folders import identity_seed
from confide.net.machine import machine_digest
from confide.net.membership import membership, trusted
from confide.serve.connect import Sent
from confide.serve.effects import Alone, Received, Send, Steps, Work
from confide.serve.parties.circle import Me
from confide.serve.parties.guest import Guest
from confide.serve.parties.messages import Offer
from confide.serve.parties.report import Report
from confide.serve.parties.seats import voided
from confide.serve.parties.server import make_ready
from confide.serve.parties.sessions import Bounds, Ended
from confide.serve.protocol import digest
from confide.serve.session import Columns, Session
from confide.serve.steps import ROWS, Progress, Wanted
from confide.store import Lease
from confide.wire import Event, Message, Party, Store, Transcript

Matrix = NDArray[np.float64]

SETTING_UP = "setting up"
#: Stock is filled up again when a part of this size is used.
_SERVINGS = 8
#: Questions in a row that are asked again since what was dealt for them was lost: one for each restart of another.
_MOST_LOST = 3


class JointAsking:
    """One client's state and steps; see `confide.serve.steps.Asking`.

    Args:
        url: "wss://host:port" of the server.
        identity: the folder that `confide federation join` made.
        wanted: which model, how, and what it must be.
        store: the client's.
        rng: for the secrets.
        progress: told how far it is.
        timeout_seconds: for everybody to be there; `progress` hears for whom this waits.
        one_machine: accept that roles which must not collude share a machine.
        proxy: "http://host:port" of an HTTP proxy.
        bounds: of sessions.
        ahead: predictions for which correlations are held in stock.
    """

    def __init__(
        self,
        url: str,
        identity: Path,
        wanted: Wanted,
        *,
        store: Store,
        rng: Randomness,
        progress: Progress | None,
        timeout_seconds: float,
        one_machine: bool = False,
        proxy: str | None = None,
        bounds: Bounds | None = None,
        ahead: int = 0,
    ) -> None:
        said = membership(identity)
        machine = machine_digest(fingerprint(trusted(identity)[-1]).encode())
        public = SigningKey(identity_seed(identity)).public
        me = Me(name=said.name, role=said.role, url="", machine=machine, identity=public, one_machine=one_machine)
        self._url, self._wanted, self._store, self._rng = url, wanted, store, rng
        self.progress: Progress = progress or (lambda done, total, what: None)
        self.session: Session | None = None
        self.report = Report()
        self._model = b""
        self._one = threading.Lock()
        # Two processes that take from one stock would use the same correlations.
        self._lease = store.exclusive("parties") if isinstance(store, Exclusive) else None
        self._ahead, self._levels, self._dealing = ahead, dict[int, int](), set[int]()
        self._guest = Guest(
            me,
            url,
            client_context(identity),
            store,
            model=wanted.model or "",
            backend=wanted.backend or "",
            rng=SystemRandomness(),
            proxy=proxy,
            bounds=bounds,
            timeout_seconds=timeout_seconds,
            waits=lambda text: self.progress(0, 0, text),
        )

    def close(self) -> None:
        """End the links."""
        self._guest.close()
        if self._lease is not None:
            self._lease.release()

    def send(self, what: Send, sent: Sent) -> Received:
        """Refuse: nothing here goes over HTTP."""
        raise UsageError("Expected a backend that answers over HTTP")

    def costs(self) -> list[str]:
        """Return who answered and what it cost so far, in lines."""
        session = self.session
        return self.report.sentences() if session is None else self.report.sentences(session.backend, session.client)

    # --- steps --------------------------------------------------------------------------------------------------------

    def open(self) -> Steps[Session]:
        """Return the session, after asking for the kit if there is none."""
        return self.session if self.session is not None else (yield Alone(self._opening()))

    def setup(self) -> Steps[Transcript]:
        """Set up with everybody now; returns the transcript, an empty one if that was done."""
        session = yield from self.open()
        done: Transcript = yield Alone(self._preparing(session))
        return done

    def ready(self, session: Session) -> Steps[str | None]:
        """Set up with everybody, unless that was done; returns what the set-up is called."""
        yield Alone(self._preparing(session))
        return session.key_id

    def forget(self) -> Steps[None]:
        """Forget what was set up; the next question sets up anew."""
        session = yield from self.open()
        yield Work(session.clear)
        self.session = None

    def delete(self, path: str, key_id: str) -> Steps[None]:
        """Refuse: there are no keys at the server."""
        raise UsageError("Expected a backend with keys at the server; these organisations keep none")
        yield Work(lambda: None)

    def ask(self, x: ArrayLike | Columns, *, publish: bool = False) -> Steps[Transcript]:
        """Return the transcript of a prediction."""
        session = yield from self.open()
        features: Matrix = yield Work(lambda: session.features(x))
        return (yield from self.rows(session, features, publish=publish))

    def rows(
        self, session: Session, features: Matrix, *, publish: bool = False, quiet: bool = False
    ) -> Steps[Transcript]:
        """Return the transcript of predictions on prepared rows."""
        whole, outputs, done = Transcript(), list[Matrix](), 0
        while done < len(features):
            part = features[done : done + session.rows]
            transcript: Transcript = yield Work(lambda part=part: self._alone(session, part))
            outputs.append(transcript.output("client"))
            whole = whole.merge(transcript)
            done += len(part)
            if not quiet:
                self.progress(done, len(features), ROWS)
        whole.outputs["client"] = np.concatenate(outputs)
        return whole

    # --- in a caller's thread -----------------------------------------------------------------------------------------

    def _opening(self) -> Steps[Session]:
        session = self.session
        if session is None:  # no other thread or task was faster
            session = self.session = yield Work(self._opened)
        return session

    def _opened(self) -> Session:
        offer = self._guest.offer()
        if self._wanted.kit_sha256 and digest(offer.kit) != self._wanted.kit_sha256:
            raise IntegrityError(f"Expected the kit with kit_sha256={self._wanted.kit_sha256}; the server has another")
        name = self._wanted.model or msgspec.msgpack.decode(offer.kit)["model"]
        session = Session(offer.kit, self._url, name, self._wanted.backend, self._store, signer=self._wanted.signer)
        if set(session.backend.roles) - {"client"} != {seat.role for seat in offer.seats}:
            raise ProtocolError(f"Expected an offer with the roles of {session.backend.name}")
        if self._wanted.encoder is not None and session.preprocess is not None:
            session.preprocess = session.preprocess.opened(Encoder.read(Path(self._wanted.encoder)))
        insecure = self._insecure(offer)
        if insecure:
            session.kit = msgspec.structs.replace(session.kit, guarantee=voided(session.kit.guarantee, insecure))
        self._model = offer.model
        self.report = Report(mode=session.backend.name, seats=offer.seats, insecure=insecure)
        return session

    def _insecure(self, offer: Offer) -> str:
        return self._guest.circle.insecure or offer.insecure

    def _store_of(self, session: Session) -> Store:
        return self._guest.circle.sessions.view(session.keys_prefix)

    def _preparing(self, session: Session) -> Steps[Transcript]:
        return (yield Work(lambda: self._set_up(session)))

    def _set_up(self, session: Session) -> Transcript:
        if session.key_id is not None:
            return Transcript(outputs={"client": session.key_id})
        self.progress(0, 0, SETTING_UP)
        session.describe()
        store, backend = self._store_of(session), session.backend
        ended, seen = self._guest.run(
            "setup", lambda: backend.setup("client", session.client, store, self._rng), prefix=session.keys_prefix
        )
        transcript = _transcript(ended, seen)
        session.confirm(str(ended.output)[:200])
        self.report = self.report.with_offline(ended)
        return transcript

    def _alone(self, session: Session, x: Matrix) -> Transcript:
        with self._one:  # what is in stock is looked up before a prediction, and taken by it
            return self._predict(session, x)

    def _predict(self, session: Session, x: Matrix) -> Transcript:
        set_up, lost = 0, 0
        while True:
            offer = self._guest.offer()
            if offer.model != self._model:
                raise ProtocolError("Expected the model that was asked before; the server prepared it anew, ask again")
            self._set_up(session)
            try:
                self._stocked(session, len(x))
                transcript = self._asked(session, x)
            except SetUpAgain:
                if (set_up := set_up + 1) > 1:
                    raise
                session.confirm(None)
                self._levels.clear()
            except AskAgain:  # what was dealt for it is used up here
                if (lost := lost + 1) > _MOST_LOST:
                    raise
                self._levels.pop(len(x), None)
            else:
                self._restocked(session, len(x))
                return transcript

    def _asked(self, session: Session, x: Matrix) -> Transcript:
        store, backend = self._store_of(session), session.backend
        ended, seen = self._guest.run(
            "predict",
            lambda: backend.predict("client", session.client, x, store, self._rng),
            prefix=session.keys_prefix,
            rows=len(x),
            dealt=lambda: needs_dealer(backend, session.client, store, rows=len(x)),
        )
        transcript = _transcript(ended, seen)
        if np.shape(ended.output) != (len(x), session.kit.outputs):
            raise ProtocolError(f"Expected {session.kit.outputs} outputs for each row")
        if len(x) in self._levels and "dealer" not in ended.cast.names:
            self._levels[len(x)] -= 1
        self.report = self.report.with_prediction(ended, rows=len(x))
        return transcript

    # --- correlations ahead -------------------------------------------------------------------------------------------

    def deal(self, session: Session, *, rows: int, count: int) -> int:
        """Have correlations dealt for `count` later predictions of `rows` rows; return how many are in stock now.

        Raises:
            UsageError: the backend has no dealer, or this one deals nothing ahead.
        """
        backend, kit, store = session.backend, session.client, self._store_of(session)
        offer = self._guest.offer()
        most = max((self._guest.stock(seat.name) for seat in offer.seats if seat.role == "dealer"), default=0)
        if self._ahead > most > 0:
            self.report = replace(self.report, wanted_ahead=self._ahead, ahead=most)
            self._ahead = most
        if not isinstance(backend, DealsAhead) or not most:
            raise UsageError("Expected a dealer that deals ahead (confide dealer --stock); leave ahead out")
        self._set_up(session)
        left, stock, at_a_time = min(count, most), 0, backend.deals_at_a_time(kit, rows=rows)
        while left:
            part = min(left, at_a_time)
            ended, _ = self._guest.run(
                "deal",
                lambda part=part: backend.deal("client", kit, store, self._rng, rows=rows, count=part),
                prefix=session.keys_prefix,
                rows=rows,
                count=part,
            )
            if ended.error is not None:
                raise ended.error
            self.report = self.report.with_offline(ended)
            left, stock = left - part, int(ended.output)
        return stock

    def _stocked(self, session: Session, rows: int) -> None:
        """Have `ahead` predictions of so many rows in stock before the first of them."""
        if self._ahead and rows not in self._levels and rows not in self._dealing:
            held = held_in_stock(session.backend, session.client, self._store_of(session), rows=rows)
            missing = self._ahead - held  # what an earlier process of this client left is used first
            self._levels[rows] = self.deal(session, rows=rows, count=missing) if missing > 0 else held

    def _restocked(self, session: Session, rows: int) -> None:
        """After an answer: make the next correlations in stock ready, and have what was used dealt anew, both beside.

        Little is dealt at a time: a prediction that is asked meanwhile shares links and cores with it.
        """
        left = self._levels.get(rows)
        if left is None:
            return
        circle, store = self._guest.circle, self._store_of(session)
        make_ready(circle, "client", session.backend, session.client, store, session.key_id, rows=rows)
        missing = self._ahead - max(0, left)
        if rows in self._dealing or missing < max(1, self._ahead // _SERVINGS):
            return

        def refill() -> None:
            try:
                self._levels[rows] = self.deal(session, rows=rows, count=missing)
            except ConfideError:
                self._levels[rows] = 0  # predictions ask the dealer themselves, and say what is wrong
            finally:
                self._dealing.discard(rows)

        self._dealing.add(rows)
        threading.Thread(target=refill, name="confide refill", daemon=True).start()


@runtime_checkable
class Exclusive(Protocol):
    """A store of which one process at a time can have the lease."""

    def exclusive(self, name: str) -> Lease:
        """Return the lease called `name`. Raises UsageError while somebody else holds it."""
        ...


@runtime_checkable
class DealsAhead(Protocol):
    """A backend whose dealer deals for later predictions."""

    def deal(self, role: str, kit: Kit, store: Store, rng: Randomness, *, rows: int, count: int) -> Party:
        """Return the party that puts correlations for `count` later predictions of `rows` rows into the stores."""
        ...

    def deals_at_a_time(self, kit: Kit, *, rows: int) -> int:
        """Return for how many predictions the client best orders correlations at a time."""
        ...


def needs_dealer(backend: Backend, kit: Kit, store: Store, *, rows: int) -> bool:
    """Return whether the next prediction of `rows` rows asks the dealer: always, where a backend does not say."""
    asks: Callable[..., bool] | None = getattr(backend, "needs_dealer", None)
    return True if asks is None else asks(kit, store, rows=rows)


def held_in_stock(backend: Backend, kit: Kit, store: Store, *, rows: int) -> int:
    """Return for how many predictions of `rows` rows the client holds correlations; 0 where a backend does not say."""
    held: Callable[..., int] | None = getattr(backend, "in_stock", None)
    return 0 if held is None else held(kit, store, rows=rows)


def _transcript(ended: Ended, seen: list[tuple[Message, int]]) -> Transcript:
    """Return a session as its client saw it, without bodies. Raises the error that ended it."""
    if ended.error is not None:
        raise ended.error
    transcript = Transcript(outputs={"client": ended.output})
    for message, size in seen:
        earlier = tuple(at for at, one in enumerate(transcript.messages) if one.dst == message.src)
        transcript.messages.append(message)
        transcript.sizes.append(size)
        transcript.events.append(Event(message.src, message.tag, 0.0, earlier, (len(transcript.messages) - 1,)))
    transcript.events.append(Event("client", "", ended.figures.worked_seconds, (), ()))
    return transcript


def joint(
    url: str,
    wanted: Wanted,
    *,
    identity: str | Path | None,
    store: Store,
    rng: Randomness,
    progress: Progress | None,
    timeout_seconds: float,
    one_machine: bool,
    ahead: int,
) -> JointAsking:
    """Return the steps of a client of several organisations; see `Client` for the arguments."""
    if identity is None:
        raise UsageError(
            f"Expected an identity (--identity FOLDER) with {url[:200]}: the folder that `confide federation join` "
            "made of the server's invitation"
        )
    return JointAsking(
        url, Path(identity), wanted, store=store, rng=rng, progress=progress, timeout_seconds=timeout_seconds,
        one_machine=one_machine, ahead=ahead,
    )  # fmt: skip
