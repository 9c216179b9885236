"""What a candidate takes in a scenario: measured where a comparison has it, modelled where not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confide.compare.candidates import Candidate
from confide.compare.costs import Models, Training, plan_terms, regime, size_terms, sum_terms, training_terms
from confide.compare.described import Size
from confide.compare.record import Record
from confide.compare.scenario import Scenario
from confide.train.sections import SharesSection, TreesSection

_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds of one prediction, or of one training.

    Args:
        seconds: over the scenario's link.
        source: "measured", "measured without the noise" or "modelled".
        error: of a model, the median relative error on held-out sizes over such a link; None where no fit is behind it.
    """

    seconds: float
    source: str
    error: float | None = None

    def __str__(self) -> str:
        amount = f"{self.seconds:.3g} s" if self.seconds >= 1 else f"{1e3 * self.seconds:.3g} ms"
        off = "" if self.error is None else f", {100 * self.error:.0f} % off on held-out sizes"
        return f"{amount} ({self.source}{off})"


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices candidates of scenarios with one model.

    Args:
        size: of the model.
        records: measured, by (task, choice); of this very model.
        models: of what was not measured.
    """

    size: Size
    records: Mapping[tuple[str, str], Record]
    models: Models

    def of(self, scenario: Scenario, candidate: Candidate) -> Price | None:
        """Return what a candidate takes; None where it was neither measured nor modelled."""
        return self._measured(scenario, candidate) or self._modelled(scenario, candidate)

    def accuracy(self, choice: str) -> float | None:
        """Return the measured accuracy of a training as a share."""
        record = self.records.get(("training", choice))
        return record.figure("accuracy_share") if record else None

    def _measured(self, scenario: Scenario, candidate: Candidate) -> Price | None:
        base, _, noise = candidate.choice.partition("+")
        source, record = "measured", self.records.get((candidate.task, candidate.choice))
        if record is None and noise:
            source, record = "measured without the noise", self.records.get((candidate.task, base))
        if record is None:
            return None
        stem = "train" if candidate.task == "training" else "latency"
        network = scenario.network
        if network.usual:
            found = record.figure(f"{stem}_{network.kind}_seconds")
            return None if found is None else Price(found, source)
        work, trips = record.figure(f"{stem}_loopback_seconds"), record.figure("depth_count")
        up, down = record.figure("upload_bytes"), record.figure("download_bytes") or 0.0
        if work is None or trips is None or up is None:
            return None
        link = network.link
        return Price(work + 8 * (up + down) / link.bits_per_second + trips * link.delay_seconds, source)

    def _modelled(self, scenario: Scenario, candidate: Candidate) -> Price | None:
        if candidate.task == "inference":
            return self._prediction(scenario, candidate)
        return self._training(scenario, candidate.choice)

    def _prediction(self, scenario: Scenario, candidate: Candidate) -> Price | None:
        choice, link = candidate.choice, scenario.network.link
        if candidate.plan is not None:
            model = self.models.fitted.get(("inference", choice, ""))
            terms = plan_terms(choice, candidate.plan, self.size)
        else:
            kind = regime({"kind": scenario.model.kind, "activation": scenario.model.activation})
            model = self.models.fitted.get(("inference", "plain" if choice == "local" else choice, kind))
            terms = size_terms(self.size)
        if model is None:
            return None
        if choice == "local":
            return Price(float(model.work @ terms.work), "modelled", model.errors.get("loopback"))
        return Price(model.seconds(terms, link), "modelled", model.errors.get(scenario.network.kind))

    def _training(self, scenario: Scenario, choice: str) -> Price | None:
        parties, link, records = scenario.holders.parties, scenario.network.link, scenario.holders.records
        base = choice.partition("+")[0]
        if base in ("local", "pooled"):
            work = self._alone(scenario, records if base == "pooled" else -(-records // parties))
            sent = _NUMBER_BYTES * records * self.size.inputs / parties if base == "pooled" else 0.0
            way = 8 * sent / link.bits_per_second + link.delay_seconds if base == "pooled" else 0.0
            return Price((work.seconds if work else 0.0) + way, "modelled", work.error if work else None)
        model = self.models.fitted.get(("training", base, ""))
        if model is None:
            return None
        error = model.errors.get(scenario.network.kind)
        if base == "mpc":
            return Price(
                model.seconds(training_terms(base, _of_records(scenario, self.size, records)), link), "modelled", error
            )
        work = self._alone(scenario, -(-records // parties))
        total = work.seconds if work else 0.0
        for rounds, length in _sums(scenario, self.size):
            total += rounds * model.seconds(sum_terms(parties, length), link)
        return Price(total, "modelled", error)

    def _alone(self, scenario: Scenario, records: int) -> Price | None:
        """Return the work of a training on some records at one place; None where none such was measured."""
        wanted = scenario.model
        kind = regime({"kind": wanted.kind, "activation": wanted.activation})
        model = self.models.fitted.get(("training", "local", kind))
        if model is None:
            return None
        terms = training_terms("local", _of_records(scenario, self.size, records))
        return Price(float(model.work @ terms.work), "modelled", model.errors.get("loopback"))


def _of_records(scenario: Scenario, size: Size, records: int) -> Training:
    """Return the size of a training as it is counted where records are seen."""
    trees = scenario.model.kind == "trees"
    batch = min(SharesSection().batch, records)
    return Training(
        parties=scenario.holders.parties,
        records=records,
        features=size.inputs,
        outputs=size.outputs,
        products=TreesSection().bins * size.inputs if trees else size.products,
        nonlinear=size.outputs + (0 if trees else size.nonlinear),
        layers=size.layers if trees else (size.layers + 1) // 2,
        rounds=scenario.model.trees * scenario.model.depth * size.outputs if trees else scenario.needs.rounds,
        batch=batch,
    )


def _sums(scenario: Scenario, size: Size) -> Iterator[tuple[int, int]]:
    """Yield how many sums of which length a training takes: updates, or histograms of each level of each tree."""
    wanted = scenario.model
    if wanted.kind != "trees":
        yield scenario.needs.rounds, size.parameters
        return
    cells = 2 * wanted.features * TreesSection().bins  # gradients and Hessians
    for level in range(wanted.depth):
        yield wanted.trees * wanted.outputs, cells << level
