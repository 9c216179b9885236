"""`confide train` of a job whose aggregate is "mpc": training on secret shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from confide.cli import console
from confide.cli.console import progress_bars, stops_cleanly
from confide.errors import ConfideError, JobError, UsageError


def train_on_shares(job: Any, output: Any) -> None:
    """Train on shares as a job says, print what happened and write what the job names."""
    from confide.crypto.random import SystemRandomness
    from confide.train import describe
    from confide.train.evaluate import in_words
    from confide.train.reasons import reasons
    from confide.train.shares import load_rows, prepare

    if job.data.nodes:
        raise UsageError(
            "Expected --identity FOLDER with data.nodes: every organisation runs this job with its own folder of the "
            "federation; docs/training-on-shares.md"
        )
    rng = SystemRandomness()
    rows = load_rows(job, rng)
    prepared = prepare(job, rows)
    if job.shares.folder is not None:
        prepared.check_folder()
    if output.ledger.spent is not None:
        console.err.print(
            f"warning: earlier runs in this ledger spent epsilon={output.ledger.spent:.3g} together; on the same "
            "records this run adds to it"
        )
    console.out.print(describe(job))
    for line in (*reasons(job), *prepared.sentences()):
        console.out.print(line)
    with stops_cleanly():
        finished = _run(prepared, rng, output)
    for line in finished.sentences():
        console.out.print(line)
    if finished.graph is None:
        place = job.path(job.shares.folder)
        finished.write_shares(place)
        console.out.print(finished.label.sentence())
        console.out.print(
            f"wrote {place}: one file for each server, and no model; give {' and '.join(job.shares.servers)} one each, "
            "beside model.json"
        )
        return
    said = in_words(finished.graph, rows.test_x, rows.test_y)
    console.out.print(f"{said}; computed on the test records in the clear, outside any privacy budget")
    artifact = output.sign(finished.artifact())
    console.out.print(artifact.label.sentence())
    for path in output.written:
        console.out.print(f"wrote {path}")
    if artifact.signer:
        console.out.print(f"signed by {artifact.signer}")


def describe_shares(place: Path) -> None:
    """Print what is public of a folder of shares, and whose half it has."""
    from confide.mpc.halves import SERVERS, read_public, read_shares

    public, found = read_public(place), [one for one in (0, 1) if (place / f"{SERVERS[one]}.npz").exists()]
    for one in found:
        read_shares(place, public, one)  # damaged, or another's: it says so
    held = " and ".join(public.servers[one] for one in found) or "nobody"
    warning = "; together they are the model: give each server its own alone" if len(found) == 2 else ""
    for line in (
        f"a model that was trained on shares, and never opened; here is the half of: {held}{warning}",
        public.label.sentence(),
        f"layers: {', '.join(map(str, public.widths))} columns, {public.loss}",
        f"classes: {', '.join(public.classes) or 'unnamed'}",
        f"columns: {', '.join(public.preprocess.columns)}",
        f"training: {public.training}",
        f"fingerprint: {public.digest.hex()}",
    ):
        console.out.print(console.plain(line))


def _run(prepared: Any, rng: Any, output: Any) -> Any:
    """Train; whoever stops it reads what is left of it."""
    course = prepared.course
    with progress_bars() as bars:
        task = bars.add_task("steps", total=course.passes * len(course.batches))

        def done(run: Any) -> None:
            if run.stage == "step":
                bars.advance(task)

        try:
            return prepared.run(rng=rng, ledger=output.ledger, done=done)
        except (KeyboardInterrupt, typer.Exit):
            charged = "" if prepared.noise is None else "; its epsilon stays charged in the ledger"
            console.err.print(f"stopped before the end: no model and no shares were written{charged}")
            raise


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says of a training over machines."""

    identity: Path
    data: Path | None
    policy: Path | None
    listen: str | None
    coordinator: str | None
    anew: bool
    stage_seconds: float
    gather_seconds: float


def train_over_machines(job: Any, asked: Asked) -> None:
    """Take part in a training on shares over several machines, as one organisation."""
    from confide.train import describe
    from confide.train.evaluate import in_words
    from confide.train.policy import load_policy
    from confide.train.reasons import reasons
    from confide.train.shares.cast import Patience
    from confide.train.shares.machines import Conditions, take_part

    if job.train.aggregate != "mpc":
        raise JobError(
            f'Expected train.aggregate="mpc" with --identity, got "{job.train.aggregate}": run that job as `confide '
            "coordinator` and `confide node`"
        )
    console.out.print(describe(job))
    for line in reasons(job):
        console.out.print(line)
    with stops_cleanly(), progress_bars() as bars:
        task = bars.add_task("waiting for the others", total=None)

        def show(taken: int, steps: int) -> None:
            bars.update(task, description="steps", completed=taken, total=steps)

        given = Conditions(
            folder=asked.identity,
            table=asked.data,
            policy=None if asked.policy is None else load_policy(asked.policy),
            listen=None if asked.listen is None else _place(asked.listen),
            coordinator=asked.coordinator,
            anew=asked.anew,
            patience=Patience(gather_seconds=asked.gather_seconds, stage_seconds=asked.stage_seconds),
            say=lambda text: console.err.print(console.plain(text)),
            tell=lambda text: console.out.print(console.plain(text)),
            show=show,
            listening=lambda place: console.out.print(f"listening on {place}"),
            broken=lambda error: console.err.print(f"failed unexpectedly: {type(error).__name__}{_where(error)}"),
        )
        try:
            work = take_part(job, given)
        except UsageError:
            raise  # nothing had begun
        except (ConfideError, KeyboardInterrupt, typer.Exit):
            console.err.print(
                "stopped before the end: no model and no shares were written. Run the same command again at all: it "
                "goes on from the last step that both servers kept"
            )
            raise
    label, graph = getattr(work, "label", None), getattr(work, "graph", None)
    if graph is not None and work.own is not None:
        said = in_words(graph, work.own.test_x, work.own.test_y)
        console.out.print(f"{said}; computed on this owner's own test records, and told to nobody")
    if label is not None:
        console.out.print(label.sentence())


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"Expected --listen ADDRESS:PORT, got {text[:80]}; 0.0.0.0 stands for every address")
    return host.strip("[]"), int(port)


def _where(error: BaseException) -> str:
    """Return where something failed; its text may hold a secret, and is not shown."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
