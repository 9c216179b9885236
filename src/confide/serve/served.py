"""One model under one backend, as a server holds it: its metadata, its kits, its keys, its answers. No HTTP here."""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ModelError, ProtocolError, UsageError
from confide.guarantee import PrivacyLabel
from confide.he.loaded import LoadedKeys
from confide.he.setup import Registered
from confide.ideal import Backend, Kit, PlainPredict
from confide.model.artifact import decode_statement
from confide.model.extraction import extraction
from confide.model.graph import Graph
from confide.model.links import link_of
from confide.net import oip
from confide.net.http import answer, expects_message
from confide.serve.keys import Uploads, unknown_key
from confide.serve.limits import Limits, busy
from confide.serve.protocol import JSON_BYTES, ClientKit, Refusal, digest
from confide.serve.signed import differences
from confide.store import Staged
from confide.wire import MemoryStore, Store


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model to serve.

    Args:
        name: letters, digits, "_", "-" and "."; at most 64.
        graph: private; stays in the server.
        label: what its training promised.
        backends: how it may be asked, the default first; their names differ.
        preprocess: `Preprocess.encode()` of its public preprocessing; empty if it takes features as they are.
        link: what the outputs are, where the graph does not say; see `confide.model.links`.
        statement: `Artifact.statement`, its owner's signature, shown to clients; empty shows none.
    """

    name: str
    graph: Graph
    label: PrivacyLabel
    backends: tuple[Backend, ...]
    preprocess: bytes = b""
    link: str = ""
    statement: bytes = b""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]{0,63}", self.name, re.ASCII):
            raise ModelError(
                f"Expected name={self.name!r} of at most 64 letters, digits, '_', '-' and '.'; rename the model"
            )
        if not self.backends or len({backend.name for backend in self.backends}) != len(self.backends):
            raise ModelError("Expected at least one backend, and each one once")
        link = link_of(self.graph, self.link)
        if self.statement:
            signed, graph = decode_statement(self.statement, trust=None), self.graph
            if differing := differences(
                signed, self.label, self.preprocess, classes=graph.classes, outputs=graph.outputs, link=link
            ):
                raise ModelError(f"Expected the {', '.join(differing)} of the model's statement; serve the whole file")


@dataclass(frozen=True, slots=True)
class Answered:
    """An inference reply: its body, the length of its JSON part (None: all of it), and the seconds of work."""

    body: bytes
    header_length: int | None
    seconds: float


@runtime_checkable
class Measured(Protocol):
    """A server's kit that knows what a question costs before any work on it; of other kits it is found out after."""

    def rows(self, query: bytes) -> int:
        """Return how many rows a message asks for. Raises ProtocolError if it does not say."""
        ...

    def reply_bytes(self, rows: int) -> int:
        """Return a bound of the size of a reply to `rows` rows; it grows with them."""
        ...


@runtime_checkable
class InBlocks(Protocol):
    """A server's kit whose questions cost the same, and count the same, for any number of rows up to a block."""

    @property
    def block_rows(self) -> int:
        """Return the rows of a block."""
        ...

    def query_bytes(self, rows: int) -> int:
        """Return a bound of the size of a query of `rows` rows."""
        ...


@runtime_checkable
class Planned(Protocol):
    """A backend that can say how it runs a model."""

    def plan(self, graph: Graph) -> object:
        """Return the public plan; its text states parameters and layout."""
        ...


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a server tells of a model under one backend; all of it is public, and none of it the model.

    Args:
        model, backend: names.
        metadata: of the Open Inference Protocol, as JSON.
        client_kit: the bytes of `ClientKit`; `pin` is their SHA-256.
        needs_keys: True if public keys must be uploaded first.
        determined_rows: answered rows that determine the model (`extraction`).
        lines: what an operator should know, in sentences.
        protection: of an enclave, "hardware" or "simulated"; "" where the backend has none.
        setup_type: media type of the reply to an upload.
    """

    model: str
    backend: str
    metadata: bytes
    client_kit: bytes
    pin: str
    needs_keys: bool
    determined_rows: int
    lines: tuple[str, ...]
    protection: str = ""
    setup_type: str = "application/octet-stream"


@runtime_checkable
class KeepsKeys(Protocol):
    """A server's kit that works on clients' keys."""

    keys: Registered


@runtime_checkable
class SizesKeys(Protocol):
    """A server's kit that knows how large an upload of keys is."""

    @property
    def keys_bytes(self) -> int:
        """Return a bound of the size of one client's public keys as they are uploaded."""
        ...


