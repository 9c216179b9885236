"""A comparison from a job to its files: exact figures, resumed, and with reasons where something does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from confide.compare import document as documents
from confide.compare import measuring
from confide.compare.campaign import campaign
from confide.compare.charts import Gallery
from confide.compare.load import Loaded
from confide.compare.people import asks, choices
from confide.compare.result import read_result
from confide.compare.settings import PRIVATE_WARNING, parse
from confide.compare.writing import write_all
from confide.errors import DataError, ModelError, ServiceError, UsageError

JOB = {
    "job": {"name": "trial"},
    "data": {"set": "breast-cancer", "parties": 4},
    "train": {"aggregate": "masked", "rounds": 3},
    "privacy": {"expected_records": 455},
    "compare": {"sizes": [4], "epsilons": [1.0, 8.0], "check_link": False, "clients": 3},
}
ONLY = ("local", "pooled", "plain", "masked", "masked+dp", "paillier", "mpc-dealer")


def run(folder, table=JOB, **given):
    asked = {"seeds": 1, "queries": 3, "only": ONLY} | given
    return list(campaign(parse(table), folder, **asked))


@pytest.fixture(autouse=True)
def without_processes(monkeypatch):
    monkeypatch.setattr(measuring.load, "loaded", under_load)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.inference, "backend_of", without_paillier(measuring.inference.backend_of))
        patch.setattr(measuring.load, "loaded", under_load)
        return run(folder), folder


def under_load(choice, graph, preprocess, x, *, clients):
    """Real processes take seconds (test_load.py): here they said this; one did not start."""
    assert graph.features == x.shape[1] == preprocess.features
    if choice != "plain":
        raise ServiceError(503, "no room for a dealer")
    figures = {"load_p99_seconds": 0.5, "load_answers_count": 40.0, "peak_memory_of_server_bytes": 1e8}
    return Loaded(figures, {"requests_per_second_rate": (10.0, 20.0, 30.0)})


def test_load_stands_beside_single_queries_and_may_fail_alone(finished):
    result = finished[0][-1].result
    records = {one.choice: one for one in result.records if one.task == "inference"}
    plain = records["plain"]
    assert plain.figures["requests_per_second_rate"].median == 20.0
    assert plain.figures["requests_per_second_rate"].high > 20.0
    assert plain.figure("load_p99_seconds") == 0.5
    assert plain.repeats == 3
    assert "one query at a time, all roles in one process; under load: 3 clients at once" in plain.setting
    assert result.unfit["load/mpc-dealer"] == "The server answered 503: no room for a dealer"
    assert "requests_per_second_rate" not in records["mpc-dealer"].figures
    assert "load" not in records["mpc-dealer"].setting


def test_every_role_has_its_share_of_work_disk_and_money(finished):
    records = {(one.task, one.choice): one for one in finished[0][-1].result.records}
    dealt = records["inference", "mpc-dealer"]
    shares = [dealt.figure(f"money_of_{role}_dollars") for role in ("client", "server", "dealer")]
    assert dealt.figure("money_dollars") == pytest.approx(sum(shares))
    assert dealt.figure("disk_of_client_bytes") > 0
    assert dealt.figure("disk_of_server_bytes") > records["inference", "plain"].figure("disk_of_server_bytes")
    masked = records["training", "masked"]
    assert masked.figure("money_dollars") == pytest.approx(
        4 * masked.figure("money_of_client_dollars") + masked.figure("money_of_server_dollars")
    )
    assert masked.figure("disk_of_client_bytes") > records["training", "plain"].figure("disk_of_client_bytes")
    assert masked.figure("disk_of_server_bytes") > 3000  # model, ledger
    pooled = records["training", "pooled"]
    assert pooled.figure("disk_of_server_bytes") > 455 * 30 * 8  # the records of all
    assert "disk_of_client_bytes" not in pooled.figures


def without_paillier(backend_of):
    """Paillier's keys take seconds: here it is a technique whose package is not installed."""

    def made(choice, graph, x):
        if choice == "paillier":
            raise ModelError("not installed")
        return backend_of(choice, graph, x)

    return made


