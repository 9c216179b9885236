"""A whole training over a real Flower with TLS and node authentication: three organisations, each in its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from confide.crypto.keys import SigningKey
from confide.net.batch import Member
from confide.net.flower import FlowerHost
from confide.net.folders import identity_seed
from confide.net.registrar import Registrar
from confide.store import open_store
from confide.train import load, load_data, train
from confide.train.attendance import Patience
from confide.train.course import parameters_hash
from confide.train.desk import Desk
from confide.train.ledger import verify
from confide.train.local import flatten
from confide.train.operate import run_job
from net.enrolled import coordinator_command, found, launched, node_command
from net.flower_federation import FLOWER, Federation
from train.test_over_flower import Counted

NAMES = ("north", "south", "west")

pytestmark = pytest.mark.skipif(not FLOWER.is_dir(), reason="Flower has an environment of its own: make setup-flower")


class Organisations(Federation):
    """A real Flower whose nodes are those of `confide node`."""

    def start_node(self, name: str) -> None:
        self.launch(name, node_command(self.folder, name, self.folder / f"{name}.sock"))


@pytest.fixture
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Organisations]:
    folder = tmp_path_factory.mktemp("f")
    found(folder, NAMES, rounds=2, aggregate="amortised", quorum=3)
    with Organisations(folder, NAMES) as federation:
        yield federation


def wait_until(flower: Federation, happened: Callable[[], bool], *, patience_seconds: float = 300) -> None:
    end = time.monotonic() + patience_seconds
    while not happened():
        assert time.monotonic() < end, flower.logs()
        time.sleep(0.2)


def test_a_training_over_three_supernodes_has_the_model_of_one_process(flower):
    folder, log = flower.folder, flower.folder / "coordinator.log"
    socket = folder / "coordinator.sock"
    with launched(coordinator_command(folder, socket), log) as first:
        wait_until(flower, lambda: "\ntraining" in log.read_text() or first.poll() is not None)
        assert first.poll() is None, flower.logs()
        first.kill()
        first.wait()
    flower.kill("west")
    flower.start_node("west")

    job = load(folder / "job.toml")
    registrar, store = Registrar(folder / "federation"), open_store(folder / "federation" / "coordinator.db")
    key = SigningKey(identity_seed(folder / "federation"))
    members = {name: Member("node", identity) for name, identity in registrar.roster()}
    host = FlowerHost(socket, key, lambda: members, retry_seconds=1.0, beat_seconds=600.0)
    ledger = Counted(folder / "federation" / "ledger.jsonl", host, signer=key)
    artifact, _ = run_job(
        job,
        (folder / "schema.toml").read_text(),
        registrar=registrar,
        desk=Desk(host, store),
        store=store,
        ledger=ledger,
        patience=Patience(stage_seconds=300.0, grace_seconds=120.0, gather_seconds=120.0),
    )
    before = host.requests
    host.close()
    store.close()
    assert host.requests == before  # the nodes had been told the end
    first_round, second_round = ledger.at["round"]
    assert second_round - first_round == 2 * len(NAMES)
    assert before - second_round == len(NAMES)  # the model
    *_, expected = train(job, load_data(job))
    assert parameters_hash(flatten(artifact.graph)) == parameters_hash(expected.parameters)
    whole = verify(folder / "federation" / "ledger.jsonl", signer=key.public)
    assert set(whole.countersigned) == set(NAMES)
    wait_until(flower, lambda: all((folder / name / "model.confide").exists() for name in NAMES))
    wait_until(flower, lambda: '"finished:completed"' in flower.flwr("ls", "here", "--format", "json"))
