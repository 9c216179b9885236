"""What a job lets out and to whom, in the words of its privacy label."""

from __future__ import annotations

from typing import Any

from confide.tee.simulated import WARNING
from confide.train.sections import Job

#: Where scales and categories come from if nothing else is said.
SCHEMA_BOUNDS = "public bounds of the schema"


def disclosed(job: Job, *, hidden_among: int | None) -> dict[str, Any]:
    """Return the fields of `guarantee.PrivacyLabel` that say who sees what, and which figures leave.

    Args:
        job: with every default in its place.
        hidden_among: fewest parties in any sum that the server sees; None where it sees their vectors.
    """
    noisy = "noisy " if job.privacy else ""
    first = "moments" if job.data.standardise else "counts" if not job.privacy and _exact(job) else ""
    before = f"; before them one {noisy}sum of {first}" if first else ""
    exact = [] if job.privacy else _exact(job)
    each = "every party's own vector" if hidden_among is None else f"{noisy}sums over {hidden_among} or more parties"
    each += enclave_text(job)
    return {
        "server_sees": f"{each}, each round, and every round's model{before}",
        "parties_see": f"every round's {noisy}sum and model, and what is their own{before}",
        "outsiders_see": "this file: the last model, its preparation, this label; the ledger if published",
        "metrics": _metrics(job),
        "public_data": job.model.public_data or "none",
        **({"preprocessing": f"{' and '.join(exact)}, from one sum without noise"} if exact else {}),
    }


def enclave_text(job: Job) -> str:
    """Return what an enclave changes about who sees what; nothing without one."""
    train = job.train
    if train.aggregate != "tee":
        return ""
    if train.attester == "simulated":
        return f" ({WARNING})"
    by = "" if train.rule == "mean" else f", combined by {train.rule} against {train.liars} of them"
    return f"{by}, as far as the enclave's hardware keeps what its vendor says"


def _exact(job: Job) -> list[str]:
    """Return what a job takes from all records before its training."""
    said: list[str] = []
    if job.data.standardise:
        centre = job.data.standardise == "centre"
        said.append("mean of every feature" if centre else "mean and deviation of every number")
    if job.train.class_weights == "balanced":
        said.append("records of each class")
    if job.trees is not None and job.trees.edges == "quantiles":
        said.append("intervals of every number by how many records lie in them")
    return said


def fixed_in_advance(job: Job) -> list[str]:
    """Return what a job's [model] makes of the inputs without looking at a record, as a label states it."""
    said: list[str] = []
    if job.model.features != "columns":
        said.append(f"{job.model.features} fixed in advance")
    if job.model.encoder:
        said[-1] = "encoder trained on public data"
    if job.model.frequencies:
        said.append(f"the {job.model.frequencies} lowest orders of spatial frequencies")
    if job.model.whiten != "none":
        said.append(f"whitened by synthetic images ({job.model.whiten}) from a public seed, which hold no data")
    if job.model.project:
        said.append(f"public random projection to {job.model.project} features")
    return said


def _metrics(job: Job) -> str:
    if job.data.evaluate == "federated" and job.privacy:
        charged = (
            "figures on held-out records from one noisy sum with the same epsilon and delta; charged: a record is "
            "either trained on or held out, so the larger of the two holds, not their sum"
        )
        shuffled = "; not so strictly here, where a shipped data set was split by a shuffle of all records"
        return charged + (shuffled if job.data.set else "")
    if job.data.evaluate == "federated":
        return "figures on held-out records from one sum without noise; no epsilon covers them"
    if job.data.nodes:
        return "none are released by the training"
    return "accuracy on the test records may be printed in the clear where the job runs; no epsilon covers it"
