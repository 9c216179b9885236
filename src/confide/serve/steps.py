"""The steps of asking one model of one server, written once for `Client` and `AsyncClient`. No I/O here.

    open      GET kit, checked by `Session`
    prepare   keys made, uploaded under their hash and confirmed; nothing if the store says that this was done
    predict   one question after the other, each of as many rows as the server takes

A reply that cannot be read is told to nobody: what is left of the question is asked as if it had been read, and only
then the caller gets the error. A server that sends broken replies on purpose does not see which ones decrypt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.crypto.random import Randomness
from confide.errors import IntegrityError, KeysExpired, ProtocolError, UsageError
from confide.model.encoder import Encoder
from confide.net import oip
from confide.net.http import Conversation, Reply, converse, resume
from confide.serve.effects import Alone, Patience, Received, Send, Steps, Work
from confide.serve.protocol import JSON_BYTES, KEY_ID, MAX_KIT_BYTES, Refusal, digest
from confide.serve.session import Columns, Session
from confide.structs import known
from confide.tee.backend import Accept, ask_evidence
from confide.tee.evidence import Bundle
from confide.wire import Message, Store, Transcript

Matrix = NDArray[np.float64]

#: Called with (done, total, what): bytes of "uploading keys", rows of "rows"; (0, 0, "making keys") at their start.
Progress = Callable[[int, int, str], None]

MAKING, UPLOADING, ROWS = "making keys", "uploading keys", "rows"
#: With this begins what is told while somebody else is not there yet: (0, 0, "waiting for broker (the dealer)").
WAITING = "waiting for "

_OCTETS = "application/octet-stream"


class Unread(Exception):
    """A reply that the backend could not read; `error` says why. It never goes further than the client."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Served(msgspec.Struct, frozen=True):
    models: tuple[str, ...]


class _TooLarge(UsageError):
    """A message that the server would refuse by its size."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client was asked for; see `Client`."""

    model: str | None
    backend: str | None
    kit_sha256: str | None
    signer: bytes | None
    encoder: str | Path | None
    accept: Accept | None = None


class Asks(Protocol):
    """The steps of a client, over HTTP (`Asking`) or over links that stay (`confide.serve.parties.asking`)."""

    progress: Progress

    @property
    def session(self) -> Session | None:
        """Return the session if the kit was fetched."""
        ...

    def open(self) -> Steps[Session]: ...

    def setup(self) -> Steps[Transcript]: ...

    def ready(self, session: Session) -> Steps[str | None]: ...

    def forget(self) -> Steps[None]: ...

    def delete(self, path: str, key_id: str) -> Steps[None]: ...

    def ask(self, x: ArrayLike | Columns, *, publish: bool = False) -> Steps[Transcript]: ...

    def rows(
        self, session: Session, features: Matrix, *, publish: bool = False, quiet: bool = False
    ) -> Steps[Transcript]: ...

    def costs(self) -> list[str]:
        """Return who answered and what it cost so far, in lines; [] where one server alone answers."""
        ...


