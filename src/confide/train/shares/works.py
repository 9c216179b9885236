"""What each process of a training over machines does beside talking: prepare, compute, keep, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness
from confide.data.schema import Schema
from confide.data.table import read_table
from confide.errors import ConfideError, DataError, JobError, ModelError, ProtocolError
from confide.guarantee import PrivacyLabel
from confide.model.graph import Graph
from confide.mpc.halves import read_public
from confide.net.limits import Limits
from confide.train.course import parameters_hash
from confide.train.job import describe
from confide.train.ledger import Ledger
from confide.train.local import flatten
from confide.train.parts import preprocess_of
from confide.train.run import set_aside
from confide.train.sections import Job
from confide.train.shares.budgets import Charges
from confide.train.shares.checkpoints import Checkpoints, Kept, Mark, is_due
from confide.train.shares.course import Piece
from confide.train.shares.parties import dealer, owner, server
from confide.train.shares.rows import Labels, Matrix, Rows
from confide.train.shares.run import (
    Prepared,
    artifact_of,
    begin_ledger,
    end_ledger,
    graph_of,
    label_of,
    prepare,
    starting_weights,
    write_shares,
)
from confide.train.shares.simulate import beginning_of, opened_by, words_of
from confide.train.units import silo_of
from confide.wire import Party

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Own:
    """What an owner brings.

    Args:
        name: its own.
        x, y: features and classes of its rows.
        test_x, test_y: of records that it sets aside.
    """

    name: str
    x: Matrix = field(repr=False)
    y: Labels = field(repr=False)
    test_x: Matrix = field(repr=False)
    test_y: Labels = field(repr=False)


def read_own(job: Job, schema: Schema, name: str, table: Path) -> Own:
    """Read an owner's table, and set its test records aside as a job in one process would.

    Raises:
        DataError: the table does not fit the schema, has no rows, or more than one message holds.
    """
    kept, test = set_aside(job, read_table(table, schema))
    preprocess = preprocess_of(schema, job)
    own, aside = (silo_of(job, name, preprocess, one) for one in (kept, test))
    if not len(own.y):
        raise DataError(f"Expected rows to train on in {table}")
    most = Limits().message_bytes - 4096
    if 8 * own.x.size + 8 * len(own.y) * max(1, len(schema.label.classes)) > most:
        raise DataError(f"Expected rows whose shares have at most {most >> 20} MiB together; split the table")
    return Own(name, own.x, own.y.astype(np.int64), aside.x, aside.y.astype(np.int64))


def rows_of(job: Job, schema: Schema, rows: Mapping[str, int], own: Own | None) -> Rows:
    """Return what is trained on, as one process knows it: everybody's number of rows, and what is its own."""
    preprocess = preprocess_of(schema, job)
    columns, ends = np.arange(preprocess.features), accumulate(rows.values())
    pieces = {
        name: Piece(np.arange(end - count, end), columns, targets=True)
        for (name, count), end in zip(rows.items(), ends, strict=True)
    }
    return Rows(
        preprocess,
        tuple(schema.label.classes),
        pieces,
        {} if own is None else {own.name: own.x},
        {} if own is None else {own.name: own.y},
        np.empty((0, preprocess.features)) if own is None else own.test_x,
        np.empty(0, np.int64) if own is None else own.test_y,
    )


