"""Every technique that a scenario could take, each with what it promises there and what keeps it from running.

Nothing here says which one is good: claims come from aggregators and backends, problems from the checks that training
and serving make themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from confide.compare.described import graph_of
from confide.compare.planned import Numbers, planned
from confide.compare.plans import USUAL_EPSILON, job_table, trains_from_a_job
from confide.compare.scenario import Scenario, WantedModelSection
from confide.errors import ConfideError
from confide.guarantee import Adversary, Claim, Guarantee, Trust, nothing_hidden
from confide.he.backend import Homomorphic
from confide.ideal import Backend
from confide.model.graph import Graph
from confide.serve import BACKENDS, load_backend
from confide.serve.parties.promises import as_served
from confide.train.job import parse
from confide.train.parts import AGGREGATORS, checked_aggregator
from confide.train.sections import names_of

NOISE = "honest survivors add their share of the noise"
_EVERYBODY = ("server", "other clients", "client", "outsiders")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One technique in one scenario.

    Args:
        task: "training" or "inference".
        choice: its name in `compare.techniques`; "+dp" behind an aggregator adds noise.
        guarantee: what it promises for this model and these parties.
        roles: who takes part, besides those that hold records or ask.
        problems: why it does not run here; empty if it does.
        plan: what its planner says of the model (`planned`).
    """

    task: str
    choice: str
    guarantee: Guarantee
    roles: tuple[str, ...]
    problems: tuple[str, ...] = ()
    plan: Numbers | None = None


def watcher(role: str) -> str:
    """Return whom a claim means by a role: whoever runs its machine."""
    return "enclave's operator" if role == "enclave" else role


# --- training ---------------------------------------------------------------------------------------------------------

_SERVERS = ("server", "helper", "dealer")


def _apart(asset: str) -> Iterator[Claim]:
    for one in _SERVERS:
        yield Claim(asset, one, tuple(other for other in _SERVERS if other != one))


_ALONE = Guarantee(
    claims=frozenset(Claim(asset, who) for asset in ("update", "record", "weights") for who in _EVERYBODY),
    adversary=Adversary.MALICIOUS,
    trust=Trust.NOBODY,
    security_bits=None,
    post_quantum=True,
    verified_result=True,
    leaks="Nothing leaves a party. Its own model remembers its own records.",
    primary="none: nothing is sent",
    paper="",
)

#: Training on shares, whose weights stay shares: docs/training-on-shares.md, "Whom you trust".
_ON_SHARES = Guarantee(
    claims=frozenset(
        {
            *_apart("update"),
            *_apart("record"),
            *_apart("weights"),
            *(Claim(asset, "other clients", _SERVERS) for asset in ("update", "record")),
            *(Claim(asset, "outsiders", _SERVERS) for asset in ("update", "record", "weights")),
        }
    ),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.NON_COLLUSION,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks="Sizes, layers, steps. Any two of the servers and the dealer together read rows and weights.",
    primary="additive shares mod 2^64, distributed comparison functions and streams from AES-128",
    paper="docs/protocols/mpc-training.md",
)


def with_noise(inside: Guarantee, epsilon: float, roles: tuple[str, ...]) -> Guarantee:
    """Return what holds where the parties of a sum add noise as well: no record shows in what is released.

    Args:
        inside: what holds of the sum.
        epsilon: of everything released.
        roles: who takes part besides the parties; none of them sees more than the released sums.
    """
    seen_by = (*map(watcher, roles), "other clients", "outsiders")
    return replace(
        inside,
        claims=inside.claims | {Claim("record", who, (NOISE,)) for who in seen_by},
        leaks=f"Each record at most epsilon={epsilon:g}, every round's model included.",
        primary=f"{inside.primary} + discrete Gaussian noise",
    )


def training_candidates(scenario: Scenario) -> list[Candidate]:
    """Return what could train: what is done by each party alone, in one place, every aggregator, training on shares."""
    found = [
        _one_place(scenario),
        Candidate("training", "local", _ALONE, (), tuple(_against_alone(scenario))),
    ]
    for name in AGGREGATORS:
        found += [_summed(scenario, name), _summed(scenario, f"{name}+dp")]
    return [*found, _on_shares(scenario, "mpc"), _on_shares(scenario, "mpc+dp")]