class Asking:
    """One client's state and steps.

    Args:
        url: of the server, without a slash at the end.
        wanted: which model, how, and what it must be.
        store: the client's.
        patience: for every request.
        rng: for the secrets.
        progress: told how far it is.
    """

    def __init__(
        self, url: str, wanted: Wanted, *, store: Store, patience: Patience, rng: Randomness, progress: Progress | None
    ) -> None:
        self._url = url
        self._wanted = wanted
        self._store = store
        self._exchange = patience.exchange
        self._rng = rng
        self.progress: Progress = progress or (lambda done, total, what: None)
        self.session: Session | None = None

    # --- the kit ------------------------------------------------------------------------------------------------------

    def open(self) -> Steps[Session]:
        """Return the session, after fetching and checking the kit if there is none."""
        session = self.session
        return session if session is not None else (yield Alone(self._fetch()))

    def leave(self, session: Session) -> None:
        """Forget a session whose kit is not served any more."""
        if self.session is session:
            self.session = None

    def _fetch(self) -> Steps[Session]:
        if self.session is not None:  # another thread or task was faster
            return self.session
        wanted = self._wanted
        name = wanted.model or (yield from self._only_model())
        version = f"/versions/{quote(wanted.backend, safe='')}" if wanted.backend else ""
        path = f"/v2/models/{quote(name, safe='')}{version}/kit"
        try:
            received = yield from self._exchange(Send("GET", path, max_bytes=MAX_KIT_BYTES))
        except Refusal as refusal:
            if refusal.code != "unknown_version" or wanted.backend != "tee":
                raise
            raise _no_enclave(name, refusal, policy=wanted.accept is not None) from None
        if wanted.kit_sha256 and digest(received.body) != wanted.kit_sha256:
            raise IntegrityError(f"Expected the kit with kit_sha256={wanted.kit_sha256}; the server serves another one")
        session: Session = yield Work(lambda: self._opened(received.body, name))
        self.session = session
        return session

    def _opened(self, body: bytes, name: str) -> Session:
        wanted = self._wanted
        session = Session(
            body, self._url, name, wanted.backend, self._store, signer=wanted.signer, accept=wanted.accept
        )
        if wanted.encoder is not None and session.preprocess is not None:
            session.preprocess = session.preprocess.opened(Encoder.read(Path(wanted.encoder)))
        return session

    def _only_model(self) -> Steps[str]:
        received = yield from self._exchange(Send("GET", "/v2", max_bytes=1 << 20))
        try:
            served = msgspec.json.decode(received.body, type=known(_Served))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise ProtocolError("Expected a confide server; check the URL") from None
        if len(served.models) != 1:
            raise UsageError(f"Expected model= one of {', '.join(map(repr, served.models))}")
        return served.models[0]

    def costs(self) -> list[str]:
        """Return nothing: one server alone answers."""
        return []

    # --- keys ---------------------------------------------------------------------------------------------------------

    def setup(self) -> Steps[Transcript]:
        """Have the keys at the server now; returns the transcript of the upload, an empty one if they were there."""
        session = yield from self.open()
        done: Transcript = yield Alone(self._prepare(session, certain=True))
        return done

    def evidence(self, nonce: bytes) -> Steps[Bundle]:
        """Return what the server's enclave shows for `nonce`, unverified. Raises UsageError if it has no enclave."""
        session = yield from self.open()
        if session.kit.backend != "tee":
            raise UsageError(f"Expected a model under the backend tee; this one is served under {session.kit.backend}")
        send = Send("POST", f"{session.path}/keys", ask_evidence(nonce), {"content-type": _OCTETS})
        received = yield from self._exchange(send)
        return Bundle.decode(received.body)

    def forget(self) -> Steps[None]:
        """Delete this model's keys, first at the server, then in the store."""
        session = yield from self.open()
        yield Alone(self._forget(session))

    def delete(self, path: str, key_id: str) -> Steps[None]:
        """Delete keys at the server; that it has none by that name counts as done."""
        if not KEY_ID.fullmatch(key_id):
            raise UsageError("Expected the id of keys, 64 hex digits")
        try:
            yield from self._exchange(Send("DELETE", f"{path}/keys/{key_id}", max_bytes=1 << 20))
        except Refusal as refusal:
            if refusal.status == 405:
                raise UsageError("Expected a server that deletes keys on request; this one forgets by age") from None
            if refusal.code != "unknown_key":
                raise

    def _forget(self, session: Session) -> Steps[None]:
        key_id = session.key_id or session.pending
        if key_id is not None:
            yield from self.delete(session.path, key_id)
        yield Work(session.clear)
        self.leave(session)  # with what it has parsed of them

    def ready(self, session: Session) -> Steps[str | None]:
        """Return the id of the keys that are at the server, after bringing them there; None if none are needed."""
        if not session.kit.needs_keys:
            return None
        if session.key_id is None:
            yield Alone(self._prepare(session))
        return session.key_id

    def _prepare(self, session: Session, *, certain: bool = False) -> Steps[Transcript]:
        """Bring the keys to the server unless they are there.

        Args:
            session: the session.
            certain: True asks the server also about keys that it has confirmed before.
        """
        key_id, pending = session.key_id, session.pending
        if key_id is not None and not certain:
            return _known(key_id)
        at_server = key_id or pending
        if at_server is not None and session.kit.needs_keys:
            if (yield from self._knows(session, at_server)):
                session.confirm(at_server)
                return _known(at_server)
            session.confirm(None)
        return (yield from self._upload(session))

    def _knows(self, session: Session, key_id: str) -> Steps[bool]:
        try:
            yield from self._exchange(Send("GET", f"{session.path}/keys/{key_id}", max_bytes=1 << 20))
        except Refusal as refusal:
            if refusal.code != "unknown_key":
                raise
            return False
        return True

    def _upload(self, session: Session) -> Steps[Transcript]:
        session.describe()
        self.progress(0, 0, MAKING)
        conversation = converse(
            session.backend.setup("client", session.client, session.keys, self._rng), store=session.keys
        )
        said = yield from _said(session, conversation)
        if isinstance(said, Message):
            _check_size(said, session.kit.max_keys_bytes)
            session.expect(digest(said.body))
            send = Send("POST", f"{session.path}/keys", said.body, {"content-type": _OCTETS}, what=UPLOADING)
            received = yield from self._exchange(send)
            said = yield from _said(session, conversation, received.reply)
        if isinstance(said, Message):
            _more_than_one_round()
        if session.kit.needs_keys:
            session.confirm(str(said.output("client")))
        return said

    # --- questions ----------------------------------------------------------------------------------------------------

    def ask(self, x: ArrayLike | Columns, *, publish: bool = False) -> Steps[Transcript]:
        """Return the transcript of a prediction. See `Client.predict` and `Client.publish` for what it raises."""
        for last in (False, True):
            session = yield from self.open()
            features: Matrix = yield Work(lambda session=session: session.features(x))
            try:
                return (yield from self.rows(session, features, publish=publish))
            except Unread as unread:
                raise unread.error from None
            except Refusal as refusal:
                if refusal.code != "old_kit" or last:
                    raise
            self.leave(session)  # another kit may prepare x in another way: start from x again
        raise AssertionError

    def rows(
        self, session: Session, features: Matrix, *, publish: bool = False, quiet: bool = False
    ) -> Steps[Transcript]:
        """Return the transcript of predictions on prepared rows.

        Args:
            session: whose kit prepared them.
            features: float64, shape (rows, features).
            publish: True for predictions that may be shown to others.
            quiet: True reports no progress.

        Raises:
            Unread: at the end, for the first reply that could not be read.
        """
        whole, outputs = Transcript(), list[Matrix]()
        unread: Unread | None = None
        done = 0
        while done < len(features):
            part = features[done : done + session.rows]
            try:
                transcript = yield from self._ask(session, part, publish)
                outputs.append(transcript.output("client"))
                whole = whole.merge(transcript)
            except _TooLarge:
                if len(part) == 1:
                    raise
                session.rows = len(part) // 2
                continue
            except Unread as error:
                unread = unread or error
            done += len(part)
            if not quiet:
                self.progress(done, len(features), ROWS)
        if unread:
            raise unread
        whole.outputs["client"] = np.concatenate(outputs)
        return whole

    def _ask(self, session: Session, x: Matrix, publish: bool) -> Steps[Transcript]:
        """Ask one question; if the keys are too old, or forgotten by the server, upload some and ask once more."""
        key_id = yield from self.ready(session)
        try:
            return (yield from self._predict(session, x, publish, key_id))
        except KeysExpired:
            pass  # setting up makes new ones
        except Refusal as refusal:
            if refusal.code != "unknown_key":
                raise
        session.forgotten(key_id)
        return (yield from self._predict(session, x, publish, (yield from self.ready(session))))

    def _predict(self, session: Session, x: Matrix, publish: bool, key_id: str | None) -> Steps[Transcript]:
        def begin() -> Conversation:
            backend, kit, keys = session.backend, session.client, session.keys
            if publish:
                party = backend.publish(kit, x, keys, self._rng)
            else:
                party = backend.predict("client", kit, x, keys, self._rng)
            return converse(party, store=session.keys)

        conversation: Conversation = yield Work(begin)
        said = yield from _said(session, conversation)
        if isinstance(said, Message):
            _check_size(said, session.kit.max_query_bytes)
            session.learn_rows(len(x), len(said.body))
            received = yield from self._exchange(_question(session, said, key_id), question=True)
            try:
                said = yield from _said(session, conversation, _reply(received))
                if isinstance(said, Message):
                    _more_than_one_round()
                if np.shape(said.output("client")) != (len(x), session.kit.outputs):
                    raise ProtocolError(f"Expected {session.kit.outputs} outputs for each row")
            except Exception as error:  # also a bug in a backend: the server learns of none
                raise Unread(error) from None
        return said


