"""The runs of a comparison across real nodes: each through the nodes' own approvals, policies and budgets, and once.

This process is the coordinator of the federation, as `confide coordinator` is. What keeps a run from being made twice:

    cells/NAME.json    the finished run; it is written before the run counts as over, so no crash comes in between
    cells/NAME.begun   a run that was begun under this name; removed when it is over, or when nothing was charged for it
    the journal        a run that was interrupted goes on from there, and is charged as one run

A run that was begun and is in neither the cache nor the journal may have been charged: it is told, and begun again only
where somebody asks for that with `fresh`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from confide.compare.across import Bill, Charge, guarantee_of, name_parts, planned, schema_text, setting_of
from confide.compare.cache import Cache, Outcome, name_of
from confide.compare.cells import Cell, Cells, reason
from confide.compare.settings import Comparison
from confide.compare.training import seeded
from confide.crypto.keys import SigningKey
from confide.errors import ConfideError, JobError, StoreError, UsageError
from confide.model.artifact import decode as decode_artifact
from confide.model.artifact import write_whole
from confide.model.onnx import to_onnx
from confide.net.folders import identity_seed
from confide.net.registrar import Registrar
from confide.store import Patient, open_store
from confide.structs import known
from confide.train.attendance import Patience
from confide.train.board import Board
from confide.train.desk import Desk
from confide.train.figures import Evaluation
from confide.train.ledger import Ledger
from confide.train.ledger_lines import read_line
from confide.train.operate import hosting, roster_of, run_job
from confide.train.run_journal import unfinished
from confide.train.sections import Job, nodes_of

_LARGEST_NOTE_BYTES = 1 << 16


class Begun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run that was begun, and of which nobody knows yet that it is over.

    Args:
        run: its id, as it stands in the ledger and in the nodes' budgets.
        reason: why it broke off, if it did after it was charged.
    """

    run: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Run:
    """One training cell: its job, the name that it is kept by, and who takes part."""

    cell: Cell
    job: Job
    name: str
    job_hash: str
    roster: bytes


