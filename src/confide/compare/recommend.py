"""The answer to a scenario: one plan for each phase, the runner-up, what would change it, and what runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from confide.compare.candidates import (
    Candidate,
    backends_for,
    backends_of,
    inference_candidates,
    training_candidates,
)
from confide.compare.costs import Models
from confide.compare.described import graph_of, size_of, words_of
from confide.compare.judging import Judged, judged, needs_of
from confide.compare.planned import in_words
from confide.compare.plans import job_table, job_text, serve_line, trains_from_a_job
from confide.compare.pricing import Price, Prices
from confide.compare.record import Record
from confide.compare.scenario import Scenario
from confide.compare.techniques import INFERENCE, TRAINING
from confide.guarantee import Adversary
from confide.model.graph import Graph

#: Prices this close are one price; `_preference` decides.
_TIED = 1.02

#: How an answer begins.
RECOMMENDED, NONE_NEEDED, NOT_MEASURED, NOTHING = "take", "none needed", "not measured", "nothing satisfies this"


@dataclass(frozen=True, slots=True)
class Change:
    """What would change the answer: a need or a trust, and what would be taken then."""

    what: str
    choice: str
    price: Price | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The plan of one phase.

    Args:
        task: "training" or "inference".
        status: `RECOMMENDED`, `NONE_NEEDED`, `NOT_MEASURED` or `NOTHING`.
        choice: what to take; None where nothing can be recommended.
        price: of the choice.
        candidate: the choice, or the nearest one where nothing satisfies the scenario.
        reasons: why, in sentences.
        runner_up: the second best, with its price.
        fitting: all that satisfy the scenario, best first.
        refused: the others, with what speaks against each.
        changes: what would change the answer.
        runs: the job file of a training, or the command line that serves.
        plans: what planners say of the model, by technique, in words; of those that run it.
    """

    task: str
    status: str
    choice: str | None
    price: Price | None
    candidate: Candidate
    reasons: tuple[str, ...]
    runner_up: tuple[str, Price | None] | None
    fitting: tuple[str, ...]
    refused: Mapping[str, tuple[str, ...]]
    changes: tuple[Change, ...] = ()
    runs: str = ""
    plans: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def said(self) -> str:
        """Return the answer as [expected] writes it: a choice, "nothing" or "not measured"."""
        return self.choice or ("nothing" if self.status == NOTHING else NOT_MEASURED)


