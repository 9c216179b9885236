"""The main job, shortened: real training, real servers, real report."""

import html
import json
import re
import subprocess
import sys
from concurrent.futures import Future

import pytest

from confide.compare import demo
from confide.compare.techniques import INFERENCE, TRAINING
from confide.errors import UsageError


class Ahead:
    """Stands in for the process that makes Paillier keys, in runs without Paillier."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, *_):
        done = Future()
        done.set_result((0.0, 0))
        return done


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "report.html"
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "ProcessPoolExecutor", Ahead)
        patch.setattr(demo, "_SERVERS", ((("plain", "he"), ()), (("he",), ("--open-model",))))
        patch.setattr(demo, "SERVED", tuple(row for row in demo.SERVED if row[1] != "paillier"))
        found = demo.run(path, seeds=1, queries=8, progress=lambda *step: seen.append(step))
    return found, seen


def test_training_rows_are_right_about_each_other(outcome):
    rows = {record.choice: record for record in outcome[0].training}
    assert list(rows) == ["local", "pooled", "plain", "amortised", "he", "masked", "shares", "masked+dp"]
    accuracy = {name: row.figure("accuracy_share") for name, row in rows.items()}
    assert (
        accuracy["masked"] == accuracy["shares"] == accuracy["he"] == accuracy["plain"]
    )  # the same integers are added
    assert abs(accuracy["plain"] - accuracy["pooled"]) < 0.02
    assert accuracy["masked+dp"] > accuracy["pooled"] - 0.08
    assert rows["masked"].figure("upload_bytes") > rows["plain"].figure("upload_bytes")
    assert rows["masked+dp"].figure("epsilon_total") == pytest.approx(1.0, rel=1e-3)
    assert rows["masked+dp"].guarantee.hides("record", "outsiders")
    assert "fall to a quantum computer" in rows["masked+dp"].guarantee.leaks
    assert not rows["masked"].guarantee.hides("record", "outsiders")
    assert rows["plain"].guarantee.sentences() == ["nothing is hidden"]


def test_inference_rows_are_right_about_each_other(outcome):
    rows = {record.choice: record for record in outcome[0].inference}
    assert list(rows) == ["plain", "he", "he-open"]
    assert all(row.figure("agreement_share") == 1.0 for row in rows.values())
    assert all(row.figure("extraction_queries") == 31 for row in rows.values())
    assert rows["plain"].figure("factor_over_plain") == 1.0
    assert rows["plain"].figure("key_bytes") == 0 < rows["he"].figure("key_bytes")
    assert rows["he"].guarantee.hides("weights", "client")
    assert not rows["he-open"].guarantee.hides("weights", "client")
    assert not rows["plain"].guarantee.hides("query", "server")


def test_the_advice_follows_from_the_rows(outcome):
    """Noise and a busy machine may change the figures, never what follows from them."""
    rows = {record.choice: record for record in outcome[0].training}
    answers = {record.choice: record for record in outcome[0].inference}
    forget, inside, protect, open_model, trusted = outcome[0].advice.values()
    good = rows["masked+dp"].figure("accuracy_share") >= rows["pooled"].figure("accuracy_share") - demo.ENOUGH
    assert forget.choice == ("masked+dp" if good else None)
    assert inside.choice in ("local", "masked", "amortised", "masked+dp")
    assert "second server" in dict(inside.refused)["shares"]
    assert "keyholder" in dict(inside.refused)["he"]
    assert dict(inside.refused)["plain"] == "does not hide the update from the server"
    assert protect.choice == "he"
    assert open_model.choice in ("he", "he-open")
    assert trusted.choice == min(answers, key=lambda name: answers[name].figure("latency_seconds"))
    assert any("none needed" in reason for reason in trusted.reasons)


def test_the_report_holds_every_record(outcome):
    page = outcome[0].report.read_text()
    data = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", page, re.S)[1]))
    assert [row["choice"] for row in data] == [
        "local",
        "pooled",
        "plain",
        "amortised",
        "he",
        "masked",
        "shares",
        "masked+dp",
        "plain",
        "he",
        "he-open",
    ]
    assert page.count("not measured") > 10


def test_progress_reaches_the_end_of_each_stage(outcome):
    last = {stage: (done, steps) for stage, done, steps, _ in outcome[1]}
    assert set(last) == {"model to serve", "training", "inference", "report"}
    assert all(done == steps for done, steps in last.values())


def test_every_choice_has_its_row_in_the_strategic_table():
    assert {choice for choice, _, _ in demo.SERVED} <= set(INFERENCE)
    assert {"local", "pooled", "plain", "amortised", "he", "masked", "shares", "masked+dp"} <= set(TRAINING)


def test_what_cannot_work_is_known_before_the_work(tmp_path):
    with pytest.raises(UsageError, match="folder"):
        demo.run(tmp_path / "absent" / "r.html", seeds=1, queries=2, progress=print)
    with pytest.raises(UsageError, match="queries=1"):
        demo.run(tmp_path / "r.html", seeds=1, queries=1, progress=print)


@pytest.mark.slow
def test_the_whole_demo_as_a_user_runs_it(tmp_path):
    """With real 3072-bit Paillier keys, in a process, without torch in sight."""
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from confide.cli import main; main(['demo', '--quick', '--out', 'r.html'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "paillier" in done.stdout
    assert (tmp_path / "r.html").stat().st_size > 50_000
