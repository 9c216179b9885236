"""The backend "tee": the client checks what code runs in an enclave, and seals its question to that code's key.

    client -> server   tee/nonce      32 bytes, new each time
    server -> client   tee/evidence   a bundle (`evidence`) over that nonce
    client -> server   tee/query      the key's id, and x sealed to the key (`channel`)
    server -> client   tee/reply      y, sealed for the asker

The answer is what `Graph.apply` gives, bit for bit. The server computes on x in the clear, inside.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import AttestationError, KeysExpired, PrivacyError, ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust, nothing_hidden
from confide.ideal import Backend, Kit, Matrix
from confide.model.graph import Graph, Problem
from confide.model.onnx import to_onnx
from confide.structs import known
from confide.tee import known as known_breaks
from confide.tee.attest import Attester
from confide.tee.channel import REPLY_BYTES, context_of, seal
from confide.tee.enclave import LIFETIME_SECONDS, Enclave, Endorse, key_id_of
from confide.tee.evidence import NONCE_BYTES, Bundle, Provider
from confide.tee.policy import Policy
from confide.tee.simulated import WARNING
from confide.tee.verify import Verdict, verify
from confide.wire import Array, Message, Party, Step, Store, decode, encode

_NONCE, _EVIDENCE, _QUERY, _REPLY = "tee/nonce", "tee/evidence", "tee/query", "tee/reply"
_ATTESTED = "attested"
_MOST_BYTES = 1 << 28
_VENDOR = "hardware vendor"
_HOST = "whoever can open the machine"

SIMULATED_GUARANTEE = nothing_hidden(f"{WARNING}. Queries are sealed on their way, to a key that it holds.")


def hardware_guarantee(provider: Provider | None = None) -> Guarantee:
    """Return what holds where hardware stands behind the evidence, of one vendor's kind or of any."""
    found = [known_breaks.breaks(one) for one in Provider if provider in (None, one)]
    names = ", ".join(dict.fromkeys(one.name for some in found for one in some))
    trusted = (_VENDOR, _HOST)
    return Guarantee(
        claims=frozenset(
            {
                Claim("query", "server", trusted),
                Claim("prediction", "server", trusted),
                Claim("weights", "client"),
                Claim("query", "outsiders"),
            }
        ),
        adversary=Adversary.MALICIOUS,
        trust=Trust.HARDWARE,
        security_bits=128,
        post_quantum=False,
        verified_result=False,
        leaks=(
            "No cryptography hides the query inside: the vendor's chip does, against the operator's software and not "
            f"against somebody who opens the machine. Published breaks of such hardware: {names} "
            "(docs/attestation.md). Memory access, page faults and "
            "time show to the host what depends on inputs, of trees more than of networks; so do sizes of messages "
            "(rows). Messages recorded today stay closed to a quantum computer (ML-KEM-768 with X25519); the vendor's "
            "signatures are ECDSA, so one that exists when evidence is checked could forge it. The client learns a "
            "linear model from features + 1 queries, others from more."
        ),
        primary="attested enclave; HPKE with ML-KEM-768 + X25519, AES-256-GCM",
        paper="RFC 9334 (roles), RFC 9180 (HPKE)",
    )


@dataclass(frozen=True, slots=True)
class Accept:
    """What a client accepts of an enclave.

    Args:
        policy: which code, where.
        allow_simulated: True if the client asked for a simulation by an option of its own.
        model_sha256: hex of the model's graph as a pinned signer has signed it; None where none is pinned.
        kit_sha256: hex, of the kit that the questions are prepared by; what is sealed is bound to it.
        clock: seconds since the epoch.
    """

    policy: Policy
    allow_simulated: bool = False
    model_sha256: str | None = None
    kit_sha256: str = ""
    clock: Callable[[], float] = time.time

    def verdict(self, bundle: Bundle, nonce: bytes | None) -> Verdict:
        """Return the verdict on evidence for `nonce`."""
        return verify(
            bundle, self.policy, now=self.clock(), nonce=nonce, allow_simulated=self.allow_simulated,
            model_sha256=self.model_sha256,
        )  # fmt: skip