def test_the_same_integers_are_added(finished):
    records = {(one.task, one.choice): one for one in finished[0][-1].result.records}
    plain, masked = records["training", "plain"], records["training", "masked"]
    assert plain.figure("accuracy_share") == masked.figure("accuracy_share")
    assert plain.figure("rounds_count") == masked.figure("rounds_count") == 3
    assert masked.figure("upload_bytes") > plain.figure("upload_bytes")
    for record in (plain, masked):
        links = [record.figure(f"train_{name}_seconds") for name in ("loopback", "lan", "wan", "mobile")]
        assert links == sorted(links)
    noisy = records["training", "masked+dp"]
    assert noisy.figure("epsilon_total") == pytest.approx(1.0, rel=1e-3)
    assert noisy.guarantee.hides("record", "outsiders")
    assert records["inference", "plain"].figure("error_largest") == 0.0
    assert records["inference", "plain"].figure("factor_over_plain") == 1.0
    assert records["inference", "mpc-dealer"].figure("offline_bytes") > 0


def test_what_fails_says_why_and_the_rest_goes_on(finished):
    result = finished[0][-1].result
    assert result.unfit["inference/paillier"] == "not installed"
    assert not any(one.choice == "paillier" for one in result.records)


def test_progress_counts_up_to_the_end(finished):
    events = finished[0]
    assert [one.done for one in events] == sorted(one.done for one in events)
    assert events[-1].done == events[-1].steps
    assert events[0].left_seconds > events[-1].left_seconds == 0.0


def test_curves_stand_beside_the_records(finished):
    curves = {(one.kind, one.choice, one.y_name): one for one in finished[0][-1].result.curves}
    rounds = curves["rounds", "masked", "accuracy_share"]
    assert rounds.x == (1.0, 2.0, 3.0)
    assert curves["epsilon", "masked+dp", "accuracy_share"].x == (1.0, 8.0)
    assert curves["size", "plain", "latency_seconds"].x == (4 * 30 + 4 + 4 + 1.0,)
    plain, dealt = (curves["size", choice, "query_total_bytes"].y[0].median for choice in ("plain", "mpc-dealer"))
    parts = [curves["size", "plain", name].y[0].median for name in ("upload_bytes", "download_bytes")]
    assert plain == sum(parts)
    assert dealt > plain
    assert curves["size", "mpc-dealer", "money_dollars"].y[0].median > 0


def test_a_second_run_measures_nothing(finished, monkeypatch):
    events, folder = finished
    monkeypatch.setattr(measuring.inference, "backend_of", without_paillier(measuring.inference.backend_of))
    monkeypatch.setattr(measuring.trainings, "trained", lambda *_, **__: pytest.fail("measured again"))
    again = run(folder)
    assert again[-1].result == events[-1].result
    trained = [one for one in events if one.words.startswith("training") and one.done]
    assert len(trained) > 5
    assert sum(one.cached for one in again) >= len({one.words for one in trained})


@pytest.mark.parametrize("graph", ["", "anVuaw=="])
def test_a_model_that_is_damaged_is_trained_again(tmp_path, graph):
    table = {"data": {"set": "breast-cancer"}, "train": {"rounds": 2}, "compare": {"sizes": [], "check_link": False}}
    once = {**table, "compare": {**table["compare"], "clients": 0}}
    run(tmp_path, once, only=("inference/plain",))
    cells = {path: json.loads(path.read_bytes()) for path in tmp_path.iterdir()}
    [(path, model)] = [(path, cell) for path, cell in cells.items() if cell.get("graph")]
    path.write_text(json.dumps(model | {"graph": graph}))
    last = run(tmp_path, once, only=("inference/plain",))[-1]
    assert [record.choice for record in last.result.records] == ["plain"]
    assert json.loads(path.read_bytes())["graph"] not in ("", graph)


def test_a_schema_that_cannot_be_read_ends_it_before_anything_is_measured(tmp_path):
    (tmp_path / "schema.toml").write_text('[label]\nname = "ill"\nclasses = []\n[columns]\nage = {type = "number"}\n')
    (tmp_path / "rows.csv").write_text("age,ill,ward\n1,no,a\n")
    data = {"table": "rows.csv", "schema": "schema.toml", "split": "column", "split_by": "ward", "names": ["a", "b"]}
    comparison = parse({"data": data}, base=tmp_path)
    with pytest.raises(DataError, match="usable schema"):
        list(campaign(comparison, tmp_path / "cells", seeds=1, queries=2))
    assert not list((tmp_path / "cells").iterdir())


def test_a_changed_job_is_measured_again(finished):
    _, folder = finished
    before = {path.name for path in folder.iterdir()}
    run(folder, {**JOB, "train": {"aggregate": "masked", "rounds": 2}}, only=("plain",))
    assert len({path.name for path in folder.iterdir()} - before) >= 2


