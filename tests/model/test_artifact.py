"""The model file: what it carries, and that nothing but what a signer wrote gets in."""

import hashlib
import os
import re
import struct
import sys
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.keys import SigningKey
from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import IntegrityError, MissingExtra, ModelError
from confide.guarantee import PrivacyLabel
from confide.model import artifact as artifact_module
from confide.model.artifact import (
    Artifact,
    UnverifiedModel,
    create_signing_key,
    decode,
    load,
    read_public_key,
    read_signing_key,
)
from confide.model.graph import Graph
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.model.zoo import logistic, mlp

SEED = bytes(range(32))
KEY = SigningKey(SEED)
STRANGER = SigningKey(bytes(32))
PREPARE = Preprocess((Scale(name="age", low=0, high=120), OneHot(name="sex", categories=("f", "m"))), True)
LABEL = PrivacyLabel(aggregator="masked", parties=("a", "b"), quorum=2, colluding=0, rounds=3, epsilon=1.0, delta=1e-5)
MODEL = Artifact(
    mlp(3, 2, seed=1, classes=("no", "yes")), PREPARE, LABEL, {"data set": "heart"}, "2026-01-31T12:00:00Z"
)
BODY = MODEL.encode(KEY)
REFUSALS = (IntegrityError, ModelError)
HEADER_END = 12 + int.from_bytes(BODY[8:12], "little")


def with_header(change, key=KEY):
    """Return the file with another header, properly signed."""
    header = msgspec.msgpack.decode(BODY[12:HEADER_END])
    change(header)
    raw = msgspec.msgpack.encode(header)
    signed = BODY[:8] + struct.pack("<I", len(raw)) + raw
    return signed + key.sign(signed) + BODY[HEADER_END + 64 :]


# --- what it carries --------------------------------------------------------------------------------------------------


def test_everything_comes_back(tmp_path):
    path = tmp_path / "model.confide"
    saved = MODEL.save(path, KEY)
    loaded = load(path, trust=KEY.public)
    x = np.linspace(-1, 1, 12).reshape(4, 3)
    np.testing.assert_array_equal(loaded.graph.apply(x), MODEL.graph.apply(x))
    assert loaded.graph.classes == ("no", "yes")
    assert (loaded.preprocess, loaded.label, loaded.metadata) == (PREPARE, LABEL, {"data set": "heart"})
    assert (loaded.created, loaded.signer) == ("2026-01-31T12:00:00Z", KEY.public.hex())
    assert (saved.created, saved.signer, saved.fingerprint) == (loaded.created, loaded.signer, loaded.fingerprint)


def test_the_layout_is_the_documented_one():
    assert BODY[:8] == b"CONFIDE\0"
    header = msgspec.msgpack.decode(BODY[12:HEADER_END])
    assert set(header) == {
        "format", "signer", "created", "label", "metadata", "graph", "preprocess", "classes", "outputs", "link",
    }  # fmt: skip
    Ed25519PublicKey.from_public_bytes(header["signer"]).verify(BODY[HEADER_END : HEADER_END + 64], BODY[:HEADER_END])
    split = HEADER_END + 64 + header["graph"]["size_bytes"]
    for part, body in (("graph", BODY[HEADER_END + 64 : split]), ("preprocess", BODY[split:])):
        assert header[part] == {"size_bytes": len(body), "sha256": hashlib.sha256(body).digest()}
    assert decode(BODY, trust=KEY.public).fingerprint == hashlib.sha256(BODY[12:HEADER_END]).hexdigest()


def test_the_same_model_gives_the_same_bytes_and_another_key_another_fingerprint():
    assert MODEL.encode(KEY) == BODY
    again = decode(BODY, trust=KEY.public)
    assert again.encode(KEY) == BODY
    other = decode(MODEL.encode(STRANGER), trust=STRANGER.public)
    assert other.fingerprint != again.fingerprint


def test_a_new_model_gets_the_time_of_saving(tmp_path):
    saved = Artifact(MODEL.graph, PREPARE, LABEL).save(tmp_path / "m", KEY)
    assert len(saved.created) == 20
    assert saved.created.endswith("Z")


