"""One kit as the client uses it: checked, its backend loaded, x prepared, its part of the store."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import DataError, IntegrityError, PrivacyError, ProtocolError
from confide.he.ahead import PreparesAhead
from confide.ideal import Backend, Kit
from confide.model.preprocess import Preprocess
from confide.serve import load_backend
from confide.serve.key_store import About
from confide.serve.protocol import JSON_BYTES, ClientKit, digest
from confide.serve.signed import Signed
from confide.serve.signed import checked as checked_signature
from confide.store import Prefixed
from confide.tee.backend import Accept, Enclaved
from confide.wire import Store, encode

Matrix = NDArray[np.float64]


@runtime_checkable
class Frame(Protocol):
    """A table with named columns, as pandas and others have it; neither is needed here."""

    @property
    def columns(self) -> Iterable[Any]:
        """Return the names."""
        ...

    def __getitem__(self, name: Any, /) -> Any:
        """Return one column."""
        ...


@runtime_checkable
class Blocks(Protocol):
    """A client's kit whose questions cost the same for any number of rows up to a block of them."""

    @property
    def block_rows(self) -> int:
        """Return the rows of a block."""
        ...


@runtime_checkable
class FitsRows(Protocol):
    """A backend that knows how many rows one question is best made for."""

    def rows_at_a_time(self, kit: Kit) -> int:
        """Return how many, from a client's kit."""
        ...


Columns = Mapping[str, ArrayLike] | Frame

#: Largest question that is made, whatever a server says that it takes: all of it is in memory, some times over.
MOST_QUERY_BYTES = 1 << 26

_FIRST_ROWS = 16  # of the first question, before the size of a row is known


