"""The main job from end to end: four hospitals train one model, a server serves it to a patient, everything is measured.

`stages` says what will be done and how many steps each stage has; `run` does it and reports every step, so that the
caller can draw bars. The servers are real processes of `confide serve`, asked over HTTP on the loopback interface.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from confide.compare.advise import Advice, Need, advise
from confide.compare.hosted import hosted
from confide.compare.keys_ahead import KeysAhead
from confide.compare.measure import Trial, inference, training, training_choices, training_records
from confide.compare.plots import Picture, curves, dots, stacked
from confide.compare.record import Record, Spread
from confide.compare.report import Section, title, write
from confide.compare.techniques import TRAINING
from confide.errors import UsageError
from confide.serve.client import Client
from confide.train.job import Job, parse
from confide.train.run import Output, Prepared, load_data, train
from confide.wire import MemoryStore

#: The demo's job: settings fixed in advance, the same for every technique.
JOB = {
    "job": {"name": "demo"},
    "data": {"set": "breast-cancer", "parties": 4, "split": "by-label", "alpha": 1.0, "test_fraction": 0.2},
    "train": {"aggregate": "masked", "quorum": 3, "rounds": 50},
    "privacy": {"epsilon": 1.0, "colluding": 1, "expected_records": 455},
}

#: How each technique is served and asked: (choice, backend, whether the server runs with --open-model).
SERVED: tuple[tuple[str, str, bool], ...] = (
    ("plain", "plain", False),
    ("he", "he", False),
    ("he-open", "he", True),
    ("paillier", "paillier", False),
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
    job = parse(JOB)
    with tempfile.TemporaryDirectory(prefix="confide-demo-") as folder, KeysAhead() as keys:
        trials = _train(job, seeds, progress)
        records = training_records(job, load_data(job), trials)
        answers = _serve(job, Path(folder), keys, queries, progress)
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
        sections=_sections(job, trials, records, answers),
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


def _serve(job: Job, folder: Path, keys: KeysAhead, queries: int, progress: Progress) -> list[Record]:
    """Train the model to serve, save it signed with its label, serve it under each technique and ask.

    It is the private one: 31 answers give the model away, so what the model says of a record must be bounded before.
    """
    output = {"model": "model.confide", "ledger": "ledger.jsonl", "signing_key": "signing.pem"}
    job = parse({**JOB, "output": output}, base=folder)
    data = load_data(job)
    files = Output(job)
    last = list(train(job, data, ledger=files.ledger))[-1]
    files.save(data, last)
    x = np.resize(data.test.x, (queries, data.preprocess.features))
    setting = f"logistic model of {data.preprocess.features} features over HTTP on loopback, one query at a time"
    steps = queries * len(SERVED)
    records: list[Record] = []
    for open_model in (False, True):
        options = ("--open-model",) if open_model else ()
        chosen = [(choice, backend) for choice, backend, is_open in SERVED if is_open == open_model]
        with hosted(job.path(output["model"]), [backend for _, backend in chosen], *options) as url:
            for choice, backend in chosen:
                done = len(records) * queries
                progress("inference", done, steps, f"{choice}: set-up")
                store = keys.store() if backend == "paillier" else MemoryStore()
                with Client(url, backend=backend, store=store) as client:
                    plain = records[0] if records else None
                    ask = _Counter(progress, done, steps, choice)
                    records.append(inference(client, choice, last.graph, x, setting=setting, plain=plain, each=ask))
    order = [choice for choice, _, _ in SERVED]
    return sorted(records, key=lambda record: order.index(record.choice))


class _Counter:
    """Reports one more query each time it is called."""

    def __init__(self, progress: Progress, done: int, steps: int, choice: str) -> None:
        self._progress, self._done, self._steps, self._choice = progress, done, steps, choice

    def __call__(self) -> None:
        self._done += 1
        self._progress("inference", self._done, self._steps, self._choice)


def _advice(records: Sequence[Record], answers: Sequence[Record]) -> dict[str, Advice]:
    federated = [record for record in records if record.choice not in ("local", "pooled")]
    pooled = next(record for record in records if record.choice == "pooled")
    enough = (pooled.figure("accuracy_share") or 0.0) - 0.05
    update = Need("update", "server", "the coordinator is not one of the hospitals")
    record = Need("record", "outsiders", "whoever asks often enough holds the model, and with it what it remembers")
    query = Need("query", "server", "the patient does not trust it")
    weights = Need("weights", "client", "the hospitals own the model")
    return {
        "Training: the coordinator may not see an update, the model may not remember a patient": advise(
            federated, [update, record], cost="train_seconds", least=("accuracy_share", enough)
        ),
        "Training, if the model stays inside the hospitals": advise(
            federated, [update], cost="train_seconds", least=("accuracy_share", enough)
        ),
        "Inference: the server may not see the patient, the patient not the weights": advise(
            answers, [query, weights], cost="latency_seconds"
        ),
        "Inference, if the patient may know the model": advise(answers, [query], cost="latency_seconds"),
        "Inference, if the patient trusts the server": advise(answers, [], cost="latency_seconds"),
    }


# --- the report -------------------------------------------------------------------------------------------------------


def _sections(job: Job, trials: Sequence[Trial], records: list[Record], answers: list[Record]) -> list[Section]:
    data = load_data(job)
    plain, masked = ([t.figures["accuracy_share"] for t in trials if t.choice == c] for c in ("plain", "masked"))
    same = "the same accuracy on every split" if plain == masked else "accuracies that differ"
    return [
        Section(
            "Training",
            f"Four hospitals hold different numbers of patients and different shares of each diagnosis. Every technique "
            f"trains on the same splits with the same settings. Secure aggregation gives {same} as the plain sum: it "
            f"adds the same integers, it only hides the addends.",
            (_holdings(data), _accuracies(records), _rounds(trials), _traffic(records)),
            tuple(records),
        ),
        Section(
            "Inference",
            "The private model behind an HTTP server, asked one patient at a time. The first answer is cold. The "
            "extraction attack asked for 31 answers under every technique and decided like the true model on "
            + ", ".join(f"{_share(record, 'extraction_agreement_share')} ({title(record)})" for record in answers)
            + " of the test patients: only a quota of queries, or a model that remembers no record, helps against that.",
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
