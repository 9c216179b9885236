"""What each role needs to take part in predictions with one model by shares: a public recipe, or a half of the model.

A dealer's kit is a client's: shapes, scales and windows. It has no field that could hold a weight.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.mpc.ahead import Fixed
from confide.mpc.correlations import Layout, Words
from confide.mpc.messages import FORMAT, MOST_ROWS
from confide.mpc.operations import Kind, Load, Program, Reveal, Value
from confide.mpc.party import schedule_of
from confide.mpc.schedule import Schedule
from confide.mpc.stock import Prepared
from confide.wire import Array, decode, encode

MAX_KIT_BYTES = 1 << 30
_PLANS_KEPT, _FIXED_KEPT = 16, 64


class Recipe(Protocol):
    """What is public of a model: for any number of rows, the program that computes its predictions."""

    @property
    def features(self) -> int:
        """Return the features of a row."""
        ...

    @property
    def outputs(self) -> int:
        """Return the outputs of a row."""
        ...

    def program(self, rows: int) -> Program:
        """Return the program for `rows` rows: an input "x", an output "y"."""
        ...

    def encode(self) -> bytes:
        """Return the recipe as bytes."""
        ...

    def finish(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return predictions from the revealed values; what is left after them is public."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """A program for so many rows, under one mode."""

    layout: Layout
    schedule: Schedule

    @staticmethod
    def of(program: Program, *, owned: bool) -> Plan:
        """Return the plan of a program."""
        layout = Layout.of(program, owned=owned)
        return Plan(layout, schedule_of(layout))

    @property
    def entry(self) -> Load:
        """Return the input."""
        return next(one for one in self.layout.program.operations if isinstance(one, Load) and one.name == "x")

    @property
    def output(self) -> Value:
        """Return the shape and scale of the output."""
        return self.layout.program.values[self._reveal[0]]

    @property
    def dropped_bits(self) -> int:
        """Return how many low bits of each share of the output stay at home."""
        return self._reveal[1].bits

    @property
    def _reveal(self) -> tuple[int, Reveal]:
        operations = enumerate(self.layout.program.operations)
        return next((number, one) for number, one in operations if isinstance(one, Reveal) and one.name == "y")


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    recipe: bytes
    model: dict[str, Array] | None  # None: a public kit

    def __repr__(self) -> str:
        return "_Body()"


class Plans:
    """A recipe's plans, and what follows from the model under a run's masks; both are kept while there is room.

    Args:
        recipe: what is public of the model.
        owned: whether one party owns the model; see `Layout`.
    """

    def __init__(self, recipe: Recipe, *, owned: bool) -> None:
        self.recipe, self.owned = recipe, owned
        #: Rows of the largest program; who serves may lower it.
        self.most_rows = MOST_ROWS
        self._only: int | None = None
        self._plans: OrderedDict[int, Plan] = OrderedDict()
        self._fixed: OrderedDict[tuple[bytes, int], Fixed] = OrderedDict()
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
                self._plans[rows] = Plan.of(self.recipe.program(rows), owned=self.owned)
                while len(self._plans) > _PLANS_KEPT:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(rows)
            return self._plans[rows]

    def fixed(self, run: bytes, rows: int, make: Callable[[Layout], Fixed]) -> Fixed:
        """Return what follows from the model for programs of `rows` rows, made by `make` at first."""
        plan = self.of(rows)
        with self._lock:
            if (run, rows) not in self._fixed:
                self._fixed[run, rows] = make(plan.layout)
                while len(self._fixed) > _FIXED_KEPT:
                    self._fixed.popitem(last=False)
            self._fixed.move_to_end((run, rows))
            return self._fixed[run, rows]


class PublicKit:
    """The kit of a client or a dealer. It holds no number of a model.

    Args:
        recipe: what is public of the model.
        owned: whether one party owns the model; see `Layout`.
    """

    def __init__(self, recipe: Recipe, *, owned: bool) -> None:
        self.recipe, self.plans, self.prepared = recipe, Plans(recipe, owned=owned), Prepared()

    def limit_rows(self, rows: int) -> None:
        """Refuse larger programs from now on: whoever serves has a limit of its own."""
        self.plans.most_rows = min(self.plans.most_rows, rows)

    def for_rows(self, rows: int) -> Self:
        """Return the kit for a session that was ordered for so many rows: it has no program for others."""
        found = copy(self)
        found.plans = self.plans.only(rows)
        return found

    def encode(self) -> bytes:
        return encode(_Body(FORMAT, self.recipe.encode(), None))


class ModelKit:
    """The kit of a party that has the model, or a share of it. No repr shows it.

    Args:
        recipe, owned: as for `PublicKit`.
        model: uint64, by the names of the program's loads.
        proof: what a party that brought its own half shows the other of it; it is no part of the encoded kit.

    Raises:
        ProtocolError: the model does not fit the recipe.
    """

    def __init__(self, recipe: Recipe, *, owned: bool, model: Mapping[str, Words], proof: bytes = b"") -> None:
        self.proof = proof
        self.recipe, self.plans, self.prepared = recipe, Plans(recipe, owned=owned), Prepared()
        layout = self.plans.of(1).layout
        loads = [one for kind in (Kind.OPEN, Kind.SHARED) for _, one in layout.model(kind)]
        if {load.name: load.shape for load in loads} != {name: words.shape for name, words in model.items()}:
            raise ProtocolError("Expected the weights that the recipe names, in their shapes")
        self.model = dict(model)

    def limit_rows(self, rows: int) -> None:
        """Refuse larger programs from now on: whoever serves has a limit of its own."""
        self.plans.most_rows = min(self.plans.most_rows, rows)

    def for_rows(self, rows: int) -> Self:
        """Return the kit for a session that was ordered for so many rows: it has no program for others."""
        found = copy(self)
        found.plans = self.plans.only(rows)
        found.model_id = self.model_id  # hashed once
        return found

    def encode(self) -> bytes:
        return encode(_Body(FORMAT, self.recipe.encode(), {name: Array.of(w) for name, w in self.model.items()}))

    @cached_property
    def model_id(self) -> str:
        """Return a hash of this party's half of the model, for this party's own store alone."""
        digest = hashlib.sha256(b"confide mpc model v1\0")
        for name in sorted(self.model):
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(self.model[name]).tobytes())
        return digest.hexdigest()


AnyKit = PublicKit | ModelKit


def kit_id(kit: AnyKit) -> str:
    """Return a name for what is public of a kit, 16 hex digits."""
    return hashlib.sha256(kit.recipe.encode()).hexdigest()[:16]


def read_kit(body: bytes) -> tuple[bytes, dict[str, Words] | None]:
    """Return the recipe's bytes and the model of an encoded kit, None if it is public. Raises ProtocolError else."""
    read = decode(body, _Body, max_bytes=MAX_KIT_BYTES)
    if read.format != FORMAT:
        raise ProtocolError(f"Expected a kit of format={FORMAT}")
    if read.model is None:
        return read.recipe, None
    return read.recipe, {name: one.numpy("uint64", (None,) * len(one.shape)) for name, one in read.model.items()}
