"""Weights that stay shares: a folder with one file for each server, and what is public beside them.

    server-0.npz, server-1.npz    arrays of uint64 by name: w1, b1, w2 ...; a server gets its own file and no other
    model.json                    layers, scales, columns, classes and label: no number of the model

Either file alone is uniform. Both together are the model, so a folder with both is for simulations alone.

Each file ends in a seal: a hash over its shares, which server's they are, and `Public.digest`. So it is noticed when a
file was damaged, or lies beside the `model.json` of another training. The seal lies in the file alone: to who has the
other half, a hash of this one would confirm a guess of the model.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError, ProtocolError
from confide.guarantee import PrivacyLabel
from confide.ideal import Kit
from confide.model.graph import Graph, Linear, Relu, Sigmoid
from confide.model.preprocess import Preprocess
from confide.model.unfinished import begin
from confide.mpc import lowering
from confide.mpc.kits import MAX_KIT_BYTES, ModelKit, PublicKit
from confide.mpc.messages import FORMAT
from confide.mpc.operations import SCALE
from confide.mpc.recipe import GraphRecipe
from confide.structs import known
from confide.wire import decode, encode

Words = NDArray[np.uint64]

#: What training on shares calls its two servers; who has the first one's file is "server" when the model is served.
SERVERS = ("server-0", "server-1")
#: The roles of "mpc-outsourced" that have a half, in the same order.
ROLES = ("server", "helper")
_MODEL, _SEAL = "model.json", "seal"
#: What a kit begins with in place of a half of the model.
_ELSEWHERE = b"confide half elsewhere v1\0"
_LARGEST_BYTES, _LARGEST_MODEL_BYTES = 1 << 30, 16 << 20


class Public(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is public of a model whose weights are shares.

    Args:
        widths: columns before the first layer and after each; ReLU between layers.
        loss: what the outputs were trained by; "logistic": above 0 speaks for a class, "squared": above 1/2.
        classes: names of the outcomes.
        weight_scale, bias_scale: of the shares.
        servers: who holds which file, in order.
        label: what the training promised.
        preprocess: the columns of a record, and how they become features.
        training: which one it was; shares of two trainings make no model.
    """

    widths: tuple[int, ...]
    loss: str
    classes: tuple[str, ...]
    servers: tuple[str, ...]
    label: PrivacyLabel
    preprocess: Preprocess
    training: str
    weight_scale: int = SCALE
    bias_scale: int = 2 * SCALE

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1 or self.widths[0] != self.preprocess.features:
            raise ModelError("Expected layers that begin at the features of the columns")
        if not self.training or (self.weight_scale, self.bias_scale) != (SCALE, 2 * SCALE):
            raise ModelError("Expected the name of a training, and shares of 16 fraction bits")

    @property
    def digest(self) -> bytes:
        """Return a hash of all of this (32 bytes): both servers of one training have the same."""
        return hashlib.sha256(b"confide shares v1\0" + msgspec.msgpack.encode(self)).digest()

    @property
    def skeleton(self) -> Graph:
        """Return the layers that serve, with zeros for every number of the model."""
        layers: list[Linear | Relu | Sigmoid] = []
        for inner, outer in pairwise(self.widths):
            layers += [Linear(np.zeros((outer, inner)), np.zeros(outer)), Relu()]
        return Graph((*layers[:-1], Sigmoid()), self.classes)

    @property
    def recipe(self) -> GraphRecipe:
        """Return what is public of the program. Raises ModelError if no program on shares computes the layers."""
        return GraphRecipe(lowering.architecture_of(self.skeleton, weight_scale=self.weight_scale))

    def proof(self, role: str) -> bytes:
        """Return what a role shows the other one: that its own folder is of this training (32 bytes)."""
        return hashlib.sha256(b"confide half of " + role.encode() + b"\0" + self.digest).digest()


