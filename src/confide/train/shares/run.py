"""From a job with aggregate = "mpc" to a labelled model, or to a folder of shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness, SystemRandomness, public_stream
from confide.errors import JobError
from confide.guarantee import PrivacyLabel
from confide.model.artifact import Artifact
from confide.model.graph import Graph, Linear, Relu, Sigmoid
from confide.model.unfinished import clear as clear_unfinished
from confide.mpc.halves import Public, slope_of, write_folder
from confide.mpc.training_plan import Rates, Task
from confide.train.course import parameters_hash
from confide.train.disclosure import SCHEMA_BOUNDS, fixed_in_advance
from confide.train.job import describe
from confide.train.ledger import Ledger
from confide.train.local import flatten
from confide.train.sections import Job, SharesSection
from confide.train.shares.course import SERVERS, Course, Piece, Run
from confide.train.shares.privacy import NoisePlan
from confide.train.shares.rows import Rows
from confide.train.shares.simulate import Result, Weights, simulate

Matrix = NDArray[np.float64]
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training on shares before it runs.

    Args:
        job, rows: what it is about.
        course: what everybody knows.
        noise: under [privacy].
    """

    job: Job
    rows: Rows
    course: Course
    noise: NoisePlan | None

    def sentences(self) -> Iterator[str]:
        """Yield what will run in numbers, and whom it trusts; to be printed before it begins."""
        course, shares = self.course, _section(self.job)
        batch = max(map(len, course.batches))
        plan = course.plan(Run(0, "step", int(np.argmax([len(one) for one in course.batches]))))
        layout = plan.layout
        rate = course.task.rates.learning_rate(course.batch)
        yield (
            f"training on shares: {course.rows} rows, {course.passes} passes of {len(course.batches)} steps over up to "
            f"{batch} rows; a learning rate of {rate:.4g} after rounding to 2^-{course.task.rates.shift} of a row"
        )
        first, second = layout.keys_bytes, layout.keys_bytes + layout.words_bytes
        yield (
            f"each step: {len(plan.schedule.rounds)} rounds; offline {_size(first)} to {shares.servers[0]}, "
            f"{_size(second)} to {shares.servers[1]}; a pass {_size(first * len(course.batches))} and "
            f"{_size(second * len(course.batches))}"
        )
        if self.rows.common is not None:
            yield f"people whom both tables have: {self.rows.common}; both parties learn which of their own these are"
        yield (
            f"private while {shares.servers[0]}, {shares.servers[1]} and {shares.dealer} follow the protocol and no "
            "two of them pool what they see (semi-honest)"
        )
        if shares.insecure_colocated_dealer:
            yield "INSECURE: a server may deal as well, and what it deals opens everything"

    def check_folder(self) -> None:
        """Refuse a folder of shares that cannot be written, before anything is trained.

        Raises:
            JobError: its parent is absent, or it is a file.
        """
        place = self.job.path(str(_section(self.job).folder))
        if not place.parent.is_dir() or (place.exists() and not place.is_dir()):
            raise JobError(f"Expected shares.folder={place} to be new in a folder that exists, or empty")
        clear_unfinished(place)
        if place.exists() and next(place.iterdir(), None) is not None:
            raise JobError(
                f"Expected shares.folder={place} to be new or empty; it holds files, maybe shares of a model: move "
                "them, or name another folder"
            )

    def run(
        self,
        *,
        rng: Randomness | None = None,
        ledger: Ledger | None = None,
        done: Callable[[Run], None] | None = None,
    ) -> Finished:
        """Train.

        Args:
            rng: secret randomness; the operating system's if None. A fixed seed voids every privacy claim.
            ledger: gets the job and the end.
            done: is called after every run of a program.

        Raises:
            ProtocolError: a party broke off.
        """
        rng = rng or SystemRandomness()
        job, rows, course = self.job, self.rows, self.course
        if ledger is not None:
            begin_ledger(ledger, self)
        given = {name: (self.features(name), rows.targets(name)) for name in rows.pieces}
        result = simulate(
            course,
            given,
            rng,
            start=starting_weights(course.task, job.job.seed),
            noise=None if self.noise is None else self.noise.noise,
            done=done,
        )
        graph = None if result.opened is None else graph_of(course.task, result.opened, rows.classes)
        head = ""
        if ledger is not None:
            head = end_ledger(ledger, self, None if graph is None else parameters_hash(flatten(graph)).hex())
        return Finished(self, result, graph, label_of(self, rng.origin, head), rng.bytes(16).hex())

    def features(self, name: str) -> Matrix:
        """Return what an owner shares of its rows: under [privacy] clipped, with a 1 in the bias's place."""
        x, piece = self.rows.features[name], self.rows.pieces[name]
        if self.noise is None:
            return x
        parts = len(self.rows.pieces) if self.rows.common is not None else 1
        x = self.noise.clipped(x, parts=parts)
        return np.hstack([x, np.ones((len(x), 1))]) if piece.targets else x


