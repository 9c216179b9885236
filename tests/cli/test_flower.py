"""`confide coordinator` and `confide node` over the Flower app: processes of their own, and what people read."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from confide.crypto.keys import SigningKey
from confide.model.artifact import decode
from confide.net.folders import identity_seed
from confide.train import load, load_data, train
from confide.train.course import parameters_hash
from confide.train.ledger import verify
from confide.train.local import flatten
from net import fake_flower
from net.enrolled import confide, coordinator_command, found, launched, node_command
from train.federation import NAMES


class Flower:
    """A run at the SuperLink: the app in a thread."""

    def __init__(self, app, socket: Path) -> None:
        self.grid = fake_flower.Grid(app, {})
        config = {"confide-socket": str(socket), "patience-seconds": 1.0, "answer-seconds": 60.0}
        self.thread = threading.Thread(target=app.main, args=(self.grid, SimpleNamespace(run_config=config)))

    def end(self) -> None:
        self.thread.join()
        for thread in self.grid.threads:
            thread.join()


def wait_for(log: Path, text: str, *, patience_seconds: float = 120) -> None:
    end = time.monotonic() + patience_seconds
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def test_a_training_from_the_command_line_and_who_is_not_let_in(tmp_path, tmp_path_factory, monkeypatch):
    """Four members, one of whom is revoked before the job begins, and a SuperNode behind which nobody is."""
    folder, names = tmp_path_factory.mktemp("f"), NAMES[:3]
    job = found(folder, names, rounds=2, aggregate="amortised", quorum=3)
    confide("federation", "invite", "gone", "--federation", folder / "federation", "--out", folder / "gone.invitation")
    confide("federation", "join", folder / "gone.invitation", "--into", folder / "gone", "--request", folder / "r")
    confide("federation", "sign", folder / "r", "--out", folder / "c", "--federation", folder / "federation")
    confide("federation", "join", "--into", folder / "gone", "--certificate", folder / "c")
    (folder / "gone.csv").write_bytes((folder / "north.csv").read_bytes())
    app = fake_flower.load_app(monkeypatch)
    flower = Flower(app, folder / "host.sock")
    flower.grid.sockets = {1: folder / "nobody.sock", 2: folder / "gone.sock"}
    log = folder / "coordinator.log"
    with launched(coordinator_command(folder, folder / "host.sock"), log) as coordinator:
        wait_for(log, "waiting for Flower's ServerApp")
        with launched(node_command(folder, "gone", folder / "gone.sock"), folder / "gone.log") as gone:
            wait_for(folder / "gone.log", "waiting for the coordinator")
            confide("federation", "revoke", "gone", "--federation", folder / "federation")
            time.sleep(2)  # the coordinator looks every second
            flower.thread.start()
            wait_for(log, "SuperNode 1: ")
            wait_for(log, "gone is none or was revoked")
            assert "no confide node listens" in log.read_text()
            assert gone.poll() is None
        nodes = [
            launched(node_command(folder, name, folder / f"{name}.sock"), folder / f"{name}.log") for name in names
        ]
        with nodes[0] as one, nodes[1] as two, nodes[2] as three:
            flower.grid.sockets = {place: folder / f"{name}.sock" for place, name in enumerate(names, start=3)}
            assert [each.wait(120) for each in (coordinator, one, two, three)] == [0, 0, 0, 0], log.read_text()
    flower.end()
    assert "Flower messages" in log.read_text()
    key = SigningKey(identity_seed(folder / "federation")).public
    *_, expected = train(load(job), load_data(load(job)))
    released = (folder / "trial.confide").read_bytes()
    assert parameters_hash(flatten(decode(released, trust=key).graph)) == parameters_hash(expected.parameters)
    assert all((folder / name / "model.confide").read_bytes() == released for name in names)
    assert set(verify(folder / "federation" / "ledger.jsonl", signer=key).countersigned) == set(names)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["coordinator", "--flower", "s"], "Expected --flower with a JOB"),
        (["coordinator", "job.toml", "--flower", "s", "--listen", "0.0.0.0:1"], "without --listen"),
        (["node", "--policy", "p", "--flower", "s", "--coordinator", "wss://a:1"], "Expected --flower without"),
        (["node", "--policy", "p", "--flower", "s", "--proxy", "http://a:1"], "Expected --flower without"),
        (["node", "--flower", "s", "pending"], "Expected only --identity before pending"),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, text):
    with pytest.raises(AssertionError):
        confide(*arguments)
    assert text in " ".join(capsys.readouterr().err.split())


def test_the_app_is_written(tmp_path, capsys):
    confide("federation", "flower-app", tmp_path / "app")
    assert sorted(path.name for path in (tmp_path / "app").iterdir()) == ["flower_app.py", "pyproject.toml"]
    assert "flwr run" in capsys.readouterr().err