class ClientKit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client is told before any evidence; none of it is believed.

    Args:
        provider: whose evidence there will be.
        outputs: columns of y.
    """

    provider: Provider
    outputs: int

    def encode(self) -> bytes:
        """Return it as MessagePack."""
        return msgspec.msgpack.encode(self)


class ServerKit:
    """The model inside, and the enclave's key. It has no wire form."""

    def __init__(self, graph: Graph, enclave: Enclave) -> None:
        self.graph = graph
        self.enclave = enclave
        self.kit_sha256 = ""

    def bind(self, kit_sha256: str) -> None:
        """Take only questions that were prepared by the kit with this hash."""
        self.kit_sha256 = kit_sha256

    def rows(self, query: bytes) -> int:
        """Return how many rows a question says that it has; what is inside must be as many."""
        return decode(query, _Query, max_bytes=_MOST_BYTES).rows

    def reply_bytes(self, rows: int) -> int:
        """Return a bound of the size of a reply."""
        return REPLY_BYTES + 256 + 8 * self.graph.outputs * rows

    def encode(self) -> bytes:
        """Raise UsageError: nothing of it leaves."""
        raise UsageError("Expected the server's kit to stay where it was made")

    def holds(self, key_id: str) -> bool:
        """Return whether questions sealed to that key can be opened."""
        return self.enclave.holds(key_id)

    @property
    def protection(self) -> str:
        """Return what keeps the key from the operator."""
        return "hardware" if self.enclave.attester.provider.hardware else "simulated"

    @property
    def media_type(self) -> str:
        """Return the media type of evidence; simulated evidence has another one."""
        return self.enclave.attester.provider.media_type


