"""Kits of "mpc-3pc": a public recipe for the client, and for each of three servers a replicated share of the model.

The model's owner draws two seeds. Of a weight w, x_0 comes from the first and x_2 from the second, and server and
helper get x_1 = w - x_0 - x_2; of what is only added, a bias, the server has the first stream and the helper the rest.
The third gets both seeds and nothing else: uniform numbers. The name of the sharing is in all three, so that servers of
two versions of a model notice.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from copy import copy
from threading import Lock
from typing import Annotated, Self

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.mpc.kits import Recipe
from confide.mpc.messages import MOST_ROWS
from confide.mpc.operations import Kind, Load, Program
from confide.mpc.replicated_plan import HELPER, KEY_BYTES, SERVER, THIRD, Plan, plan_of
from confide.mpc.replicated_shares import Part, Words
from confide.mpc.streams import stream
from confide.wire import Array, decode, encode

#: Version of kits and messages.
FORMAT = 1
#: Bytes of a name drawn at random: of a sharing, a client's key id, a query.
NAME_BYTES = 16
_MAX_KIT_BYTES = 1 << 31
_PLANS_KEPT = 16

_Seed = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Name = Annotated[bytes, msgspec.Meta(min_length=NAME_BYTES, max_length=NAME_BYTES)]


class _ServerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    role: str
    recipe: bytes
    sharing: _Name
    seeds: Annotated[tuple[_Seed, ...], msgspec.Meta(max_length=2)]
    words: dict[str, Array]

    def __repr__(self) -> str:
        return f"_ServerBody({self.role})"


class _ClientBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    recipe: bytes


class PlansByRows:
    """The plans of a recipe, for so many rows each; the latest are kept."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        #: Rows of the largest program; who serves may lower it.
        self.most_rows = MOST_ROWS
        self._only: int | None = None
        self._plans: OrderedDict[int, Plan] = OrderedDict()
        self._lock = Lock()

    def only(self, rows: int) -> Self:
        """Return these plans as they serve a session that was ordered for so many rows: no others are given."""
        found = copy(self)
        found._only = rows
        return found

    def of(self, rows: int) -> Plan:
        """Return the plan for `rows` rows. Raises ProtocolError if they are too many for one, or not ordered."""
        if self._only not in (None, rows):
            raise ProtocolError("Expected as many rows as were ordered")
        if rows > self.most_rows:
            raise ProtocolError(f"Expected at most {self.most_rows} rows at a time; ask fewer")
        with self._lock:
            if rows not in self._plans:
                self._plans[rows] = plan_of(self._recipe.program(rows))
                while len(self._plans) > _PLANS_KEPT:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(rows)
            return self._plans[rows]


