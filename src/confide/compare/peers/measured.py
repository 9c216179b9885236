"""A peer's variant on the job's own records and model: what it is given, and figures of the same names as ours."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.compare.inference import Asked
from confide.compare.links import Link
from confide.compare.peers.answers import InferenceAnswer, TrainingAnswer, read_inference, read_training
from confide.compare.peers.catalogue import Peer, Variant
from confide.compare.peers.environment import RUNNERS, Environment, pins_hash
from confide.compare.peers.process import ask
from confide.compare.prices import Prices
from confide.compare.training import Trained
from confide.errors import JobError, ModelError
from confide.guarantee import Guarantee
from confide.model.graph import Graph, Linear, Sigmoid
from confide.train.evaluate import auc, decide
from confide.train.local import targets
from confide.train.run import Prepared
from confide.train.sections import Job

Matrix = NDArray[np.float64]

#: A peer is asked no more once its queries have taken this long and there are three.
_ENOUGH_SECONDS = 20.0
#: Rows by which a peer that quantises finds its ranges, at most.
_MOST_CALIBRATION = 512


@dataclass(frozen=True, slots=True)
class Asking:
    """One variant of an installed peer.

    Args:
        environment: of the peer.
        variant: what is measured.
        seconds: that one measurement may take.
    """

    environment: Environment
    variant: Variant
    seconds: float

    @property
    def peer(self) -> Peer:
        """Return whose variant it is."""
        return self.environment.peer

    def name(self) -> dict[str, str]:
        """Return what its figures rest on: versions, and the script; the cache names cells by it."""
        script = hashlib.sha256()
        for path in sorted(RUNNERS.glob("*.py")):
            script.update(path.read_bytes())
        stamp = self.environment.stamp()
        return {
            "pins": pins_hash(self.peer),
            "scripts": script.hexdigest(),
            "python": "" if stamp is None else stamp.python,
            "settings": repr(sorted(self.variant.settings.items())),
        }

    def run(self, task: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> tuple[bytes, float]:
        """Return the answer, unread, and the seconds of the process. Raises ProtocolError as `ask`."""
        given = {**task, **self.variant.settings, "task": self.variant.task}
        return ask(self.environment.python, self.environment.runner, given, arrays, seconds=self.seconds)


def _layers(graph: Graph, allowed: Sequence[str], title: str) -> list[str]:
    """Return a graph's kinds of layers, without a last sigmoid. Raises ModelError for one that the peer has not."""
    layers = graph.layers[:-1] if isinstance(graph.layers[-1], Sigmoid) else graph.layers
    kinds = [type(layer).__name__ for layer in layers]
    if absent := sorted(set(kinds) - set(allowed)):
        raise ModelError(
            f"{title} is asked for {', '.join(allowed)} layers here, and this model has {', '.join(absent)}"
        )
    return kinds


def _arrays(graph: Graph, stem: str = "layer") -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for number, layer in enumerate(graph.layers):
        if isinstance(layer, Linear):
            found |= {f"{stem}.{number}.weight": layer.weight, f"{stem}.{number}.bias": layer.bias}
    return found


# --- training ---------------------------------------------------------------------------------------------------------


def trained(job: Job, data: Prepared, asking: Asking, *, prices: Prices) -> Trained:
    """Have a peer train once on the parties' own parts; it never gets the labels of the test records.

    Args:
        job: with the seed, the rounds and, for a private variant, epsilon and delta.
        data: of the job.
        asking: which peer.
        prices: of money_dollars.

    Raises:
        JobError: the peer does not train this job's model.
        ProtocolError: the peer failed, or its answer was not what was asked for.
    """
    variant = asking.variant
    if job.model.kind not in variant.models or data.test.y.ndim != 1:
        raise JobError(f"{variant.title} is asked to train {' and '.join(variant.models)} models here")
    x = [np.asarray(silo.x, np.float64) for silo in data.silos]
    outputs = data.start.outputs
    task: dict[str, Any] = {
        "seed": job.job.seed,
        "rounds": job.train.rounds,
        "parties": len(x),
        "outputs": outputs,
        "layers": _layers(data.start, ("Linear", "Square"), variant.title),
        "largest_feature": max(float(np.abs(one).max(initial=0.0)) for one in x),
    }
    if variant.private:
        assert job.privacy is not None  # the job of a private variant has it
        task |= {"epsilon": job.privacy.epsilon, "delta": _delta(job)}
    arrays = _arrays(data.start) | {"x_test": np.asarray(data.test.x, np.float64)}
    for number, silo in enumerate(data.silos):
        arrays |= {f"x.{number}": x[number], f"y.{number}": targets(silo.y, outputs)}
    body, took = asking.run(task, arrays)
    epsilon = task["epsilon"] if variant.private else None
    found = read_training(
        body, version=asking.peer.version, rows=len(data.test.y), outputs=outputs, took_seconds=took, epsilon=epsilon
    )
    figures = _quality(found.predictions, data.test.y) | _of_training(found, len(x))
    if variant.one_place:
        figures["upload_bytes"] = float(np.mean([silo.x.nbytes + silo.y.nbytes for silo in data.silos]))
    if {"cpu_client_seconds", "upload_bytes"} <= set(figures):
        figures["money_dollars"] = prices.dollars(
            client_seconds=figures["cpu_client_seconds"] * len(x),
            server_seconds=figures["cpu_server_seconds"],
            sent_bytes=(figures["upload_bytes"] + figures.get("download_bytes", 0.0)) * len(x),
        )
    curve = tuple(float((decide(np.array(point)) == data.test.y).mean()) for point in found.curve)
    return Trained(figures, promised(variant, job), curve)