@dataclass(slots=True)
class Federation:
    """A federation's coordinator that trains what a comparison asks for.

    Args:
        folder: made by `confide federation init`.
        consent: given the bill before anything starts; False ends the comparison, and nothing was offered to anybody.
        address, port: where to listen.
        store: of the journal; a file, or postgresql://...
        models: folder for the models that are trained, each charged for; None keeps them in the cache alone.
        patience: how long nodes and their people are waited for.
        say, progress: told in one line what happens.

    **Guarantees**: nothing is offered to a node but jobs of `across.planned`, and nothing before `consent`; a cell that
    is in the cache is never run; one that was begun goes on, or is refused.
    """

    folder: Path
    consent: Callable[[Bill], bool]
    address: str
    port: int
    store: str | Path | None = None
    models: Path | None = None
    patience: Patience = field(default_factory=Patience)
    say: Callable[[str], None] = lambda text: None
    progress: Callable[[str], None] = lambda text: None
    _stack: ExitStack = field(default_factory=ExitStack, init=False, repr=False)
    _runs: dict[Cell, _Run] = field(default_factory=dict[Cell, _Run], init=False, repr=False)
    _text: str = field(default="", init=False, repr=False)
    _ready: Callable[..., Any] | None = field(default=None, init=False, repr=False)
    _ledger: Ledger | None = field(default=None, init=False, repr=False)

    def begin(
        self, comparison: Comparison, cache: Cache, *, seeds: int, queries: int, only: tuple[str, ...] = ()
    ) -> Cells:
        """Return what will be run, after somebody has agreed to its bill; the coordinator listens from here on.

        Where everything is in the cache nothing is opened, and nobody is asked.

        Raises:
            UsageError: nobody agreed; a node of the job is no member; the folder is another's, or holds another run
                that was interrupted.
        """
        cells = planned(comparison, seeds=seeds, queries=queries, only=only)
        self._text, unfit = schema_text(comparison.job), dict(cells.unfit)
        registrar = Registrar(self.folder)
        members = {name for name, _ in registrar.roster()}
        if strangers := [name for name in nodes_of(comparison.job) if name not in members]:
            raise UsageError(
                f"Expected the job's nodes to be members of the federation, missing: {', '.join(strangers)}; they join "
                "while `confide coordinator` runs"
            )
        for cell in [one for one in cells.cells if one.kind == "training"]:
            try:
                self._runs[cell] = self._run_of(cell, cells.jobs[cell.choice], registrar)
            except ConfideError as error:
                unfit[f"training/{cell.choice}"] = reason(error)
        order = self._settled(cache, unfit, registrar)
        asked = [cell for cell in cells.cells if cell.kind != "training"]
        return replace(cells, cells=(*order, *asked), unfit=unfit)

    def close(self) -> None:
        """Stop listening, and let go of the journal."""
        self._stack.close()

    @property
    def signer(self) -> bytes:
        """Return the coordinator's public key, which signs the models (32 bytes)."""
        return SigningKey(identity_seed(self.folder)).public

    def name(self, cell: Cell) -> str:
        """Return the name that a training cell is kept by."""
        return self._runs[cell].name

    # --- what is to be run --------------------------------------------------------------------------------------------

    def _run_of(self, cell: Cell, job: Job, registrar: Registrar) -> _Run:
        job = seeded(job, cell.seed)
        setting = setting_of(job, self._text)
        needed = {"helper", "keyholder", "enclave"} & set(setting.aggregator().roles)
        helper = job.train.helper if needed else None
        if helper is not None and helper not in dict(registrar.roster(("helper",))):
            raise JobError(
                f"Expected a member {helper} of the federation for the role {', '.join(needed)}; `confide federation "
                f"invite {helper} --role helper`"
            )
        roster, _ = roster_of(registrar, nodes_of(job), helper)
        parts = name_parts(cell, job, self._text, roster.digest, self.signer)
        return _Run(cell, job, name_of(parts), str(parts["job"]), roster.digest)

    def _settled(self, cache: Cache, unfit: dict[str, str], registrar: Registrar) -> list[Cell]:
        """Return the cells in the order of their runs: one that was interrupted first."""
        notes = {cell: _note(cache, run.name) for cell, run in self._runs.items()}
        measured = [cell for cell, run in self._runs.items() if cache.get(run.name) is not None]
        todo = [cell for cell in self._runs if cell not in measured or notes[cell]]
        if not todo:
            return list(self._runs)
        kept = Patient(self._opened(), say=self.say)
        current = unfinished(kept)
        going_on = [
            cell
            for cell in todo
            if current and (current.job, current.roster) == (self._runs[cell].job_hash, self._runs[cell].roster)
        ]
        if current and not going_on:
            raise UsageError(
                f"Expected no other run in the store of {self.folder}, {current.run} was interrupted; finish it by the "
                "command that began it, and start this one again"
            )
        for cell in [one for one in todo if one not in going_on]:
            if cell in measured and not _begun_later(cache, self._runs[cell].name):  # only the note is left
                _note_path(cache, self._runs[cell].name).unlink(missing_ok=True)
            elif (note := notes[cell]) and not cache.fresh:
                unfit[f"training/{cell.choice}"] = _told(note)
                measured = [one for one in measured if one is not cell]
                del self._runs[cell]
        new = [cell for cell in self._runs if cell not in going_on and cell not in measured]
        priced = {cell: Charge.of(setting_of(self._runs[cell].job, self._text)) for cell in (*going_on, *new)}
        bill = Bill(
            nodes=nodes_of(next(iter(self._runs.values())).job) if self._runs else (),
            new=tuple((cell, priced[cell]) for cell in new),
            going_on=tuple((cell, priced[cell]) for cell in going_on),
            measured=len([cell for cell in measured if cell not in going_on]),
            again=tuple(cell for cell in new if notes[cell] or cache.path(self._runs[cell].name).exists()),
        )
        if bill.charges:
            if not self.consent(bill):
                raise UsageError("Expected somebody to agree to these charges; nothing was offered to any node")
            self._host(kept, cache)
        return [*going_on, *(cell for cell in self._runs if cell not in going_on)]

    # --- the coordinator ----------------------------------------------------------------------------------------------

    def _opened(self) -> Any:
        opened = open_store(self.store or self.folder / "coordinator.db")
        self._stack.callback(opened.close)
        self._stack.enter_context(opened.exclusive("coordinator"))
        return opened

    def _host(self, kept: Patient, cache: Cache) -> None:
        key = SigningKey(identity_seed(self.folder))
        self._ledger = Ledger(self.folder / "ledger.jsonl", signer=key, patiently=kept.patiently)
        host, registrar = self._stack.enter_context(
            hosting(self.folder, address=self.address, port=self.port, say=self.say)
        )
        self._ready = partial(
            run_job,
            registrar=registrar,
            desk=Desk(host, kept, say=self.say),
            store=kept,
            ledger=self._ledger,
            patience=self.patience,
            say=self.say,
            progress=self.progress,
        )

    def interrupted(self, cell: Cell, cache: Cache) -> bool:
        """Return whether a run of a cell that is in the cache has not been told to its nodes to the end."""
        return _note(cache, self._runs[cell].name) is not None

    def trained(self, cell: Cell, cache: Cache) -> Outcome:
        """Run a cell, or go on with it, and return what it came to; it is in the cache by then.

        Raises:
            StoreError: the journal is gone; the same comparison goes on when it is back.
            ConfideError: the nodes refuse, in their words; or it broke off.
        """
        assert self._ready is not None
        assert self._ledger is not None
        run, boards, found = self._runs[cell], list[Board](), list[Evaluation]()
        place = _note_path(cache, run.name)

        def started(board: Board) -> None:
            boards.append(board)
            write_whole(place, msgspec.json.encode(Begun(run=board.snapshot().run)))

        def keep(body: bytes) -> None:
            outcome = self._outcome(run, body, boards[0], found)
            if self.models is not None:
                self.models.mkdir(parents=True, exist_ok=True)
                write_whole(self.models / f"{cell.choice}-{cell.seed}.confide", body)
            cache.put(outcome)

        try:
            self._ready(run.job, self._text, started=started, keep=keep, evaluated=found.append)
        except StoreError:
            raise
        except ConfideError as error:
            if boards:
                self._broke_off(place, boards[0].snapshot().run, error)
            raise
        place.unlink(missing_ok=True)
        outcome = cache.get(run.name)
        assert outcome is not None
        return outcome

    def _broke_off(self, place: Path, run: str, error: ConfideError) -> None:
        """Remember a run that ended without a model: where it was charged it is not begun again."""
        assert self._ledger is not None
        if self._ledger.find("job", run=run) is None or self._ledger.find("release") is None:
            place.unlink(missing_ok=True)
            return
        note = Begun(run=run, reason=reason(error))
        write_whole(place, msgspec.json.encode(note))
        raise JobError(_told(note)) from None

    def _outcome(self, run: _Run, body: bytes, board: Board, found: list[Evaluation]) -> Outcome:
        assert self._ledger is not None
        names = nodes_of(run.job)
        setting = setting_of(run.job, self._text)
        artifact = decode_artifact(body, trust=self.signer)
        source = Path(str(run.job.data.schema)).name
        figures = _of_ledger([read_line(line).entry for line in self._ledger.run_lines()], names)
        status = board.snapshot()
        if len(status.history) == figures["rounds_count"]:  # all in this process
            figures["train_seconds"] = sum(one.seconds for one in status.history)
        return Outcome(
            name=run.name,
            figures=figures | (_of_evaluation(found[-1]) if found else {}),
            guarantee=guarantee_of(setting),
            graph=to_onnx(artifact.graph),
            model=body,
            setting=f"measured across {len(names)} real nodes, by {source}, {run.job.model.kind} model",
        )