def test_preprocessing_must_fit_the_graph():
    with pytest.raises(ModelError, match="graph's 4 features, got 3"):
        Artifact(logistic(4), PREPARE, LABEL)


def test_metadata_has_its_limit():
    with pytest.raises(ModelError, match="at most 1048576 bytes"):
        Artifact(MODEL.graph, PREPARE, LABEL, {"note": "x" * (1 << 20)}).encode(KEY)


# --- trust ------------------------------------------------------------------------------------------------------------


def test_without_a_pinned_key_it_warns_and_names_the_signer(tmp_path):
    MODEL.save(tmp_path / "m", KEY)
    with pytest.warns(UnverifiedModel, match=KEY.public.hex()) as caught:
        load(tmp_path / "m")
    assert caught[0].filename == __file__


def test_another_signer_is_refused_under_a_pinned_key():
    body = MODEL.encode(STRANGER)
    with pytest.raises(IntegrityError, match="as the holder of the pinned key signed it"):
        decode(body, trust=KEY.public)
    with pytest.warns(UnverifiedModel):  # the control: the file itself is sound
        decode(body, trust=None)


def test_the_signer_in_the_header_cannot_differ_from_the_pinned_key():
    body = with_header(lambda header: header.update(signer=STRANGER.public))  # but signed by KEY
    with pytest.raises(IntegrityError, match="name the pinned key"):
        decode(body, trust=KEY.public)
    with pytest.raises(IntegrityError, match="as its signer left it"):
        decode(body, trust=None)


@pytest.mark.parametrize("trust", [b"", bytes(31), bytes(33), bytes(32), b"\xff" * 32])
def test_pinned_keys_that_are_none_refuse_everything(trust):
    with pytest.raises(IntegrityError):
        decode(BODY, trust=trust)


def test_nothing_is_parsed_before_the_signature_holds(monkeypatch):
    def parse(*_, **__):
        raise AssertionError("parsed too early")

    monkeypatch.setattr(artifact_module, "_header", parse)
    with pytest.raises(IntegrityError):
        decode(MODEL.encode(STRANGER), trust=KEY.public)
    monkeypatch.undo()
    monkeypatch.setattr(artifact_module.onnx, "from_onnx", parse)
    monkeypatch.setattr(artifact_module.Preprocess, "decode", staticmethod(parse))
    changed = BODY[:-1] + bytes([BODY[-1] ^ 1])
    with pytest.raises(IntegrityError, match="hashes"):
        decode(changed, trust=KEY.public)
    with pytest.raises(AssertionError):  # the control: an intact file gets that far
        decode(BODY, trust=KEY.public)


# --- every other file is refused --------------------------------------------------------------------------------------


def refused(body):
    for trust in (KEY.public, None):
        with warnings.catch_warnings(action="ignore", category=UnverifiedModel), pytest.raises(REFUSALS):
            decode(body, trust=trust)


def test_every_flipped_bit_is_refused():
    for bit in range(8 * len(BODY)):
        body = bytearray(BODY)
        body[bit // 8] ^= 1 << bit % 8
        refused(bytes(body))


def test_every_truncation_is_refused():
    for length in range(len(BODY)):
        refused(BODY[:length])


@given(st.binary(min_size=1, max_size=100))
@settings(max_examples=50, deadline=None)
def test_appended_bytes_are_refused(tail):
    refused(BODY + tail)


@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(tail):
    refused(tail)
    refused(BODY[:8] + tail)


def test_parts_of_another_model_are_refused():
    other = Artifact(mlp(3, 2, seed=2, classes=("no", "yes")), PREPARE, LABEL, MODEL.metadata, MODEL.created).encode(
        KEY
    )
    assert len(other) == len(BODY)
    refused(BODY[: HEADER_END + 64] + other[HEADER_END + 64 :])


@pytest.mark.parametrize("length", [0, 1, HEADER_END - 13, HEADER_END - 11, 1 << 20, (1 << 20) + 1, 2**32 - 1])
def test_declared_header_lengths_are_checked(length):
    refused(BODY[:8] + struct.pack("<I", length) + BODY[12:])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["graph"].update(size_bytes=2**62),
        lambda h: h["graph"].update(size_bytes=-1),
        lambda h: h["preprocess"].update(size_bytes=h["preprocess"]["size_bytes"] + 1),
        lambda h: h["graph"].update(size_bytes=h["graph"]["size_bytes"] - 1),
        lambda h: h["graph"].update(sha256=bytes(32)),
        lambda h: h["preprocess"].update(sha256=b""),
        lambda h: h.pop("label"),
        lambda h: h.update(extra=1),
        lambda h: h["label"].update(extra=1),
        lambda h: h.update(signer="text"),
        lambda h: h.update(signer=b"short"),
        lambda h: h.update(metadata={"a": 1}),
        lambda h: h.update(format="1"),
    ],
)
def test_signed_headers_that_lie_are_refused(change):
    refused(with_header(change))