@runtime_checkable
class OwnKey(Protocol):
    """A server's kit whose questions are sealed to a key of its own: setting up shows that key, and stores nothing."""

    def holds(self, key_id: str) -> bool:
        """Return whether questions sealed to that key can be opened."""
        ...

    def bind(self, kit_sha256: str) -> None:
        """Take only questions that were prepared by the client's kit with this hash."""
        ...

    @property
    def protection(self) -> str:
        """Return what keeps the key from the operator: "hardware", or "simulated" for nothing."""
        ...

    @property
    def media_type(self) -> str:
        """Return the media type of what setting up shows."""
        ...


class Served:
    """A model prepared under one backend.

    Args:
        model, backend: what is served; preparing raises ModelError with every problem of `Backend.check`, and if the
            reply to one row or a client's keys are beyond the limits.
        store: the server's; this model and backend get a part of their own.
        rng: for the backend's secrets.
        loaded: where parsed keys are kept, for several models; None gives this one its own.
    """

    def __init__(
        self,
        model: Model,
        backend: Backend,
        *,
        store: Store,
        limits: Limits,
        rng: Randomness,
        loaded: LoadedKeys | None = None,
    ) -> None:
        if len(backend.roles) > 2:  # one question and one reply are not enough for more than two
            raise ModelError(
                f"Expected a backend of client and server; {backend.name} has {', '.join(backend.roles)}, each run by "
                "another organisation: docs/mpc.md starts them"
            )
        kits = backend.prepare(model.graph, rng)
        self.model = model
        self.backend = backend
        self.guarantee = backend.guarantee_for(model.graph)
        self.extraction = extraction(model.graph)
        self.limits = limits
        self._kit = kits["server"]
        if isinstance(self._kit, KeepsKeys):
            self._kit.keys.loaded = LoadedKeys(limits.loaded_keys_bytes) if loaded is None else loaded
        self.max_rows = _max_rows(self._kit, limits, model.name)
        _check_keys(self._kit, limits, model.name)
        self._rng = rng
        self.uploads = Uploads(store, model.name, backend.name, max_bytes=limits.key_store_bytes)
        self.keeps_no_keys = isinstance(self._kit, OwnKey) or isinstance(backend, PlainPredict)
        self.needs_keys = expects_message(backend.setup("server", self._kit, MemoryStore(), rng))
        self.client_kit = ClientKit(
            model=model.name,
            backend=backend.name,
            kit=kits["client"].encode(),
            preprocess=model.preprocess,
            label=model.label,
            guarantee=self.guarantee,
            features=model.graph.features,
            outputs=model.graph.outputs,
            classes=model.graph.classes,
            needs_keys=self.needs_keys,
            max_rows=self.max_rows,
            max_query_bytes=limits.query_bytes,
            max_keys_bytes=limits.keys_bytes,
            link=link_of(model.graph, model.link),
            statement=model.statement,
        ).encode()
        self.pin = digest(self.client_kit)
        if isinstance(self._kit, OwnKey):
            self._kit.bind(self.pin)
        self.about = self._about()

    def _about(self) -> About:
        guarantee, graph = self.guarantee, self.model.graph
        plan = [str(self.backend.plan(graph))] if isinstance(self.backend, Planned) else []
        own = self._kit if isinstance(self._kit, OwnKey) else None
        return About(
            model=self.model.name,
            backend=self.backend.name,
            metadata=msgspec.json.encode(self.metadata()),
            client_kit=self.client_kit,
            pin=self.pin,
            needs_keys=self.needs_keys,
            determined_rows=self.extraction.rows,
            lines=(
                f"{'; '.join(guarantee.sentences())}. Leaks: {guarantee.leaks}",
                *plan,
                self.model.label.sentence(),
                self.extraction.sentence(),
                f"--kit-sha256 {self.pin}",
            ),
            protection=own.protection if own else "",
            setup_type=own.media_type if own else "application/octet-stream",
        )

    def metadata(self) -> dict[str, Any]:
        """Return the model metadata of the Open Inference Protocol."""
        graph, guarantee = self.model.graph, self.guarantee
        takes_numbers = isinstance(self.backend, PlainPredict)
        query, reply = (("x", "FP64", [-1, graph.features]), ("y", "FP64", [-1, graph.outputs]))
        if not takes_numbers:
            query, reply = ("query", "BYTES", [1]), ("reply", "BYTES", [1])
        return {
            "name": self.model.name,
            "versions": [backend.name for backend in self.model.backends],
            "platform": f"confide_{self.backend.name}",
            "inputs": [dict(zip(("name", "datatype", "shape"), query, strict=True))],
            "outputs": [dict(zip(("name", "datatype", "shape"), reply, strict=True))],
            "parameters": {
                "backend": self.backend.name,
                "features": graph.features,
                "outputs": graph.outputs,
                "classes": list(graph.classes),
                "guarantee": guarantee.sentences(),
                "leaks": guarantee.leaks,
                "primary": guarantee.primary,
                "security_bits": guarantee.security_bits,
                "label": self.model.label.sentence(),
                "determined_by_rows": self.extraction.rows,
                "determined_by": self.extraction.sentence(),
                "kit_sha256": self.pin,
                "keys": "uploaded once" if self.needs_keys else "none",
                "max_rows": self.max_rows,
                "max_query_bytes": self.limits.query_bytes,
            },
        }

    def register(self, body: bytes, owner: str) -> bytes:
        """Take a client's public keys and return the reply's body; the keys are in the store when this returns.

        Args:
            body: of the HTTP request.
            owner: who may delete them; "" for whoever knows their id.

        Raises:
            ProtocolError: the backend refuses them.
            Refusal: this backend takes no keys, or they are too large for the store.
        """
        if not self.needs_keys:
            raise Refusal(400, "no_keys", f"Expected no keys: the backend {self.backend.name} needs none")
        staged = Staged(self.uploads.keys)
        try:
            answered = answer(self.backend.setup("server", self._kit, staged, self._rng), body, store=staged)
        except UsageError as error:
            if not isinstance(self._kit, OwnKey):
                raise
            raise busy("the hardware gives no evidence now") from error
        if not isinstance(self._kit, OwnKey):
            self.uploads.keep(answered.output, staged.changes, owner)
        return answered.body

    def infer(self, body: bytes, header_length: int | None, *, charge: Callable[[int], None]) -> Answered:
        """Answer one inference request.

        Args:
            body: of the HTTP request.
            header_length: where its JSON part ends; None if it is nothing but JSON.
            charge: called with the number of rows, before the work wherever the kit is `Measured`, and always before
                anything leaves; raises Refusal beyond the quota.

        Raises:
            ProtocolError: a request that is malformed or that the backend refuses.
            Refusal: unknown keys, an old kit, too many rows.
        """
        request = oip.decode_request(body, header_length, max_json_bytes=self.limits.json_bytes)
        if request.parameters.get("kit_sha256", self.pin) != self.pin:
            raise Refusal(409, "old_kit", "Expected the kit that this server serves now; fetch it again")
        begin = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is the caller's, and is refused below
            if request.inputs.keys() == {"query"}:
                output = self._answer_message(request, charge)
            elif request.inputs.keys() == {"x"} and isinstance(self.backend, PlainPredict):
                output = self._answer_numbers(request.inputs["x"], charge)
            else:
                raise ProtocolError('Expected one input named as the model metadata say, or "query"')
        seconds = time.perf_counter() - begin
        reply, length = oip.encode_reply([output], request, model_name=self.model.name, model_version=self.backend.name)
        return Answered(reply, length, seconds)

    def _answer_message(self, request: oip.Request, charge: Callable[[int], None]) -> oip.Tensor:
        knows = self._kit.holds if isinstance(self._kit, OwnKey) else self.uploads.knows
        if self.needs_keys and not knows(str(request.parameters.get("key_id", ""))):
            raise unknown_key(f"POST them to /v2/models/{self.model.name}/keys")
        query = request.inputs["query"].payload()
        measured = self._kit if isinstance(self._kit, Measured) else None
        if measured:
            self._admit(measured.rows(query), charge)
        party = self.backend.predict("server", self._kit, None, self.uploads.keys, self._rng)
        answered = answer(party, query, store=self.uploads.keys)
        if not measured:
            self._admit(answered.output if isinstance(answered.output, int) else 1, charge)
        return oip.Tensor.of_bytes("reply", answered.body)

    def _admit(self, rows: int, charge: Callable[[int], None]) -> None:
        """Count `rows` against the quota. Raises Refusal if they are too many, at once or ever."""
        if rows < 0:
            raise ProtocolError("Expected a number of rows")
        if rows > self.max_rows:
            raise Refusal(413, "too_large", f"Expected at most {self.max_rows} rows; send fewer rows at a time")
        charge(rows)

    def _answer_numbers(self, tensor: oip.Tensor, charge: Callable[[int], None]) -> oip.Tensor:
        x = tensor.numbers()
        if x.ndim != 2 or x.shape[1] != self.model.graph.features:
            raise ProtocolError(f"Expected x of shape (rows, {self.model.graph.features})")
        self._admit(len(x), charge)
        y = self.model.graph.apply(x)
        if not np.isfinite(y).all():
            raise ProtocolError("Expected x small enough for a finite prediction")
        return oip.Tensor.of_numbers("y", y)


