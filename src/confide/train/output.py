"""What a run leaves behind: the privacy label, the model that carries it, and where its files go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from confide.crypto.random import SystemRandomness
from confide.errors import JobError, PrivacyError
from confide.guarantee import PrivacyLabel
from confide.model.artifact import Artifact, create_signing_key, read_signing_key
from confide.model.graph import Graph
from confide.model.onnx import require_onnx
from confide.train.course import parameters_hash
from confide.train.disclosure import SCHEMA_BOUNDS, disclosed, fixed_in_advance
from confide.train.ledger import Ledger
from confide.train.parts import hidden_among, plan_of
from confide.train.rounds import Round
from confide.train.run import Trained
from confide.train.sections import Job, default_quorum


def label_of(job: Job, data: Trained, done: Round[Graph], *, head: str = "") -> PrivacyLabel:
    """Return the privacy label of the model after `done`.

    Args:
        head: the ledger's last hash.

    Raises:
        PrivacyError: the rounds ran without the privacy that the job states, or the other way round.
    """
    if (job.privacy is None) != (done.epsilon is None):
        raise PrivacyError("Expected the job that the rounds ran under; their [privacy] differs, so no label fits")
    parties = data.names
    plan = plan_of(job, data.start, len(parties), preprocess=data.preprocess)
    among = hidden_among(job, len(parties))
    said = {**disclosed(job, hidden_among=among), **(plan.label_fields() if plan else {})}
    said["preprocessing"] = "; ".join((said.get("preprocessing", SCHEMA_BOUNDS), *fixed_in_advance(job)))
    return PrivacyLabel(
        aggregator=aggregator_text(job),
        parties=parties,
        quorum=job.train.quorum or default_quorum(len(parties)),
        colluding=job.privacy.colluding if job.privacy else 0,
        rounds=min(done.number, job.train.rounds),  # over machines a preparation is a sum of its own
        seed=done.origin,
        ledger=head,
        hidden_among=among,
        **said,
    )


def aggregator_text(job: Job) -> str:
    """Return the aggregator as a label names it: a simulation is not what it simulates."""
    simulated = job.train.aggregate == "tee" and job.train.attester == "simulated"
    return f"{job.train.aggregate}, simulated and unprotected," if simulated else job.train.aggregate


def labelled(job: Job, data: Trained, done: Round[Graph], ledger: Ledger) -> Artifact:
    """Return the model after `done` with its label.

    The ledger's last entry names the model's parameters; the label names the ledger's last entry.

    Raises:
        PrivacyError: as in `label_of`, before anything is written.
    """
    label_of(job, data, done)
    fields = {"model": parameters_hash(done.parameters).hex(), "rounds": done.number, "epsilon": done.epsilon}
    label = label_of(job, data, done, head=ledger.append("model", fields))
    source = job.data.set or Path(str(job.data.schema)).name  # where it lay is nobody's business
    facts = {"job": job.job.name, "data": source}
    if ranked := importance_text(done.importance):
        facts["importance"] = ranked
    return Artifact(done.model, data.preprocess, label, facts)


def importance_text(importance: Mapping[str, float], most: int = 20) -> str:
    """Return the columns with the largest parts, largest first, in percent; nothing if no column has one."""
    ranked = sorted(importance.items(), key=lambda pair: (-pair[1], pair[0]))[:most]
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in ranked if share > 0)


class Output:
    """Where a run's files go: known to work before the run, written whole after it.

    Args:
        job: with its [output].

    Raises:
        JobError: a folder is absent, a path is a folder, or a model is asked for without a signing key.
        IntegrityError: the ledger exists and does not hold.
        ModelError: the signing key exists and cannot be used.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        places = {name: job.path(value) for name, value in msgspec.structs.asdict(job.output).items() if value}
        for name, place in places.items():
            if not place.parent.is_dir() or place.is_dir():
                raise JobError(
                    f"Expected output.{name}={place} to be a file in a folder that exists; make the folder first"
                )
        if len(set(places.values())) < len(places):
            raise JobError("Expected different files for output.model, output.ledger and output.signing_key")
        if "model" in places and "signing_key" not in places:
            raise JobError(
                'Expected output.signing_key beside output.model; a new one is made there: signing_key = "signing.pem"'
            )
        self._model = places.get("model")
        if self._model is not None:
            require_onnx()  # now, not after the training
        self._key_file = places.get("signing_key")
        self._key = read_signing_key(self._key_file) if self._key_file and self._key_file.exists() else None
        self.ledger = Ledger(places.get("ledger"))
        self.written = tuple(place for name, place in places.items() if name != "signing_key")

    def save(self, data: Trained, done: Round[Graph]) -> Artifact:
        """Return the labelled model after `done`; write it, signed, if the job names a file."""
        return self.sign(labelled(self._job, data, done, self.ledger))

    def sign(self, artifact: Artifact) -> Artifact:
        """Return the model; write it, signed, if the job names a file."""
        if self._model is None or self._key_file is None:
            return artifact
        if self._key is None:
            self._key = create_signing_key(self._key_file, SystemRandomness())
        return artifact.save(self._model, self._key)