@dataclass(kw_only=True)
class Working:
    """What all processes have in common; see `site.Work`.

    Args:
        job, schema: what is trained.
        rng: secret randomness.
        tell: told what to show, a line at a time.
        show: told how many steps of how many were taken.
        own: of an owner.
    """

    job: Job
    schema: Schema
    rng: Randomness
    tell: Tell
    show: Callable[[int, int], None]
    own: Own | None = None
    prepared: Prepared | None = None
    training: str = ""

    def begun(self, rows: Mapping[str, int]) -> tuple[Mark, ...]:
        """Everybody is there."""
        self.prepared = prepare(self.job, rows_of(self.job, self.schema, rows, self.own))
        # what a checkpoint is of: another job, or other numbers of rows, is another training
        numbers = ",".join(f"{name}={count}" for name, count in rows.items())
        text = describe(self.job, output=False) + "\0" + numbers
        self.training = hashlib.sha256(b"confide training on shares v1\0" + text.encode()).hexdigest()[:32]
        for line in self.prepared.sentences():
            self.tell(line)
        return ()

    def ready(self) -> Prepared:
        """Return the training after `begun`."""
        assert self.prepared is not None
        return self.prepared

    def goes_on(self, mark: Mark | None) -> Prepared:
        """Return the training from a checkpoint on.

        Raises:
            ProtocolError: it has no such step.
        """
        prepared = self.ready()
        if mark is not None:
            if not 0 < mark.taken <= prepared.course.steps:
                raise ProtocolError("Expected a checkpoint within the training")
            self.tell(f"goes on after step {mark.taken} of {prepared.course.steps}")
            self.prepared = prepared = prepare(self.job, prepared.rows, taken=mark.taken)
        return prepared

    def starts(self, run: str, marks: tuple[Mark, ...]) -> Mark | None:
        """Only the first server says where a run starts."""
        raise ProtocolError("Expected the first server to begin a run")

    def agreed(self, models: tuple[str, ...]) -> str:
        """Only the first server ends a run."""
        raise ProtocolError("Expected the first server to end a run")

    def finished(self, output: Any) -> str:
        """The party is over."""
        return ""

    def ended(self, ledger: str) -> None:
        """The run has ended well."""
        self.tell(f"the training has ended; {self.job.job.name} has its end in the first server's ledger")

    def over(self) -> None:
        """All have ended."""

    def progressed(self, taken: int) -> None:
        """Show how far it is."""
        self.show(taken, self.ready().course.steps)


@dataclass(kw_only=True)
class Dealing(Working):
    """The dealer."""

    def party(self, run: str, mark: Mark | None, progress: Callable[[int, int], None]) -> Party:
        """Return the dealer's party."""
        return dealer(self.goes_on(mark).course, self.rng.branch())


@dataclass(kw_only=True)
class Owning(Working):
    """An owner of rows.

    Args:
        place: where the opened model goes.
        key: that signs it.
        charges: what its data has spent, under [privacy].
    """

    place: Path
    key: SigningKey
    charges: Charges | None = None
    graph: Graph | None = None
    label: PrivacyLabel | None = None

    def party(self, run: str, mark: Mark | None, progress: Callable[[int, int], None]) -> Party:
        """Return the owner's party, after its budget was charged."""
        prepared, own = self.goes_on(mark), self.own
        assert own is not None
        if self.charges is not None and prepared.noise is not None:
            plan = prepared.noise.plan
            self.charges.charge(self.training, run, mark, epsilon=plan.epsilon, delta=plan.delta)
        targets = prepared.rows.targets(own.name)
        assert targets is not None
        words = words_of(prepared.features(own.name)), words_of(targets)
        return owner(own.name, prepared.course, *words, self.rng.branch())

    def finished(self, output: Any) -> str:
        """Return the hash of the opened model."""
        if output is None:
            return ""
        prepared = self.ready()
        self.graph = graph_of(prepared.course.task, opened_by(prepared.course.task, output), prepared.rows.classes)
        return parameters_hash(flatten(self.graph)).hex()

    def ended(self, ledger: str) -> None:
        """Write the opened model, signed by this owner."""
        prepared = self.ready()
        if self.charges is not None:
            self.charges.ended(self.training)
        self.label = label_of(prepared, self.rng.origin, ledger)
        if self.graph is not None:
            signed = artifact_of(prepared, self.graph, self.label).save(self.place, self.key)
            self.tell(f"wrote {self.place}, signed by {signed.signer}")


