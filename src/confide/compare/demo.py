"""The main job from end to end: four hospitals train one model, a server serves it to a patient.

`stages` says what will be done and how many steps each stage has; `run` does it and reports every step, so that the
caller can draw bars. The servers are real processes of `confide serve`, asked over HTTP on the loopback interface.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.compare.advise import Advice, Need, advise
from confide.compare.hosted import hosted
from confide.compare.measure import Trial, inference, training, training_choices, training_records
from confide.compare.plots import Picture, curves, dots, stacked
from confide.compare.record import Record, Spread
from confide.compare.report import Section, title, write
from confide.compare.techniques import TRAINING
from confide.errors import UsageError
from confide.model.graph import Graph
from confide.serve.client import Client
from confide.store import SqliteStore
from confide.train.job import parse
from confide.train.output import Output
from confide.train.run import Prepared, load_data, train
from confide.train.sections import Job
from confide.wire import MemoryStore

Matrix = NDArray[np.float64]

#: The demo's job: settings fixed in advance, the same for every technique.
JOB: Mapping[str, Any] = {
    "job": {"name": "demo"},
    "data": {"set": "breast-cancer", "parties": 4, "split": "by-label", "alpha": 1.0, "test_fraction": 0.2},
    "train": {"aggregate": "masked", "quorum": 3},
    "privacy": {"epsilon": 1.0, "delta": 1e-5, "colluding": 1, "expected_records": 455},
}

#: How much accuracy a recommended training may lose against pooled records.
ENOUGH = 0.03

#: The servers: the backends of each, and its further options.
_SERVERS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("plain", "he", "paillier"), ()),
    (("he",), ("--open-model",)),
)

#: How each technique is asked: (choice, backend, which of the servers).
SERVED: tuple[tuple[str, str, int], ...] = (
    ("plain", "plain", 0),
    ("he", "he", 0),
    ("he-open", "he", 1),
    ("paillier", "paillier", 0),
)

#: Called as (stage, steps done, steps in all, what is being done).
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a demo found.

    Args:
        training, inference: the measured rows.
        advice: recommendations by the question they answer.
        report: the HTML file.
    """

    training: list[Record]
    inference: list[Record]
    advice: dict[str, Advice]
    report: Path


def run(report: Path, *, seeds: int, queries: int, progress: Progress) -> Outcome:
    """Run the main job and write its report.

    Args:
        report: the HTML file, replaced if it exists.
        seeds: splits over which training is repeated, >= 1.
        queries: predictions timed per technique, >= 2.
        progress: called after every step.

    Raises:
        UsageError: numbers out of range, or a report that cannot be written (known before the work starts).
    """
    if seeds < 1 or queries < 2:
        raise UsageError(f"Expected seeds={seeds} at least 1 and queries={queries} at least 2")
    if not report.parent.is_dir() or report.is_dir():
        raise UsageError(f"Expected a file in a folder that exists for the report, got {report}; make the folder first")
    job = parse(dict(JOB))
    with tempfile.TemporaryDirectory(prefix="confide-demo-") as name, ExitStack() as stack:
        folder = Path(name)
        progress("model to serve", 0, 2, "training, saving, starting servers")
        model = _model(folder)
        urls = [stack.enter_context(hosted(model.path, names, *options)) for names, options in _SERVERS]
        # 3072-bit keys take seconds to make and are made by a client of its own
        pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        keys = pool.submit(make_keys, urls[0], "paillier", folder / "paillier.sqlite")
        progress("model to serve", 1, 2, "served; making Paillier keys")
        keys.result()  # seconds, which must not weigh on what is timed below
        progress("model to serve", 2, 2, "served")
        trials = _train(job, seeds, progress)
        data = load_data(job)
        records = training_records(job, data, trials)
        answers = _ask(model, urls, keys, folder, queries, progress)
    found = _advice(records, answers)
    progress("report", 0, 1, "drawing")
    write(
        report,
        heading="One model, trained privately and served privately",
        intro=(
            "Four hospitals train one diagnostic model without pooling their records, then a server answers a patient "
            "who does not trust it. Every figure was measured on this machine a moment ago; every technique stands "
            "beside what it promises."
        ),
        sections=_sections(data, trials, records, answers, model.label),
        advice=found,
    )
    progress("report", 1, 1, "written")
    return Outcome(records, answers, found, report)