class AskerKit:
    """The client's kit: the recipe, the same for every model of a shape."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.plans = recipe, PlansByRows(recipe)

    def encode(self) -> bytes:
        return encode(_ClientBody(FORMAT, self.recipe.encode()))


class ShareKit:
    """A server's kit: its share of the model. No repr shows it.

    Args:
        role: which server.
        recipe: what is public of the model.
        sharing: 16 bytes, the same in the kits of one `shared_model` alone.
        seeds: of the streams that this server knows: its own one, or both at the third.
        words: x_1 of every weight at server and helper, and the helper's shares of what is only added.

    Raises:
        ProtocolError: the shares do not fit the recipe.
    """

    def __init__(
        self, role: str, recipe: Recipe, *, sharing: bytes, seeds: tuple[bytes, ...], words: Mapping[str, Words]
    ) -> None:
        self.role, self.recipe, self.sharing, self.plans = role, recipe, sharing, PlansByRows(recipe)
        self._seeds, self._words = seeds, dict(words)
        self.model = self._parts(model_loads(self.plans.of(1).program))

    def __repr__(self) -> str:
        return f"ShareKit({self.role}, {self.recipe.features} -> {self.recipe.outputs})"

    def limit_rows(self, rows: int) -> None:
        """Refuse larger programs from now on: whoever serves has a limit of its own."""
        self.plans.most_rows = min(self.plans.most_rows, rows)

    def for_rows(self, rows: int) -> Self:
        """Return the kit for a session that was ordered for so many rows: it has no program for others."""
        found = copy(self)
        found.plans = self.plans.only(rows)
        return found

    def encode(self) -> bytes:
        words = {name: Array.of(one) for name, one in self._words.items()}
        return encode(_ServerBody(FORMAT, self.role, self.recipe.encode(), self.sharing, self._seeds, words))

    def _parts(self, loads: tuple[Load, ...]) -> dict[str, Part]:
        if len(self._seeds) != (2 if self.role == THIRD else 1):
            raise ProtocolError(f"Expected the seeds of a kit of the {self.role}")
        expected = {one.name: one.shape for one in loads if _has_words(self.role, one)}
        if {name: one.shape for name, one in self._words.items()} != expected:
            raise ProtocolError("Expected shares of the weights that the recipe names, in their shapes")
        found: dict[str, Part] = {}
        for place, load in enumerate(loads):
            own = [_stream(seed, place, load) for seed in self._seeds]
            if load.kind is Kind.OPEN:
                share = np.add(*own) if self.role == THIRD else own[0]
                found[load.name] = Part(self._words.get(load.name), share)
            elif self.role == THIRD:
                found[load.name] = Part(None, None)
            else:
                found[load.name] = Part(None, own[0] if self.role == SERVER else self._words[load.name])
        return found


Kits = AskerKit | ShareKit


def shared_model(recipe: Recipe, model: Mapping[str, Words], rng: Randomness) -> dict[str, Kits]:
    """Return the kit of every role: the model's owner runs this, and keeps none of it.

    Args:
        recipe: what is public of the model.
        model: uint64, by the names of the program's loads.
        rng: where the seeds come from.

    Raises:
        ProtocolError: the model does not fit the recipe.
    """
    loads = model_loads(recipe.program(1))
    if {one.name: one.shape for one in loads} != {name: words.shape for name, words in model.items()}:
        raise ProtocolError("Expected the weights that the recipe names, in their shapes")
    sharing, first, second = rng.bytes(NAME_BYTES), rng.bytes(KEY_BYTES), rng.bytes(KEY_BYTES)
    masked: dict[str, Words] = {}
    added: dict[str, Words] = {}
    for place, load in enumerate(loads):
        rest = np.subtract(model[load.name], _stream(first, place, load))
        if load.kind is Kind.OPEN:
            masked[load.name] = np.subtract(rest, _stream(second, place, load))
        else:
            added[load.name] = rest
    return {
        "client": AskerKit(recipe),
        SERVER: ShareKit(SERVER, recipe, sharing=sharing, seeds=(first,), words=masked),
        HELPER: ShareKit(HELPER, recipe, sharing=sharing, seeds=(second,), words=masked | added),
        THIRD: ShareKit(THIRD, recipe, sharing=sharing, seeds=(first, second), words={}),
    }


def read_client_kit(body: bytes) -> bytes:
    """Return the recipe's bytes of a client's kit. Raises ProtocolError on anything else."""
    read = decode(body, _ClientBody, max_bytes=_MAX_KIT_BYTES)
    if read.format != FORMAT:
        raise ProtocolError(f"Expected a kit of format={FORMAT}")
    return read.recipe


class ReadShare:
    """A server's kit as bytes, taken apart; `kit` needs the recipe, decoded.

    Raises:
        ProtocolError: anything but the kit of that role.
    """

    def __init__(self, role: str, body: bytes) -> None:
        self._body = decode(body, _ServerBody, max_bytes=_MAX_KIT_BYTES)
        if self._body.format != FORMAT or self._body.role != role:
            raise ProtocolError(f"Expected a kit of the {role}, of format={FORMAT}")
        self.recipe = self._body.recipe

    def kit(self, recipe: Recipe) -> ShareKit:
        """Return the kit. Raises ProtocolError if its shares do not fit the recipe."""
        body = self._body
        words = {name: one.numpy("uint64", (None,) * len(one.shape)) for name, one in body.words.items()}
        return ShareKit(body.role, recipe, sharing=body.sharing, seeds=body.seeds, words=words)


def recipe_id(recipe: Recipe) -> bytes:
    """Return SHA-256 of a recipe."""
    return hashlib.sha256(b"confide mpc recipe v1\0" + recipe.encode()).digest()


def model_loads(program: Program) -> tuple[Load, ...]:
    """Return what a program loads of the model."""
    return tuple(one for one in program.operations if isinstance(one, Load) and one.origin == "model")


def _has_words(role: str, load: Load) -> bool:
    return role == HELPER or (role == SERVER and load.kind is Kind.OPEN)


def _stream(seed: bytes, place: int, load: Load) -> Words:
    count = int(np.prod(load.shape, dtype=np.int64))
    return stream(seed, place, count).reshape(load.shape)
