"""The service under load, killed in between: bench/load.py for a few seconds, and its judgement of what went wrong."""

from __future__ import annotations

import pytest

from bench import script


@pytest.fixture(scope="module")
def load():
    return script("load")


def outcome(load, *, extra=(), growth: float = 1.0, uploads: int = 0):
    answers = [(second / 10, 20.0, "200") for second in range(600) if not 200 < second < 250]
    memory = [(float(second), int(1e8 * (growth if second > 45 else 1))) for second in range(60)]
    return load.Outcome([*answers, *extra], memory, killed=20.0, restarted=25.0, uploads=uploads)


def missed(load, **changes) -> set[str]:
    return {one.figure.partition(" ")[0] for one in load.figures(outcome(load, **changes)) if one.met is False}


def test_the_bench_judges_what_it_counts(load):
    assert missed(load) == set()
    assert missed(load, extra=[(30.0, 1.0, "429 quota"), (31.0, 1.0, "503 busy"), (22.0, 1.0, "unreachable")]) == set()
    for wrong in ("500 internal", "503 busy without Retry-After", "empty", "404 unknown_key"):
        assert missed(load, extra=[(30.0, 1.0, wrong)]) == {"errors"}
    assert missed(load, growth=1.2) == {"memory"}
    assert missed(load, uploads=1) == {"keys"}


@pytest.mark.slow
def test_many_clients_go_on_with_their_keys_when_the_server_is_killed(load, tmp_path):
    locust = load.PEER / ".venv" / "bin" / "python"
    if not locust.exists():
        pytest.skip("no environment in bench/peers/locust/.venv; its requirements.txt says how to make it")
    options = ["--store", str(tmp_path / "server.db"), "--workers", "2"]
    server = load.Server(load.saved_model(tmp_path), options, tmp_path / "log.jsonl")
    found = load.figures(load.loaded(server, tmp_path, locust=locust, clients=16, seconds=30))
    wrong = [one for one in found if one.met is False and not one.figure.startswith("memory")]  # too short to be flat
    assert wrong == []
