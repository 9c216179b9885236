"""Folders of shares: each server has its own half, and two halves belong to one training or are refused."""

from __future__ import annotations

import io
import shutil

import msgspec
import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import ConfideError, ModelError, ProtocolError, UsageError
from confide.guarantee import PrivacyLabel
from confide.model.preprocess import Preprocess, Scale
from confide.mpc.halves import Public, kits, read_half, read_public, read_shares, write_folder
from confide.mpc.outsourced import Outsourced

LABEL = PrivacyLabel(aggregator="mpc", parties=("north", "south"), quorum=2, colluding=0, rounds=3)
COLUMNS = Preprocess(tuple(Scale(name=name, low=0.0, high=10.0) for name in ("age", "dose", "weight")))
PUBLIC = Public(
    widths=(3, 4, 1), loss="logistic", classes=("well", "ill"), servers=("a", "b"), label=LABEL, preprocess=COLUMNS,
    training="first",
)  # fmt: skip
FILES = ("server-0.npz", "server-1.npz")


def written(place, public=PUBLIC, *, seed=1, servers=(0, 1)):
    """Write random shares, and return them."""
    stream = np.random.default_rng(seed)
    shapes = {"w1": (3, 4), "b1": (4,), "w2": (4, 1), "b2": (1,)}
    parts = [{name: stream.integers(0, 2**64, shape, np.uint64) for name, shape in shapes.items()} for _ in range(2)]
    write_folder(place, public, {one: parts[one] for one in servers})
    return parts


def apart(folder, public=PUBLIC, **more):
    """Write each server's own folder, and return both."""
    folder.mkdir(exist_ok=True)
    places = folder / "server", folder / "helper"
    for server, place in enumerate(places):
        written(place, public, servers=(server,), **more)
    return places


def test_a_server_reads_its_own_half_alone(tmp_path):
    places = apart(tmp_path)
    both = tmp_path / "both"
    written(both)
    for place, role, server in zip(places, ("server", "helper"), (0, 1), strict=True):
        assert sorted(one.name for one in place.iterdir()) == sorted(["model.json", FILES[server]])
        half = read_half(place, role)
        assert half.public == PUBLIC
        found = kits(both)[role]
        assert all(np.array_equal(half.words[name], words) for name, words in found.model.items())
        assert "array" not in repr(half)
        with pytest.raises(ModelError, match="has the model"):
            read_half(both, role)
        with pytest.raises(ModelError, match=FILES[server]):
            read_half(places[1 - server], role)


def test_a_half_belongs_to_its_folder(tmp_path):
    places = apart(tmp_path)
    good = (places[1] / FILES[1]).read_bytes()
    arrays = dict(np.load(io.BytesIO(good)))

    def saved(**changed):
        body = io.BytesIO()
        np.savez(body, **(arrays | changed))
        return body.getvalue()

    other = written(tmp_path / "other", msgspec.structs.replace(PUBLIC, training="second"), seed=1)
    assert np.array_equal(other[1]["w1"], arrays["w1"])  # the very same words, from another training
    shutil.copy(places[1] / "model.json", tmp_path / "model.json")
    one_bit = arrays["w2"].copy()
    one_bit[0] ^= np.uint64(1)
    for body in (
        saved(w2=one_bit),
        saved(seal=np.zeros(32, np.uint8)),
        (tmp_path / "other" / FILES[1]).read_bytes(),
        (places[0] / FILES[0]).read_bytes(),
    ):
        (places[1] / FILES[1]).write_bytes(body)
        with pytest.raises(ModelError, match="wrote it for this server"):
            read_half(places[1], "helper")
    del arrays["seal"]
    (places[1] / FILES[1]).write_bytes(saved())
    with pytest.raises(ModelError):
        read_half(places[1], "helper")
    (places[1] / FILES[1]).write_bytes(good)
    read_half(places[1], "helper")
    text = (places[1] / "model.json").read_text()
    assert text.count('"ill"') == 1
    (places[1] / "model.json").write_text(text.replace('"ill"', '"sick"'))
    with pytest.raises(ModelError, match="wrote it for this server"):
        read_half(places[1], "helper")


