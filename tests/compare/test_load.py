"""Load: rates and percentiles from what clients saw, and real processes that serve and ask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.compare import hosted, load
from confide.compare.caller import Task, Told
from confide.compare.cells import inference_choices
from confide.compare.load import figures_of, loaded, rates, window, words
from confide.errors import ServiceError
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.preprocess import Preprocess, Scale

MODEL = Graph((Linear(np.array([[1.0, -2.0, 0.5]]), np.array([0.25])), Sigmoid()))
PREPROCESS = Preprocess(tuple(Scale(name=name, low=-1, high=1) for name in "abc"))
X = np.random.default_rng(5).uniform(-1, 1, (6, 3))


def steady(begin, each, count):
    """Return a client that has an answer every `each` seconds."""
    ends = tuple(begin + each * number for number in range(1, count + 1))
    return Told(begin=begin, ends=ends, took=(each,) * count)


@pytest.mark.parametrize(
    "told",
    [[steady(10.0, 0.5, 4), steady(12.5, 0.5, 4)], [steady(10.0, 0.5, 4), steady(10.0, 0.5, 0)], [steady(1.0, 1.0, 0)]],
)
def test_clients_that_never_asked_together_tell_no_load(told):
    for ask in (window, rates):
        with pytest.raises(ServiceError, match="too busy"):
            ask(told)


def test_only_the_time_in_which_everybody_asks_counts():
    told = [steady(10.0, 0.5, 8), steady(11.0, 0.25, 6)]  # until 14, and from 11 to 12.5
    assert window(told) == (11.0, 12.5)
    assert rates(told) == ((3 + 6) / 1.5,)  # too few for parts
    figures = figures_of(told)
    assert figures["load_answers_count"] == 14
    assert figures["load_clients_count"] == 2
    assert figures["load_window_seconds"] == 1.5
    assert figures["load_p50_seconds"] == 0.5
    assert figures["load_p99_seconds"] == 0.5


def test_the_tail_is_over_all_answers_of_all_clients():
    slow = Told(begin=0.0, ends=tuple(range(1, 101)), took=(0.01,) * 97 + (1.0, 2.0, 3.0))
    figures = figures_of([slow])
    assert figures["load_p50_seconds"] == 0.01
    assert figures["load_p95_seconds"] == 0.01
    assert 1.0 < figures["load_p99_seconds"] < 3.0


@given(st.integers(1, 6), st.integers(20, 60), st.floats(0.01, 2.0))
def test_parts_of_the_time_have_the_rate_of_the_whole(clients, count, each):
    told = [steady(0.0, each, count) for _ in range(clients)]
    found = rates(told)
    assert len(found) == 5
    assert np.mean(found) == pytest.approx(clients / each, rel=1e-6)
    assert max(found) - min(found) <= 2 * clients / (count * each / 5) + 1e-9


def test_real_processes_serve_and_ask():
    found = loaded("plain", MODEL, PREPROCESS, X, clients=2, seconds=0.2)
    figures = found.figures
    assert figures["load_clients_count"] == 2
    assert figures["load_answers_count"] >= 6
    assert 0 < figures["load_p50_seconds"] <= figures["load_p95_seconds"] <= figures["load_p99_seconds"]
    (rate,) = {np.mean(found.samples["requests_per_second_rate"])}
    assert rate * figures["load_window_seconds"] <= figures["load_answers_count"] + 1e-6
    for role in ("client", "server"):
        assert figures[f"peak_memory_of_{role}_bytes"] > 10e6  # an interpreter with numpy, at least
        assert figures[f"load_cpu_of_{role}_seconds"] >= 0
    assert "2 clients at once" in words(2)


def test_who_cannot_ask_says_why(tmp_path):
    np.save(tmp_path / "x.npy", X)
    task = Task(
        url="http://127.0.0.1:9", backend="plain", rows=str(tmp_path / "x.npy"), first=0, seconds=0.1, fewest=1,
        most_seconds=1.0,
    )  # fmt: skip
    with load._Caller() as caller:
        caller.say(load.msgspec.json.encode(task).decode())
        with pytest.raises(ServiceError, match="a client under load ended: "):
            caller.told()
    with load._Caller() as caller:
        caller.say("no task")
        with pytest.raises(ServiceError, match="a client under load ended: .*(JSON|malformed)"):
            caller.told()


def test_a_server_that_does_not_start_gives_its_last_line(tmp_path):
    (tmp_path / "model.confide").write_bytes(b"no model")
    with pytest.raises(ServiceError, match="Expected"), hosted.hosted(tmp_path / "model.confide", ("plain",)):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("choice", [one for one in inference_choices() if one not in ("plain", "paillier")])
def test_every_technique_answers_under_load(choice):
    figures = loaded(choice, MODEL, PREPROCESS, X, clients=2, seconds=0.5).figures
    assert figures["load_answers_count"] >= 6
    roles = {name.removeprefix("peak_memory_of_").removesuffix("_bytes") for name in figures if "peak_memory" in name}
    others = {"mpc-dealer": {"dealer"}, "mpc-outsourced": {"helper", "dealer"}, "mpc-3pc": {"helper", "third"}}
    assert roles == {"client", "server", *others.get(choice, set())}