@dataclass(kw_only=True)
class Serving(Working):
    """One of the two servers.

    Args:
        number: 0 or 1.
        store: its own, durable.
        ledger: of the first one.
        anew: of the first one: go on from no checkpoint.
    """

    number: int
    store: Kept
    ledger: Ledger | None = None
    anew: bool = False
    label: PrivacyLabel | None = None
    _checkpoints: Checkpoints | None = None
    _last: Mark | None = None

    def begun(self, rows: Mapping[str, int]) -> tuple[Mark, ...]:
        """Everybody is there; look at the folder of shares and the checkpoints."""
        Working.begun(self, rows)
        self._checkpoints = Checkpoints(self.store, self.training)
        marks = self._checkpoints.marks
        if self.folder is not None and not any(self._is_of(mark) for mark in marks):
            self.ready().check_folder()
        return marks

    @property
    def folder(self) -> Path | None:
        """Return where shares are kept."""
        assert self.job.shares is not None
        return None if self.job.shares.folder is None else self.job.path(self.job.shares.folder)

    def starts(self, run: str, marks: tuple[Mark, ...]) -> Mark | None:
        """Return the last checkpoint that both servers have, and record that the run begins."""
        assert self._checkpoints is not None
        assert self.ledger is not None
        common = [mark for mark in self._checkpoints.marks if mark in marks and not self.anew]
        mark = common[-1] if common else None
        if mark is not None and self.ledger.find("job", job=describe(self.job)) is not None:
            self.ledger.append("resumed", {"training": run, "from": mark.run, "step": mark.taken})
        else:
            begin_ledger(self.ledger, self.ready())
        return mark

    def party(self, run: str, mark: Mark | None, progress: Callable[[int, int], None]) -> Party:
        """Return this server's party; it keeps its shares as it goes."""
        prepared, kept = self.goes_on(mark), self._checkpoints
        assert kept is not None
        course = prepared.course
        resumed = None if mark is None else kept.read(mark, course)
        kept.only(mark)
        self._last = mark

        def keep(taken: int, shares: Callable[[], Mapping[str, Any]]) -> None:
            if is_due(course, taken):
                self._last = Mark(run, taken)
                kept.keep(self._last, shares)

        taken = course.taken

        def done(one: Any) -> None:
            nonlocal taken
            taken += one.stage == "step"
            progress(one.number + 1, taken)

        return server(
            self.number,
            course,
            beginning_of(course.task, starting_weights(course.task, self.job.job.seed)),
            self.rng.branch(),
            noise=None if prepared.noise is None else prepared.noise.noise(self.rng.branch()),
            done=done,
            resumed=resumed,
            keep=keep,
        )

    def agreed(self, models: tuple[str, ...]) -> str:
        """Compare what owners opened, record the end, write this server's shares."""
        assert self.ledger is not None
        prepared = self.ready()
        if len(set(models)) != 1 or bool(models[0]) != prepared.course.opened:
            raise ProtocolError(
                "Expected every owner to open one and the same model; a server told them different ones"
            )
        head = end_ledger(self.ledger, prepared, models[0] or None)
        self._write(head)
        return head

    def ended(self, ledger: str) -> None:
        """Write this server's shares; the checkpoints are no longer needed."""
        self._write(ledger)
        self.over()

    def over(self) -> None:
        """Forget the checkpoints of a training that has ended at all."""
        assert self._checkpoints is not None
        self._checkpoints.only(None)

    def _write(self, head: str) -> None:
        prepared, place = self.ready(), self.folder
        self.label = label_of(prepared, self.rng.origin, head)
        if place is None:
            return
        assert self._last is not None
        assert self._checkpoints is not None
        if self._is_of(self._last):
            self.tell(f"{place} has this training's shares")
            return
        kept = self._checkpoints.read(self._last, prepared.course)
        widths = prepared.course.task.widths
        parts = {name: words for name, words in kept.items() if name[0] in "wb"}
        parts |= {
            f"b{layer}": np.zeros(width, np.uint64)
            for layer, width in enumerate(widths[1:], 1)
            if f"b{layer}" not in kept
        }
        try:
            write_shares(place, prepared, self.label, {self.number: parts}, training=self._name(self._last))
        except OSError as error:
            raise JobError(f"Expected to write shares.folder={place}; {error.strerror}") from None
        self.tell(f"wrote {place}: this server's shares, and no model")

    def _is_of(self, mark: Mark) -> bool:
        """Return whether the folder holds the shares of a checkpoint."""
        try:
            return self.folder is not None and read_public(self.folder).training == self._name(mark)
        except (ModelError, ConfideError):
            return False

    def _name(self, mark: Mark) -> str:
        return f"{mark.run}/{mark.taken}"
