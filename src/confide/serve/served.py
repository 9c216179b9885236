"""One model under one backend, as a server holds it: its metadata, its kits, its keys, its answers. No HTTP here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ModelError, ProtocolError
from confide.guarantee import PrivacyLabel
from confide.ideal import Backend, PlainPredict
from confide.model.graph import Graph
from confide.net import oip
from confide.net.http import answer, expects_message
from confide.serve.keys import Prefixed, Staged
from confide.serve.limits import Limits
from confide.serve.protocol import KEY_ID, ClientKit, Refusal, digest
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
    """

    name: str
    graph: Graph
    label: PrivacyLabel
    backends: tuple[Backend, ...]
    preprocess: bytes = b""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]{0,63}", self.name, re.ASCII):
            raise ModelError(
                f"Expected name={self.name!r} of at most 64 letters, digits, '_', '-' and '.'; rename the model"
            )
        if not self.backends or len({backend.name for backend in self.backends}) != len(self.backends):
            raise ModelError("Expected at least one backend, and each one once")


@dataclass(frozen=True, slots=True)
class Answered:
    """An inference reply: its body, the length of its JSON part (None: all of it), and the seconds of work."""

    body: bytes
    header_length: int | None
    seconds: float


class Served:
    """A model prepared under one backend.

    Args:
        model, backend: what is served; preparing raises ModelError with every problem of `Backend.check`.
        store: the server's; this model and backend get a part of their own.
        rng: for the backend's secrets.
    """

    def __init__(self, model: Model, backend: Backend, *, store: Store, limits: Limits, rng: Randomness) -> None:
        kits = backend.prepare(model.graph, rng)
        self.model = model
        self.backend = backend
        self.guarantee = backend.guarantee_for(model.graph)
        self.limits = limits
        self._kit = kits["server"]
        self._rng = rng
        self._store = Prefixed(store, f"{model.name}/{backend.name}/")
        self._keys = Prefixed(self._store, "keys/")
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
            max_rows=limits.batch_rows,
            max_query_bytes=limits.query_bytes,
            max_keys_bytes=limits.keys_bytes,
        ).encode()
        self.pin = digest(self.client_kit)

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
                "kit_sha256": self.pin,
                "keys": "uploaded once" if self.needs_keys else "none",
                "max_rows": self.limits.batch_rows,
                "max_query_bytes": self.limits.query_bytes,
            },
        }

    def knows(self, key_id: str) -> bool:
        """Return True if the keys called `key_id` are here."""
        return bool(KEY_ID.fullmatch(key_id)) and self._store.get(f"known/{key_id}") is not None

    def register(self, body: bytes) -> bytes:
        """Take a client's public keys and return the reply's body; the keys are in the store when this returns.

        Raises:
            ProtocolError: the backend refuses them.
            Refusal: this backend takes no keys, or they are too large for the store.
        """
        if not self.needs_keys:
            raise Refusal(400, "no_keys", f"Expected no keys: the backend {self.backend.name} needs none")
        staged = Staged(self._keys)
        answered = answer(self.backend.setup("server", self._kit, staged, self._rng), body, store=staged)
        key_id: str = answered.output
        if not self.knows(key_id):  # one commit, so that the store forgets the keys and their name together
            entries = {f"keys/{key}": value for key, value in staged.changes.items()}
            self._store.commit({**entries, f"known/{key_id}": b"\x01"})
        return answered.body

    def infer(self, body: bytes, header_length: int | None, *, charge: Callable[[int], None]) -> Answered:
        """Answer one inference request.

        Args:
            body: of the HTTP request.
            header_length: where its JSON part ends; None if it is nothing but JSON.
            charge: called with the number of rows before anything leaves; raises Refusal beyond the quota.

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
                output, rows = self._answer_message(request)
            elif request.inputs.keys() == {"x"} and isinstance(self.backend, PlainPredict):
                output, rows = self._answer_numbers(request.inputs["x"])
            else:
                raise ProtocolError('Expected one input named as the model metadata say, or "query"')
        charge(rows)
        seconds = time.perf_counter() - begin
        reply, length = oip.encode_reply([output], request, model_name=self.model.name, model_version=self.backend.name)
        return Answered(reply, length, seconds)

    def _answer_message(self, request: oip.Request) -> tuple[oip.Tensor, int]:
        if self.needs_keys and not self.knows(str(request.parameters.get("key_id", ""))):
            raise Refusal(
                404,
                "unknown_key",
                f"Expected parameters.key_id of keys that are here; POST them to /v2/models/{self.model.name}/keys",
            )
        party = self.backend.predict("server", self._kit, None, self._keys, self._rng)
        answered = answer(party, request.inputs["query"].payload(), store=self._keys)
        rows = answered.output if isinstance(answered.output, int) else 1
        return oip.Tensor.of_bytes("reply", answered.body), rows

    def _answer_numbers(self, tensor: oip.Tensor) -> tuple[oip.Tensor, int]:
        x = tensor.numbers()
        if x.ndim != 2 or len(x) > self.limits.batch_rows:
            raise ProtocolError(f"Expected x of shape (rows, features) with at most {self.limits.batch_rows} rows")
        y = self.model.graph.apply(x)
        if not np.isfinite(y).all():
            raise ProtocolError("Expected x small enough for a finite prediction")
        return oip.Tensor.of_numbers("y", y), len(x)