def _against_alone(scenario: Scenario) -> Iterator[str]:
    if scenario.holders.parties > 1:
        yield "every party gets a model of its own records alone"
    if scenario.needs.epsilon:
        yield (
            "adds no noise, and an epsilon is of a model that is released; one owner's table can be cut into parties "
            "(`confide split`) and trained with noise"
        )


def _one_place(scenario: Scenario) -> Candidate:
    inside = nothing_hidden("One place sees every record of every party.")
    fits = scenario.holders.pooling and scenario.holders.parties > 1
    return Candidate(
        "training", "pooled", inside, ("server",), () if fits else ("records may not leave their holders",)
    )


def _summed(scenario: Scenario, choice: str) -> Candidate:
    name, _, noise = choice.partition("+")
    kind = AGGREGATORS[name]
    roles = tuple(role for role in kind.roles if role != "client")
    guarantee = kind.guarantee if hasattr(kind, "guarantee") else kind().guarantee
    problems: tuple[str, ...] = ()
    if not trains_from_a_job(scenario):  # sums are the same for a network from torch
        scenario = msgspec.structs.replace(scenario, model=WantedModelSection())
    try:
        job = parse(job_table(scenario, choice))
        guarantee = checked_aggregator(job, names_of(job)).guarantee
    except ConfideError as error:
        problems = (str(error).splitlines()[0],)
    if noise:
        guarantee = with_noise(guarantee, scenario.needs.epsilon or USUAL_EPSILON, roles)
    return Candidate("training", choice, guarantee, roles, problems)


def _on_shares(scenario: Scenario, choice: str) -> Candidate:
    problems: tuple[str, ...] = ()
    try:
        parse(job_table(scenario, choice))
    except ConfideError as error:
        problems = (str(error).splitlines()[0],)
    guarantee = _ON_SHARES
    if choice.endswith("+dp"):  # the model is opened, with noise inside
        kept = frozenset(claim for claim in guarantee.claims if claim.asset == "update")
        guarantee = with_noise(replace(guarantee, claims=kept), scenario.needs.epsilon or USUAL_EPSILON, _SERVERS)
    return Candidate("training", choice, guarantee, _SERVERS, problems)


# --- inference --------------------------------------------------------------------------------------------------------


def backends_for(model: WantedModelSection) -> tuple[Candidate, ...]:
    """Return every backend with what it promises for a model of this kind and size, or why it does not run it.

    Planning encrypted predictions is most of the work, and the same for all scenarios with one model.
    """
    return backends_of(graph_of(model), linear=model.kind == "logistic")


def backends_of(graph: Graph, *, linear: bool) -> tuple[Candidate, ...]:
    """Return the same for a network that is there.

    Args:
        linear: whether it is one matrix: then replies may also stay open; those of others are open anyway.
    """
    found = [_asked(name, load_backend(name), graph) for name in BACKENDS]
    if linear:
        found.append(_asked("he-open", Homomorphic(protect_model=False), graph))
    return tuple(found)


def _asked(choice: str, backend: Backend, graph: Graph) -> Candidate:
    problems = tuple(str(problem) for problem in backend.check(graph)[:1])
    guarantee = backend.guarantee if problems else backend.guarantee_for(graph)
    roles = tuple(role for role in backend.roles if role != "client")
    return Candidate("inference", choice, guarantee, roles, problems, None if problems else planned(backend, graph))


def inference_candidates(scenario: Scenario, backends: Sequence[Candidate]) -> list[Candidate]:
    """Return what could answer: the client by itself, and every backend as the model's place leaves it.

    Args:
        backends: `backends_for` the scenario's model.
    """
    where = scenario.holders.model
    alone = replace(
        _ALONE, claims=frozenset(Claim(asset, who) for asset in ("query", "prediction") for who in _EVERYBODY)
    )
    found = [Candidate("inference", "local", alone, (), () if where == "client" else ("the client has no model",))]
    for one in backends:
        problems, guarantee = one.problems, one.guarantee
        if where == "client":
            problems = (*problems, "the client has the model, so nobody needs to be asked")
        elif where == "shares" and one.choice != "mpc-outsourced":
            problems = (*problems, "a model of shares is served by mpc-outsourced alone")
        elif where == "server":
            guarantee = as_served(guarantee)
        found.append(replace(one, guarantee=guarantee, problems=problems[:1]))
    return found
