"""Membership from the answers of one model: what remembers is found, what does not is not, a quota ends it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from confide.cli import main
from confide.compare.answers import Rows, confidences, told_apart
from confide.compare.audit import audit_endpoint, audit_model
from confide.compare.extraction import Counted
from confide.data.sets import load_set
from confide.errors import ServiceError, UsageError
from confide.ideal import PlainPredict
from confide.net.http import InProcess
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.server import create_app
from serve.toy import PREPROCESS, toy_model


def rows(count, seed, features=8):
    rng = np.random.default_rng(seed)
    return Rows(rng.normal(size=(count, features)), rng.integers(0, 2, count))


MEMBERS, OTHERS = rows(300, 1), rows(300, 2)
KNOWN = {row.tobytes(): y for row, y in zip(MEMBERS.x, MEMBERS.y, strict=True)}


def remembers(x):
    """A model that is sure of the rows that it has seen, and of nothing else."""
    told = [KNOWN.get(np.ascontiguousarray(row).tobytes()) for row in x]
    return np.array([0.5 + 0.001 * row[0] if y is None else 0.1 + 0.8 * y for row, y in zip(x, told, strict=True)])[
        :, None
    ]


def forgets(x):
    return 1 / (1 + np.exp(-x[:, :1]))


def attack(model, members=MEMBERS, others=OTHERS, budget=10_000):
    return told_apart(Counted(model, budget), members, others, link="probability")


def test_a_model_that_remembers_is_found_out():
    found = attack(remembers)
    assert found.leaks
    assert found.advantage.value == pytest.approx(1.0)
    assert (found.hits.value, found.area.value) == (1.0, 1.0)
    assert found.advantage.low > 0.9


def test_a_model_that_does_not_is_not():
    found = attack(forgets)
    assert not found.leaks
    assert found.area.low < 0.5 < found.area.high
    assert found.advantage.low < 0 < found.advantage.high


def test_nothing_is_found_in_nineteen_of_twenty_models_that_tell_nothing():
    """Members and others of one law under a fixed model: the whole procedure must not find a leak more often."""
    assert sum(attack(forgets, rows(60, 100 + seed), rows(60, 500 + seed)).leaks for seed in range(100)) <= 5


def test_without_classes_the_largest_confidence_counts():
    assert attack(remembers, Rows(MEMBERS.x, None), Rows(OTHERS.x, None)).leaks


def test_confidence_is_the_logit_of_a_class():
    share = np.array([[0.2], [0.9]])
    assert confidences(share, np.array([1, 0]), "probability") == pytest.approx([np.log(0.25), -np.log(9)])
    three = np.array([[2.0, 5.0, 1.0]])
    assert confidences(three, np.array([1]), "logit") == pytest.approx([3.0])
    assert confidences(three, np.array([2]), "logit") == pytest.approx([-4.0])
    assert confidences(three, None, "logit") == pytest.approx([3.0])


def test_a_quota_leaves_as_many_of_both():
    asked = 0

    def limited(x):
        nonlocal asked
        if asked + len(x) > 100:
            raise ServiceError(429, "the quota of today is spent")
        asked += len(x)
        return remembers(x)

    found = attack(limited)
    assert (found.members, found.others) == (50, 50)
    assert "quota" in found.stopped
    with pytest.raises(UsageError, match="40 answers, got 0"):
        attack(limited)


def test_few_rows_are_refused():
    with pytest.raises(UsageError, match="20 rows or more"):
        attack(forgets, rows(10, 1), OTHERS)
    with pytest.raises(UsageError, match="--budget"):
        attack(forgets, budget=30)


# --- a callable, an endpoint, a file ----------------------------------------------------------------------------------


def test_a_callable_is_audited():
    report = audit_model(remembers, MEMBERS, OTHERS, link="probability", name="mine")
    (finding,) = report.findings
    assert (report.private, finding.broken, finding.attack) == (True, True, "membership")
    assert "advantage of +100.0 points" in finding.sentence


@pytest.mark.slow
def test_a_torch_module_is_audited():
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(8, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
    x, y = torch.tensor(MEMBERS.x).float(), torch.tensor(MEMBERS.y).float()[:, None]
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(module(x), y).backward()
        optimiser.step()

    def ask(x):
        return module(torch.from_numpy(x).float()).detach().numpy()

    assert audit_model(ask, MEMBERS, OTHERS, link="logit").findings[0].broken  # coins are learnt by heart or not at all


def test_an_endpoint_is_audited_within_its_budget():
    app = create_app([toy_model("diagnosis", PlainPredict(), preprocess=PREPROCESS)], limits=Limits())
    known = tuple(
        Rows(np.clip(one.x / 4, -1, 1), one.y) for one in (rows(60, seed, PREPROCESS.features) for seed in (5, 6))
    )
    with Client("http://127.0.0.1:8080", transport=InProcess(app), backend="plain") as client:
        *_, report = audit_endpoint(client, budget=200, known=known)
        *_, small = audit_endpoint(client, budget=84, known=known)
    assert [finding.attack for finding in report.findings] == ["membership", "extraction"]
    assert report.private
    members, copied = report.findings
    assert 2 * members.figures["members_count"].value + copied.figures["asked_rows"].value <= 200
    assert small.findings[0].figures["members_count"].value == 21
    assert "membership" not in small.unfit


def test_the_command_says_what_it_takes(tmp_path, capsys):
    table = tmp_path / "rows.csv"
    for words, said in (
        (["model.confide", "--members", str(table)], "--others"),
        (["model.confide"], "--members and --others"),
        (["job.toml", "--members", str(table), "--others", str(table)], "with a job"),
    ):
        with pytest.raises(SystemExit):
            main(["audit", *words])
        assert said in capsys.readouterr().err


def ended(words):
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    assert end.value.code == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model file of a whole training, and tables of its own columns."""
    folder = tmp_path_factory.mktemp("trained")
    output = '[output]\nmodel = "model.confide"\nsigning_key = "key.pem"\n'
    (folder / "job.toml").write_text(f'[data]\nset = "breast-cancer"\n[train]\nrounds = 2\n{output}')
    ended(["train", folder / "job.toml"])
    _, table = load_set("breast-cancer")
    names = list(table.columns)
    for name, part in (("members", slice(0, 250)), ("others", slice(250, 500))):
        lines = [",".join(f'"{one}"' for one in [*names, "diagnosis"])]
        values = zip(*(table.columns[one][part] for one in names), table.labels[part], strict=True)
        lines += [",".join(map(str, row)) for row in values]
        (folder / f"{name}.csv").write_text("\n".join([*lines, ""]))
    return folder


def test_a_file_is_audited(trained, capsys):
    words = ["audit", trained / "model.confide", "--members", trained / "members.csv"]
    words += ["--others", trained / "others.csv"]
    ended([*words, "--label", "diagnosis", "--out", trained / "audit.json"])
    told = json.loads((trained / "audit.json").read_text())
    assert [one["attack"] for one in told["findings"]] == ["membership"]
    assert told["mark"] == "not private: do not publish"
    assert "advantage" in capsys.readouterr().out
    ended(words)
    assert "largest confidence" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(SystemExit):
        main([*map(str, words), "--label", "mean radius"])
    assert "or their numbers from 0" in capsys.readouterr().err
