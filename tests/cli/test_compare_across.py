"""`confide compare` across real nodes: processes of their own, over TLS, with policies and budgets of theirs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from cli.federation_processes import NAMES, Processes, Running, verb
from confide.compare.across import Charge, planned, schema_text, setting_of
from confide.compare.result import Result, read_result
from confide.compare.settings import load
from confide.compare.training import seeded
from confide.train.offer import job_hash

#: Half a minute each, of six processes; what they decide is tested in tests/compare/test_across.py.
pytestmark = pytest.mark.slow

_QUOTED = ", ".join(f'"{name}"' for name in NAMES)
_JOB = f"""\
[job]
name = "trial"

[data]
schema = "schema.toml"
nodes = [{_QUOTED}]
evaluate = "federated"

[train]
quorum = 3
rounds = 4

[privacy]
epsilon = 1.0
delta = 1e-5
expected_records = 300
colluding = 1

[compare]
training = ["masked+dp", "amortised+dp", "plain"]
inference = ["plain"]
queries = 5
sizes = []
check_link = false
"""


class Comparing(Processes):
    """A federation whose coordinator is a comparison."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.job = folder / "data" / "nodes.toml"
        self.job.write_text(_JOB)

    def compare(self, *more: object) -> Running:
        """Start the comparison."""
        if (self.folder / "compare.log").exists():
            (self.folder / "compare.log").unlink()
        return self.run("compare", "compare", self.job, "--federation", self.federation, *more)

    @property
    def cells(self) -> Path:
        return self.folder / "data" / "nodes.compare" / "cells"

    def result(self) -> Result:
        return read_result((self.cells.parent / "compare.json").read_bytes())

    def stop_nodes(self) -> None:
        for name in NAMES:
            self.running[name].kill()

    def announced(self) -> dict[str, tuple[str, Charge]]:
        """Return the hash of each job and its charge as a bill has it; the nodes' accounts are the oracle."""
        found = load(self.job)
        cells = planned(found, seeds=1, queries=5)
        text = schema_text(found.job)
        jobs = {choice: seeded(job, found.job.job.seed) for choice, job in cells.jobs.items()}
        return {
            choice: (job_hash(job, text), Charge.of(setting_of(job, text)))
            for choice, job in jobs.items()
            if choice in ("masked+dp", "amortised+dp")
        }


def bill(text: str) -> tuple[float, float]:
    """Return what a bill on the screen says that each node is charged."""
    (found,) = re.findall(r"each node is charged epsilon=(\S+) and delta=(\S+) in all at most", text)
    return float(found[0]), float(found[1])


def test_protected_runs_are_made_and_charged_as_announced(tmp_path):
    with Comparing(tmp_path) as four:
        for name in NAMES:
            four.node(name)
        # nobody agreed: nothing starts, nobody hears of a job
        asked = four.compare()
        assert asked.ends() == 2
        assert "Expected --yes" in asked.text()
        assert not any("job trial" in four.running[name].text() for name in NAMES)
        said = four.compare("--yes")
        assert said.ends() == 0, said.text()
        text = said.text()
        assert "2 runs across 4 real nodes" in text
        assert "never run across real nodes: it shows the coordinator each node's update" in text
        four.stop_nodes()
        announced = four.announced()
        for name in NAMES:
            accounts = four.charges(name)
            # exactly what was said, and nothing else was ever charged or offered
            assert {account.job: (account.epsilon, account.delta) for account in accounts} == {
                hashed: (charge.epsilon, charge.delta) for hashed, charge in announced.values()
            }
            assert sum(account.epsilon or 0.0 for account in accounts) == pytest.approx(bill(text)[0], rel=1e-5)
            assert sum(account.delta for account in accounts) == pytest.approx(bill(text)[1])
            log = four.running[name].text()
            assert log.count("in the run") == 2
            assert "refused: " not in log
        result = four.result()
        check_result(four, result)
        # a finished comparison is opened again with every node away, and charges nothing
        before = {name: four.charges(name) for name in NAMES}
        again = four.compare()
        assert again.ends() == 0, again.text()
        assert {name: four.charges(name) for name in NAMES} == before
        assert four.result() == result
        # the control: had a plain baseline been offered, the nodes' logs would have said so
        for name in NAMES:
            four.node(name)
        plain = four.job.with_name("plain.toml")
        bare = _JOB.partition("[privacy]")[0]
        plain.write_text(bare.replace("quorum = 3", 'quorum = 3\naggregate = "plain"'))
        assert four.coordinator(job=plain).ends() == 2
        assert all("refused: " in four.running[name].text() for name in NAMES)


