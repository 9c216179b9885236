"""One training with one technique and one seed: quality, rounds, bytes, work, and what it would take over links.

All parties run in one process, so the seconds of a link are put together: the set-up, then for each round the work of
one party (they work at the same time), one sum as `Transcript.cost` has it, and the reply to everybody.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from confide.compare.cells import BASELINES, ON_SHARES
from confide.compare.hosted import artifact_bytes
from confide.compare.links import Link, over_links
from confide.compare.measure import training_guarantee
from confide.compare.passes import accuracy_after_passes
from confide.compare.prices import Prices
from confide.compare.resources import kept_bytes, peak_memory
from confide.crypto.random import Randomness, SystemRandomness
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.model.graph import Graph
from confide.train.evaluate import accuracy, auc, concordance
from confide.train.ledger import Ledger
from confide.train.local import Silo
from confide.train.parts import checked_aggregator, encoding_of
from confide.train.rounds import Round, federate
from confide.train.run import Prepared, load_data, local_models, pooled_model
from confide.train.sections import Job, default_quorum
from confide.train.shares import load_rows
from confide.train.shares import prepare as prepare_on_shares
from confide.train.shares.course import DEALER, SERVERS
from confide.wire import MemoryStore, Party, Store, Transcript, run

#: Sums of as many different lengths are run for the cost of a round; further ones count as the nearest of these.
_LENGTHS = 8


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gave.

    Args:
        figures: as in `Record.figures`.
        curve: test accuracy after each round; of pooled records after each of its passes, which no figure is about.
        graph: the model; of parties alone there are several, and it is None.
        guarantee: what held.
    """

    figures: dict[str, float]
    guarantee: Guarantee
    curve: tuple[float, ...] = ()
    graph: Graph | None = None


@dataclass(slots=True)
class Loader:
    """Reads a job's data once for trainings that follow each other."""

    key: bytes = b""
    data: Prepared | None = field(default=None, repr=False)

    def load(self, job: Job) -> Prepared:
        """Return the data of a job."""
        prepares = job.data.standardise or job.train.class_weights != "none"
        parts = [job.job, job.data, job.model, job.trees, job.privacy, job.train if prepares else job.train.algorithm]
        key = msgspec.json.encode([*parts, job.base])
        if self.data is None or key != self.key:
            self.key, self.data = key, load_data(job)
        return self.data


def seeded(job: Job, seed: int) -> Job:
    """Return a job with another seed of its public choices."""
    return msgspec.structs.replace(job, job=msgspec.structs.replace(job.job, seed=seed))


def trained(job: Job, choice: str, loader: Loader, *, links: Sequence[Link], prices: Prices) -> Trained:
    """Train once.

    Args:
        job: of this choice and seed.
        choice: out of `cells.training_choices`.
        loader: of the data.
        links, prices: of the costs.

    Raises:
        ConfideError: the technique does not fit the job after all, or broke off.
    """
    with peak_memory() as peak:
        if choice == ON_SHARES:
            found = _on_shares(job, links, prices)
        elif choice in BASELINES:
            found = _alone(job, choice, loader.load(job), links, prices)
        else:
            found = _federated(job, choice, loader.load(job), links, prices)
    found.figures.update(peak.figures())
    return found


# --- the baselines ----------------------------------------------------------------------------------------------------


