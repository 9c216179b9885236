"""A search for the best of several jobs, charged before anything runs.

    plan = SearchPlan.of(candidates, mean_runs=8)       # says what it will cost, from the jobs alone
    found = search(plan)                                # a secret number of runs; the best of them, and nothing else

Every run draws one of the candidates, trains it and has its accuracy on held-out records from one noisy sum
(data.evaluate = "federated"). The best is released with a label whose epsilon is that of the whole search
(`dp.selection`): two to three times that of one run for ten, however many candidates there are.

The promise is about whoever sees the result alone. Whoever runs the search sees every run; across machines a
coordinator would, and a search there costs the sum of all its runs, so jobs for nodes are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import msgspec

from confide.crypto.random import Randomness, SystemRandomness
from confide.dp.selection import ACCOUNTANT, Selection
from confide.errors import JobError
from confide.guarantee import PrivacyLabel
from confide.model.artifact import Artifact
from confide.model.graph import Graph
from confide.train.data_budget import JobBudget
from confide.train.federated_evaluation import evaluate
from confide.train.figures import Evaluation
from confide.train.output import label_of
from confide.train.parts import aggregator_of
from confide.train.rounds import Round
from confide.train.run import Prepared, budget_of, load_data, plans_of, train
from confide.train.sections import Job

_AT = 32.0  # the epsilon at which tails are charged


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """Which jobs are tried, and what that costs; made by `of`.

    Args:
        candidates: jobs over the same data, with the same [data], delta and unit.
        selection: the account of the whole search.
        budget: that it is charged to, if the jobs name one.
    """

    candidates: tuple[Job, ...]
    selection: Selection
    budget: JobBudget | None

    @staticmethod
    def of(candidates: Sequence[Job], *, mean_runs: float) -> SearchPlan:
        """Return the plan of a search, accounted from the jobs and their schema alone.

        Args:
            candidates: at least one.
            mean_runs: the mean of the secret number of runs, 1 to 10,000: about as many as there are candidates, or
                twice that.

        Raises:
            JobError: the candidates differ in what they must share, or cannot be searched among.
            PrivacyError: the search would cost more than epsilon = 32.
        """
        _check(candidates)
        plans = [plan for job in candidates for plan in plans_of(job)[0]]
        counted = [plan.composition(plan.shares) for plan in plans]
        selection = Selection(
            mean_runs=mean_runs,
            mu=max(one.mu for one in counted),
            surcharge=max(one.surcharge for one in counted),
            tail=max(one.tail(_AT) for one in counted),
            delta=plans[0].delta,
        )
        budget = budget_of(candidates[0], cost=selection.epsilon)
        return SearchPlan(tuple(candidates), selection, budget)

    @property
    def epsilon(self) -> float:
        """Return what the whole search spends, at `delta`."""
        return self.selection.epsilon

    @property
    def delta(self) -> float:
        """Return the delta of the search."""
        return self.selection.delta


@dataclass(frozen=True, slots=True)
class Found:
    """The best run of a search.

    Args:
        job: its setting.
        model: with its label, to be saved.
        figures: on held-out records, with noise; covered by the label's epsilon.
    """

    job: Job
    model: Artifact
    figures: Evaluation


def search(plan: SearchPlan, *, rng: Randomness | None = None) -> Found:
    """Run a search and return the best run.

    Args:
        plan: what to try. A second search by the same plan is charged again.
        rng: secret randomness; the operating system's if None. A fixed seed voids every privacy claim.

    Raises:
        PrivacyError: it does not fit into the data set's budget; no row was read.
    """
    rng = rng or SystemRandomness()
    if plan.budget is not None:
        plan.budget.begin()
    best: tuple[float, Job, Prepared, Round[Graph], Evaluation] | None = None
    for _ in range(plan.selection.draw_runs(rng)):
        chosen = plan.candidates[rng.below(len(plan.candidates))]
        job = msgspec.structs.replace(chosen, data=msgspec.structs.replace(chosen.data, budget=None))
        data = load_data(job, rng=rng.branch())
        *_, done = train(job, data, rng=rng.branch())
        aggregator = aggregator_of(job, of_updates=False)
        figures = evaluate(job, done.model, data.held, aggregator=aggregator, spent=done.epsilon, rng=rng.branch())
        if best is None or figures.accuracy.value > best[0]:
            best = figures.accuracy.value, chosen, data, done, figures
    assert best is not None
    _, job, data, done, figures = best
    label = _label(plan, label_of(job, data, done))
    return Found(job, Artifact(done.model, data.preprocess, label, {"job": job.job.name}), figures)


def _label(plan: SearchPlan, label: PrivacyLabel) -> PrivacyLabel:
    """Return the label of the best run with what the search has cost, for those who see nothing but the result."""
    return msgspec.structs.replace(
        label,
        epsilon=plan.epsilon,
        epsilon_outsiders=plan.epsilon,
        epsilon_party=None,
        mu=None,
        mechanism=f"the best of a secret number of runs, each of: {label.mechanism}",
        accountant=f"confide {metadata.version('confide')}: {ACCOUNTANT}",
        server_sees="whoever ran the search has seen every run; epsilon is about those who see the result alone",
        parties_see="all parties were in one process with the search",
        released="the final model, its setting and its noisy figures; no other run, and not how many there were",
        metrics="noisy figures on held-out records, which chose this run; epsilon covers them",
        tuning=(
            f"charged: {len(plan.candidates)} settings, a secret geometric number of runs with mean "
            f"{plan.selection.mean_runs:g}; one run alone would have epsilon {label.epsilon:.3g}"
        ),
    )


def _check(candidates: Sequence[Job]) -> None:
    if not candidates:
        raise JobError("Expected at least one candidate; a search tries jobs")
    first = candidates[0]
    for job in candidates:
        if job.privacy is None or first.privacy is None:
            raise JobError("Expected [privacy] in every candidate; what was chosen by private scores is not private")
        if (job.privacy.delta, job.privacy.unit) != (first.privacy.delta, first.privacy.unit):
            raise JobError("Expected one privacy.delta and privacy.unit in all candidates")
        shared = msgspec.structs.replace(job.data, standardise=first.data.standardise)
        if shared != first.data or job.base != first.base or job.job.seed != first.job.seed:
            raise JobError(
                "Expected one [data] and job.seed in all candidates, but for standardise; they share records"
            )
        if job.data.evaluate != "federated":
            raise JobError('Expected data.evaluate="federated" in every candidate; its noisy sum scores a run')
        if job.data.set is not None or job.data.nodes:
            raise JobError(
                "Expected data.tables in every candidate: a coordinator of nodes sees every run, and a shipped set is "
                "split by a shuffle of all records"
            )