def test_a_comparison_that_was_left_goes_on(tmp_path):
    table = {**JOB, "compare": {"sizes": [], "check_link": False, "clients": 0}}
    begun = campaign(parse(table), tmp_path, seeds=2, queries=3, only=("local", "pooled"))
    for event in begun:
        if event.done == 2:
            break
    begun.close()
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept
    events = list(campaign(parse(table), tmp_path, seeds=2, queries=3, only=("local", "pooled")))
    assert sum(one.cached for one in events) == len(kept)
    assert events[-1].result is not None
    assert {one.repeats for one in events[-1].result.records} == {2}


def test_the_file_is_read_back_as_it_was(finished, tmp_path):
    result = finished[0][-1].result
    found, page, *_ = write_all(result, tmp_path / "report")
    assert read_result(found.read_bytes()) == result
    assert result.encode() == read_result(result.encode()).encode()
    assert PRIVATE_WARNING not in page.read_text()
    assert json.loads(found.read_text())["data_kind"] == "public"
    for body in (b"", b"{}", found.read_bytes()[:-20], found.read_bytes().replace(b'"format": 1', b'"format": 9')):
        with pytest.raises(UsageError):
            read_result(body)


def test_figures_of_private_records_say_so(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "gallery", lambda *_: Gallery((), {}, ()))  # drawing takes seconds
    result = msgspec.structs.replace(finished[0][-1].result, private=True, data_kind="own table")
    _, page, *_ = write_all(result, tmp_path)
    assert PRIVATE_WARNING in page.read_text()


def test_people_are_asked_for_what_the_roles_say(finished):
    result = finished[0][-1].result
    people = {(one.task, one.choice): one for one in result.people}
    assert set(people) == {(one.task, one.choice) for one in result.records}
    assert people["inference", "mpc-dealer"].apart == ("dealer", "server")
    assert people["inference", "mpc-dealer"].organisations == 3
    assert people["inference", "plain"].apart == ()
    assert people["training", "masked"].organisations == 5
    plain = next(one for one in result.records if one.choice == "plain" and one.task == "inference")
    for task, names in choices().items():
        for choice in names:
            assert asks(task, choice, plain.guarantee, holders=4).steps


@pytest.mark.slow
def test_a_killed_comparison_loses_the_cell_under_way_and_no_other(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(
        '[data]\nset = "breast-cancer"\n[train]\nrounds = 5\n'
        "[compare]\nseeds = 4\nsizes = []\ncheck_link = false\nclients = 0\n"
    )
    command = [sys.executable, "-m", "confide", "compare", str(job), "--only", "masked", "--only", "plain"]
    cells = tmp_path / "job.compare" / "cells"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(cells.glob("*.json")) if cells.is_dir() else []) < 3:
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.read_bytes() for path in cells.glob("*.json")}
    subprocess.run(command, check=True, capture_output=True)
    for name, body in kept.items():
        assert (cells / name).read_bytes() == body
    found = read_result((tmp_path / "job.compare" / "compare.json").read_bytes())
    assert {one.repeats for one in found.records if one.task == "training"} == {4}


def test_without_a_model_there_is_nothing_to_ask(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ModelError("diverged")

    monkeypatch.setattr(measuring.trainings, "trained", broken)
    result = run(tmp_path, only=("inference/plain", "inference/he", "training/plain"))[-1].result
    assert result.records == ()
    assert result.unfit["inference/he"] == "no model to serve: diverged"
    assert result.unfit["training/plain"] == "diverged"
    assert not list(tmp_path.iterdir())  # what fails is not kept


def test_a_model_that_was_trained_on_shares_is_served_opened(tmp_path):
    table = {
        "data": {"set": "breast-cancer"},
        "train": {"aggregate": "mpc", "rounds": 1},
        "shares": {"folder": "shares"},
        "compare": {"sizes": [], "check_link": False, "clients": 0},
    }
    result = run(tmp_path / "cells", table, only=("mpc", "inference/plain"))[-1].result
    assert {(one.task, one.choice) for one in result.records} == {("training", "mpc"), ("inference", "plain")}
    shares = next(one for one in result.records if one.choice == "mpc")
    assert shares.figure("offline_bytes") > 0
    assert shares.guarantee.hides("record", "dealer")
    assert not (tmp_path / "shares").exists()