def _said(session: Session, conversation: Conversation, reply: Reply | None = None) -> Steps[Message | Transcript]:
    """Resume a conversation; one at a time per session, since a backend may keep state in its kit."""

    def job() -> Message | Transcript:
        with session.lock:
            return resume(conversation, reply)

    return (yield Work(job))


def _known(key_id: str) -> Transcript:
    transcript = Transcript()
    transcript.outputs["client"] = key_id
    return transcript


def _more_than_one_round() -> NoReturn:
    raise ProtocolError("Expected a party that ends with its reply")


def _question(session: Session, message: Message, key_id: str | None) -> Send:
    """Return the request that carries one question."""
    parameters: oip.Parameters = {"kit_sha256": session.pin}
    if key_id is not None:
        parameters["key_id"] = key_id
    query = oip.Tensor.of_bytes("query", message.body)
    body, length = oip.encode_request([query], binary_outputs=["reply"], parameters=parameters)
    headers = {"content-type": _OCTETS, oip.HEADER_LENGTH: str(length)}
    return Send("POST", f"{session.path}/infer", body, headers, meanwhile=session.prepare_ahead)


def _reply(received: Received) -> Reply:
    """Return what came back for one question. Raises ProtocolError for anything that is no answer."""
    split = received.headers.get(oip.HEADER_LENGTH, "")
    if not (split.isascii() and split.isdigit()):
        raise ProtocolError("Expected a reply in binary form")
    tensors = oip.decode_reply(received.body, int(split), max_json_bytes=1 << 20)
    if "reply" not in tensors:
        raise ProtocolError('Expected a reply with the tensor "reply"')
    return Reply(tensors["reply"].payload(), received.reply.seconds)


def _check_size(message: Message, max_bytes: int) -> None:
    if len(message.body) > max_bytes - JSON_BYTES:
        raise _TooLarge(f"Expected a message of at most {max_bytes} bytes, which is what the server takes")


def _no_enclave(model: str, refusal: Refusal, *, policy: bool) -> UsageError:
    """Return what to say where a server has no enclave for a model: which backends it names instead."""
    served = refusal.text.rpartition(": ")[2][:200]
    there = f"this server has no backend tee for model={model!r}; it serves {served}"
    if policy:
        return UsageError(
            f"Expected policy (--policy) with a server that has the backend tee; {there}. No row was sent"
        )
    return UsageError(f"Expected a server with an enclave; {there}")
