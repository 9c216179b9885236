"""Predictions of one technique, with all of its roles in this process: every figure comes from transcripts.

Each query is one run of the parties and gives a `Transcript`: the work of each role, the bytes in each direction, the
longest chain of messages, and from these the seconds over any link. Correlations that a technique deals ahead are dealt
before, and are figures of their own. What a served technique adds on top (HTTP, TLS) is not in them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.compare.attack import extraction
from confide.compare.cells import VARIANTS
from confide.compare.links import Link, over_links
from confide.compare.prices import Prices
from confide.compare.resources import kept_bytes, peak_memory
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ModelError, UsageError
from confide.guarantee import Guarantee
from confide.he.backend import Homomorphic
from confide.ideal import Backend, Kit
from confide.model.graph import Graph, Linear, Sigmoid
from confide.mpc.dealt import Dealt
from confide.serve import load_backend
from confide.tee.backend import Accept, Enclaved, graph_sha256
from confide.tee.policy import Policy, SimulatedRules
from confide.tee.simulated import Simulated, measure_code
from confide.train.evaluate import decide
from confide.wire import MemoryStore, Transcript, run

Matrix = NDArray[np.float64]

#: What stands on figures of a simulated enclave.
SIMULATED_TITLE = "simulated: protocol overhead only, not hardware"
#: A technique is asked no more once its queries have taken this long and there are `_FEWEST`.
_ENOUGH_SECONDS = 20.0
_FEWEST = 5
#: Deals that are ordered at a time, at most.
_MOST_DEALS = 64
#: Models with more inputs are not copied: that takes features + 1 queries.
_MOST_COPIED = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """What a technique's predictions gave.

    Args:
        figures: single ones.
        samples: of each query but the first, which is cold.
        guarantee: what held.
        repeats: queries.
    """

    figures: dict[str, float]
    samples: dict[str, tuple[float, ...]]
    guarantee: Guarantee
    repeats: int


def backend_of(choice: str, graph: Graph, x: Matrix) -> Backend:
    """Return the backend of a technique, for a model and inputs like `x`; a simulated enclave's client accepts it.

    Raises:
        MissingExtra: it needs a package that is not installed.
        ModelError: there is none of that name.
    """
    bound = float(max(1.0, 2.0 ** np.ceil(np.log2(max(1e-9, float(np.abs(x).max(initial=0.0)))))))
    name = VARIANTS.get(choice, choice)
    if name == "he":
        return Homomorphic(protect_model=choice == "he", input_bound=bound)
    if name == "tee":
        rules = SimulatedRules(measurements=(measure_code(),))
        policy = Policy(model_sha256=(graph_sha256(graph),), simulated=rules)
        return Enclaved(attester=Simulated(), accept=Accept(policy, allow_simulated=True))
    made: Any = load_backend(name)
    return type(made)(input_bound=bound) if name == "paillier" else made


def misfit(choice: str, backend: Backend, graph: Graph) -> str | None:
    """Return why a technique does not fit a model; None if it does."""
    if problems := backend.check(graph):
        return "; ".join(map(str, problems))
    if choice == "he-open" and not is_linear(graph):
        return "the same as he for this model: only replies of linear models are protected further"
    return None


def is_linear(graph: Graph) -> bool:
    """Return whether a model is one linear layer with one output, and a sigmoid."""
    kinds = [type(layer) for layer in graph.layers]
    return kinds == [Linear, Sigmoid] and graph.outputs == 1


@dataclass(slots=True)
class Sitting:
    """All roles of one technique with a kit and a store each; the client's kit has travelled.

    Args:
        backend: the technique.
        graph: the model.
        rng: secret randomness.
    """

    backend: Backend
    graph: Graph
    rng: Randomness = field(default_factory=SystemRandomness)
    kits: dict[str, Kit] = field(init=False, repr=False)
    stores: dict[str, MemoryStore] = field(init=False, repr=False)
    dealt: list[Transcript] = field(init=False, default_factory=list[Transcript], repr=False)
    deals: int = field(init=False, default=0)
    most_kept: dict[str, int] = field(init=False, default_factory=dict[str, int], repr=False)

    def __post_init__(self) -> None:
        self.kits = self.backend.prepare(self.graph, self.rng)
        public = self.backend.public_role
        self.kits[public] = self.backend.decode_kit(public, self.kits[public].encode())
        self.stores = {role: MemoryStore() for role in self.backend.roles}

    def setup(self) -> Transcript:
        """Set everybody up, once."""
        parties = {
            role: self.backend.setup(role, self.kits[role], self.stores[role], self.rng) for role in self.backend.roles
        }
        done = self._ended(run(parties, stores=self.stores, keep_bodies=False))
        self.note_kept()
        return done

    def stock(self, count: int) -> None:
        """Deal correlations ahead for the next predictions, where the technique has any, if there are none."""
        if not isinstance(self.backend, Dealt) or not self._stock_is_empty():
            return
        backend = self.backend
        count = max(1, min(count, _MOST_DEALS, backend.deals_at_a_time(self.kits["client"], rows=1)))
        parties = {
            role: backend.deal(role, self.kits[role], self.stores[role], self.rng, rows=1, count=count)
            for role in backend.roles
        }
        self.dealt.append(self._ended(run(parties, stores=self.stores, keep_bodies=False)))
        self.deals += count
        self.note_kept()

    def predict(self, x: Matrix) -> Transcript:
        """Ask for one row, shape (1, features); a dealer takes part only where nothing lies in stock."""
        absent = isinstance(self.backend, Dealt) and not self._stock_is_empty()
        parties = {
            role: self.backend.predict(
                role, self.kits[role], x if role == "client" else None, self.stores[role], self.rng
            )
            for role in self.backend.roles
            if not (absent and role == "dealer")
        }
        return self._ended(run(parties, stores=self.stores, keep_bodies=False))

    def note_kept(self) -> None:
        """Note the most that each role has in its store: keys, correlations, journals."""
        for role, store in self.stores.items():
            self.most_kept[role] = max(self.most_kept.get(role, 0), kept_bytes(store))

    def _stock_is_empty(self) -> bool:
        assert isinstance(self.backend, Dealt)
        return self.backend.needs_dealer(self.kits["client"], self.stores["client"], rows=1)

    def _ended(self, done: Transcript) -> Transcript:
        for error in done.failures.values():
            raise error
        return done


def asked(
    choice: str,
    graph: Graph,
    x: Matrix,
    *,
    links: Sequence[Link],
    prices: Prices,
    attack: bool = True,
    model_bytes: int = 0,
) -> Asked:
    """Ask one technique for predictions, one row at a time.

    Args:
        choice: out of `cells.inference_choices`.
        graph: the model; what it gives in the clear is the truth.
        x: the rows, float64, shape (queries, features), at least 2.
        links, prices: of the costs.
        attack: copies a linear model from its answers as well.
        model_bytes: of the model's file, which the server keeps.

    Raises:
        ModelError: the technique does not run this model; the text says what to change.
        ConfideError: it needs what is not here, or broke off.
    """
    if len(x) < 2:
        raise UsageError(f"Expected at least 2 queries to measure, got {len(x)}")
    backend = backend_of(choice, graph, x)
    if problem := misfit(choice, backend, graph):
        raise ModelError(problem)
    with peak_memory() as peak:
        begin = time.perf_counter()
        sitting = Sitting(backend, graph)
        prepared = time.perf_counter() - begin
        setup = sitting.setup()
        setup_seconds = time.perf_counter() - begin
        seconds, runs, answers = _queries(sitting, x)
    # row by row, as it is asked: sums of several rows at once may round otherwise
    y, expected = np.vstack(answers), np.vstack([graph.apply(row[None, :]) for row in x[: len(answers)]])
    figures = {
        "prepare_seconds": prepared,
        "setup_seconds": setup_seconds,
        "first_seconds": seconds[0],
        "key_bytes": float(setup.bytes_sent("client")),
        "setup_bytes": float(sum(setup.sizes)),
        "depth_count": float(runs[-1].depth),
        "error_largest": float(np.abs(y - expected).max()),
        "agreement_share": float((decide(y) == decide(expected)).mean()),
        **peak.figures(),
    }
    samples = _samples(seconds[1:], runs[1:], links)
    offline = _offline(sitting, links)
    sitting.note_kept()
    kept = {f"disk_of_{role}_bytes": float(size) for role, size in sitting.most_kept.items()}
    kept["disk_of_server_bytes"] += model_bytes
    figures |= offline | kept | _percentiles(samples["latency_seconds"])
    figures |= _shares(runs[1:], sitting.dealt, sitting.deals, prices)
    if attack and is_linear(graph) and graph.features <= _MOST_COPIED:
        figures |= _copied(sitting, graph, x)
    return Asked(figures, samples, backend.guarantee_for(graph), len(runs))


def _queries(sitting: Sitting, x: Matrix) -> tuple[list[float], list[Transcript], list[Matrix]]:
    seconds, runs, answers = list[float](), list[Transcript](), list[Matrix]()
    for place, row in enumerate(x):
        if place >= _FEWEST and sum(seconds) > _ENOUGH_SECONDS:
            break
        sitting.stock(len(x) - place)
        begin = time.perf_counter()
        done = sitting.predict(row[None, :])
        seconds.append(time.perf_counter() - begin)
        runs.append(done)
        answers.append(np.asarray(done.output("client"), np.float64))
    return seconds, runs, answers


def _samples(
    seconds: Sequence[float], runs: Sequence[Transcript], links: Sequence[Link]
) -> dict[str, tuple[float, ...]]:
    rows = [
        {
            "latency_seconds": took,
            "upload_bytes": float(done.bytes_sent("client")),
            "download_bytes": float(done.bytes_received("client")),
            "cpu_client_seconds": done.seconds("client"),
            "cpu_server_seconds": sum(event.seconds for event in done.events if event.party != "client"),
            **over_links(done, links, stem="latency"),
        }
        for took, done in zip(seconds, runs, strict=True)
    ]
    return {name: tuple(row[name] for row in rows) for name in rows[0]}


def _offline(sitting: Sitting, links: Sequence[Link]) -> dict[str, float]:
    """Return what dealing ahead takes for each prediction."""
    if not sitting.dealt:
        return {"offline_bytes": 0.0}
    total, count = sitting.dealt, sitting.deals
    found = {
        "offline_bytes": sum(sum(done.sizes) for done in total) / count,
        "cpu_offline_seconds": sum(event.seconds for done in total for event in done.events) / count,
    }
    return found | {f"offline_{link.name}_seconds": sum(map(link.seconds, total)) / count for link in links}


def _percentiles(latency: Sequence[float]) -> dict[str, float]:
    p95, p99 = np.percentile(latency, [95, 99])
    return {"latency_p95_seconds": float(p95), "latency_p99_seconds": float(p99)}


def _shares(runs: Sequence[Transcript], dealt: Sequence[Transcript], deals: int, prices: Prices) -> dict[str, float]:
    """Return what follows from the work of each role: the busiest server's rate, bytes between servers, money."""
    roles = dict.fromkeys(event.party for done in (*runs, *dealt) for event in done.events)
    online = {role: float(np.median([done.seconds(role) for done in runs])) for role in roles}
    ahead = {role: sum(done.seconds(role) for done in dealt) / max(1, deals) for role in roles}
    sent = {role: float(np.median([done.bytes_sent(role) for done in runs])) for role in roles}
    sent_ahead = {role: sum(done.bytes_sent(role) for done in dealt) / max(1, deals) for role in roles}
    of_client = [done.bytes_sent("client") + done.bytes_received("client") for done in runs]
    all_sent = float(np.median([sum(done.sizes) for done in runs]))
    figures = {
        "busiest_role_rate": 1 / max(1e-9, *(seconds for role, seconds in online.items() if role != "client")),
        "between_servers_bytes": max(0.0, all_sent - float(np.median(of_client))),
        "query_total_bytes": sum(sent.values()) + sum(sent_ahead.values()),
    }
    for role in roles:
        figures[f"cpu_of_{role}_seconds"] = seconds = online[role] + ahead[role]
        side = "client_seconds" if role == "client" else "server_seconds"
        work = {"client_seconds": 0.0, "server_seconds": 0.0, side: 1000 * seconds}
        figures[f"money_of_{role}_dollars"] = prices.dollars(**work, sent_bytes=1000 * (sent[role] + sent_ahead[role]))
    return figures | {"money_dollars": sum(figures[f"money_of_{role}_dollars"] for role in roles)}


def _copied(sitting: Sitting, graph: Graph, x: Matrix) -> dict[str, float]:
    def ask(rows: Matrix) -> Matrix:
        found: list[Matrix] = []
        for place, row in enumerate(rows):
            sitting.stock(len(rows) - place)
            found.append(np.asarray(sitting.predict(row[None, :]).output("client"), np.float64))
        return np.vstack(found)

    attack = extraction(ask, graph, x)
    return {"extraction_queries": float(attack.queries), "extraction_agreement_share": attack.agreement}