@dataclass(frozen=True, slots=True)
class _Phase:
    """What is weighed in one phase: the candidates of a scenario, and what prices them."""

    task: str
    candidates: Sequence[Candidate]
    prices: Prices


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Candidates that fit, best first with their prices, and all others."""

    fitting: list[tuple[Candidate, Price | None]]
    others: list[Judged] = field(default_factory=list[Judged])


def recommend(
    scenario: Scenario,
    models: Models,
    records: Sequence[Record] = (),
    backends: Sequence[Candidate] = (),
    *,
    graph: Graph | None = None,
    relax: bool = True,
) -> tuple[Answer, ...]:
    """Return the answer for each phase that a scenario asks about.

    Args:
        scenario: what is needed.
        models: of what was not measured.
        records: of a comparison on this model and these parties; what they lack is modelled.
        backends: `backends_for` the scenario's model, where a caller has them; empty works them out.
        graph: a model that is there, in place of the one that [model] describes.
        relax: False leaves out what would change the answer, which takes most of the work.
    """
    if graph is not None:
        scenario = msgspec.structs.replace(scenario, model=words_of(graph))
    size = size_of(graph_of(scenario.model) if graph is None else graph)
    prices = Prices(size, {(record.task, record.choice): record for record in records}, models)
    found: list[Answer] = []
    for task in scenario.scenario.phases:
        if task == "training":
            made = training_candidates(scenario)
        else:
            if not backends and graph is not None:
                backends = backends_of(graph, linear=scenario.model.kind == "logistic")
            made = inference_candidates(scenario, backends or backends_for(scenario.model))
        phase = _Phase(task, made, prices)
        plans = {one.choice: in_words(one.choice, one.plan) for one in made if one.plan is not None}
        found.append(replace(_answer(scenario, phase, relax=relax), plans=plans))
    return tuple(found)


def _answer(scenario: Scenario, phase: _Phase, *, relax: bool) -> Answer:
    ranked = _rank(scenario, phase)
    status, choice, price = _decided(scenario, phase, ranked)
    refused = {one.candidate.choice: one.lacks for one in ranked.others}
    changes = tuple(_changes(scenario, phase, choice)) if relax else ()
    fitting = tuple(candidate.choice for candidate, _ in ranked.fitting)
    if choice is None and not ranked.fitting:
        nearest = min(ranked.others, key=lambda one: (bool(one.candidate.problems), len(one.lacks)))
        reasons = (f"the nearest is {title(phase.task, nearest.candidate.choice)}: it {'; '.join(nearest.lacks)}",)
        return Answer(phase.task, status, None, None, nearest.candidate, reasons, None, (), refused, changes)
    best = ranked.fitting[0][0]
    if choice is None:
        names = ", ".join(title(phase.task, name) for name in fitting)
        reasons = (f"these satisfy it, and none has a figure to rank it by: {names}; `confide compare` measures them",)
        return Answer(phase.task, status, None, None, best, reasons, None, fitting, refused, changes)
    second = next(((one.choice, cost) for one, cost in ranked.fitting[1:]), None)
    reasons = tuple(_reasons(scenario, phase.task, best, len(ranked.fitting)))
    runs = _runs(scenario, best)
    return Answer(phase.task, status, choice, price, best, reasons, second, fitting, refused, changes, runs)


def _rank(scenario: Scenario, phase: _Phase) -> _Ranked:
    """Return the candidates that fit, best first, and the others with what they lack."""
    fitting: list[tuple[Candidate, Price | None]] = []
    others: list[Judged] = []
    judgements = [judged(scenario, candidate) for candidate in phase.candidates]
    enough = {one.candidate.choice for one in judgements if not one.lacks}
    for judgement in judgements:
        candidate = judgement.candidate
        if not judgement.lacks and _base(candidate.choice) in enough - {candidate.choice}:
            judgement = Judged(candidate, ("adds noise that nothing here asks for",))
        price = phase.prices.of(scenario, candidate) if not judgement.lacks else None
        late = () if judgement.lacks else tuple(_short(scenario, phase, candidate, price))
        if judgement.lacks or late:
            others.append(Judged(candidate, (*judgement.lacks, *late)))
        else:
            fitting.append((candidate, price))
    fitting.sort(key=lambda one: (one[1] is None, one[1].seconds if one[1] else 0.0))
    known = [one for one in fitting if one[1] is not None]
    if known:
        limit = _TIED * known[0][1].seconds if known[0][1] else 0.0
        tied = [one for one in known if one[1] is not None and one[1].seconds <= limit]
        tied.sort(key=lambda one: _preference(one[0]))
        fitting[: len(tied)] = tied
    return _Ranked(fitting, others)


def _base(choice: str) -> str:
    """Return a technique without its noise."""
    return choice.partition("+")[0]


def _preference(candidate: Candidate) -> tuple[int, bool, bool]:
    """Return what decides between equal prices: few roles, then what holds against more."""
    guarantee = candidate.guarantee
    strong = guarantee.adversary is Adversary.MALICIOUS
    return (len(candidate.roles), not strong, not guarantee.post_quantum)


def _short(scenario: Scenario, phase: _Phase, candidate: Candidate, price: Price | None) -> Iterator[str]:
    """Yield which of the wanted figures a candidate misses."""
    needs = scenario.needs
    most = needs.latency_seconds if phase.task == "inference" else needs.training_seconds
    if most and price and price.seconds > most:
        yield f"takes {price}, more than {most:g} s"
    if phase.task == "training":
        got, best = phase.prices.accuracy(candidate.choice), phase.prices.accuracy("pooled")
        if got is not None and best is not None and 100 * (best - got) > needs.lost_points:
            yield f"loses {100 * (best - got):.1f} points of accuracy, more than {needs.lost_points:g}"


def _decided(scenario: Scenario, phase: _Phase, ranked: _Ranked) -> tuple[str, str | None, Price | None]:
    """Return the status, what to take, and its price."""
    if not ranked.fitting:
        return NOTHING, None, None
    best, price = ranked.fitting[0]
    timed = scenario.needs.latency_seconds if phase.task == "inference" else scenario.needs.training_seconds
    if price is None and (len(ranked.fitting) > 1 or timed):
        return NOT_MEASURED, None, None
    plain = not needs_of(scenario, phase.task) and best.choice in ("plain", "pooled", "local")
    return (NONE_NEEDED if plain else RECOMMENDED), best.choice, price


def _reasons(scenario: Scenario, task: str, best: Candidate, count: int) -> Iterator[str]:
    needs = needs_of(scenario, task)
    for need in needs:
        yield f"hides the {need.asset} from the {need.hidden_from} ({need.why})"
    if not needs and task == "inference":
        yield "nothing must be hidden from the server: plain serving with TLS and access control is enough"
    elif not needs:
        yield "nothing must be hidden from the server: TLS and access control are enough"
    yield f"the fastest of the {count} that satisfy this" if count > 1 else "the only one that satisfies this"
    if task == "training" and best.choice != "local" and not trains_from_a_job(scenario):
        yield "no job file trains such a network: bring it from torch (docs/torch.md), under the same technique"
    yield f"what still leaks: {best.guarantee.leaks}"


def _runs(scenario: Scenario, best: Candidate) -> str:
    if best.task == "training":
        if best.choice == "local" or not trains_from_a_job(scenario):
            return ""
        return job_text(job_table(scenario, best.choice))
    if best.choice == "local":
        return "confide predict"
    return serve_line(best.choice, best.roles, shares=scenario.holders.model == "shares")


def title(task: str, choice: str) -> str:
    """Return what people call a choice."""
    known = TRAINING if task == "training" else INFERENCE
    if choice in known:
        return known[choice].title
    if choice == "local":
        return "No service: the client asks its own model"
    base, _, noise = choice.partition("+")
    return known[base].title + (" + differential privacy" if noise else "") if base in known else choice


# --- what would change it ---------------------------------------------------------------------------------------------


def _changes(scenario: Scenario, phase: _Phase, choice: str | None) -> Iterator[Change]:
    """Yield each single need or trust that, if relaxed, leads to another choice."""
    for what, other in relaxations(scenario, phase.task):
        changed = phase
        if (other.needs.liars, other.holders) != (scenario.needs.liars, scenario.holders):
            changed = _Phase(phase.task, training_candidates(other), phase.prices)
        ranked = _rank(other, changed)
        _, found, price = _decided(other, changed, ranked)
        if found is not None and found != choice:
            yield Change(what, found, price)


def relaxations(scenario: Scenario, task: str) -> Iterator[tuple[str, Scenario]]:
    """Yield the scenario with one need dropped, or one more thing trusted, and what that is in words."""
    keys = ("updates", "records", "model") if task == "training" else ("query", "prediction", "weights")
    for key in keys:
        for who in getattr(scenario.hide, key):
            rest = tuple(one for one in getattr(scenario.hide, key) if one != who)
            yield f"the {who} may learn the {key}", _with(scenario, "hide", **{key: rest})
    trust, needs = scenario.trust, scenario.needs
    if not trust.operator:
        yield "the operator of the server is trusted", _with(scenario, "trust", operator=True)
    for servers in range(trust.servers + 1, 4):
        yield f"{servers} organisations that do not pool run a server", _with(scenario, "trust", servers=servers)
    if not trust.dealer:
        yield "somebody deals, and pools with nobody", _with(scenario, "trust", dealer=True)
        two = max(2, trust.servers)
        yield f"{two} servers and a dealer do not pool", _with(scenario, "trust", dealer=True, servers=two)
    if not (trust.hardware and trust.enclaves):
        yield "the vendor of a confidential machine is trusted", _with(scenario, "trust", hardware=True, enclaves=True)
    if not trust.parties:
        yield "most parties do not pool with the server", _with(scenario, "trust", parties=True)
    if trust.adversary == "malicious":
        yield "everybody follows the protocol", _with(scenario, "trust", adversary="curious")
    if needs.post_quantum:
        yield "quantum computers are left aside", _with(scenario, "needs", post_quantum=False)
    if task == "inference" and needs.latency_seconds:
        yield "predictions may take longer", _with(scenario, "needs", latency_seconds=0.0)
    if task == "training":
        yield from _of_training(scenario)


def _of_training(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    if scenario.needs.epsilon:
        yield "no differential privacy is asked for", _with(scenario, "needs", epsilon=0.0)
    if scenario.needs.liars:
        yield "no party lies", _with(scenario, "needs", liars=0)
    if scenario.needs.training_seconds:
        yield "the training may take longer", _with(scenario, "needs", training_seconds=0.0)
    if not scenario.holders.pooling and scenario.holders.parties > 1:
        yield "records may be brought to one place", _with(scenario, "holders", pooling=True)


def _with(scenario: Scenario, section: str, **values: object) -> Scenario:
    changed = msgspec.structs.replace(getattr(scenario, section), **values)
    return msgspec.structs.replace(scenario, **{section: changed})
