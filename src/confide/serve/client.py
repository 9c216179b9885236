"""The client: asks a served model without showing the question, as far as the model's backend can hide it.

Keys are made at the first question and kept in the client's store; the public ones are uploaded once under their hash,
and again if the server has forgotten them. Raw columns are prepared here, by the model's public preprocessing. What is
asked in which order stands in `steps`; this file carries it out, one effect after the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import UsageError
from confide.guarantee import Guarantee, PrivacyLabel
from confide.model import links
from confide.model.artifact import read_public_key
from confide.model.preprocess import Preprocess
from confide.serve.connect import Address, Carrier, Through
from confide.serve.direct import Direct
from confide.serve.effects import Alone, Patience, Pause, Result, Send, Steps
from confide.serve.joint import is_joint, joint_asking
from confide.serve.protocol import ClientKit
from confide.serve.session import Columns, Session
from confide.serve.steps import ROWS, Asking, Asks, Progress, Unread, Wanted
from confide.tee.backend import Accept
from confide.tee.evidence import Bundle
from confide.tee.policy import Policy, read_policy
from confide.wire import MemoryStore, Store, Transcript

Matrix = NDArray[np.float64]

RETRIES = 4
GIVE_UP_SECONDS = 60.0
TIMEOUT_SECONDS = 120.0


class Client:
    """Asks one model of one server. Safe for several threads; `AsyncClient` is the same for an event loop.

    Args:
        url: of the server, "https://..."; plain "http://" only to this machine.
        model: the model's name; may be left out if the server has one.
        backend: how to ask; by default the server's choice, as long as that hides the query from the server.
        store: where the secret keys stay (`KeyStore` for a file); by default they end with this object.
        api_key: if the server asks for one.
        ca_file: PEM file with the authority that signed the server's certificate; the system's by default.
        certificate, private_key: PEM files by which the client says who it is, if the server asks for that.
        encoder: file of the encoder, for models whose images go through one; see `encoders` of `preprocess`.
        kit_sha256: the kit that must be served, as its operator published it; any by default.
        signer: who must have signed the model: 64 hex digits or a PEM file; anybody by default.
        policy: of a server's enclave, a TOML file or a `Policy`: which code may see the query; for backend "tee".
        attester: "simulated" accepts, for a trial, an enclave without hardware, which protects nothing.
        insecure_plain_http: True allows "http://" to another machine.
        identity: folder of `confide federation join`, for "wss://HOST:PORT": several organisations answer together.
        insecure_colocated_dealer: True accepts, for a trial, that organisations which must not collude share a machine.
        ahead: with "wss://", predictions for which correlations are dealt before they are needed, and kept in `store`.
        timeout_seconds: for each request.
        retries: how often a request that failed for now is repeated.
        give_up_seconds: time after which one request is not repeated any more; with "wss://", time for everybody to be
            there.
        repeat_questions: True repeats also a question whose answer was lost; the server may then count it twice.
        progress: called with (done, total, what): (0, 0, "making keys"), bytes of "uploading keys", rows of "rows";
            with "wss://" also (0, 0, "waiting for ...").
        rng: for the secrets.
        transport: instead of the network, for tests (`confide.net.http.InProcess`).

    Example:
        >>> with Client("https://models.example.org") as client:  # doctest: +SKIP
        ...     print(client.guarantee.sentences(), client.label.sentence())
        ...     print(client.predict({"age": [61], "sex": ["f"]}))

    **Guarantees**: the secret key never leaves the store; a backend that shows the query to the server is used only
    when asked for by name; nothing is sent if x lies outside the bounds that the model states; the server is not told
    whether a reply could be read.
    **Leaks**: to the server what the backend's `Guarantee` says, and when and how often it is asked, and how many rows.
    """

    _asking: Asks
    _http: Carrier

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        backend: str | None = None,
        store: Store | None = None,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        certificate: str | Path | None = None,
        private_key: str | Path | None = None,
        encoder: str | Path | None = None,
        kit_sha256: str | None = None,
        signer: str | Path | None = None,
        policy: str | Path | Policy | None = None,
        attester: Literal["simulated"] | None = None,
        insecure_plain_http: bool = False,
        identity: str | Path | None = None,
        insecure_colocated_dealer: bool = False,
        ahead: int = 0,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        give_up_seconds: float = GIVE_UP_SECONDS,
        repeat_questions: bool = False,
        progress: Progress | None = None,
        rng: Randomness | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._alone = threading.Lock()
        if is_joint(url):
            refuse_policy(url, policy, attester)
            self._asking = self._http = joint_asking(
                url, wanted_of(model, backend, kit_sha256, signer, encoder), identity=identity, store=store, rng=rng,
                progress=progress, timeout_seconds=min(timeout_seconds, give_up_seconds),
                one_machine=insecure_colocated_dealer, ahead=ahead,
            )  # fmt: skip
            return
        address = Address(url, api_key, ca_file, insecure_plain_http, timeout_seconds, certificate, private_key)
        self._asking = asking(
            address, wanted_of(model, backend, kit_sha256, signer, encoder, policy, attester), store=store,
            retries=retries, give_up_seconds=give_up_seconds, repeat_questions=repeat_questions, progress=progress,
            rng=rng,
        )  # fmt: skip
        self._http = Direct(address) if transport is None else Through(address, transport)

    def costs(self) -> list[str]:
        """Return who answered and what it cost so far, in lines; [] where one server alone answers."""
        return self._asking.costs()

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
        """Return what the model's training promised; signed by `signer` if there is one, else as the server states."""
        return self.kit.label

    @property
    def signer(self) -> str:
        """Return who signed the model, hex Ed25519 public key; "" if the server shows no signature.

        Without a pinned signer it says only who, not that it is the right one.
        """
        signed = self._open().signed
        return signed.signer if signed else ""

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

    def publish(self, x: ArrayLike | Columns) -> Matrix:
        """Return predictions that may be shown to others, the server among them, without harm to the secret key.

        What is decrypted under CKKS carries noise that depends on the key: `predict` is for the client's own eyes, this
        adds noise that hides it and counts. Under exact schemes both are the same. When the keys have been used up, new
        ones are made and uploaded.
        """
        return self._run(self._asking.ask(x, publish=True)).output("client")

    def probabilities(self, x: ArrayLike | Columns) -> Matrix:
        """Return the probability of each class, shape (rows, classes): softmax or sigmoid at this side of the wire.

        Raises:
            UsageError: the outputs are no logits or probabilities of named classes; as in `predict`.
        """
        return links.probabilities(self.predict(x), self.kit.link, self.classes)

    def mean(self, x: ArrayLike | Columns) -> Matrix:
        """Return what the model is about, shape (rows, outputs): its link undone, such as exp for a Poisson model."""
        return links.mean(self.predict(x), self.kit.link)

    def decide(self, x: ArrayLike | Columns) -> list[str]:
        """Return the name of the likeliest outcome of each row. Raises UsageError if the model names no outcomes."""
        if not self.classes:
            raise UsageError("Expected a model that names its classes; use predict")
        return links.decide(self.predict(x), self.kit.link, self.classes)

    def ask(self, x: ArrayLike | Columns) -> Transcript:
        """Return the transcript of a prediction; its output for "client" is what `predict` returns.

        Bytes are those of the message bodies, HTTP's headers not counted; seconds of the server are what it reports.
        """
        return self._run(self._asking.ask(x))

    def stream(self, x: ArrayLike | Columns) -> Iterator[Matrix]:
        """Yield predictions as they come, question by question, in the order of the rows.

        Raises:
            As in `predict`. A reply that cannot be read ends it only after the last question.
        """
        session = self._open()
        features = session.features(x)
        unread: Unread | None = None
        done = 0
        while done < len(features):
            part = features[done : done + session.rows]
            done += len(part)
            try:
                transcript = self._run(self._asking.rows(session, part, quiet=True))
            except Unread as error:
                unread = unread or error
                continue
            self._asking.progress(done, len(features), ROWS)
            if not unread:
                yield transcript.output("client")
        if unread:
            raise unread.error from None

    def features(self, x: ArrayLike | Columns) -> Matrix:
        """Return x as the model takes it, float64, shape (rows, features), checked against the model's bounds."""
        return self._open().features(x)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def setup(self) -> Transcript:
        """Have the keys at the server now, instead of at the first question; return the transcript of the upload.

        Keys that the server has are neither made nor sent again: the transcript is empty then.
        """
        return self._run(self._asking.setup())

    def forget(self) -> None:
        """Delete this model's keys: the public ones at the server, then all in the store. The next question makes new
        ones.

        Raises:
            UsageError: the server cannot be reached or deletes nothing on request; then the store keeps them too.
        """
        self._run(self._asking.forget())

    def delete_at_server(self, path: str, key_id: str) -> None:
        """Delete public keys at the server by what `KeyStore.list` says of them; none by that name counts as done."""
        self._run(self._asking.delete(path, key_id))

    # --- enclaves -----------------------------------------------------------------------------------------------------

    def evidence(self, nonce: bytes) -> Bundle:
        """Return what the server's enclave shows for `nonce`, 32 bytes; nothing of it is verified here.

        `Accept.verdict` and `confide.tee.verify.verify` do that; asking a question does it by itself.

        Raises:
            UsageError: the model is not served from an enclave.
        """
        if not isinstance(self._asking, Asking):
            raise UsageError("Expected one server with an enclave; where several organisations answer there is none")
        return self._run(self._asking.evidence(nonce))

    # --- carrying out -------------------------------------------------------------------------------------------------

    def _open(self) -> Session:
        return self._run(self._asking.open())

    def _run(self, steps: Steps[Result]) -> Result:
        """Carry out steps to their end."""
        result: Any = None
        failure: Exception | None = None
        try:
            while True:
                effect = steps.send(result) if failure is None else steps.throw(failure)
                result = failure = None
                try:
                    if isinstance(effect, Send):
                        result = self._http.send(effect, partial(report, self._asking.progress, effect.what))
                    elif isinstance(effect, Pause):
                        time.sleep(effect.seconds)
                    elif isinstance(effect, Alone):
                        with self._alone:
                            result = self._run(effect.steps)
                    else:
                        result = effect.job()
                except Exception as error:
                    failure = error
        except StopIteration as stop:
            return stop.value
        finally:
            steps.close()


