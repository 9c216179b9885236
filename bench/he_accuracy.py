"""The encrypted network on whole test sets, beside the plain network of the same graph: used by bench/he.py.

Answers are kept as they come, so a run that was stopped goes on where it was; they belong to one model and one plan.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, at_least, at_most
from he_cases import Case
from he_ours import client_of, server

from confide.model.graph import Graph
from confide.wire import MemoryStore

COUNTS = {"cifar": 500}
CASES = ("mlp", "lola", "lenet", "cifar", "trees")
_AT_ONCE = 2
_BAR_POINTS = 0.1
_BAR_DECISIONS = 99.0  # % of trees' decisions


def accuracy(cases: Sequence[Case], count: int | None, folder: Path) -> list[Figure]:
    """Print and return the accuracy of each case on its first `count` rows, encrypted and plain."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    for case in cases:
        if case.name not in CASES:
            continue
        if case.backend is None:
            print(f"{case.title}: {case.why}")
            found.append(Figure(f"{case.title}, accuracy", None, "%"))
            continue
        found += _one(case, count or COUNTS.get(case.name, 10_000), folder)
    return found


def _one(case: Case, count: int, folder: Path) -> list[Figure]:
    assert case.graph is not None
    x, labels = case.rows.x[:count], case.rows.labels[:count]
    expected = case.graph.apply(x)
    path = folder / f"he-{case.name}-{fingerprint(case.graph, case)}.npy"
    answers = _load(path, expected.shape)
    _ask(case, x, answers, path)
    encrypted, plain = decisions(answers), decisions(expected)
    same = 100 * float((encrypted == plain).mean())
    error = float(np.abs(answers - expected).max())
    print(f"{case.title}: {len(x)} rows, the same decision on {same:.2f} %, largest error of an output {error:.2e}")
    bar = _BAR_DECISIONS if case.name == "trees" else None
    title = f"{case.title}, {len(x)} rows"
    found = [
        Figure(f"{title}, decisions as the plain model's", round(same, 3), "%", bar=bar, met=at_least(same, bar)),
        Figure(f"{title}, largest error of an output", error, ""),
    ]
    known = labels >= 0
    if known.any():
        ours, theirs = (100 * float((one == labels)[known].mean()) for one in (encrypted, plain))
        print(f"    accuracy on {known.sum()} labelled rows: encrypted {ours:.2f} %, plain {theirs:.2f} %")
        gap, bar = abs(ours - theirs), _BAR_POINTS
        found.append(Figure(f"{title}, accuracy encrypted", round(ours, 3), "%"))
        found.append(Figure(f"{title}, accuracy plain", round(theirs, 3), "%"))
        found.append(Figure(f"{title}, points between them", round(gap, 3), "", bar=bar, met=at_most(gap, bar)))
    return found


def decisions(outputs: Any) -> Any:
    """Return the likeliest class of each row."""
    return (outputs[:, 0] > 0.5).astype(int) if outputs.shape[1] == 1 else outputs.argmax(axis=1)


def fingerprint(graph: Graph, case: Case) -> str:
    """Return what tells one model under one plan from every other."""
    assert case.backend is not None
    plan = getattr(case.backend, "plan", str)(graph)  # a backend without plans has one way to ask
    found = hashlib.sha256(f"{case.backend.name} {plan}".encode())
    found.update(graph.apply(case.rows.x[:8]).tobytes())
    return found.hexdigest()[:16]


def _load(path: Path, shape: tuple[int, ...]) -> Any:
    if path.is_file():
        kept = np.load(path)
        if kept.shape == shape:
            print(f"going on with {int((~np.isnan(kept[:, 0])).sum())} answers of {path}")
            return kept
    return np.full(shape, np.nan)


def _ask(case: Case, x: Any, answers: Any, path: Path) -> None:
    """Fill in the answers that are missing, several questions at once."""
    missing = np.flatnonzero(np.isnan(answers[:, 0]))
    if not len(missing):
        return
    lock, begin, store = threading.Lock(), time.perf_counter(), MemoryStore()
    places, done = iter(missing.tolist()), [0, time.perf_counter()]
    failures: list[BaseException] = []

    def work(url: str, rows: int) -> None:
        try:
            with client_of(case, url, store) as client:
                while part := _next(places, rows, lock):
                    outputs = client.predict(x[part])
                    with lock:
                        answers[part] = outputs
                        _progress(done, len(part), len(missing), begin, answers, path)
        except BaseException as error:  # shown by the main thread
            failures.append(error)

    with server(case) as (url, _):
        with client_of(case, url, store) as client:
            client.setup()
            rows = min(client.kit.max_rows, 16)
        threads = [threading.Thread(target=work, args=(url, rows)) for _ in range(_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    np.save(path, answers)
    if failures:
        raise failures[0]


def _next(places: Iterator[int], rows: int, lock: threading.Lock) -> list[int]:
    with lock:
        return [place for _, place in zip(range(rows), places, strict=False)]


def _progress(done: list[Any], rows: int, total: int, begin: float, answers: Any, path: Path) -> None:
    """Count `rows`, and every ten seconds say how far it is and keep the answers."""
    done[0] += rows
    now = time.perf_counter()
    if now - done[1] < 10:
        return
    done[1] = now
    np.save(path, answers)
    rate = done[0] / (now - begin)
    print(f"    {done[0]} of {total}, {rate:.1f} rows/s, {(total - done[0]) / rate:.0f} s to go", flush=True)