@dataclass(frozen=True, slots=True)
class Finished:
    """What a training on shares left.

    Args:
        prepared: before it ran.
        result: shares, transcript and bytes.
        graph: the opened model; None if it stays shares.
        label: what was promised.
        training: a name that no other training has.
    """

    prepared: Prepared
    result: Result
    graph: Graph | None
    label: PrivacyLabel
    training: str

    def sentences(self) -> Iterator[str]:
        """Yield what was sent, as it was counted."""
        found, shares = self.result, _section(self.prepared.job)
        for role, name in zip(SERVERS, shares.servers, strict=True):
            yield (
                f"{name}: {_size(found.offline_bytes[role])} offline from {shares.dealer}, "
                f"{_size(found.transcript.bytes_sent(role))} sent, {found.transcript.seconds(role):.2f} s of work"
            )

    def artifact(self) -> Artifact:
        """Return the opened model with its label. Raises JobError if it stays shares."""
        if self.graph is None:
            raise JobError("Expected a model whose weights are opened; leave shares.folder out of the job")
        return artifact_of(self.prepared, self.graph, self.label)

    def write_shares(self, place: Path) -> None:
        """Write the folder of shares."""
        shares = dict(enumerate(one.parts for one in self.result.shares))
        write_shares(place, self.prepared, self.label, shares, training=self.training)


def artifact_of(prepared: Prepared, graph: Graph, label: PrivacyLabel) -> Artifact:
    """Return an opened model with its label."""
    job = prepared.job
    source = job.data.set or Path(str(job.data.schema)).name  # where it lay is nobody's business
    return Artifact(graph, prepared.rows.preprocess, label, {"job": job.job.name, "data": source})


def begin_ledger(ledger: Ledger, prepared: Prepared) -> None:
    """Record a job before anything of it is opened: a run that dies on the way is charged."""
    job, noise = prepared.job, prepared.noise
    ledger.append("job", {"run": job.job.name, "job": describe(job), "parties": list(prepared.rows.pieces)})
    if noise is not None:
        ledger.append("release", {"of": "training on shares", "attempt": 1, "epsilon": noise.plan.epsilon})


def end_ledger(ledger: Ledger, prepared: Prepared, model: str | None) -> str:
    """Record what a training came to, and return the line's hash.

    Args:
        model: hex hash of the opened model's parameters; None if it stays shares.
    """
    epsilon = None if prepared.noise is None else prepared.noise.plan.epsilon
    fields = {"rounds": prepared.course.passes, "epsilon": epsilon}
    return ledger.append(
        "model", {**({"shares": list(_section(prepared.job).servers)} if model is None else {"model": model}), **fields}
    )


def write_shares(
    place: Path,
    prepared: Prepared,
    label: PrivacyLabel,
    shares: Mapping[int, Mapping[str, Words]],
    *,
    training: str,
) -> None:
    """Write the folder of shares of one server or of both.

    Args:
        shares: of server 0 or 1 or of both, as `Trained.parts`.
        training: as `Public.training`.
    """
    task, job = prepared.course.task, prepared.job
    public = Public(
        widths=(prepared.rows.preprocess.features, *task.widths[1:]),
        loss=task.loss,
        classes=prepared.rows.classes,
        servers=_section(job).servers,
        label=label,
        preprocess=prepared.rows.preprocess,
        training=training,
    )
    found = {server: dict(parts) for server, parts in shares.items()}
    if task.noise:  # the bias is the last row of the weights there
        for parts in found.values():
            parts["w1"], parts["b1"] = parts["w1"][:-1], parts["w1"][-1] << np.uint64(16)
    write_folder(place, public, found)