def _alone(job: Job, choice: str, data: Prepared, links: Sequence[Link], prices: Prices) -> Trained:
    begin = time.perf_counter()
    models = list(local_models(job, data).values()) if choice == "local" else [pooled_model(job, data)]
    seconds = time.perf_counter() - begin
    rows = [quality(model, data.test) for model in models]
    figures = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    sizes = [float(silo.x.nbytes + silo.y.nbytes) for silo in data.silos]
    sent = float(np.mean(sizes)) if choice == "pooled" else 0.0
    own = seconds / len(models)
    client, server = (own, 0.0) if choice == "local" else (0.0, seconds)
    figures |= {"train_seconds": seconds, "upload_bytes": sent, "rounds_count": 0.0}
    figures |= {"cpu_client_seconds": client, "cpu_server_seconds": server}
    for link in links:
        way = link.delay_seconds + 8 * max(sizes) / link.bits_per_second if choice == "pooled" else 0.0
        figures[f"train_{link.name}_seconds"] = own + way
    sides = {"client": (client, sent)} if choice == "local" else {"client": (0.0, sent), "server": (server, 0.0)}
    figures |= _of_roles(sides, prices, clients=len(data.silos))
    size = float(len(artifact_bytes(models[0], data.preprocess)))
    # whoever pools keeps everybody's records beside the model
    figures |= {"disk_of_client_bytes": size} if choice == "local" else {"disk_of_server_bytes": size + sum(sizes)}
    curve = accuracy_after_passes(job, data) if choice == "pooled" else ()
    return Trained(figures, training_guarantee(job, data, choice), curve, models[0] if choice == "pooled" else None)


def _of_roles(sides: Mapping[str, tuple[float, float]], prices: Prices, *, clients: int) -> dict[str, float]:
    """Return work and money of one party of each role, and the money of everybody.

    Args:
        sides: (seconds of work, bytes sent) by role; of one client.
        prices: of both.
        clients: how many there are.
    """
    figures = {f"cpu_of_{role}_seconds": seconds for role, (seconds, _) in sides.items()}
    money = {
        role: prices.dollars(
            client_seconds=seconds if role == "client" else 0.0,
            server_seconds=0.0 if role == "client" else seconds,
            sent_bytes=sent,
        )
        for role, (seconds, sent) in sides.items()
    }
    figures |= {f"money_of_{role}_dollars": dollars for role, dollars in money.items()}
    return figures | {
        "money_dollars": sum(dollars * (clients if role == "client" else 1) for role, dollars in money.items())
    }


# --- sums of updates --------------------------------------------------------------------------------------------------


class Watched(Aggregator):
    """An aggregator that counts the sums which its server took, by (length, bound)."""

    def __init__(self, inner: Aggregator) -> None:
        self._inner = inner
        self.sums: Counter[tuple[int, int]] = Counter()
        self.name, self.upload, self.guarantee, self.roles = inner.name, inner.upload, inner.guarantee, inner.roles  # type: ignore[misc]

    def check(self, cohort: Cohort) -> None:
        self._inner.check(cohort)

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        return self._inner.setup(role, me, cohort, store, rng)

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        if role == "server":
            self.sums[session.length, session.bound] += 1
        return self._inner.party(role, me, session, vector, store, rng)

    def ideal(self, vectors: Mapping[str, Vector]) -> Sums:
        return self._inner.ideal(vectors)


def _federated(job: Job, choice: str, data: Prepared, links: Sequence[Link], prices: Prices) -> Trained:
    names = data.names
    inner = checked_aggregator(job, names)
    watched = Watched(inner)
    encoding = encoding_of(job, data.start, len(names), preprocess=data.preprocess, class_weights=data.class_weights)
    begin, rounds, curve = time.perf_counter(), list[Round[Any]](), list[float]()
    judging = 0.0
    cohort = Cohort(names, job.train.quorum or default_quorum(len(names)))
    roles, ledger = cohort.parties(inner.roles), Ledger()
    stores = {name: MemoryStore() for name in roles}
    for done in federate(
        data.silos, encoding, job.train, aggregator=watched, rng=SystemRandomness(), ledger=ledger, stores=stores
    ):
        judge = time.perf_counter()
        rounds.append(done)
        if data.test.y.ndim == 1:
            curve.append(accuracy(done.model, data.test.x, data.test.y))
        judging += time.perf_counter() - judge
    seconds = time.perf_counter() - begin - judging
    cost = _Sums.of(inner, cohort, watched.sums)
    figures = quality(rounds[-1].model, data.test) | {"rounds_count": float(len(rounds)), "train_seconds": seconds}
    if rounds[-1].epsilon is not None:
        figures["epsilon_total"] = rounds[-1].epsilon
    figures |= _shared(roles, rounds, seconds, cost, links, prices)
    for name, role in roles.items():
        figure, kept = f"disk_of_{role}_bytes", float(kept_bytes(stores[name]))
        figures[figure] = max(figures.get(figure, 0.0), kept)  # of the client that keeps most
    figures["disk_of_server_bytes"] += len(artifact_bytes(rounds[-1].model, data.preprocess))
    figures["disk_of_server_bytes"] += sum(map(len, ledger.lines_after()))
    return Trained(figures, training_guarantee(job, data, choice), tuple(curve), rounds[-1].model)