def _train(job: Job, seeds: int, progress: Progress) -> list[Trial]:
    choices = training_choices(job)
    steps = seeds * len(choices)
    trials: list[Trial] = []
    progress("training", 0, steps, choices[0])
    for trial in training(job, range(1, seeds + 1), choices):
        trials.append(trial)
        following = choices[len(trials) % len(choices)]
        progress("training", len(trials), steps, f"split {trial.seed}: {following}")
    return trials


@dataclass(frozen=True, slots=True)
class _Served:
    """The model that the servers serve, and what this process needs to judge their answers."""

    path: Path
    graph: Graph
    label: str
    x: Matrix


def _model(folder: Path) -> _Served:
    """Train the model to serve, save it signed with its label, serve it under each technique and ask.

    It is the private one: 31 answers give the model away, so what the model says of a record must be bounded before.
    """
    output = {"model": "model.confide", "ledger": "ledger.jsonl", "signing_key": "signing.pem"}
    job = parse({**JOB, "output": output}, base=folder)
    files = Output(job)
    data = load_data(job, ledger=files.ledger)
    last = list(train(job, data, ledger=files.ledger))[-1]
    artifact = files.save(data, last)
    return _Served(job.path(output["model"]), last.model, artifact.label.sentence(), data.test.x)


def make_keys(url: str, backend: str, path: Path) -> tuple[float, int]:
    """Set up a client of `url` whose keys are kept at `path`; return the seconds it took and the bytes it uploaded."""
    begin = time.perf_counter()
    with Client(url, backend=backend, store=SqliteStore(path)) as client:
        uploaded = client.setup().bytes_sent("client")
    return time.perf_counter() - begin, uploaded


def _ask(
    model: _Served, urls: Sequence[str], keys: Future[tuple[float, int]], folder: Path, queries: int, progress: Progress
) -> list[Record]:
    x = np.resize(model.x, (queries, model.graph.features))
    setting = f"logistic model of {model.graph.features} features over HTTP on loopback, one query at a time"
    records: list[Record] = []
    for choice, backend, place in SERVED:
        count = _Counter(progress, len(records) * queries, len(SERVED) * queries, choice)
        ahead = keys.result() if backend == "paillier" else None
        store = SqliteStore(folder / "paillier.sqlite") if ahead else MemoryStore()
        with Client(urls[place], backend=backend, store=store) as client:
            plain = records[0] if records else None
            records.append(
                inference(client, choice, model.graph, x, setting=setting, plain=plain, ahead=ahead, each=count)
            )
    return records


class _Counter:
    """Reports one more query each time it is called."""

    def __init__(self, progress: Progress, done: int, steps: int, choice: str) -> None:
        self._progress, self._done, self._steps, self._choice = progress, done, steps, choice
        progress("inference", done, steps, f"{choice}: set-up")

    def __call__(self) -> None:
        self._progress("inference", self._done + 1, self._steps, self._choice)
        self._done += 1


def _advice(records: Sequence[Record], answers: Sequence[Record]) -> dict[str, Advice]:
    private = [record for record in records if record.choice != "pooled"]
    pooled = next(record for record in records if record.choice == "pooled")
    enough = (pooled.figure("accuracy_share") or 0.0) - ENOUGH
    lone = "needs a {} of another owner, and the hospitals have one coordinator"
    absent = {"helper": lone.format("second server"), "keyholder": lone.format("keyholder")}
    update = Need("update", "server", "the coordinator is not one of the hospitals")
    record = Need("record", "outsiders", "whoever asks often enough holds the model, and with it what it remembers")
    query = Need("query", "server", "the patient does not trust it")
    weights = Need("weights", "client", "the hospitals own the model")
    return {
        "Training: the coordinator may not see an update, the model may not remember a patient": advise(
            private, [update, record], cost="train_seconds", least=("accuracy_share", enough), absent=absent
        ),
        "Training, if the model stays inside the hospitals": advise(
            private, [update], cost="train_seconds", least=("accuracy_share", enough), absent=absent
        ),
        "Inference: the server may not see the patient, the patient not the weights": advise(
            answers, [query, weights], cost="latency_seconds"
        ),
        "Inference, if the patient may know the model": advise(answers, [query], cost="latency_seconds"),
        "Inference, if the patient trusts the server": advise(answers, [], cost="latency_seconds"),
    }


