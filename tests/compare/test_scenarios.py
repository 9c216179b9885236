"""The grid of scenarios: what reasoning expects, what the advice says, and what is best by measurement."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from confide.compare import costs
from confide.compare.candidates import backends_for, inference_candidates, training_candidates
from confide.compare.described import graph_of, size_of
from confide.compare.judging import judged
from confide.compare.recommend import recommend
from confide.compare.record import Record, Spread
from confide.compare.scenario import load

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.toml"))
MODELS = costs.load()
AGREEMENT = 0.9

backends = functools.lru_cache(maxsize=None)(backends_for)


@functools.cache
def asked(scenario):
    return inference_candidates(scenario, backends(scenario.model))


@functools.cache
def sized(model):
    return size_of(graph_of(model))


trained = functools.lru_cache(maxsize=None)(training_candidates)


def spread(value):
    return Spread(value, value, value, value)


def fits(row, scenario):
    """Return whether a measurement is of the scenario's very model, or of sums of its length over its parties."""
    size = sized(scenario.model)
    if "records" in row:  # of trainings that see records no size is that of a scenario
        return False
    if row["task"] == "training":
        return row["parties"] == scenario.holders.parties and row["length"] == size.parameters
    same = ("inputs", "outputs", "products", "nonlinear", "layers")
    alike = all(row["size"][name] == getattr(size, name) for name in same)
    if row["model"]["kind"] == "network":
        return False
    return alike and costs.regime(row["model"]) == costs.regime(
        {"kind": scenario.model.kind, "activation": scenario.model.activation}
    )


def seconds(row, scenario):
    """Return what was measured, over the scenario's link."""
    link = scenario.network.link
    rounds = scenario.needs.rounds if row["task"] == "training" else 1
    if scenario.network.usual:
        return rounds * row["seconds"][link.name]
    moved = 8 * row["bytes"] / link.bits_per_second + row["trips"] * link.delay_seconds
    return rounds * (row["compute_seconds"] + moved)


def records_of(scenario):
    """Return the stored measurements of a scenario's model as a comparison would give them."""
    found = []
    candidates = {(c.task, c.choice): c for c in [*trained(scenario), *asked(scenario)]}
    for row in MODELS.rows:
        candidate = candidates.get((row["task"], row["choice"]))
        if candidate is None or not fits(row, scenario):
            continue
        stem, rounds = ("train", scenario.needs.rounds) if row["task"] == "training" else ("latency", 1)
        figures = {f"{stem}_{name}_seconds": spread(rounds * value) for name, value in row["seconds"].items()}
        figures |= {"depth_count": spread(row["trips"]), "upload_bytes": spread(row["bytes"])}
        found.append(
            Record(row["task"], row["choice"], "", figures, candidate.guarantee, MODELS.machine, MODELS.version, 3)
        )
    return found


def measured_best(scenario, task):
    """Return the technique that was measured to be fastest among those whose claims satisfy a scenario, or None."""
    candidates = trained(scenario) if task == "training" else asked(scenario)
    fitting = {c.choice for c in candidates if not judged(scenario, c).lacks}
    rows = {row["choice"]: seconds(row, scenario) for row in MODELS.rows if row["task"] == task and fits(row, scenario)}
    most = scenario.needs.latency_seconds if task == "inference" else scenario.needs.training_seconds
    noisy = {c.partition("+")[0] for c in fitting if c.endswith("+dp")}
    plain = {c for c in fitting if "+" not in c}
    known = {name: rows[name] for name in (plain or noisy) if name in rows and not (most and rows[name] > most)}
    if not known or {"local", "pooled"} & fitting:
        return None
    best = min(known, key=lambda name: known[name])
    return best if plain else f"{best}+dp"


def test_there_are_as_many_as_promised():
    assert len(FILES) >= 60
    for path in FILES:
        expected = load(path).expected
        assert len(expected.reason) > 20
        assert expected.training or expected.inference


@functools.cache
def answers(path, *, measured):
    scenario = load(path)
    records = records_of(scenario) if measured else ()
    return scenario, recommend(scenario, MODELS, records, backends(scenario.model), relax=False)


@pytest.mark.parametrize("measured", [False, True], ids=["modelled", "measured"])
def test_the_advice_agrees_with_reasoning(measured):
    differ, count = [], 0
    for path in FILES:
        scenario, found = answers(path, measured=measured)
        for answer in found:
            if expected := getattr(scenario.expected, answer.task):
                count += 1
                if answer.said != expected:
                    differ.append(f"{path.stem}, {answer.task}: {answer.said}, expected {expected}")
    assert len(differ) <= (1 - AGREEMENT) * count, differ


@pytest.mark.parametrize("measured", [False, True], ids=["modelled", "measured"])
def test_the_advice_agrees_with_what_was_measured_best(measured):
    differ, count = [], 0
    for path in FILES:
        scenario, found = answers(path, measured=measured)
        for answer in found:
            best = measured_best(scenario, answer.task)
            if best is not None:
                count += 1
                if answer.choice != best:
                    differ.append(f"{path.stem}, {answer.task}: {answer.said}, measured best {best}")
    assert count >= 60
    assert len(differ) <= (1 - AGREEMENT) * count, differ
