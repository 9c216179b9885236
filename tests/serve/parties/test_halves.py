"""Server and helper with a half of the model each: what they send each other, what is promised, who is refused."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

from confide.crypto.random import SystemRandomness
from confide.guarantee import Claim, PrivacyLabel, Trust
from confide.model.preprocess import Preprocess, Scale
from confide.mpc.halves import Half, Public, kits, read_half, write_folder
from confide.mpc.outsourced import Outsourced
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.parties import circle, service
from confide.serve.parties.halves import backends_with, model_of_half
from confide.serve.protocol import ClientKit
from serve.parties.federation import founded
from serve.parties.houses import Houses

PARTNERS = {"dealer": "broker", "helper": "second"}
LABEL = PrivacyLabel(aggregator="mpc", parties=("north", "south"), quorum=2, colluding=0, rounds=3)
COLUMNS = Preprocess((Scale(name="age", low=0.0, high=100.0), Scale(name="dose", low=0.0, high=1.0)))
WEIGHTS, BIAS = np.array([[0.75], [-0.5]]), np.array([0.125])
PUBLIC = Public(
    widths=(2, 1), loss="logistic", classes=("well", "ill"), servers=("a", "b"), label=LABEL, preprocess=COLUMNS,
    training="first",
)  # fmt: skip
WEIGHTS_CLAIM = Claim("weights", "server", ("helper", "dealer"))


@pytest.fixture
def places(tmp_path):
    """Return the folders of server and helper, with shares of a known model."""
    first = np.random.default_rng(2).integers(0, 2**64, 3, np.uint64)
    whole = {"w1": np.int64(WEIGHTS * 2**16).view(np.uint64), "b1": np.int64(BIAS * 2**32).view(np.uint64)}
    mine = {"w1": first[:2].reshape(2, 1), "b1": first[2:]}
    parts = (mine, {name: whole[name] - mine[name] for name in whole})
    for server, name in enumerate(("server", "helper")):
        write_folder(tmp_path / name, PUBLIC, {server: parts[server]})
    return tmp_path / "server", tmp_path / "helper"


@contextlib.contextmanager
def running(folder, places, *, load=None, **more):
    folder.mkdir()
    home = founded(folder, {"clinic": "client", "broker": "dealer", "second": "helper"})
    found, limits = Houses(folder), Limits(batch_rows=64)
    served = service.prepared(model_of_half("diagnosis", places[0]), limits, SystemRandomness())
    loads = {"dealer": backends_with(None), "helper": load or backends_with(places[1])}
    with contextlib.ExitStack() as stack:
        conditions = found.conditions("server", "server", **more)
        _, port = stack.enter_context(service.serving(home, served, PARTNERS, conditions, limits=limits))
        found.url = f"wss://127.0.0.1:{port}"
        for role, name in PARTNERS.items():
            own = found.conditions(name, role, **more)
            stack.enter_context(service.partnering(folder / name, own, load=loads[role], coordinator=found.url))
        yield found, served[0]


def test_a_half_stays_where_it_is(tmp_path, places, monkeypatch):
    told, kept = [], circle.letter

    def letter(src, dst, body, **more):
        made = kept(src, dst, body, **more)
        told.append(made.message)
        return made

    monkeypatch.setattr(circle, "letter", letter)
    x = np.array([[0.5, -0.25], [-1.0, 1.0], [0.0, 0.125]])
    raw = {"age": np.array([50.0]), "dose": np.array([0.25])}
    with (
        running(tmp_path / "houses", places) as (found, served),
        Client(found.url, identity=found.folder / "clinic", insecure_colocated_dealer=True) as client,
    ):
        y, of_columns = client.predict(x), client.predict(raw)
        assert client.kit.preprocess == COLUMNS.encode()
        assert (client.kit.classes, client.kit.label) == (PUBLIC.classes, LABEL)
    for answer, features in ((y, x), (of_columns, COLUMNS.apply(raw))):
        assert np.abs(answer - 1 / (1 + np.exp(-4 * (features @ WEIGHTS + BIAS)))).max() < 1e-3
    assert any(one.tag == "parties/part" and one.dst == "second" for one in told)
    said = [one.body for one in told] + [one.body for seen in found.seen.values() for _, one in seen]
    said += [store.get(key) or b"" for store in found.stores.values() for key in sorted(store.keys())]
    assert any(served.kits["helper"].encode() in one for one in said)  # control: what is sent is found
    for place, role in zip(places, ("server", "helper"), strict=True):
        for word in (word for words in read_half(place, role).words.values() for word in words.ravel()):
            assert not any(word.tobytes() in one for one in said)
    shares = {role: kit.model for role, kit in served.kits.items() if role == "server"}
    assert list(shares) == ["server"]  # the server never had another


def test_weights_are_promised_to_be_hidden_from_both_servers(tmp_path, places, monkeypatch):
    monkeypatch.setattr("confide.serve.parties.circle.together", lambda a, b: "")
    with running(tmp_path / "houses", places, one_machine=False) as (found, served):
        with Client(found.url, identity=found.folder / "clinic") as client:
            client.predict(np.zeros((1, 2)))
            guarantee = client.guarantee
        lines = [line for line in found.lines if line.startswith("server: mpc-outsourced: ")]
    assert guarantee == Outsourced.guarantee == served.guarantee
    assert WEIGHTS_CLAIM in guarantee.claims
    assert Claim("weights", "helper", ("server", "dealer")) in guarantee.claims
    assert guarantee.trust is Trust.NON_COLLUSION
    assert "has the model" not in " ".join(lines)
    assert "INSECURE" not in " ".join(found.lines)
    # control: who serves a model file has the model
    model = model_of_half("diagnosis", places[0])
    whole = service.Model(name="diagnosis", graph=model.graph, label=LABEL, backends=(Outsourced(),))
    (owner,) = service.prepared(whole, Limits(), SystemRandomness())
    assert WEIGHTS_CLAIM not in owner.guarantee.claims


def test_a_models_id_is_that_of_the_training_and_says_nothing_of_a_half(places):
    limits, rng = Limits(), SystemRandomness()
    ids = [service.prepared(model_of_half("diagnosis", places[0]), limits, rng)[0].id(b"salt") for _ in range(2)]
    assert ids[0] == ids[1]  # clients' set-ups outlive a restart
    half = read_half(places[0], "server")
    others = Half(half.public, "server", {name: words + np.uint64(1) for name, words in half.words.items()})
    model = model_of_half("diagnosis", places[0])
    same = service.Model(
        name="diagnosis", graph=model.graph, label=LABEL, backends=(Outsourced(half=others),),
        preprocess=model.preprocess,
    )  # fmt: skip
    assert service.prepared(same, limits, rng)[0].id(b"salt") == ids[0]
    assert service.prepared(same, limits, rng)[0].id(b"another") != ids[0]  # or guesses of weights could be tried on it
    assert ClientKit.decode(service.prepared(same, limits, rng)[0].client_kit).label == LABEL


@pytest.mark.parametrize("proof", [b"", bytes(32), "the server's"], ids=["none", "zeros", "sent back"])
def test_a_helper_that_cannot_show_its_half_is_not_served_with(tmp_path, places, proof):
    wrong = PUBLIC.proof("server") if isinstance(proof, str) else proof

    class Lying(Outsourced):
        def decode_kit(self, role, body):
            kit = Outsourced.decode_kit(self, role, body)
            kit.proof = wrong
            return kit

    half = read_half(places[1], "helper")
    with running(tmp_path / "houses", places, load=lambda name: Lying(half=half)) as (found, _):
        end = time.monotonic() + 20.0
        while not any("half that belongs" in line for line in found.lines) and time.monotonic() < end:
            time.sleep(0.02)
    assert any("Expected the helper to have the half that belongs to diagnosis" in line for line in found.lines)
    assert not any("is served under" in line for line in found.lines)


def test_kits_of_a_whole_folder_are_for_a_simulation(tmp_path, places):
    both = tmp_path / "both"
    both.mkdir()
    for place in places:
        for file in place.iterdir():
            (both / file.name).write_bytes(file.read_bytes())
    assert sorted(kits(both)) == ["client", "dealer", "helper", "server"]