class Session:
    """One kit in use; safe for threads where backends are called under `lock`.

    Args:
        body: the kit as it was fetched.
        url: of the server.
        model: the model that was asked for.
        wanted: the backend that the caller named, None to take the server's.
        store: the client's; this server's model and backend get a part of their own.
        signer: whose model it must be, an Ed25519 public key; None takes anybody's.
        accept: which enclaves may see a question; None accepts none.
    """

    def __init__(
        self,
        body: bytes,
        url: str,
        model: str,
        wanted: str | None,
        store: Store,
        *,
        signer: bytes | None = None,
        accept: Accept | None = None,
    ) -> None:
        self.kit = ClientKit.decode(body)
        self.pin = digest(body)
        if self.kit.model != model:
            raise ProtocolError("Expected the kit of the model that was asked for; the server sent another one")
        self.signed: Signed | None = checked_signature(self.kit, signer)
        self.backend = _checked(self.kit, wanted)
        if isinstance(self.backend, Enclaved) and accept is not None:
            pinned = self.signed.graph_sha256.hex() if self.signed and signer is not None else None
            self.backend = Enclaved(accept=replace(accept, model_sha256=pinned, kit_sha256=self.pin))
        self.client: Kit = self.backend.decode_kit("client", self.kit.kit)
        self.preprocess = Preprocess.decode(self.kit.preprocess) if self.kit.preprocess else None
        if self.preprocess is not None and self.preprocess.features != self.kit.features:
            raise ProtocolError("Expected preprocessing that gives the model's features")
        self.path = f"/v2/models/{quote(model, safe='')}/versions/{self.kit.backend}"
        part = digest(f"{url}\0{self.path}\0".encode() + self.kit.kit)[:32]  # no two servers see the same keys
        self.keys_prefix = f"client/{part}/keys/"
        self.keys = Prefixed(store, self.keys_prefix)
        self.own = Prefixed(store, f"client/{part}/")
        self._block_rows = self.client.block_rows if isinstance(self.client, Blocks) else 1
        first = max(_FIRST_ROWS, self._block_rows)
        if isinstance(self.backend, FitsRows):
            first = self.backend.rows_at_a_time(self.client)
        self.rows = min(first, self.kit.max_rows)  # how many rows the next question may carry
        self.lock = threading.Lock()
        self._about = encode(About(url, self.path, model, self.kit.backend))

    @property
    def key_id(self) -> str | None:
        """Return the id of the keys that the server has confirmed, None before that."""
        return _text(self.own.get("key_id"))

    @property
    def pending(self) -> str | None:
        """Return the id of keys that were sent, or were to be, without an answer so far."""
        return _text(self.own.get("pending"))

    def describe(self) -> None:
        """Write down whose keys are about to be made."""
        if self.kit.needs_keys:
            self.own.commit({"about": self._about, "key_id": None, "pending": None})

    def expect(self, key_id: str) -> None:
        """Write down which keys are about to be sent."""
        self.own.commit({"pending": key_id.encode()})

    def confirm(self, key_id: str | None) -> None:
        """Write down which keys the server has; None for none."""
        self.own.commit({"key_id": None if key_id is None else key_id.encode(), "pending": None})

    def forgotten(self, key_id: str | None) -> None:
        """Write down that the server has lost these keys, unless others took their place meanwhile."""
        with self.lock:
            if self.key_id == key_id:
                self.confirm(None)

    def clear(self) -> None:
        """Delete everything that the store has of these keys."""
        self.own.commit(dict.fromkeys(self.own.keys()))

    def learn_rows(self, rows: int, size_bytes: int) -> None:
        """Fit the next questions to the server's bound: `rows` took `size_bytes`, and more may pack more tightly."""
        most, blocks = min(self.kit.max_query_bytes, MOST_QUERY_BYTES), -(-rows // self._block_rows)
        room = (most - JSON_BYTES) * blocks // max(1, size_bytes) * self._block_rows
        self.rows = max(self.rows, min(room, self.kit.max_rows))

    def prepare_ahead(self) -> None:
        """Do what is useful for the next question while this one is under way."""
        if isinstance(self.client, PreparesAhead):
            self.client.prepare_ahead()

    def features(self, x: ArrayLike | Columns) -> Matrix:
        """Return x as the model takes it, float64, shape (rows, features).

        Raises:
            DataError: x does not fit the model, or lies outside the bounds that it states.
        """
        if isinstance(x, Frame) and self.preprocess is not None:
            x = {name: x[name] for name in x.columns}
        if not isinstance(x, Mapping):
            return _matrix(x, self.kit.features, bounded=self.preprocess is not None)
        if self.preprocess is None:
            raise DataError(f"Expected x with {self.kit.features} features: this model has no rules for columns")
        return self.preprocess.apply(_columns(self.preprocess, x))


def _text(saved: bytes | None) -> str | None:
    return None if saved is None else saved.decode()


def _checked(kit: ClientKit, wanted: str | None) -> Backend:
    """Return the kit's backend, if this client may use it.

    The server chooses the backend when the caller does not, so its choice must not weaken what the caller expects; and
    it cannot claim more against itself than this client's own code gives.
    """
    if wanted is not None and kit.backend != wanted:
        raise ProtocolError(f"Expected the kit of backend={wanted!r}; the server sent another one")
    backend = load_backend(kit.backend)
    if wanted is None and not backend.guarantee.hides("query", "server"):
        raise PrivacyError(
            f"Expected a backend that hides the query; this server's first choice, {kit.backend}, does not: "
            f"accept that with backend={kit.backend!r} (--backend {kit.backend}), or name another that it serves"
        )
    claimed = {claim for claim in kit.guarantee.claims if claim.hidden_from == "server"}
    if isinstance(backend, Enclaved) and claimed and not backend.decode_kit("client", kit.kit).provider.hardware:
        raise IntegrityError("Expected no claim of a simulated enclave; the server's kit overstates")
    if not claimed <= backend.guarantee.claims:
        raise IntegrityError(
            "Expected no claim against the server beyond those of the backend; the server's kit overstates"
        )
    return backend


def _matrix(x: Any, features: int, *, bounded: bool) -> Matrix:
    try:
        values = np.asarray(x, np.float64)
    except (TypeError, ValueError):
        raise DataError("Expected x as numbers, shape (rows, features)") from None
    values = values[None, :] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != features or not len(values):
        raise DataError(f"Expected x of shape (rows, {features}) with at least one row, got {values.shape}")
    wrong = ~np.isfinite(values) | ((np.abs(values) > 1.0) & bounded)
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        what = "from -1 to 1, where the model's preprocessing puts them" if bounded else "finite"
        raise DataError(f"Expected features {what}; look at row {row + 1}, feature {column + 1}")
    return values


def _category(value: Any, known: tuple[str, ...]) -> Any:
    """Return a cell as text: a missing one, as frames have it, as "", and a whole number as its category is written."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, int | float) and str(value) not in known and float(value).is_integer():
        return str(int(value)) if str(int(value)) in known else str(float(value))
    return str(value)


def _columns(preprocess: Preprocess, raw: Mapping[Any, Any]) -> dict[str, NDArray[Any]]:
    """Return raw columns as arrays: float64 numbers with NaN where missing, categories as text, images as they are."""
    columns: dict[str, NDArray[Any]] = {}
    for name in preprocess.columns:
        if name not in raw:
            continue  # apply() names it, with the nearest one that is there
        if name in preprocess.images:
            images = np.asarray(raw[name])
            columns[name] = images[None] if images.ndim == 2 else images
            continue
        values = np.atleast_1d(np.asarray(raw[name], object))
        if name not in preprocess.numbers:
            known = preprocess.categories(name)
            columns[name] = np.array([_category(value, known) for value in values.tolist()], object)
            continue
        try:
            columns[name] = np.array([np.nan if value in ("", None) else float(value) for value in values.tolist()])
        except (TypeError, ValueError):
            raise DataError(f"Expected numbers in column {name!r}; read it as numbers") from None
    return columns