def _shared(
    roles: Mapping[str, str],
    rounds: Sequence[Round[Any]],
    seconds: float,
    cost: _Sums,
    links: Sequence[Link],
    prices: Prices,
) -> dict[str, float]:
    """Return the figures of work, bytes, links and money; `roles` is who has which."""
    names = [name for name, role in roles.items() if role == "client"]
    worked: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for done in rounds:
        worked.update(done.seconds)
        sent.update(done.bytes_up)
    servers = sum(value for name, value in worked.items() if name not in names)
    protocol = sum(worked.values())
    local = max(0.0, seconds - protocol) / len(names)
    client = local + float(np.mean([worked[name] for name in names]))
    told = 8.0 * cost.numbers  # what was released, to each party
    figures = {
        "upload_bytes": float(np.mean([sent[name] for name in names])),
        "download_bytes": cost.received(names) + told,
        "cpu_client_seconds": client,
        "cpu_server_seconds": servers,
    }
    for link in links:
        reply = len(rounds) * link.delay_seconds + 8 * told * len(names) / link.bits_per_second
        figures[f"train_{link.name}_seconds"] = local + cost.seconds(link) + reply
    sides = {"client": (client, figures["upload_bytes"])}
    for name in [name for name in roles if name not in names]:
        released = told * len(names) if roles[name] == "server" else 0.0
        sides[roles[name]] = (worked[name], sent[name] + released)
    return figures | _of_roles(sides, prices, clients=len(names))


@dataclass(frozen=True, slots=True)
class _Sums:
    """The sums of a training, one of each length run alone.

    Args:
        setup: of the aggregator.
        taken: (how many, the transcript of one).
        numbers: that all sums have together.
    """

    setup: Transcript
    taken: tuple[tuple[int, Transcript], ...]
    numbers: int

    @staticmethod
    def of(aggregator: Aggregator, cohort: Cohort, counted: Mapping[tuple[int, int], int]) -> _Sums:
        often = sorted(counted, key=lambda one: -counted[one])
        run_alone = often[:_LENGTHS]
        counts = {one: counted[one] for one in run_alone}
        for other in often[_LENGTHS:]:
            counts[min(run_alone, key=lambda one: abs(one[0] - other[0]))] += counted[other]
        setup, taken = Transcript(), list[tuple[int, Transcript]]()
        for (length, bound), count in counts.items():
            setup, single = one_sum(aggregator, cohort, length=length, bound=bound)
            taken.append((count, single))
        return _Sums(setup, tuple(taken), sum(length * count for (length, _), count in counted.items()))

    def seconds(self, link: Link) -> float:
        return link.seconds(self.setup) + sum(count * link.seconds(single) for count, single in self.taken)

    def received(self, names: Sequence[str]) -> float:
        return float(
            np.mean(
                [
                    self.setup.bytes_received(name) + sum(count * one.bytes_received(name) for count, one in self.taken)
                    for name in names
                ]
            )
        )


