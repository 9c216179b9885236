"""Training on shares by five organisations over TLS, each a thread here: what it comes to, and what ends it."""

from __future__ import annotations

import numpy as np
import pytest

from cli.shares_processes import NAMES, OWNERS, Organisations
from confide.crypto.keys import SigningKey
from confide.crypto.random import SystemRandomness
from confide.errors import Aborted, ConfideError, JobError
from confide.model.artifact import load as load_model
from confide.mpc.halves import read_half
from confide.mpc.outsourced import Outsourced
from confide.net.folders import identity_seed
from confide.train.course import parameters_hash
from confide.train.job import load
from confide.train.ledger_check import verify
from confide.train.local import flatten
from confide.train.shares import works
from confide.train.shares.cast import Patience
from confide.train.shares.run import graph_of
from confide.train.shares.simulate import Weights
from confide.train.shares.site import Site
from confide.wire import MemoryStore, Message, Step, run

BOUND = 2e-4


def float_graph(five: Organisations):
    model, prepared = five.in_float()
    weights = Weights(tuple(model.weights), tuple(model.biases))
    return graph_of(prepared.course.task, weights, prepared.rows.classes), prepared


def distance(one, other) -> float:
    pairs = zip(flatten(one), flatten(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def models(five: Organisations):
    """Return what each owner has written, signed by itself."""
    found = []
    for name in OWNERS:
        place = five.folder / name / "identity"
        file = place / "model.confide"
        found.append(load_model(file, trust=SigningKey(identity_seed(place)).public) if file.exists() else None)
    return found


@pytest.mark.parametrize(
    ("kind", "model", "rate"),
    [("logistic", "", 1.0), pytest.param("mlp", "hidden = 4", 0.0625, marks=pytest.mark.slow)],
)
def test_five_organisations_train_what_one_process_does_and_every_owner_has_the_model(tmp_path, kind, model, rate):
    with Organisations(tmp_path, kind=kind, model=model, rate=rate) as five:
        found, said = five.threads()
        assert not [one for one in found.values() if isinstance(one, ConfideError)], said
        wanted, _ = float_graph(five)
        north, south = models(five)
        assert distance(north.graph, wanted) < 4 * BOUND  # the last layer is four times as steep in the saved model
        assert distance(north.graph, five_less(five)) > 1e-3  # a pass less is another model
        assert flatten(north.graph).tobytes() == flatten(south.graph).tobytes()
        ledger = five.folder / "university" / "identity" / "ledger.jsonl"
        report = verify(ledger)
        assert report.head == north.label.ledger == south.label.ledger
        assert parameters_hash(flatten(north.graph)).hex() in ledger.read_text()
        assert "INSECURE" in north.label.server_sees
        assert five.marks("university") == five.marks("insurer") == ()  # nothing is kept of what has ended


def five_less(five: Organisations):
    five.said["rounds"] -= 1
    try:
        return float_graph(five)[0]
    finally:
        five.said["rounds"] += 1


def test_weights_stay_shares_at_two_organisations_and_are_served_from_both_folders(tmp_path):
    with Organisations(tmp_path, shares='folder = "shares"') as five:
        found, said = five.threads()
        assert not [one for one in found.values() if isinstance(one, ConfideError)], said
        places = [five.folder / name / "shares" for name in ("university", "insurer")]
        assert [sorted(path.name for path in place.iterdir()) for place in places] == [
            ["model.json", "server-0.npz"],
            ["model.json", "server-1.npz"],
        ]
        wanted, prepared = float_graph(five)
        backend, rng = Outsourced(), SystemRandomness()
        halves = [read_half(place, role) for place, role in zip(places, ("server", "helper"), strict=True)]
        assert halves[0].public == halves[1].public  # label and all, as each of them wrote it
        kits = dict(Outsourced(half=halves[0]).prepare(halves[0].public.skeleton, rng))
        kits["helper"] = Outsourced(half=halves[1]).decode_kit("helper", kits["helper"].encode())
        assert kits["helper"].proof == halves[0].public.proof("helper")
        stores = {role: MemoryStore() for role in backend.roles}
        run({role: backend.setup(role, kits[role], stores[role], rng) for role in backend.roles}, stores=stores)
        x = prepared.rows.test_x[:5]
        asked = {
            role: backend.predict(role, kits[role], x if role == "client" else None, stores[role], rng)
            for role in backend.roles
        }
        answers = run(asked, stores=stores).output("client")
        assert np.abs(answers - wanted.apply(x)).max() < 1e-3
        assert models(five) == [None, None]
        again, said = five.threads(**{name: {"patience": Patience(gather_seconds=5.0)} for name in NAMES})
        assert all(isinstance(one, ConfideError) for one in again.values())  # the folder holds a model


def stop_after(steps: int):
    def show(taken: int, of: int) -> None:
        if taken == steps:
            raise Aborted("pulled the plug")

    return show


@pytest.mark.parametrize("who", ["insurer", "university"])
@pytest.mark.parametrize("folder", [pytest.param("", id="opened"), pytest.param('folder = "shares"', id="shares")])
def test_a_run_that_was_stopped_goes_on_from_the_last_step_that_both_servers_have(tmp_path, who, folder):
    with Organisations(tmp_path, shares=folder) as five:
        found, said = five.threads(**{who: {"show": stop_after(20)}})
        assert all(isinstance(one, ConfideError) for one in found.values()), said
        assert who in str(found["north"]) or "server" in str(found["north"])
        assert models(five) == [None, None]
        assert not any((five.folder / name / "shares").exists() for name in NAMES)
        first, second = five.marks("university"), five.marks("insurer")
        assert {mark.taken for mark in first} == {mark.taken for mark in second} == {8, 16}  # a pass has 8 steps
        found, said = five.threads()
        assert not [one for one in found.values() if isinstance(one, ConfideError)], said
        assert all("goes on after step 16 of 32" in text for text in said.values())
        wanted, _ = float_graph(five)
        if not folder:
            assert distance(models(five)[0].graph, wanted) < 4 * BOUND
        lines = (five.folder / "university" / "identity" / "ledger.jsonl").read_text()
        assert lines.count('"event": "job"') == lines.count('"event": "resumed"') == 1
        verify(five.folder / "university" / "identity" / "ledger.jsonl")


def test_the_end_is_the_same_model_if_it_is_opened_again(tmp_path, monkeypatch):
    with Organisations(tmp_path) as five:
        real = works.Serving.agreed

        def no_room(self, models):
            raise Aborted("no room")

        monkeypatch.setattr(works.Serving, "agreed", no_room)
        found, _ = five.threads()
        graphs = [found[name] for name in OWNERS]
        assert all(isinstance(one, ConfideError) for one in graphs)
        monkeypatch.setattr(works.Serving, "agreed", real)
        assert models(five) == [None, None]
        found, said = five.threads()
        assert "goes on after step 32 of 32" in said["north"]
        wanted, _ = float_graph(five)
        assert distance(models(five)[0].graph, wanted) < 4 * BOUND


def test_begun_anew_it_goes_on_from_nothing(tmp_path):
    with Organisations(tmp_path) as five:
        five.threads(insurer={"show": stop_after(20)})
        found, said = five.threads(university={"anew": True})
        assert not [one for one in found.values() if isinstance(one, ConfideError)], said
        assert "goes on" not in said["north"]
        assert five.marks("insurer") == ()


def lying(real, change):
    """Return an owner's party whose messages to the second server are changed."""

    def owner(me, *more):
        party = real(me, *more)
        step = next(party)
        if me == "north":
            send = tuple(
                Message(one.src, one.dst, one.tag, change(one.body)) if one.dst == "server-1" else one
                for one in step.send
            )
            step = Step(send=send, await_tag=step.await_tag, wait_for=step.wait_for)
        received = yield step
        try:
            party.send(received)
        except StopIteration as end:
            return end.value

    return owner


@pytest.mark.parametrize("change", [lambda body: body[:-8], lambda body: body + bytes(1 << 22), lambda body: b"\xc1"])
def test_an_owner_that_lies_about_its_sizes_ends_the_run_at_all_and_nothing_is_written(tmp_path, monkeypatch, change):
    monkeypatch.setattr(works, "owner", lying(works.owner, change))
    with Organisations(tmp_path) as five:
        found, said = five.threads()
        assert all(isinstance(one, ConfideError) for one in found.values()), said
        assert "Expected" in str(found["insurer"])
        assert models(five) == [None, None]
        assert not any("broken" in text for text in said.values()), said


def test_servers_and_dealer_on_one_machine_are_refused_unless_the_job_says_so(tmp_path):
    with Organisations(tmp_path, apart=True) as five:
        quick = {name: {"patience": Patience(gather_seconds=3.0)} for name in NAMES}
        found, _ = five.threads(**quick)
        assert all(isinstance(one, ConfideError) for one in found.values())
        assert "organisations apart" in str(found["insurer"]) + str(found["auditor"])
        assert models(five) == [None, None]


def test_who_has_another_job_is_told_so_and_the_others_wait_for_it_in_vain(tmp_path):
    with Organisations(tmp_path) as five:
        place = five.folder / "south" / "job.toml"
        place.write_text(place.read_text().replace("learning_rate = 1.0", "learning_rate = 2.0"))
        quick = {name: {"patience": Patience(gather_seconds=4.0)} for name in NAMES}
        found, said = five.threads(**quick)
        assert "is another than that of" in str(found["south"]) + said["university"]
        assert "south" in str(found["university"])
        assert models(five) == [None, None]


PRIVATE = "[privacy]\nepsilon = 1.0\ndelta = 3e-5\nexpected_records = 120\n"


def test_private_training_is_charged_once_at_owners_and_ledger_however_often_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Site, "_together", lambda *_: "")
    with Organisations(tmp_path, apart=True, model="unit_rows = true", shares=PRIVATE, rate=0.5) as five:
        found, said = five.threads(insurer={"show": stop_after(20)})
        assert all(isinstance(one, ConfideError) for one in found.values()), said
        found, said = five.threads()
        assert not [one for one in found.values() if isinstance(one, ConfideError)], said
        label = models(five)[0].label
        assert label.epsilon is not None
        assert 0 < label.epsilon <= 1.0
        assert "INSECURE" not in label.server_sees
        for name in OWNERS:
            (account,) = found[name].charges.budget.accounts
            assert account.epsilon == pytest.approx(label.epsilon)
        assert verify(five.folder / "university" / "identity" / "ledger.jsonl").epsilon == pytest.approx(label.epsilon)
        found, said = five.threads()  # another training of the same records
        assert len(found["north"].charges.budget.accounts) == 2
        found, said = five.threads()
        assert len(found["north"].charges.budget.accounts) == 3
        found, said = five.threads()  # 3 is what a policy that says nothing allows
        assert isinstance(found["north"], ConfideError)
        assert "lifetime budget" in str(found["north"])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('address = "wss', 'adress = "wss', "address"),
        ('dealer = "auditor"', 'dealer = "insurer"', "a member of its own"),
        ('dealer = "auditor"', 'dealer = "north"', "members of their own"),
        ('nodes = ["north", "south"]', 'nodes = ["north", "south"]\nlink = "patient"', "in one process so far"),
        ("[train]", '[train]\nstart_hash = "x"', "start_hash"),
        ("batch = 16", 'batch = 16\nidentities = { insurer = "12" }', "64 hex digits"),
        ("batch = 16", 'batch = 16\nidentities = { nobody = "12" }', "shares.identities"),
    ],
)
def test_a_job_that_cannot_run_over_machines_says_why(tmp_path, old, new, told):
    with Organisations(tmp_path) as five:
        place = five.folder / "north" / "job.toml"
        place.write_text(place.read_text().replace(old, new))
        with pytest.raises(JobError, match=told):
            load(place)