class _Nonce(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    nonce: bytes


class _Query(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    key_id: str
    rows: int
    sealed: bytes


class _Numbers(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    values: Array

    def __repr__(self) -> str:
        return "_Numbers(secret)"


class _Attested(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client keeps of evidence that held."""

    public_key: bytes
    provider: Provider
    policy: str
    model_sha256: str
    verified: float
    not_after: float


class Enclaved(Backend):
    """Predictions inside an enclave.

    Args:
        attester: of a server; None where only clients are made.
        accept: of a client; None where only servers are made. A client without it asks nothing.
        model_sha256: hex, of the model as its owner signed it; None hashes the graph as ONNX.
        endorse: adds endorsements to a server's evidence.
        lifetime_seconds: of the enclave's keys.
        clock: of the enclave, seconds since the epoch.

    **Guarantees**: nothing leaves the client but a nonce before the evidence over that nonce was verified under its
    policy; a question can be opened only by the holder of the key in that evidence, a reply only by the asker.

    **Leaks**: `guarantee_for`.

    Paper: RFC 9334; the passport and background-check models, both with the client as verifier.
    """

    name = "tee"
    guarantee = hardware_guarantee()

    def __init__(
        self,
        *,
        attester: Attester | None = None,
        accept: Accept | None = None,
        model_sha256: str | None = None,
        endorse: Endorse | None = None,
        lifetime_seconds: float = LIFETIME_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._attester = attester
        self._accept = accept
        self._model_sha256 = model_sha256
        self._endorse = endorse
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock

    def check(self, graph: Graph) -> list[Problem]:
        """Return no problem: whatever `Graph.apply` runs is run."""
        return []

    def guarantee_for(self, graph: Graph) -> Guarantee:
        """Return what holds with this attester, with its hardware's breaks: nothing at all where it is simulated."""
        if self._attester is None:
            return self.guarantee
        provider = self._attester.provider
        return hardware_guarantee(provider) if provider.hardware else SIMULATED_GUARANTEE

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        if self._attester is None:
            raise UsageError(
                "Expected an attester: --attester configfs-tsm, gramine or nitro; or simulated, for a trial that "
                "protects nothing"
            )
        model = self._model_sha256 or graph_sha256(graph)
        enclave = Enclave(
            self._attester, purpose="predict", model_sha256=model, rng=rng, endorse=self._endorse,
            lifetime_seconds=self._lifetime_seconds, clock=self._clock,
        )  # fmt: skip
        client = ClientKit(provider=self._attester.provider, outputs=graph.outputs)
        return {"client": client, "server": ServerKit(graph, enclave)}

    def decode_kit(self, role: str, body: bytes) -> ClientKit:
        if role != "client":
            raise ProtocolError("Expected a client kit")
        try:
            return msgspec.msgpack.decode(body, type=known(ClientKit))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise ProtocolError("Expected a client kit of the backend tee") from None

    # --- setting up: evidence -----------------------------------------------------------------------------------------

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        """Return the party that asks for evidence and verifies it, or the one that shows it; both return a key id."""
        if role == "client":
            return self._verify(_client(kit), store, rng)
        return self._show(_server(kit).enclave)

    def _verify(self, kit: ClientKit, store: Store, rng: Randomness) -> Party:
        accept = self._accepting(kit)
        nonce = rng.bytes(NONCE_BYTES)
        asked = Message("client", "server", _NONCE, ask_evidence(nonce))
        received = yield Step(send=(asked,), await_tag=_EVIDENCE, wait_for=("server",))
        bundle = Bundle.decode(received["server"].body)
        claims = accept.verdict(bundle, nonce).require()
        if bundle.provider is not kit.provider:
            raise AttestationError("provider", "Expected evidence of the hardware that the kit names")
        public = _public_key(claims.public_key)
        now, end = accept.clock(), float(claims.not_after)
        attested = _Attested(public, bundle.provider, accept.policy.digest, claims.model_sha256, now, end)
        yield Step(save={_ATTESTED: encode(attested)})
        return key_id_of(public)

    def _show(self, enclave: Enclave) -> Party:
        received = yield Step(await_tag=_NONCE, wait_for=("client",))
        nonce = decode(received["client"].body, _Nonce, max_bytes=256).nonce
        if len(nonce) != NONCE_BYTES:
            raise ProtocolError(f"Expected a nonce of {NONCE_BYTES} bytes")
        bundle = enclave.bundle(nonce)
        yield Step(send=(Message("server", "client", _EVIDENCE, bundle.encode()),))
        return key_id_of(_public_key(bundle.read_claims().public_key))

    def _accepting(self, kit: ClientKit) -> Accept:
        """Return what is accepted; refuse before anything is sent where nothing could be."""
        if self._accept is None:
            raise PrivacyError(
                "Expected an attestation policy for backend='tee': it says which code may see the query; give "
                "policy= (--policy FILE), which `confide attest URL --write-policy FILE` can draft"
            )
        if not kit.provider.hardware and not self._accept.allow_simulated:
            raise AttestationError(
                "provider",
                "Expected an enclave; this server simulates one, which protects nothing: accept that for a trial with "
                "attester='simulated' (--attester simulated)",
            )
        return self._accept

    # --- predictions --------------------------------------------------------------------------------------------------

    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        if role == "client" and x is not None:
            asked = _client(kit)
            accept = self._accepting(asked)
            return self._ask(asked, accept, self._attested(asked, accept, store), x, rng)
        return self._answer(_server(kit), rng)

    def _ask(self, kit: ClientKit, accept: Accept, attested: _Attested, x: Matrix, rng: Randomness) -> Party:
        context = context_of("predict", attested.model_sha256, accept.kit_sha256)
        body = encode(_Numbers(Array.of(np.asarray(x, np.float64))))
        sealed, reply = seal(body, attested.public_key, context=context, rng=rng)
        query = Message("client", "server", _QUERY, encode(_Query(key_id_of(attested.public_key), len(x), sealed)))
        received = yield Step(send=(query,), await_tag=_REPLY, wait_for=("server",))
        y = decode(reply.open(received["server"].body), _Numbers, max_bytes=_MOST_BYTES).values
        return y.numpy("float64", (len(x), kit.outputs))

    def _attested(self, kit: ClientKit, accept: Accept, store: Store) -> _Attested:
        """Return what held before, if it would hold now. Raises KeysExpired if evidence must be asked for again."""
        saved = store.get(_ATTESTED)
        if saved is None:
            raise KeysExpired("Expected evidence that was verified; run setup first")
        attested = decode(saved, _Attested, max_bytes=1 << 16)
        now, policy = accept.clock(), accept.policy
        same = attested.policy == policy.digest and accept.model_sha256 in (None, attested.model_sha256)
        same = same and attested.provider is kit.provider  # and so what is simulated is accepted by option, each time
        old = not attested.verified - 60 <= now < min(attested.not_after, attested.verified + policy.max_age_seconds)
        if old or not same:
            raise KeysExpired("Expected evidence that is younger, verified under this policy; set up again")
        return attested

    def _answer(self, kit: ServerKit, rng: Randomness) -> Party:
        received = yield Step(await_tag=_QUERY, wait_for=("client",))
        query = decode(received["client"].body, _Query, max_bytes=_MOST_BYTES)
        opened = kit.enclave.open(query.key_id, query.sealed, about=kit.kit_sha256)
        values = decode(opened.body, _Numbers, max_bytes=_MOST_BYTES).values
        x = values.numpy("float64", (query.rows, kit.graph.features))
        y = kit.graph.apply(x)
        if not np.isfinite(y).all():
            raise ProtocolError("Expected x small enough for a finite prediction")
        body = opened.reply.seal(encode(_Numbers(Array.of(y))), rng)
        yield Step(send=(Message("server", "client", _REPLY, body),))
        return len(x)


def ask_evidence(nonce: bytes) -> bytes:
    """Return the body of the message that asks for evidence over `nonce`, 32 bytes."""
    return encode(_Nonce(nonce))


def graph_sha256(graph: Graph) -> str:
    """Return hex SHA-256 of the graph as a model file has it. Raises MissingExtra without `onnx`."""
    return hashlib.sha256(to_onnx(graph)).hexdigest()


def _public_key(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ProtocolError("Expected a public key as hex digits") from None


def _client(kit: Kit) -> ClientKit:
    if not isinstance(kit, ClientKit):
        raise UsageError("Expected the client's kit")
    return kit


def _server(kit: Kit) -> ServerKit:
    if not isinstance(kit, ServerKit):
        raise UsageError("Expected the server's kit, which holds the model")
    return kit
