"""What a technique will take for a model of a given size over a given link: models fitted to measurements.

    seconds = work + 8 bytes / rate + trips delay         of training on shares: max(work + trips delay, 8 bytes / rate)

Work, bytes and trips are each a sum of terms with coefficients that are not negative, fitted by least squares of the
relative error, for each technique and, where no planner gives the terms (`planned`), kind of model. The measurements
are in costs.json, made by bench/costs.py; their machine and date stand there.

    symbol   here                      unit
    f, o     inputs, outputs           numbers of a row
    m        products                  multiplications of a row
    z        nonlinear                 activations, or comparisons of trees
    k        layers
    n, d     parties, length           of a sum of updates
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.compare.described import Size
from confide.compare.links import LINKS, Link
from confide.compare.planned import TERMS, Numbers

Matrix = NDArray[np.float64]

#: The measurements.
PLACE = Path(__file__).with_name("costs.json")

_MOST_STEPS = 200


@dataclass(frozen=True, slots=True)
class Terms:
    """What costs grow with: one vector each for work, bytes and trips."""

    work: Matrix
    sent: Matrix
    trips: Matrix


@dataclass(frozen=True, slots=True)
class Fitted:
    """The cost model of one technique for one kind of model.

    Args:
        work, sent, trips: coefficients of the terms, >= 0.
        errors: median relative error on sizes that were held out, by link; empty where too few were measured.
        measurements: how many it rests on.
        beside: whether most bytes flow while others wait for each other, as a dealer's do: then the longer of the two
            counts, and not their sum.
    """

    work: Matrix
    sent: Matrix
    trips: Matrix
    errors: Mapping[str, float]
    measurements: int
    beside: bool = False

    def seconds(self, terms: Terms, link: Link) -> float:
        """Return the modelled seconds of something with these terms over a link."""
        sent = 8 * float(self.sent @ terms.sent) / link.bits_per_second
        waited = float(self.work @ terms.work) + float(self.trips @ terms.trips) * link.delay_seconds
        return max(waited, sent) if self.beside else waited + sent


def nonnegative(a: Matrix, b: Matrix) -> Matrix:
    """Return x >= 0 that makes |a x - b| least.

    Args:
        a: float64, shape (rows, terms).
        b: float64, shape (rows,).

    Paper: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    terms = a.shape[1]
    x, free = np.zeros(terms), np.zeros(terms, bool)
    for _ in range(_MOST_STEPS):
        slope = a.T @ (b - a @ x)
        slope[free] = 0
        if slope.max() <= 1e-10 * max(1.0, float(np.abs(a.T @ b).max())):
            break
        free[int(slope.argmax())] = True
        while True:
            tried = np.zeros(terms)
            tried[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            low = free & (tried <= 0)
            if not low.any():
                x = tried
                break
            share = (x[low] / np.maximum(x[low] - tried[low], 1e-300)).min()
            x = x + share * (tried - x)
            free &= x > 1e-14
    return x


def terms_of(row: Mapping[str, Any]) -> Terms:
    """Return what the costs of a measurement grow with."""
    if row["task"] == "inference":
        size = Size(**row["size"])
        return plan_terms(row["choice"], tuple(row["plan"]), size) if "plan" in row else size_terms(size)
    if "records" in row:
        return training_terms(row["choice"], Training(**{name: row[name] for name in Training.__slots__}))
    return sum_terms(row["parties"], row["length"])


def sum_terms(parties: int, length: int) -> Terms:
    """Return what the costs of a sum of updates grow with."""
    n, d = float(parties), float(length)
    found = np.array([1.0, n, n * n, d, n * d])
    return Terms(found, found, found)


def size_terms(size: Size) -> Terms:
    """Return what the costs of a prediction grow with."""
    f, o, m, z, k = map(float, (size.inputs, size.outputs, size.products, size.nonlinear, size.layers))
    found = np.array([1.0, f, o, m, z, k, np.sqrt(m)])
    return Terms(found, found, found)


def plan_terms(choice: str, plan: Numbers, size: Size) -> Terms:
    """Return what the costs of a prediction grow with where a planner knows more than the size."""
    return Terms(*(np.array(TERMS[name](choice, plan, size.inputs)) for name in ("work", "sent", "trips")))


@dataclass(frozen=True, slots=True)
class Training:
    """The size of a training that sees records: of one party alone, or on shares.

    Args:
        parties: that hold records.
        records: of all of them.
        features, outputs: of a row, of an answer.
        products: multiplications of one row.
        nonlinear: values of one row that go through a function, the last one included.
        layers: of weights; of trees their depth.
        rounds: passes over the records, or levels of all trees.
        batch: records of a step.
    """

    parties: int
    records: int
    features: int
    outputs: int
    products: int
    nonlinear: int
    layers: int
    rounds: int
    batch: int

    @property
    def batches(self) -> int:
        """Return the batches of a pass."""
        return max(1, -(-self.records // self.batch))


def training_terms(choice: str, size: Training) -> Terms:
    """Return what the costs of a training grow with, on shares or of a party by itself."""
    rows, steps, grown = float(size.records), float(size.rounds * size.batches), size.rounds / size.layers
    passed, shared = rows * size.rounds, rows * (size.features + size.outputs)
    if choice == "mpc":  # one admission for each batch, then steps over them; a comparison's keys are most of the bytes
        work = (1.0, steps * size.layers, shared, passed * size.nonlinear, passed * size.products)
        compared = (passed * size.outputs, passed * (size.nonlinear - size.outputs))  # a sigmoid takes two, a ReLU one
        sent = (1.0, shared, *compared, steps * size.products, float(size.parties))
        return Terms(np.array(work), np.array(sent), np.array((1.0, float(size.batches), steps * size.layers)))
    nodes = grown * 2.0**size.layers * size.products  # of trees: histograms of every node of a level
    work = (1.0, steps, passed * size.features, passed * size.nonlinear, passed * size.products, nodes)
    return Terms(np.array(work), np.ones(1), np.ones(1))


def kind_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the task, the choice and the kind of model that are fitted by themselves.

    Where a planner gives the terms one fit serves all kinds: its numbers mean the same in each.
    """
    bare = "plan" in row or "model" not in row
    return (row["task"], row["choice"], "" if bare else regime(row["model"]))


def regime(model: Mapping[str, Any]) -> str:
    """Return the kind of a [model]: what runs differently."""
    if model["kind"] in ("logistic", "trees", "network"):
        return str(model["kind"])
    return f"{model['kind']}, {model.get('activation', 'square')}"


def fit(rows: Sequence[Mapping[str, Any]]) -> Fitted:
    """Return the model of measurements of one technique and kind; the errors are those of `left_out_by_link`."""
    errors = {name: statistics.median(found) for name, found in left_out_by_link(rows).items()}
    return Fitted(*_coefficients(rows), errors, len(rows), _beside(rows[0]))


def _beside(row: Mapping[str, Any]) -> bool:
    return (row["task"], row["choice"]) == ("training", "mpc")


def _coefficients(rows: Sequence[Mapping[str, Any]]) -> tuple[Matrix, Matrix, Matrix]:
    found = [terms_of(row) for row in rows]

    def solved(name: str, terms: Matrix) -> Matrix:
        values = np.array([max(float(row[name]), 1e-9) for row in rows])
        scale = terms.max(axis=0)
        scale[scale == 0] = 1.0
        return nonnegative(terms / scale / values[:, None], np.ones(len(rows))) / scale

    return (
        solved("compute_seconds", np.stack([one.work for one in found])),
        solved("bytes", np.stack([one.sent for one in found])),
        solved("trips", np.stack([one.trips for one in found])),
    )


def left_out(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the relative error over each link of each measurement, by a model of all the others."""
    return [error for errors in left_out_by_link(rows).values() for error in errors]


def left_out_by_link(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the same by link: far links hide the error of work, since delays are known."""
    if len(rows) < 3:
        return {}
    found: dict[str, list[float]] = {}
    for number, row in enumerate(rows):
        work, sent, trips = _coefficients([*rows[:number], *rows[number + 1 :]])
        model = Fitted(work, sent, trips, {}, len(rows) - 1, _beside(row))
        for name, seconds in row["seconds"].items():
            error = abs(model.seconds(terms_of(row), LINKS[name]) - seconds) / seconds
            found.setdefault(name, []).append(error)
    return found


def held_out(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Return the median error on held-out sizes of each technique, over its kinds of model."""
    found: dict[tuple[str, str], list[float]] = {}
    for (task, choice, _), own in grouped(rows).items():
        found.setdefault((task, choice), []).extend(left_out(own))
    return {name: statistics.median(errors) for name, errors in found.items() if errors}


@dataclass(frozen=True, slots=True)
class Models:
    """Every fitted model, and the measurements behind them.

    Args:
        machine, date, version: where, when and with which confide the measurements were made.
        fitted: by task, choice and kind of model (`regime`; "" for sums).
        rows: the measurements, one for each technique and size.
    """

    machine: str
    date: str
    version: str
    fitted: Mapping[tuple[str, str, str], Fitted]
    rows: tuple[Mapping[str, Any], ...]


def fit_all(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], Fitted]:
    """Return the model of each technique and kind."""
    return {name: fit(own) for name, own in grouped(rows).items()}


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """Return measurements by what is fitted by itself."""
    kinds: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(kind_of(row), []).append(row)
    return kinds


def dump(rows: Sequence[Mapping[str, Any]], *, machine: str, date: str, version: str) -> str:
    """Return the file that `load` reads: measurements, and the models that fit them."""
    models = [
        {
            "task": task, "choice": choice, "kind": kind, "work": list(one.work), "sent": list(one.sent),
            "trips": list(one.trips), "errors": dict(one.errors),
            "measurements": one.measurements,
        }
        for (task, choice, kind), one in fit_all(rows).items()
    ]  # fmt: skip
    head = {"machine": machine, "date": date, "version": version, "models": models, "rows": list(rows)}
    text = json.dumps(head, separators=(",", ":"), allow_nan=False)
    return text.replace('{"task"', '\n{"task"') + "\n"


def load(path: Path = PLACE) -> Models:
    """Read the models that come with the package."""
    read = json.loads(path.read_text())
    fitted = {
        (one["task"], one["choice"], one["kind"]): Fitted(
            np.array(one["work"]),
            np.array(one["sent"]),
            np.array(one["trips"]),
            one["errors"],
            one["measurements"],
            _beside(one),
        )
        for one in read["models"]
    }
    return Models(read["machine"], read["date"], read["version"], fitted, tuple(read["rows"]))