def prepare(job: Job, rows: Rows, *, taken: int = 0) -> Prepared:
    """Return a training on shares as a job asks for it.

    Args:
        taken: as `Course.taken`.

    Raises:
        JobError: the job asks for what its data does not have.
        PrivacyError: no noise keeps what [privacy] promises, or the largest one leaves the range of the shares.
        UsageError: a rate that shares cannot move by.
    """
    shares, train, private = _section(job), job.train, job.privacy
    batch = min(shares.batch or rows.count, rows.count)
    features = rows.preprocess.features
    rates = Rates.of(
        learning_rate=train.learning_rate, batch=batch, weight_decay=train.weight_decay, momentum=train.momentum
    )
    task = Task(
        features=features,
        hidden=(job.model.hidden,) if job.model.kind == "mlp" else (),
        outputs=rows.outputs,
        loss=shares.loss,
        rates=rates,
    )
    noise, pieces = None, dict(rows.pieces)
    if private is not None:
        noise = NoisePlan.calibrate(
            epsilon=private.epsilon,
            delta=private.delta,
            clip_norm=private.clip_norm,
            passes=train.rounds,
            features=features,
            outputs=rows.outputs,
            colluding=private.colluding,
            expected_records=private.expected_records,
            max_records=private.max_records,
        )
        steps = train.rounds * math.ceil(rows.count / batch)
        window = noise.window(rates, rows=batch, steps=steps)
        task = replace(task, features=features + 1, noise=True, window=window)
        for name, piece in pieces.items():
            if piece.targets:  # the 1 in the place of a bias comes from who has the label
                pieces[name] = Piece(piece.rows, np.append(piece.columns, features), targets=True)
    course = Course(
        task=task,
        pieces=pieces,
        rows=rows.count,
        batch=batch,
        passes=train.rounds,
        opened=shares.folder is None,
        seed=job.job.seed,
        taken=taken,
    )
    return Prepared(job, rows, course, noise)


def starting_weights(task: Task, seed: int) -> list[Matrix]:
    """Return public starting weights: zeros of a linear model, else normal ones of variance 2 / columns in."""
    if not task.hidden:
        return [np.zeros(shape) for shape in pairwise(task.widths)]
    stream = public_stream(seed, "initial weights")
    return [stream.normal(0.0, math.sqrt(2 / inner), (inner, outer)) for inner, outer in pairwise(task.widths)]


def graph_of(task: Task, opened: Weights, classes: tuple[str, ...]) -> Graph:
    """Return the model that serves: trained layers, and a sigmoid with the slope of the line that stood for it.

    sigmoid(4 z) is within 0.12 of sigmoid3(z) everywhere.
    """
    layers: list[Linear | Relu | Sigmoid] = []
    for number, (weight, bias) in enumerate(zip(opened.weights, opened.biases, strict=True), 1):
        last = number == len(opened.weights)
        middle = 0.5 if last and task.loss == "squared" else 0.0
        factor = float(slope_of(task.loss)) if last else 1.0
        layers += [Linear(factor * weight.T.copy(), factor * (bias - middle)), Sigmoid() if last else Relu()]
    return Graph(tuple(layers), classes)


def label_of(prepared: Prepared, origin: str, head: str) -> PrivacyLabel:
    """Return the privacy label of a training on shares."""
    job, course, shares = prepared.job, prepared.course, _section(prepared.job)
    sizes = "how many rows and columns each party has, the layers, and the steps"
    opened = "the final model" if course.opened else "nothing: its weights stay shares at two servers"
    trust = f"no two of {shares.servers[0]}, {shares.servers[1]} and {shares.dealer} pool what they see"
    said = {} if prepared.noise is None else prepared.noise.label_fields(batches=len(course.batches))
    rows_too = "" if prepared.rows.common is None else ", and which of its own rows the other has too"
    insecure = " INSECURE: the dealer may be a server, which then sees everything." if _colocated(shares) else ""
    said["preprocessing"] = "; ".join((SCHEMA_BOUNDS, *fixed_in_advance(job)))
    return PrivacyLabel(
        aggregator="mpc",
        parties=tuple(prepared.rows.pieces),
        quorum=len(prepared.rows.pieces),
        colluding=job.privacy.colluding if job.privacy else 0,
        rounds=course.passes,
        server_sees=(
            f"each of two servers: uniform shares, masked values and masked bits, {sizes}; the dealer: {sizes}. This "
            f"holds while {trust} and all follow the protocol (semi-honest).{insecure}"
        ),
        parties_see=f"{opened}, and what is their own{rows_too}",
        outsiders_see=f"{'this file: the last model, its preparation' if course.opened else 'no model'}, this label",
        released=opened,
        metrics=(
            "accuracy on the test records may be printed in the clear where the job runs; no epsilon covers it"
            if course.opened
            else "none are released by the training"
        ),
        public_data=job.model.public_data or "none",
        seed=origin,
        ledger=head,
        **said,
    )


def _section(job: Job) -> SharesSection:
    assert job.shares is not None
    return job.shares


def _colocated(shares: SharesSection) -> bool:
    return shares.insecure_colocated_dealer


def _size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 100_000 else f"{count / 1e3:.3g} kB"