@dataclass(frozen=True, slots=True)
class Half:
    """One server's half of a model. No repr shows it.

    Args:
        public: what is public of the model.
        role: whose half it is.
        words: by the names of the program's loads.
    """

    public: Public
    role: str
    words: Mapping[str, Words] = field(repr=False)

    @property
    def kit(self) -> ModelKit:
        """Return the kit of whoever has this half."""
        return ModelKit(self.public.recipe, owned=False, model=self.words, proof=self.public.proof(self.role))


class _Elsewhere(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    recipe: bytes
    proof: bytes


class Elsewhere:
    """What the server has in place of the helper's kit: the recipe, and from which training the helper's half must be.

    Args:
        public: what is public of the model.
    """

    def __init__(self, public: Public) -> None:
        self._public = public
        #: What the helper must show.
        self.proof = public.proof("helper")

    def encode(self) -> bytes:
        told = _Elsewhere(FORMAT, self._public.recipe.encode(), self._public.proof("server"))
        return _ELSEWHERE + encode(told)


def is_elsewhere(body: bytes) -> bool:
    """Return whether an encoded kit says that its reader has its half already."""
    return body.startswith(_ELSEWHERE)


def check_elsewhere(body: bytes, half: Half) -> None:
    """Compare what the server says of its half with the helper's own.

    Raises:
        ProtocolError: malformed, or the two are not of one training with the same layers, columns and label.
    """
    told = decode(body.removeprefix(_ELSEWHERE), _Elsewhere, max_bytes=MAX_KIT_BYTES)
    same = told.proof == half.public.proof("server") and told.recipe == half.public.recipe.encode()
    if told.format != FORMAT or not same:
        raise ProtocolError(
            f"Expected both halves of one training; this one is of {half.public.training[:64]}, the server's of "
            "another, or its columns or its label differ: compare the model.json of both folders"
        )


def write_folder(place: Path, public: Public, parts: Mapping[int, Mapping[str, Words]]) -> None:
    """Write a folder of shares, all of it or nothing; it and its files are readable by their owner alone.

    Args:
        place: absent, or an empty folder: shares of two trainings side by side would be a wrong model.
        parts: of server 0 or 1 or of both, by name.

    Raises:
        OSError: as the system says, also where the folder is not empty; what was there stays as it was.
    """
    begun, held = begin(place)
    try:
        _write(begun / _MODEL, msgspec.json.format(msgspec.json.encode(public), indent=2) + b"\n")
        for server, arrays in parts.items():
            body, words = io.BytesIO(), {name: np.asarray(words, "<u8") for name, words in arrays.items()}
            seal = np.frombuffer(_seal(public, server, words), np.uint8)
            np.savez(body, allow_pickle=False, **words, **{_SEAL: seal})
            _write(begun / f"{SERVERS[server]}.npz", body.getvalue())
        begun.rename(place)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    finally:
        os.close(held)


def _write(file: Path, body: bytes) -> None:
    """Write a file of a folder that nobody else has seen yet, so that it outlives a power cut."""
    file.touch(mode=0o600)
    with file.open("wb") as opened:
        opened.write(body)
        opened.flush()
        os.fsync(opened.fileno())


def read_public(place: Path) -> Public:
    """Return what is public of a folder of shares. Raises ModelError if it is none."""
    try:
        file = place / _MODEL
        body = file.read_bytes() if file.stat().st_size <= _LARGEST_MODEL_BYTES else b""
        return msgspec.json.decode(body, type=known(Public))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ModelError(
            f"Expected a folder of shares at {place}, with its {_MODEL}; `confide train` with shares.folder writes one"
        ) from None


def read_shares(place: Path, public: Public, server: int) -> dict[str, Words]:
    """Return one server's shares: w1, b1 ... with the shapes that `public` says.

    Raises:
        ModelError: the file is absent, or holds anything else.
    """
    file = place / f"{SERVERS[server]}.npz"
    layers = range(1, len(public.widths))
    wanted = {f"w{layer}": (public.widths[layer - 1], public.widths[layer]) for layer in layers}
    wanted |= {f"b{layer}": (public.widths[layer],) for layer in layers}
    try:
        body = file.read_bytes() if file.stat().st_size <= _LARGEST_BYTES else b""
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files if name in wanted}
            seal = np.asarray(arrays[_SEAL]).tobytes()
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, EOFError):
        raise ModelError(f"Expected a server's shares at {file}") from None
    if {name: (array.shape, array.dtype.str) for name, array in found.items()} != {
        name: (shape, "<u8") for name, shape in wanted.items()
    }:
        raise ModelError(f"Expected shares of the layers {public.widths} at {file}")
    if seal != _seal(public, server, found):
        raise ModelError(
            f"Expected {file} as the training of {place / _MODEL} wrote it for this server; it was changed, or is "
            "another's or another training's"
        )
    return {name: array.astype(np.uint64, copy=False) for name, array in found.items()}