@pytest.mark.parametrize(
    ("found", "mend"), [(4, "update confide"), (999, "update confide"), (0, "train the model again")]
)
def test_other_formats_say_what_to_do(found, mend):
    body = with_header(lambda header: header.update(format=found, new="field"))
    for trust in (KEY.public, None):
        with pytest.raises(ModelError, match=f"in format 3, got format {found}; {mend}"):
            decode(body, trust=trust)


def test_a_file_of_the_first_format_opens_and_does_not_state_what_its_label_had_no_field_for():
    later = ("sampling", "noise", "server_sees", "parties_see", "outsiders_see", "metrics", "public_data")

    def older(header):
        header["format"] = 1
        for name in (*later, "epsilon_party", "preprocessing_epsilon", "utility_lost"):
            del header["label"][name]

    opened = decode(with_header(older), trust=KEY.public)
    assert (opened.label.epsilon, opened.label.parties) == (LABEL.epsilon, LABEL.parties)
    assert [getattr(opened.label, name) for name in later] == [None] * len(later)
    assert msgspec.msgpack.decode(BODY[12:HEADER_END])["format"] == 3


def test_a_signed_file_whose_graph_cannot_run_is_refused():
    def change(header):
        header["graph"] = {"size_bytes": 4, "sha256": hashlib.sha256(b"\xff\xff\xff\xff").digest()}

    head = with_header(change)
    end = 12 + int.from_bytes(head[8:12], "little") + 64
    split = HEADER_END + 64 + msgspec.msgpack.decode(BODY[12:HEADER_END])["graph"]["size_bytes"]
    with pytest.raises(ModelError, match="Expected an ONNX model"):
        decode(head[:end] + b"\xff\xff\xff\xff" + BODY[split:], trust=KEY.public)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_file_is_its_owners_alone_and_leaves_nothing_beside_it(tmp_path):
    MODEL.save(tmp_path / "m.confide", KEY)
    assert (tmp_path / "m.confide").read_bytes() == BODY
    assert (tmp_path / "m.confide").stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.confide"]


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "m.confide"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ModelError, match="No space left on device"):
        MODEL.save(path, KEY)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.confide"]


def test_a_link_is_replaced_and_its_target_untouched(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "m").symlink_to(target)
    MODEL.save(tmp_path / "m", KEY)
    assert target.read_bytes() == b"precious"
    assert not (tmp_path / "m").is_symlink()
    assert load(tmp_path / "m", trust=KEY.public).fingerprint


def test_a_link_is_followed_for_reading(tmp_path):
    MODEL.save(tmp_path / "real", KEY)
    (tmp_path / "m").symlink_to(tmp_path / "real")
    assert load(tmp_path / "m", trust=KEY.public).label == LABEL


@pytest.mark.parametrize("name", ["absent/m", "."])
def test_places_that_cannot_be_written_are_named(tmp_path, name):
    with pytest.raises(ModelError, match="Expected to write the model to"):
        MODEL.save(tmp_path / name, KEY)
    assert not list(tmp_path.parent.glob(".*" + tmp_path.name + "*"))


def test_files_that_are_absent_no_files_or_too_large_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "absent", trust=KEY.public)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ModelError, match="no such file"):
            load(tmp_path / name, trust=KEY.public)
    MODEL.save(tmp_path / "m", KEY)
    monkeypatch.setattr(artifact_module, "_LARGEST_FILE_BYTES", len(BODY) - 1)
    with pytest.raises(ModelError, match=f"at most {len(BODY) - 1} bytes"):
        load(tmp_path / "m", trust=KEY.public)


