"""The client: asks a served model without showing the question, as far as the model's backend can hide it.

Keys are made at the first question and kept in the client's store; the public ones are uploaded once under their hash,
and again if the server has forgotten them. Raw columns are prepared here, by the model's public preprocessing.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx2
import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ConfideError, IntegrityError, ProtocolError, UsageError
from confide.guarantee import Guarantee, PrivacyLabel
from confide.model.encoder import Encoder
from confide.model.preprocess import Preprocess
from confide.net import oip
from confide.net.http import Reply, ask, is_loopback
from confide.serve.protocol import MAX_KIT_BYTES, ClientKit, Refusal, digest
from confide.serve.session import JSON_BYTES, Columns, Session
from confide.structs import known
from confide.wire import MemoryStore, Message, Store, Transcript

Matrix = NDArray[np.float64]

_MAX_REPLY_BYTES = 1 << 28
_TIMING = re.compile(r"\bwork;dur=(\d{1,9}(?:\.\d{1,9})?)")


class _Served(msgspec.Struct, frozen=True):
    models: tuple[str, ...]


class _TooLarge(UsageError):
    """A message that the server would refuse by its size."""


class Client:
    """Asks one model of one server. Not for several threads at a time.

    Args:
        url: of the server, "https://..."; plain "http://" only to this machine.
        model: the model's name; may be left out if the server has one.
        backend: how to ask; by default the server's choice, as long as that hides the query from the server.
        store: where the secret keys stay (`SqliteStore` to keep them); by default they end with this object.
        api_key: if the server asks for one.
        ca_file: PEM file with the authority that signed the server's certificate; the system's by default.
        encoder: file of the encoder, for models whose images go through one; see `encoders` of `preprocess`.
        kit_sha256: the kit that must be served, as its operator published it; any by default.
        insecure_plain_http: True allows "http://" to another machine.
        timeout_seconds: for each request.
        rng: for the secrets.
        transport: instead of the network, for tests (`confide.net.http.InProcess`).

    Example:
        >>> with Client("https://models.example.org") as client:  # doctest: +SKIP
        ...     print(client.guarantee.sentences(), client.label.sentence())
        ...     print(client.predict({"age": [61], "sex": ["f"]}))

    **Guarantees**: the secret key never leaves the store; a backend that shows the query to the server is used only
    when asked for by name; nothing is sent if x lies outside the bounds that the model states.
    **Leaks**: to the server what the backend's `Guarantee` says, and when and how often it is asked, and how many rows.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        backend: str | None = None,
        store: Store | None = None,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        encoder: str | Path | None = None,
        kit_sha256: str | None = None,
        insecure_plain_http: bool = False,
        timeout_seconds: float = 120.0,
        rng: Randomness | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._http = _connect(url, api_key, ca_file, insecure_plain_http, timeout_seconds, transport)
        self._url = url.rstrip("/")
        self._model = model
        self._backend_name = backend
        self._store: Store = MemoryStore() if store is None else store
        self._pin = kit_sha256
        self._encoder = encoder
        self._rng: Randomness = SystemRandomness() if rng is None else rng
        self._session: Session | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the keys stay in the store."""
        self._http.close()

    # --- what the server says of itself -------------------------------------------------------------------------------

    @property
    def kit(self) -> ClientKit:
        """Return what the server published for asking this model; fetched once."""
        return self._open().kit

    @property
    def model(self) -> str:
        """Return the model's name."""
        return self.kit.model

    @property
    def backend(self) -> str:
        """Return the name of the backend in use."""
        return self.kit.backend

    @property
    def guarantee(self) -> Guarantee:
        """Return what asking promises. What it claims against the server holds by this client's own code."""
        return self.kit.guarantee

    @property
    def label(self) -> PrivacyLabel:
        """Return what the model's training promised, as the server states it."""
        return self.kit.label

    @property
    def preprocess(self) -> Preprocess | None:
        """Return the public preprocessing, which names the raw columns; None if the model takes bare features."""
        return self._open().preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the outcomes; () if the model names none."""
        return self.kit.classes

    # --- asking -------------------------------------------------------------------------------------------------------

    def predict(self, x: ArrayLike | Columns) -> Matrix:
        """Return predictions, float64, shape (rows, outputs): what `Graph.apply` would, within the backend's error.

        Args:
            x: features, shape (rows, features) or (features,) for one row; or raw columns by name:
                lists or arrays in a mapping, or a frame of pandas or another library.

        Raises:
            DataError: x does not fit the model or lies outside its bounds; nothing was sent.
            PrivacyError: the server offers no backend that hides the query, and none was asked for.
            ServiceError: the server's refusal.
        """
        return self.ask(x).output("client")

    def decide(self, x: ArrayLike | Columns) -> list[str]:
        """Return the name of the likeliest outcome of each row. Raises UsageError if the model names no outcomes."""
        classes = self.classes
        if not classes:
            raise UsageError("Expected a model that names its classes; use predict")
        y = self.predict(x)
        places = (y[:, 0] > 0.5).astype(int) if y.shape[1] == 1 else y.argmax(axis=1)
        return [classes[place] for place in places.tolist()]

    def ask(self, x: ArrayLike | Columns) -> Transcript:
        """Return the transcript of a prediction; its output for "client" is what `predict` returns.

        Bytes are those of the message bodies, HTTP's headers not counted; seconds of the server are what it reports.
        """
        try:
            return self._ask_all(x)
        except Refusal as refusal:
            if refusal.code != "old_kit":
                raise
        self._session = None  # another kit may prepare x in another way: start from x again
        return self._ask_all(x)

    def features(self, x: ArrayLike | Columns) -> Matrix:
        """Return x as the model takes it, float64, shape (rows, features), checked against the model's bounds."""
        return self._open().features(x)

    def setup(self) -> Transcript:
        """Make the keys and upload the public ones now, instead of at the first question; return the transcript.

        Keys that are in the store already are not made again.
        """
        session = self._open()
        party = session.backend.setup("client", session.client, session.keys, self._rng)
        transcript = ask(party, self._upload, store=session.keys)
        if session.kit.needs_keys:
            session.own.commit({"key_id": str(transcript.output("client")).encode()})
        return transcript

    def _ask_all(self, x: ArrayLike | Columns) -> Transcript:
        features = self.features(x)
        whole = Transcript()
        outputs: list[Matrix] = []
        while (done := sum(map(len, outputs))) < len(features):
            rows = self._open().rows
            try:
                part = self._ask(features[done : done + rows])
            except _TooLarge:
                if rows == 1:
                    raise
                self._open().rows = rows // 2
                continue
            outputs.append(part.output("client"))
            whole = whole.merge(part)
        whole.outputs["client"] = np.concatenate(outputs)
        return whole

    def _ask(self, x: Matrix) -> Transcript:
        """Ask one question; if the server has forgotten the keys, upload them again and ask once more."""
        session = self._ready()
        try:
            return self._predict(session, x)
        except Refusal as refusal:
            if refusal.code != "unknown_key":
                raise
        session.own.commit({"key_id": None})
        return self._predict(self._ready(), x)

    def _predict(self, session: Session, x: Matrix) -> Transcript:
        party = session.backend.predict("client", session.client, x, session.keys, self._rng)
        transcript = ask(party, self._infer, store=session.keys)
        if np.shape(transcript.output("client")) != (len(x), session.kit.outputs):
            raise ProtocolError(f"Expected {session.kit.outputs} outputs for each row")
        session.learn_rows(len(x), transcript.sizes[0])
        return transcript

    def _ready(self) -> Session:
        """Return the session with its keys at the server."""
        session = self._open()
        if session.kit.needs_keys and session.key_id is None:
            self.setup()
        return session

    def _open(self) -> Session:
        if self._session is None:
            name = self._model or self._only_model()
            version = f"/versions/{quote(self._backend_name, safe='')}" if self._backend_name else ""
            path = f"/v2/models/{quote(name, safe='')}{version}/kit"
            body = self._call("GET", path, max_bytes=MAX_KIT_BYTES).body
            if self._pin and digest(body) != self._pin:
                raise IntegrityError(f"Expected the kit with kit_sha256={self._pin}; the server serves another one")
            session = Session(body, self._url, name, self._backend_name, self._store)
            if self._encoder is not None and session.preprocess is not None:
                session.preprocess = session.preprocess.opened(Encoder.read(Path(self._encoder)))
            self._session = session
        return self._session

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def _only_model(self) -> str:
        try:
            served = msgspec.json.decode(self._call("GET", "/v2", max_bytes=1 << 20).body, type=known(_Served))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise ProtocolError("Expected a confide server; check the URL") from None
        if len(served.models) != 1:
            raise UsageError(f"Expected model= one of {', '.join(map(repr, served.models))}")
        return served.models[0]

    def _upload(self, message: Message) -> Reply:
        session = self._open()
        _check_size(message, session.kit.max_keys_bytes)
        headers = {"content-type": "application/octet-stream"}
        return self._call("POST", f"{session.path}/keys", content=message.body, headers=headers).reply

    def _infer(self, message: Message) -> Reply:
        session = self._open()
        _check_size(message, session.kit.max_query_bytes)
        parameters: oip.Parameters = {"kit_sha256": session.pin}
        if session.key_id:
            parameters["key_id"] = session.key_id
        query = oip.Tensor.of_bytes("query", message.body)
        body, length = oip.encode_request([query], binary_outputs=["reply"], parameters=parameters)
        headers = {"content-type": "application/octet-stream", oip.HEADER_LENGTH: str(length)}
        response = self._call("POST", f"{session.path}/infer", content=body, headers=headers)
        split = response.headers.get(oip.HEADER_LENGTH, "")
        if not (split.isascii() and split.isdigit()):
            raise ProtocolError("Expected a reply in binary form")
        tensors = oip.decode_reply(response.body, int(split), max_json_bytes=1 << 20)
        if "reply" not in tensors:
            raise ProtocolError('Expected a reply with the tensor "reply"')
        return Reply(tensors["reply"].payload(), response.reply.seconds)

    def _call(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = _MAX_REPLY_BYTES,
    ) -> _Response:
        """Return a successful response of bounded size; every other end is one of confide's errors."""
        try:
            with self._http.stream(method, path, content=content, headers=headers) as response:
                body = _read(response, max_bytes)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise Refusal.parse(response.status_code, body, response.headers.get("retry-after"))
        return _Response(body, response.headers)

    def _unreachable(self, error: httpx2.TransportError) -> ConfideError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return IntegrityError("Expected a certificate from a known authority; name another one with ca_file")
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return UsageError(f"Expected a server at {self._url}; check that it runs and that the URL is right")
        hint = "ask again later" if self._url.startswith("https") else "if the server speaks TLS, write https://"
        return UsageError(f"Expected an answer, the connection ended first ({type(error).__name__}); {hint}")