@pytest.mark.parametrize(
    "wrong",
    [{"training": ""}, {"widths": [3]}, {"widths": [4, 1]}, {"weight_scale": 8}, {"bias_scale": 16}, {"more": 1}],
    ids=str,
)
def test_a_folder_that_says_something_else_is_refused(tmp_path, wrong):
    place = tmp_path / "shares"
    written(place)
    told = msgspec.json.decode((place / "model.json").read_bytes()) | wrong
    (place / "model.json").write_bytes(msgspec.json.encode(told))
    with pytest.raises(ModelError):
        read_public(place)


def test_what_the_server_tells_the_helper_has_no_number_of_a_half(tmp_path):
    places = apart(tmp_path)
    mine, theirs = read_half(places[0], "server"), read_half(places[1], "helper")
    prepared = Outsourced(half=mine).prepare(PUBLIC.skeleton, SeededRandomness("unused"))
    bodies = {role: prepared[role].encode() for role in ("client", "helper", "dealer")}
    raw = [read_shares(place, PUBLIC, server) for server, place in enumerate(places)]
    halves = [*raw, mine.words, theirs.words]
    for body in bodies.values():
        for words in (array for half in halves for array in half.values()):
            assert not any(word.tobytes() in body for word in words.ravel())
    kit = Outsourced(half=theirs).decode_kit("helper", bodies["helper"])
    assert all(np.array_equal(kit.model[name], words) for name, words in theirs.words.items())
    assert kit.proof == prepared["helper"].proof
    assert kit.proof not in bodies["helper"]  # it is shown by who has the folder, and cannot be sent back
    assert prepared["server"].proof in bodies["helper"]
    # control: where the server shares out a model, its half for the helper is in what it sends
    sent = Outsourced().prepare(PUBLIC.skeleton, SeededRandomness("control"))["helper"]
    assert any(word.tobytes() in sent.encode() for word in sent.model["0.weight"].ravel())


def test_halves_of_two_trainings_are_refused(tmp_path):
    server, _ = apart(tmp_path / "first")
    told = Outsourced(half=read_half(server, "server")).prepare(PUBLIC.skeleton, SeededRandomness("unused"))
    body = told["helper"].encode()
    for number, change in enumerate(
        (
            {"training": "second"},
            {"classes": ("ill", "well")},
            {"loss": "sigmoid"},
            {"preprocess": Preprocess(COLUMNS.rules[::-1])},
            {"label": msgspec.structs.replace(LABEL, rounds=4)},
        )
    ):
        _, helper = apart(tmp_path / str(number), msgspec.structs.replace(PUBLIC, **change))
        with pytest.raises(ProtocolError, match="both halves of one training"):
            Outsourced(half=read_half(helper, "helper")).decode_kit("helper", body)


def test_a_helper_with_a_half_takes_no_other_and_one_without_says_what_is_missing(tmp_path):
    places = apart(tmp_path)
    mine, theirs = read_half(places[0], "server"), read_half(places[1], "helper")
    told = Outsourced(half=mine).prepare(PUBLIC.skeleton, SeededRandomness("unused"))
    shared = Outsourced().prepare(PUBLIC.skeleton, SeededRandomness("whole"))
    with pytest.raises(ProtocolError, match="--shares FOLDER"):
        Outsourced().decode_kit("helper", told["helper"].encode())
    with pytest.raises(ProtocolError, match="leave --shares out"):
        Outsourced(half=theirs).decode_kit("helper", shared["helper"].encode())
    with pytest.raises(UsageError):
        Outsourced(half=theirs).prepare(PUBLIC.skeleton, SeededRandomness("unused"))
    for role in ("client", "dealer"):
        assert Outsourced().decode_kit(role, told[role].encode()).encode() == told[role].encode()
    body = told["helper"].encode()
    for wrong in (body[:-1], body + b"x", body[:40], body.replace(b"proof", b"prood")):
        with pytest.raises(ConfideError):
            Outsourced(half=theirs).decode_kit("helper", wrong)