def test_other_files_are_not_taken_for_models(tmp_path):
    (tmp_path / "m").write_text("age,sex\n1,f\n")
    with pytest.raises(
        ModelError, match=r"something else; write one with `confide train`, or of an ONNX.* as docs/models.md shows"
    ):
        load(tmp_path / "m", trust=KEY.public)


def test_without_onnx_the_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match="pip install"):
        decode(BODY, trust=KEY.public)


# --- keys in files ----------------------------------------------------------------------------------------------------


def test_a_created_key_signs_what_its_public_half_verifies(tmp_path):
    key = create_signing_key(tmp_path / "k.pem", SystemRandomness())
    assert (tmp_path / "k.pem").stat().st_mode & 0o777 == 0o600
    assert read_signing_key(tmp_path / "k.pem").public == key.public
    assert read_public_key(tmp_path / "k.pem.pub") == key.public
    assert read_public_key(str(tmp_path / "k.pem.pub")) == key.public
    assert read_public_key(key.public.hex()) == key.public
    assert decode(MODEL.encode(read_signing_key(tmp_path / "k.pem")), trust=key.public).label == LABEL


def test_keys_come_from_the_randomness_that_is_given(tmp_path):
    one, two = (create_signing_key(tmp_path / name, SeededRandomness("x")) for name in ("a", "b"))
    assert one.public == two.public != create_signing_key(tmp_path / "c", SystemRandomness()).public


def test_a_key_is_never_overwritten(tmp_path):
    (tmp_path / "k").write_bytes(b"old")
    with pytest.raises(ModelError, match="Expected no file at"):
        create_signing_key(tmp_path / "k", SystemRandomness())
    assert (tmp_path / "k").read_bytes() == b"old"
    with pytest.raises(ModelError, match="Expected to write a signing key"):
        create_signing_key(tmp_path / "absent" / "k", SystemRandomness())


def test_a_key_that_others_may_read_is_refused(tmp_path):
    create_signing_key(tmp_path / "k", SystemRandomness())
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(ModelError, match="run: chmod 600"):
        read_signing_key(tmp_path / "k")


def pem(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hunter2 is no key",
        pem(generate_private_key(SECP256R1())),
        pem(Ed25519PrivateKey.from_private_bytes(SEED), BestAvailableEncryption(b"hunter2")),
    ],
)
def test_files_without_such_a_key_are_refused_without_showing_them(tmp_path, body):
    (tmp_path / "k").write_bytes(body)
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(ModelError, match="Expected an Ed25519 private key") as caught:
        read_signing_key(tmp_path / "k")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ModelError, match="Expected 64 hex digits or an Ed25519 public key"):
        read_public_key(tmp_path / "k")


def test_absent_and_oversized_key_files_are_refused(tmp_path):
    for read in (read_signing_key, read_public_key):
        with pytest.raises(ModelError, match="no such file"):
            read(tmp_path / "absent")
    (tmp_path / "k").write_bytes(bytes(1 << 15))
    with pytest.raises(ModelError, match="at most 16384 bytes"):
        read_signing_key(tmp_path / "k")


def test_a_graph_without_names_of_outcomes_is_carried_too():
    model = Artifact(Graph(logistic(3).layers), PREPARE, LABEL)
    assert decode(model.encode(KEY), trust=KEY.public).graph.classes == ()


def test_the_documented_example_runs():
    page = (Path(__file__).parents[2] / "docs" / "model-file.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/model-file.md", "exec"), {})


def test_the_documented_keys_are_the_headers():
    page = (Path(__file__).parents[2] / "docs" / "model-file.md").read_text()
    keys = re.findall(
        r"`(\w+)`",
        "".join(re.findall(r"^\| (`.*?) \| (?:integer|32 bytes|text|map|list of text) \|", page, re.MULTILINE)),
    )
    assert set(keys) == set(msgspec.msgpack.decode(BODY[12:HEADER_END]))
