"""`confide train` of a job whose aggregate is "mpc": training on secret shares."""

from __future__ import annotations

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
        console.out.print(f"wrote {place}: one file for each server, and no model")
        return
    said = in_words(finished.graph, rows.test_x, rows.test_y)
    console.out.print(f"{said}; computed on the test records in the clear, outside any privacy budget")
    artifact = output.sign(finished.artifact())
    console.out.print(artifact.label.sentence())
    for path in output.written:
        console.out.print(f"wrote {path}")
    if artifact.signer:
        console.out.print(f"signed by {artifact.signer}")


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