def read_half(place: Path, role: str) -> Half:
    """Return the half of "server" or "helper" from its own folder.

    Raises:
        ModelError: the folder does not hold, or has the other half too.
    """
    public, server = read_public(place), ROLES.index(role)
    own, other = (place / f"{SERVERS[one]}.npz" for one in (server, 1 - server))
    if other.exists() and not own.exists():
        raise ModelError(f"Expected {own.name} in {place}, the half of the {role}; it has that of the other")
    if other.exists():
        raise ModelError(
            f"Expected {own.name} and {_MODEL} alone in {place}: who has {other.name} too has the model; move it to "
            f"the {ROLES[1 - server]}, beside a copy of {_MODEL}"
        )
    return Half(public, role, _named(public, read_shares(place, public, server), server))


def kits(place: Path) -> dict[str, Kit]:
    """Return what the roles of "mpc-outsourced" need to serve a folder's model, which nobody puts together.

    Server 0 is "server", server 1 is "helper". In a deployment each makes its own kit, from its own file.

    Raises:
        ModelError: the folder does not hold, or no program on shares computes its model.
    """
    return public_kits(place) | {role: own_kit(place, server) for server, role in enumerate(ROLES)}


def public_kits(place: Path) -> dict[str, Kit]:
    """Return what client and dealer need, without a number of the model. Raises ModelError as `kits`."""
    told = PublicKit(read_public(place).recipe, owned=False)
    return {"client": told, "dealer": told}


def own_kit(place: Path, server: int) -> Kit:
    """Return what one server, 0 or 1, needs, from its own file alone. Raises ModelError as `kits`."""
    public = read_public(place)
    return Half(public, ROLES[server], _named(public, read_shares(place, public, server), server)).kit


def _seal(public: Public, server: int, arrays: Mapping[str, NDArray[np.uint64]]) -> bytes:
    found = hashlib.sha256(b"confide half v1\0" + public.digest + bytes([server]))
    for name in sorted(arrays):
        words = np.ascontiguousarray(arrays[name], "<u8")
        found.update(f"{name}{words.shape}\0".encode() + words.tobytes())
    return found.digest()


def _named(public: Public, parts: Mapping[str, Words], server: int) -> dict[str, Words]:
    """Return a server's shares as the program of the layers names them: what `graph_of` does to weights, on a share."""
    found: dict[str, Words] = {}
    last = len(public.widths) - 1
    for layer in range(1, last + 1):
        weight, bias = parts[f"w{layer}"].T, parts[f"b{layer}"]
        if layer == last and public.loss == "squared" and server == 0:
            bias = bias - np.uint64(1 << (public.bias_scale - 1))
        factor = np.uint64(slope_of(public.loss) if layer == last else 1)
        place = 2 * (layer - 1)  # a ReLU stands between two layers
        found[f"{place}.weight"] = np.ascontiguousarray(weight * factor)
        found[f"{place}.bias"] = bias * factor
    return found


def slope_of(loss: str) -> int:
    """Return the factor of the last layer that serves: sigmoid(4 z) has the slope of the line it was trained with."""
    return 4 if loss in ("logistic", "squared") else 1