def _check_keys(kit: Kit, limits: Limits, name: str) -> None:
    """Raise ModelError if no client could upload its keys."""
    if isinstance(kit, SizesKeys) and kit.keys_bytes > limits.keys_bytes:
        raise ModelError(
            f"Expected keys_bytes={limits.keys_bytes} to hold a client's keys for the model {name!r}, which take "
            f"{kit.keys_bytes}; raise it (confide serve --limit keys_bytes={kit.keys_bytes}), and buffered_bytes and "
            "key_store_bytes where they are smaller"
        )


def _max_rows(kit: Kit, limits: Limits, name: str) -> int:
    """Return how many rows one question may carry. Raises ModelError if it is none."""
    if not isinstance(kit, Measured):
        return limits.batch_rows
    rows = bisect_right(range(1, limits.batch_rows + 1), limits.reply_bytes, key=kit.reply_bytes)
    if rows == 0:
        raise ModelError(
            f"Expected reply_bytes={limits.reply_bytes} to hold one answer of the model {name!r}, which takes "
            f"{kit.reply_bytes(1)}; raise reply_bytes, or serve a model of fewer outputs"
        )
    if isinstance(kit, InBlocks):
        block, query_bytes = kit.block_rows, kit.query_bytes(1) + JSON_BYTES
        if query_bytes > limits.query_bytes:
            raise ModelError(
                f"Expected query_bytes={limits.query_bytes} to hold one question of the model {name!r}, which takes "
                f"{query_bytes}; raise query_bytes, or serve a model of fewer features"
            )
        if rows < block:
            raise ModelError(
                f"Expected batch_rows={limits.batch_rows} to hold the {block} rows that every question of the model "
                f"{name!r} counts as; raise batch_rows"
            )
        rows -= rows % block
    return rows