def one_sum(aggregator: Aggregator, cohort: Cohort, *, length: int, bound: int) -> tuple[Transcript, Transcript]:
    """Return the transcripts of a set-up and of one sum of zeros; protected or not, its messages are as long as others.

    Raises:
        ConfideError: a party broke off.
    """
    rng, roles = SystemRandomness(), cohort.parties(aggregator.roles)
    stores = {name: MemoryStore() for name in roles}
    setup = run(
        {me: aggregator.setup(role, me, cohort, stores[me], rng) for me, role in roles.items()},
        stores=stores,
        keep_bodies=False,
    )
    session = Session(run="cost", round=1, cohort=cohort, length=length, bound=bound)
    zeros = np.zeros(length, np.int64)
    parties = {
        me: aggregator.party(role, me, session, zeros if role == "client" else None, stores[me], rng)
        for me, role in roles.items()
    }
    single = run(parties, stores=stores, keep_bodies=False)
    for name in roles:
        setup.output(name)
    single.output(cohort.server)
    return setup, single


# --- on shares --------------------------------------------------------------------------------------------------------

_SERVERS = ("server", "helper", "dealer")

#: Of training on shares, with the names of roles that backends have.
SHARES_GUARANTEE = Guarantee(
    claims=frozenset(
        {
            *(
                Claim(asset, one, tuple(other for other in _SERVERS if other != one))
                for asset in ("update", "record", "weights")
                for one in _SERVERS
            ),
            Claim("update", "other clients", _SERVERS),
        }
    ),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.NON_COLLUSION,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks=(
        "All know how many rows and columns each party has, the layers and the steps. Any two of server, helper and "
        "dealer together read rows and weights. All are taken to follow the protocol. Who is given the opened model "
        "learns what it remembers of records."
    ),
    primary="additive shares mod 2^64, distributed comparison functions and streams from AES-128",
    paper="ePrint 2020/1392; ePrint 2019/1095; docs/training-on-shares.md",
)


def _on_shares(job: Job, links: Sequence[Link], prices: Prices) -> Trained:
    rng = SystemRandomness()
    rows = load_rows(job, rng)
    prepared = prepare_on_shares(job, rows)
    begin = time.perf_counter()
    finished = prepared.run(rng=rng)
    seconds = time.perf_counter() - begin
    graph, done = finished.graph, finished.result.transcript
    assert graph is not None  # no folder of shares was asked for
    owners = list(rows.pieces)
    test = Silo("test", rows.test_x, rows.test_y)
    others = {event.party for event in done.events} - set(owners)
    client = float(np.mean([done.seconds(name) for name in owners]))
    server = sum(done.seconds(name) for name in others)
    figures = quality(graph, test) | {
        "rounds_count": float(prepared.course.passes),
        "train_seconds": seconds,
        "upload_bytes": float(np.mean([done.bytes_sent(name) for name in owners])),
        "download_bytes": float(np.mean([done.bytes_received(name) for name in owners])),
        "offline_bytes": float(sum(finished.result.offline_bytes.values())),
        "depth_count": float(done.depth),
        "cpu_client_seconds": client,
        "cpu_server_seconds": server,
        **over_links(done, links, stem="train"),
    }
    sides = {"client": (client, figures["upload_bytes"])}
    named = dict(zip((*SERVERS, DEALER), _SERVERS, strict=True))
    sides |= {role: (done.seconds(name), float(done.bytes_sent(name))) for name, role in named.items()}
    figures |= _of_roles(sides, prices, clients=len(owners))
    figures["disk_of_server_bytes"] = float(len(artifact_bytes(graph, rows.preprocess)))
    return Trained(figures, SHARES_GUARANTEE, (), graph)


def quality(graph: Graph, test: Silo) -> dict[str, float]:
    """Return how good a model is on test records: accuracy, AUC of two classes; or the concordance of survival."""
    if test.y.ndim != 1:
        y = test.y.astype(np.float64)
        return {"concordance_share": concordance(graph.apply(test.x)[:, 0], y[:, 0], test.y[:, 1])}
    found = {"accuracy_share": accuracy(graph, test.x, test.y)}
    if graph.outputs == 1 and 0 < int(test.y.sum()) < len(test.y):
        found["auc_share"] = auc(graph.apply(test.x)[:, -1], test.y)
    return found