def _of_ledger(entries: list[Mapping[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    """Return what a run's lines say: rounds, bytes of a node, the coordinator's work, and what was spent."""
    rounds = [entry for entry in entries if entry["event"] == "round"]
    sums = [*rounds, *(entry for entry in entries if entry["event"] == "evaluation")]
    sent = [sum(entry["bytes_up"].get(name, 0.0) for entry in sums) for name in names]
    spent = [entry["epsilon"] for entry in entries if entry["event"] == "release"]
    return {
        "rounds_count": float(len(rounds)),
        "upload_bytes": float(np.mean(sent)),
        "cpu_server_seconds": sum(sum(entry["seconds"].values()) for entry in rounds),
        "epsilon_total": max(spent),
    }


def _of_evaluation(found: Evaluation) -> dict[str, float]:
    """Return the federation's own figures, with the ends of the intervals in which noise leaves them."""
    figures = {
        "accuracy_share": found.accuracy.value,
        "accuracy_low_share": found.accuracy.low,
        "accuracy_high_share": found.accuracy.high,
    }
    if found.auc is not None:
        figures |= {
            "auc_share": found.auc.value,
            "auc_low_share": found.auc.low,
            "auc_high_share": found.auc.high,
        }
    return figures


def _told(note: Begun) -> str:
    why = f": {note.reason}" if note.reason else ", and is neither finished nor in the journal"
    return (
        f"run {note.run} was begun and may have been charged to the nodes{why}; it is not begun again by itself, "
        "--fresh does that and is charged again"
    )


def _note_path(cache: Cache, name: str) -> Path:
    return cache.path(name).with_suffix(".begun")


def _begun_later(cache: Cache, name: str) -> bool:
    """Return whether the run that a note tells of began after the outcome that is kept: that one is another run's."""
    try:
        return _note_path(cache, name).stat().st_mtime_ns > cache.path(name).stat().st_mtime_ns
    except OSError:
        return False


def _note(cache: Cache, name: str) -> Begun | None:
    """Return what was noted of a run that was begun; a note that cannot be read is one all the same."""
    try:
        body = _note_path(cache, name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return Begun(run="unknown")
    try:
        if len(body) > _LARGEST_NOTE_BYTES:
            raise ValueError
        return msgspec.json.decode(body, type=known(Begun))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Begun(run="unknown")