# --- the report -------------------------------------------------------------------------------------------------------


def _sections(
    data: Prepared, trials: Sequence[Trial], records: Sequence[Record], answers: Sequence[Record], label: str
) -> list[Section]:
    plain, masked = ([t.figures["accuracy_share"] for t in trials if t.choice == c] for c in ("plain", "masked"))
    same = "the same accuracy on every split" if plain == masked else "accuracies that differ"
    return [
        Section(
            "Training",
            "Four hospitals hold different numbers of patients and different shares of each diagnosis. Every technique "
            f"trains on the same splits with the same settings. Secure aggregation gives {same} as the plain sum: it "
            "adds the same integers, it only hides the addends. All parties run in one process here, without a "
            "network; seconds are those of their own work.",
            (_holdings(data), _accuracies(records), _rounds(trials), _traffic(records)),
            tuple(records),
        ),
        Section(
            "Inference",
            f"The private model ({label}) behind an HTTP server, asked one patient at a time on the loopback "
            "interface, without TLS under every technique. The first answer is cold. The extraction attack asked for "
            "31 answers under every technique and decided like the true model on "
            + ", ".join(f"{_share(record, 'extraction_agreement_share')} ({title(record)})" for record in answers)
            + " of the test patients. Only a quota of queries helps against that, or a model that remembers no record.",
            (_latencies(answers), _bytes(answers)),
            tuple(answers),
        ),
    ]


def _share(record: Record, name: str) -> str:
    return f"{100 * (record.figure(name) or 0.0):.0f} %"


def _holdings(data: Prepared) -> Picture:
    classes = data.start.classes or ("0", "1")
    rows = {
        silo.name: {name: float((silo.y == place).sum()) for place, name in enumerate(classes)} for silo in data.silos
    }
    return stacked(rows, label="patients", caption="Who holds what on the first split.")


def _accuracies(records: Sequence[Record]) -> Picture:
    rows = {title(record): record.figures["accuracy_share"] for record in records}
    caption = "Accuracy on held-out patients: median and 5th to 95th percentile over the splits."
    return dots(rows, label="accuracy, %", caption=caption, factor=100)


def _rounds(trials: Sequence[Trial]) -> Picture:
    rows: dict[str, list[float]] = {}
    for choice in dict.fromkeys(trial.choice for trial in trials if trial.curve):
        lines = [trial.curve for trial in trials if trial.choice == choice]
        rows[TRAINING[choice].title] = [float(np.mean(points)) for points in zip(*lines, strict=False)]
    caption = "Mean accuracy after each round. The plain sum and secure aggregation lie on one line."
    return curves(rows, across="round", label="accuracy, %", caption=caption, factor=100)


def _traffic(records: Sequence[Record]) -> Picture:
    rows = {title(record): record.figures["upload_bytes"] for record in records if record.figure("rounds_count")}
    return dots(
        rows, label="kB sent per hospital, all rounds", caption="What each hospital sends.", factor=1e-3, log=True
    )


def _latencies(answers: Sequence[Record]) -> Picture:
    rows = {title(record): record.figures["latency_seconds"] for record in answers}
    return dots(
        rows, label="ms per query, end to end", caption="Median and 5th to 95th percentile.", factor=1e3, log=True
    )


def _bytes(answers: Sequence[Record]) -> Picture:
    rows: dict[str, Spread] = {}
    for record in answers:
        rows[f"{title(record)}: up"] = record.figures["upload_bytes"]
        rows[f"{title(record)}: down"] = record.figures["download_bytes"]
    return dots(rows, label="bytes per query", caption="What one query moves, HTTP headers not counted.", log=True)