def wanted_of(
    model: str | None,
    backend: str | None,
    kit_sha256: str | None,
    signer: str | Path | None,
    encoder: str | Path | None,
    policy: str | Path | Policy | None = None,
    attester: str | None = None,
) -> Wanted:
    """Return what a client was asked for; see `Client` for the arguments.

    Raises:
        UsageError: arguments that do not go together: a policy goes with the backend tee, and with no other.
    """
    if attester not in (None, "simulated"):
        raise UsageError(f"Expected attester={attester!r} to be 'simulated', or left out: hardware needs no permission")
    if policy is None and attester is not None:
        raise UsageError("Expected policy= with attester='simulated'; its table [simulated] names the measurements")
    if policy is not None and backend not in (None, "tee"):
        raise UsageError(
            f"Expected policy (--policy) with backend (--backend) tee, got {backend!r}, under which no enclave shows "
            "evidence; leave out one of the two"
        )
    if policy is not None:
        backend = "tee"  # not the server's choice, which may be one that shows it the query
    return Wanted(
        model, backend, kit_sha256, read_public_key(signer) if signer else None, encoder,
        None if policy is None else Accept(policy_of(policy), allow_simulated=attester == "simulated"),
    )  # fmt: skip


def refuse_policy(url: str, policy: object, attester: object) -> None:
    """Refuse what is for one server's enclave. Raises UsageError where several organisations answer together."""
    if policy is not None or attester is not None:
        raise UsageError(
            f"Expected no policy (--policy) and no attester with url={url!r}: several organisations answer there, "
            "without an enclave; leave them out"
        )


def policy_of(policy: str | Path | Policy) -> Policy:
    """Return a policy, read if it is a file's name. Raises UsageError if it is neither."""
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"Expected policy as a TOML file's name or a confide.tee.policy.Policy, got {type(policy).__name__}; "
            "docs/attestation.md has its form"
        )
    return read_policy(policy)


def asking(
    address: Address,
    wanted: Wanted,
    *,
    store: Store | None,
    retries: int,
    give_up_seconds: float,
    repeat_questions: bool,
    progress: Progress | None,
    rng: Randomness | None,
) -> Asking:
    """Return the steps of a client; see `Client` for the arguments."""
    url = address.url.rstrip("/")
    patience = Patience(
        url, retries=retries, give_up_seconds=give_up_seconds, repeat_questions=repeat_questions,
        clock=time.monotonic, rng=SystemRandomness(),
    )  # fmt: skip
    return Asking(
        url, wanted, store=MemoryStore() if store is None else store, patience=patience,
        rng=SystemRandomness() if rng is None else rng, progress=progress,
    )  # fmt: skip


def report(progress: Progress, what: str, done: int, total: int) -> None:
    """Tell how much of a body has left, if anybody wants to know."""
    if what:
        progress(done, total, what)
