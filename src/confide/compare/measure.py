"""Run techniques on a job and turn what happened into records: training over seeds, inference over queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.compare.attack import extraction
from confide.compare.record import Record, Spread, machine, summarise, version
from confide.dp.client_plan import ClientPlan
from confide.dp.plan import PrivacyPlan
from confide.errors import JobError, UsageError
from confide.guarantee import RECORDED_X25519, Adversary, Claim, Guarantee, Trust, nothing_hidden
from confide.model.graph import Graph
from confide.serve.client import Client
from confide.train.contradictions import check_groups
from confide.train.evaluate import accuracy, auc, decide
from confide.train.local import Silo
from confide.train.parts import AGGREGATORS, aggregator_of, plan_of
from confide.train.run import Prepared, load_data, local_models, pooled_model, train
from confide.train.sections import Job, parties_of

Matrix = NDArray[np.float64]

_LOCAL = Guarantee(
    claims=frozenset({Claim("update", "server"), Claim("update", "other clients")}),
    adversary=Adversary.MALICIOUS,
    trust=Trust.NOBODY,
    security_bits=None,
    post_quantum=True,
    verified_result=True,
    leaks="Nothing leaves a party. Its own model remembers its own records. Figures are means over the parties.",
    primary="none: nothing is sent",
    paper="",
)
_POOLED = nothing_hidden("One place sees every record of every party.")


@dataclass(frozen=True, slots=True)
class Trial:
    """One technique under one seed.

    Args:
        choice, seed: what was run.
        figures: as in `Record.figures`.
        curve: test accuracy after each round; empty where there are no rounds.
        graph: the model.
    """

    choice: str
    seed: int
    figures: dict[str, float]
    curve: tuple[float, ...] = field(default=())
    graph: Graph | None = None


def training_choices(job: Job) -> tuple[str, ...]:
    """Return what is compared on `job`: the two baselines, every aggregator, and the private one if it has a budget.

    Groups are compared where the parties are enough to outvote a liar; enclaves are not, since none is here.
    """
    plain_first = sorted(AGGREGATORS, key=lambda name: name != "plain")
    fitting = [name for name in plain_first if name != "tee" and (name != "groups" or _groups_fit(job))]
    return ("local", "pooled", *fitting, *(["masked+dp"] if job.privacy else []))


def _groups_fit(job: Job) -> bool:
    try:
        check_groups(job.train, parties_of(job))
    except JobError:
        return False
    return True


def training(job: Job, seeds: Iterable[int], choices: Sequence[str]) -> Iterator[Trial]:
    """Run every choice on every seed's split, yielding each as it is done.

    Args:
        job: the job; its seed, aggregator and privacy are replaced in turn.
        seeds: of the public choices (split, start).
        choices: out of `training_choices`.
    """
    for seed in seeds:
        seeded = msgspec.structs.replace(job, job=msgspec.structs.replace(job.job, seed=seed))
        data = load_data(seeded)
        for choice in choices:
            yield _trial(seeded, data, choice, seed)


def _trial(job: Job, data: Prepared, choice: str, seed: int) -> Trial:
    begin = time.perf_counter()
    if choice == "local":
        models = local_models(job, data)
        seconds = time.perf_counter() - begin
        rows = [_quality(model, data.test) for model in models.values()]
        mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return Trial(choice, seed, mean | {"train_seconds": seconds, "upload_bytes": 0.0})
    if choice == "pooled":
        model = pooled_model(job, data)
        seconds = time.perf_counter() - begin
        sent = float(np.mean([silo.x.nbytes + len(silo.y) for silo in data.silos]))
        return Trial(
            choice, seed, _quality(model, data.test) | {"train_seconds": seconds, "upload_bytes": sent}, (), model
        )
    aggregate, _, private = choice.partition("+")
    job = msgspec.structs.replace(
        job,
        train=msgspec.structs.replace(job.train, aggregate=aggregate),
        privacy=job.privacy if private else None,
    )
    done = list(train(job, data))
    seconds = time.perf_counter() - begin
    last = done[-1]
    sent = [sum(r.bytes_up[silo.name] for r in done) for silo in data.silos]
    figures = {
        "rounds_count": float(len(done)),
        "upload_bytes": float(np.mean(sent)),
        "train_seconds": seconds,
    }
    if last.epsilon is not None:
        figures["epsilon_total"] = last.epsilon
    curve = tuple(accuracy(r.model, data.test.x, data.test.y) for r in done)
    return Trial(choice, seed, _quality(last.model, data.test) | figures, curve, last.model)


def _quality(graph: Graph, test: Silo) -> dict[str, float]:
    return {
        "accuracy_share": accuracy(graph, test.x, test.y),
        "auc_share": auc(graph.apply(test.x)[:, -1], test.y),
    }


def training_guarantee(job: Job, data: Prepared, choice: str) -> Guarantee:
    """Return what a training choice promises on `job`."""
    if choice in ("local", "pooled"):
        return _LOCAL if choice == "local" else _POOLED
    aggregate, _, private = choice.partition("+")
    chosen = msgspec.structs.replace(
        job,
        train=msgspec.structs.replace(job.train, aggregate=aggregate),
        privacy=job.privacy if private else None,
    )
    base = aggregator_of(chosen).guarantee
    plan = plan_of(job, data.start, len(data.silos), preprocess=data.preprocess) if private else None
    return base if plan is None else with_noise(base, plan)


def with_noise(base: Guarantee, plan: PrivacyPlan | ClientPlan) -> Guarantee:
    """Return what an aggregator that promises `base` promises where the parties add the noise of `plan`."""
    noise = f"{plan.shares} honest survivors add their share of the noise"
    recorded = f" {RECORDED_X25519}" if base.claims and not base.post_quantum else ""
    return Guarantee(
        claims=base.claims | {Claim("record", "server", (noise,)), Claim("record", "outsiders", (noise,))},
        adversary=base.adversary if base.adversary is not Adversary.NONE else Adversary.SEMI_HONEST,
        trust=Trust.NON_COLLUSION if base.trust is Trust.OPERATOR else base.trust,
        security_bits=base.security_bits,
        post_quantum=base.post_quantum,
        verified_result=base.verified_result,
        leaks=f"Each record at most epsilon={plan.epsilon:g} at delta={plan.delta:.2g}, every round's model included."
        + recorded,
        primary=f"{base.primary} + discrete Gaussian noise",
        paper=f"{base.paper}; {plan.mechanism}",
    )


def training_records(job: Job, data: Prepared, trials: Sequence[Trial]) -> list[Record]:
    """Return one record per choice over all its seeds."""
    by_choice: dict[str, list[Trial]] = {}
    for trial in trials:
        by_choice.setdefault(trial.choice, []).append(trial)
    setting = (
        f"{job.data.set or job.data.schema}, {job.data.parties} parties, split {job.data.split}, {job.model.kind} model"
    )
    return [
        Record(
            "training",
            choice,
            setting,
            summarise([trial.figures for trial in rows]),
            training_guarantee(job, data, choice),
            machine(),
            version(),
            len(rows),
        )
        for choice, rows in by_choice.items()
    ]


# --- inference --------------------------------------------------------------------------------------------------------


def inference(
    client: Client,
    choice: str,
    truth: Graph,
    x: Matrix,
    *,
    setting: str,
    plain: Record | None,
    ahead: tuple[float, int] | None = None,
    attack: bool = True,
    each: Callable[[], None] = lambda: None,
) -> Record:
    """Ask a running service one query at a time and record what that costs.

    Args:
        client: connected to the service; has not asked anything yet, so that keys and the cold first answer are timed.
        choice: the technique's name in `compare.techniques`.
        truth: the served model in the clear: the ideal function.
        x: queries as features, float64, shape (n, features), n >= 2.
        setting: in words.
        plain: the record of the plain technique on the same queries, for the added cost; None when this is it.
        ahead: seconds and bytes of a set-up that was done before, whose keys are in the client's store.
        attack: run the extraction too (it asks features + 1 more queries); for one linear layer.
        each: called after every query, for progress.

    Raises:
        UsageError: fewer than two queries.
    """
    if len(x) < 2:
        raise UsageError(f"Expected at least 2 queries to measure, got {len(x)}")
    begin = time.perf_counter()
    uploaded = client.setup().bytes_sent("client")
    setup_seconds = time.perf_counter() - begin
    if ahead is not None:
        setup_seconds, uploaded = ahead
    seconds: list[float] = []
    answers: list[Matrix] = []
    up: list[float] = []
    down: list[float] = []
    for row in x:
        begin = time.perf_counter()
        asked = client.ask(row[None, :])
        seconds.append(time.perf_counter() - begin)
        answers.append(asked.output("client"))
        up.append(asked.bytes_sent("client"))
        down.append(asked.bytes_received("client"))
        each()
    y, expected = np.vstack(answers), truth.apply(x)
    warm = np.array(seconds[1:])
    figures: dict[str, Spread] = summarise([{"latency_seconds": value} for value in warm])
    single = {
        "setup_seconds": setup_seconds,
        "first_seconds": seconds[0],
        "latency_p95_seconds": float(np.percentile(warm, 95)),
        "upload_bytes": float(np.median(up)),
        "download_bytes": float(np.median(down)),
        "key_bytes": float(uploaded),
        "error_largest": float(np.abs(y - expected).max()),
        "agreement_share": float((decide(y) == decide(expected)).mean()),
    }
    base = (plain.figure("latency_seconds") if plain else None) or figures["latency_seconds"].median
    single["added_seconds"] = figures["latency_seconds"].median - base
    single["factor_over_plain"] = figures["latency_seconds"].median / base
    if attack:
        found = extraction(lambda q: np.vstack([client.predict(row[None, :]) for row in q]), truth, x)
        single |= {"extraction_queries": float(found.queries), "extraction_agreement_share": found.agreement}
    figures |= {name: Spread(value, value, value, value) for name, value in single.items()}
    return Record("inference", choice, setting, figures, client.guarantee, machine(), version(), len(x))