@dataclass(frozen=True, slots=True)
class _Response:
    body: bytes
    headers: Mapping[str, str]

    @property
    def reply(self) -> Reply:
        """Return the body with the seconds that the server says it worked; 0 if it says nothing."""
        timing = _TIMING.search(self.headers.get("server-timing", ""))
        return Reply(self.body, float(timing[1]) / 1e3 if timing else 0.0)


def _connect(
    url: str,
    api_key: str | None,
    ca_file: str | Path | None,
    insecure_plain_http: bool,
    timeout_seconds: float,
    transport: httpx2.BaseTransport | None,
) -> httpx2.Client:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise UsageError("Expected url as https://HOST[:PORT]") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query:
        raise UsageError("Expected url as https://HOST[:PORT], without user, password and query")
    if parsed.scheme == "http" and not is_loopback(parsed.host) and not insecure_plain_http:
        raise UsageError(f"Expected https:// for host={parsed.host}; insist on http:// with insecure_plain_http")
    headers = {"accept-encoding": "identity", "user-agent": "confide"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    verify: ssl.SSLContext | bool = parsed.scheme == "https"  # the authorities are slow to load where none is asked
    if ca_file is not None:
        try:
            verify = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError):
            raise UsageError(f"Expected ca_file={Path(ca_file).name} to be a PEM file with certificates") from None
    return httpx2.Client(
        base_url=url, headers=headers, verify=verify, timeout=timeout_seconds, transport=transport, trust_env=False
    )


def _read(response: httpx2.Response, max_bytes: int) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ProtocolError("Expected a reply that is not compressed, as the request says")
    chunks: list[bytes] = []
    size = 0
    for chunk in response.iter_bytes():
        size += len(chunk)
        if size > max_bytes:
            raise ProtocolError(f"Expected a reply of at most {max_bytes} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _check_size(message: Message, max_bytes: int) -> None:
    if len(message.body) > max_bytes - JSON_BYTES:
        raise _TooLarge(f"Expected a message of at most {max_bytes} bytes, which is what the server takes")
