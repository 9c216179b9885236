"""`confide train` of a job whose aggregate is "mpc": training on secret shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from confide.cli import console
from confide.cli.console import progress_bars, stops_cleanly


def train_on_shares(job: Any, output: Any) -> None:
    """Train on shares as a job says, print what happened and write what the job names."""
    from confide.crypto.random import SystemRandomness
    from confide.train import describe
    from confide.train.evaluate import in_words
    from confide.train.reasons import reasons
    from confide.train.shares import load_rows, prepare

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