def _delta(job: Job) -> float:
    """Return the job's delta; where it leaves it to confide, one below 1 in so many records."""
    assert job.privacy is not None
    return job.privacy.delta or 1 / (10 * job.privacy.expected_records)


def promised(variant: Variant, job: Job) -> Guarantee:
    """Return a variant's guarantee with the job's numbers in its words."""
    if not variant.private or job.privacy is None:
        return variant.guarantee
    leaks = variant.guarantee.leaks.format(epsilon=job.privacy.epsilon, delta=_delta(job))
    return replace(variant.guarantee, leaks=leaks)


def _quality(predictions: tuple[tuple[float, ...], ...], y: NDArray[Any]) -> dict[str, float]:
    scores = np.array(predictions, np.float64)
    found = {"accuracy_share": float((decide(scores) == y).mean())}
    if scores.shape[1] == 1 and 0 < int(y.sum()) < len(y):
        found["auc_share"] = auc(scores[:, 0], y)
    return found


def _of_training(found: TrainingAnswer, parties: int) -> dict[str, float]:
    figures = {
        "rounds_count": float(found.rounds),
        "train_seconds": found.train_seconds,
        "setup_seconds": found.setup_seconds,
    }
    given = {
        "upload_bytes": found.upload_bytes,
        "download_bytes": found.download_bytes,
        "epsilon_total": found.epsilon,
        "cpu_client_seconds": found.client_seconds,
        "cpu_server_seconds": found.server_seconds,
        "peak_memory_bytes": found.peak_memory_bytes or None,
    }
    if found.client_seconds is None and found.server_seconds is None and not found.rounds:
        given |= {"cpu_client_seconds": 0.0, "cpu_server_seconds": found.train_seconds}
    return figures | {name: float(value) for name, value in given.items() if value is not None}


# --- predictions ------------------------------------------------------------------------------------------------------


def asked(
    graph: Graph, x: Matrix, calibration: Matrix, asking: Asking, *, links: Sequence[Link], prices: Prices
) -> Asked:
    """Ask a peer for predictions of the same model on the same rows, one at a time.

    Args:
        graph: the model; what it gives in the clear is the truth.
        x: the rows, shape (queries, features).
        calibration: rows of training, by which a peer that quantises finds its ranges.
        asking: which peer.
        links, prices: of the costs.

    Raises:
        ModelError: the peer does not run this model.
        ProtocolError: the peer failed, or its answer was not what was asked for.
    """
    variant = asking.variant
    task: dict[str, Any] = {
        "layers": _layers(graph, variant.layers, variant.title),
        "outputs": graph.outputs,
        "features": graph.features,
        "sigmoid": isinstance(graph.layers[-1], Sigmoid),
        "enough_seconds": _ENOUGH_SECONDS,
        "seconds": asking.seconds,
    }
    arrays = _arrays(graph) | {"x": x, "calibration": calibration[:_MOST_CALIBRATION]}
    body, took = asking.run(task, arrays)
    version = asking.peer.version
    found, y = read_inference(body, version=version, rows=len(x), outputs=graph.outputs, took_seconds=took)
    if not task["sigmoid"]:
        y = np.array(found.outputs, np.float64)
    expected = np.vstack([graph.apply(row[None, :]) for row in x[: len(y)]])
    samples = _samples(found, links)
    figures = {
        "setup_seconds": found.setup_seconds,
        "first_seconds": _whole(found)[0],
        "error_largest": float(np.abs(y - expected).max()),
        "agreement_share": float((decide(y) == decide(expected)).mean()),
    }
    for name in ("key_bytes", "between_servers_bytes", "peak_memory_bytes"):
        if value := getattr(found, name):
            figures[name] = float(value)
    p95, p99 = np.percentile(samples["latency_seconds"], [95, 99])
    figures |= {"latency_p95_seconds": float(p95), "latency_p99_seconds": float(p99)}
    return Asked(figures | _shares(found, samples, prices), samples, variant.guarantee, len(y))


def _whole(found: InferenceAnswer) -> list[float]:
    if found.seconds:
        return list(found.seconds)
    return [client + server for client, server in zip(found.client_seconds, found.server_seconds, strict=True)]


def _samples(found: InferenceAnswer, links: Sequence[Link]) -> dict[str, tuple[float, ...]]:
    """Return the samples of each answer but the first, which is cold."""
    whole = _whole(found)[1:]
    samples = {"latency_seconds": tuple(whole)}
    for name, values in (("cpu_client_seconds", found.client_seconds), ("cpu_server_seconds", found.server_seconds)):
        if values:
            samples[name] = tuple(values[1:])
    up, down = found.query_bytes, found.reply_bytes
    if up is None or down is None:
        return samples
    samples |= {"upload_bytes": (up,) * len(whole), "download_bytes": (down,) * len(whole)}
    for link in links:  # one question, one answer
        way = 2 * link.delay_seconds + 8 * (up + down) / link.bits_per_second
        samples[f"latency_{link.name}_seconds"] = tuple(seconds + way for seconds in whole)
    return samples


def _shares(found: InferenceAnswer, samples: Mapping[str, Sequence[float]], prices: Prices) -> dict[str, float]:
    if not found.client_seconds or found.query_bytes is None or found.reply_bytes is None:
        return {}
    client, server = (float(np.median(samples[f"cpu_{side}_seconds"])) for side in ("client", "server"))
    sent = 1000 * (found.query_bytes + found.reply_bytes)
    dollars = prices.dollars(client_seconds=1000 * client, server_seconds=1000 * server, sent_bytes=sent)
    return {"depth_count": 2.0, "requests_per_second_rate": 1 / max(1e-9, server), "money_dollars": dollars}