def check_result(four: Comparing, result: Result) -> None:
    assert result.across is not None
    assert (result.across.nodes, result.across.runs) == (NAMES, 2)
    assert result.across.epsilon == pytest.approx(2, abs=1e-6)
    assert (result.data_kind, result.private) == ("real nodes", False)
    trained = {record.choice: record for record in result.records if record.task == "training"}
    assert set(trained) == {"masked+dp", "amortised+dp"}
    for record in trained.values():
        assert "measured across 4 real nodes" in record.setting
        assert record.guarantee.hides("update", "server")
        assert record.guarantee.hides("record", "outsiders")
        low, value, high = (record.figure(f"accuracy_{end}share") for end in ("low_", "", "high_"))
        assert 0 <= low <= value <= high <= 1
        assert record.figure("rounds_count") == 4
        assert record.figure("upload_bytes") > 0
    assert {record.choice for record in result.records if record.task == "inference"} == {"plain"}
    report = (four.cells.parent / "compare.md").read_text()
    assert "Measured across 4 real nodes" in report
    assert "ask the nodes' people before you do" in report
    assert "rows drawn from the schema's public bounds" in report
    assert ",with the nodes' consent," in (four.cells.parent / "compare.csv").read_text()
    models = {path.name for path in (four.cells.parent / "models").iterdir()}
    assert models == {"masked+dp-1.confide", "amortised+dp-1.confide"}


def test_a_node_whose_budget_is_spent_says_so_and_the_rest_is_measured(tmp_path):
    with Comparing(tmp_path) as four:
        poor = tmp_path / "poor.toml"
        poor.write_text((tmp_path / "policy.toml").read_text().replace("[limits]", "[limits]\ngreatest_epsilon = 1.5"))
        for name in NAMES:
            four.node(name, *(("--policy", poor) if name == "south" else ()))
        said = four.compare("--yes")
        assert said.ends() == 0, said.text()
        four.stop_nodes()
        for name in NAMES:
            (account,) = four.charges(name)  # the one that all agreed to
            assert account.epsilon == four.announced()["masked+dp"][1].epsilon
        result = four.result()
        assert {record.choice for record in result.records} == {"masked+dp", "plain"}
        why = result.unfit["training/amortised+dp"]
        assert "south: Expected privacy.epsilon=1 to fit into the lifetime budget of this node's data" in why
        assert "north" not in why
        assert not list(four.cells.glob("*.begun"))  # nothing was charged, so it may be asked again


def test_a_killed_run_goes_on_and_is_charged_once(tmp_path):
    with Comparing(tmp_path, delay_seconds=0.02) as four:
        four.job.write_text(_JOB.replace("rounds = 4", "rounds = 12"))
        for name in NAMES:
            four.node(name)
        first = four.compare("--yes", "--only", "masked+dp")
        four.until_round(2)
        first.kill()
        (note,) = four.cells.glob("*.begun")
        # another comparison would bury the run that is on its way
        other = four.compare("--yes", "--only", "amortised+dp")
        assert other.ends() == 2
        assert "was interrupted; finish it by the command that began it" in other.text()
        again = four.compare("--yes", "--only", "masked+dp")
        assert again.ends() == 0, again.text()
        assert "which was interrupted and goes on" in again.text()
        assert not note.exists()
        four.stop_nodes()
        hashed, charge = four.announced()["masked+dp"]
        for name in NAMES:
            (account,) = four.charges(name)
            assert account.job == hashed
            assert account.epsilon is not None
            assert account.epsilon <= charge.epsilon
        (job,) = four.lines("job")
        assert job["job_hash"] == hashed
        assert four.result().records[0].figure("rounds_count") == len(four.lines("round"))


def test_a_run_that_is_in_no_journal_is_not_begun_again(tmp_path):
    with Comparing(tmp_path) as four:
        for name in NAMES:
            four.node(name)
        run = four.compare("--yes", "--only", "training/masked+dp")
        assert run.ends() == 0, run.text()
        (cell,) = four.cells.glob("*.json")
        cell.rename(cell.with_suffix(".lost"))  # as if it had been killed, and its journal been lost
        cell.with_suffix(".begun").write_text('{"run": "trial-1"}')
        told = four.compare("--yes", "--only", "training/masked+dp")
        assert told.ends() == 0, told.text()
        assert "run trial-1 was begun and may have been charged" in told.text()
        assert "--fresh does that and is charged again" in told.text()
        fresh = four.compare("--yes", "--only", "training/masked+dp", "--fresh")
        assert fresh.ends() == 0, fresh.text()
        assert "again: what the run before spent is not given back" in fresh.text()
        note = cell.with_suffix(".begun")
        note.write_text('{"run": "trial-9"}')  # as if --fresh had been killed: a run that began after what is kept
        later = four.compare("--yes", "--only", "training/masked+dp")
        assert later.ends() == 0, later.text()
        assert "run trial-9 was begun and may have been charged" in later.text()
        os.utime(note, ns=(0, 0))  # as if the run that is kept had been killed at its very end
        over = four.compare("--yes", "--only", "training/masked+dp")
        assert over.ends() == 0, over.text()
        assert "trial-9" not in over.text()
        assert not note.exists()
        four.stop_nodes()
        assert all(len(four.charges(name)) == 2 for name in NAMES)


def test_a_person_agrees_at_each_node(tmp_path):
    with Comparing(tmp_path, approval="person") as four:
        for name in NAMES:
            four.node(name)
        run = four.compare("--yes", "--only", "training/masked+dp")
        for name in NAMES:
            four.running[name].says("confide node show")
        assert not any(four.lines("release"))
        for name in NAMES:
            verb("node", "approve", "--identity", tmp_path / name, "--yes")
        assert run.ends() == 0, run.text()
        assert {record.choice for record in four.result().records} == {"masked+dp"}
