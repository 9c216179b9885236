"""AWS Nitro: the public documents at their time, and an authority of our own for documents that bind claims."""

from __future__ import annotations

import base64
import shutil
import subprocess

import cbor2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.tee import certificates, known
from confide.tee.cose import read_sign1
from confide.tee.evidence import Provider, report_data
from confide.tee.nitro import Document
from confide.tee.policy import NitroRules, Policy
from tee.authority import NOW, Aws, der
from tee.vectors import (
    CLAIMS,
    LATER,
    MEASURED,
    NITRO_DEBUG_2_NOW,
    NITRO_DEBUG_NOW,
    NITRO_NOW,
    checked,
    failed,
    flipped,
    vector,
)

NAME = "aws_nitro_evervault/valid-attestation-doc-bytes"


def fields(document: bytes) -> dict[str, object]:
    """Read a document without our reader: four parts, the third of which is the payload."""
    return cbor2.loads(cbor2.loads(document)[2])


def rules_of(document: bytes) -> NitroRules:
    pcrs = fields(document)["pcrs"]
    return NitroRules(**{f"pcr{i}": (pcrs[i].hex(),) for i in (0, 1, 2)})


def public(document: bytes | None = None, *, now: float = NITRO_NOW, rules: NitroRules | None = None):
    genuine = vector(NAME)
    policy = Policy(nitro=rules or rules_of(genuine))
    return checked(Provider.NITRO, genuine if document is None else document, {}, policy, now)


def test_the_public_document_holds_but_for_the_claims_of_its_code():
    assert failed(public()) == ["report data"]
    assert public().instance == fields(vector(NAME))["module_id"]


def test_the_wrong_time_is_refused():
    assert failed(public(now=NITRO_NOW + 3 * 3600 + 60)) == ["certificate dates", "timestamp", "report data"]
    assert failed(public(now=NITRO_NOW + 3700)) == ["timestamp", "report data"]
    assert failed(public(now=LATER)) == ["certificate dates", "timestamp", "report data"]
    assert "timestamp" in failed(public(now=NITRO_NOW - 600))


@pytest.mark.parametrize("debugged", ["debug-mode-attestation-doc-bytes", "valid-attestation-doc-base64"])
def test_debugged_enclaves_are_refused_though_they_are_signed(debugged):
    body = vector(f"aws_nitro_evervault/{debugged}")
    now = NITRO_DEBUG_NOW
    if debugged.endswith("base64"):
        body, now = base64.b64decode(body), NITRO_DEBUG_2_NOW
    verdict = public(body, now=now)
    assert failed(verdict) == ["debug", "measurement", "pcr1", "pcr2", "report data"]
    assert next(check.holds for check in verdict.checks if check.name == "signature")


def test_no_byte_of_what_is_signed_can_change():
    document = vector(NAME)
    start = document.index(b"module_id")
    end = len(document) - 96
    for place in [*range(start, end, 67), *range(end, len(document), 19), document.index(bytes.fromhex("0158")) + 5]:
        names = failed(public(flipped(document, place, place % 8)))
        assert names not in ([], ["report data"]), place


def test_openssl_finds_the_same_signature(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    protected, _, payload, signature = cbor2.loads(vector(NAME))
    key = certificates.read_certificate(cbor2.loads(payload)["certificate"], "leaf").public_key()
    (tmp_path / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    covered = b"\x84\x6aSignature1" + bytes([0x40 + len(protected)]) + protected + b"\x40"
    covered += b"\x59" + len(payload).to_bytes(2, "big") + payload
    assert read_sign1(vector(NAME)).covered == covered
    halves = [half.lstrip(b"\0") for half in (signature[:48], signature[48:])]
    halves = [b"\0" + half if half[0] & 0x80 else half for half in halves]
    inner = b"".join(b"\x02" + bytes([len(half)]) + half for half in halves)
    (tmp_path / "signature").write_bytes(b"\x30" + bytes([len(inner)]) + inner)
    for body, expected in ((covered, 0), (flipped(covered, 60), 1)):
        (tmp_path / "body").write_bytes(body)
        command = ["openssl", "dgst", "-sha384", "-verify", "key.pem", "-signature", "signature", "body"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == expected


# --- an authority of our own ---


@pytest.fixture(scope="module")
def aws() -> Aws:
    return Aws()


@pytest.fixture
def ours(aws, monkeypatch) -> Aws:
    trusted = aws.known()
    monkeypatch.setattr(known, "load", lambda: trusted)
    return aws


def judged(document: bytes, *, now: float = NOW, age_seconds: int = 3600, **rules):
    named = {"pcr0": (MEASURED,), "pcr1": (MEASURED,), "pcr2": (MEASURED,), **rules}
    policy = Policy(nitro=NitroRules(**named), model_sha256=(CLAIMS.model_sha256,), max_age_seconds=age_seconds)
    return checked(Provider.NITRO, document, {}, policy, now)


BOUND = report_data(CLAIMS.encode())


def test_a_document_that_binds_our_claims_holds(ours):
    for tag in (False, True):
        verdict = judged(ours.document(BOUND, tag=tag))
        assert failed(verdict) == []
        assert verdict.require() == CLAIMS
    assert failed(judged(ours.document(BOUND), pcr8=(MEASURED,))) == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"digest": "SHA512"}, ["digest"]),
        ({"algorithm": -7}, ["signature algorithm"]),
        ({"algorithm": None}, ["signature algorithm"]),
        ({"timestamp": int((NOW - 4000) * 1000)}, ["timestamp"]),
        ({"timestamp": int((NOW + 400) * 1000)}, ["timestamp"]),
        ({"timestamp": "now"}, ["form"]),
        ({"module_id": "a b"}, ["form"]),
        ({"module_id": ""}, ["form"]),
        ({"pcrs": {}}, ["form"]),
        ({"pcrs": {32: b"a"}}, ["form"]),
        ({"pcrs": {0: bytes(48)}}, ["debug", "measurement", "pcr1", "pcr2"]),
        ({"cabundle": []}, ["form"]),
        ({"cabundle": [b"x"] * 9}, ["form"]),
        ({"cabundle": [b"x"]}, ["certificates"]),
        ({"certificate": b"x"}, ["certificates"]),
        ({"certificate": None}, ["form"]),
        ({"user_data": None}, ["report data"]),
        ({"user_data": "text"}, ["form"]),
    ],
)
def test_each_check_names_what_does_not_hold(ours, changes, names):
    document = ours.document(**{"user_data": BOUND, **changes})
    assert failed(judged(document)) == names


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ({"pcr0": ("cd" * 48,)}, ["measurement"]),
        ({"pcr1": ("cd" * 48,), "pcr2": ("cd" * 48,)}, ["pcr1", "pcr2"]),
        ({"pcr8": ("cd" * 48,)}, ["pcr8"]),
        ({"instances": ("i-0123456789abcdef0-enc0123456789abcdef",)}, []),
        ({"instances": ("i-0123456789abcdef0-enc0000000000000000",)}, ["instance"]),
    ],
)
def test_a_policy_is_kept_to(ours, rules, names):
    assert failed(judged(ours.document(BOUND), **rules)) == names


def test_chains_that_do_not_lead_to_the_document_are_refused(ours):
    root, middle, leaf = der(ours.root), der(ours.middle), der(ours.leaf)
    assert failed(judged(ours.document(BOUND, cabundle=[root]))) == ["chain"]
    assert failed(judged(ours.document(BOUND, cabundle=[middle, root]))) == ["root"]
    assert failed(judged(ours.document(BOUND, cabundle=[root, middle, middle]))) == ["chain"]
    assert failed(judged(ours.document(BOUND, cabundle=[root, middle, leaf]))) == ["chain"]
    assert failed(judged(ours.document(BOUND, certificate=middle, cabundle=[root], key=ours.middle_key))) == ["chain"]
    assert failed(judged(ours.document(BOUND, key=ours.middle_key))) == ["signature"]
    assert failed(judged(ours.document(BOUND), now=NOW + 2 * 86400, age_seconds=10**6)) == ["certificate dates"]
    assert failed(judged(Aws().document(BOUND))) == ["root"]


# --- bytes that are no document ---


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(body):
    with pytest.raises(ProtocolError):
        Document.read(read_sign1(body).payload)


ATOMS = st.none() | st.integers() | st.binary(max_size=9) | st.text(max_size=9)


@settings(max_examples=30)
@given(ATOMS | st.lists(ATOMS, max_size=5) | st.dictionaries(st.text(max_size=9) | st.integers(), ATOMS, max_size=5))
def test_other_items_of_cbor_are_refused(item):
    for body in (item, [b"", {}, cbor2.dumps(item), b""], [cbor2.dumps({1: -35}), {}, cbor2.dumps(item), bytes(96)]):
        with pytest.raises(ProtocolError):
            Document.read(read_sign1(cbor2.dumps(body)).payload)


@settings(max_examples=40)
@given(st.integers(0, 4653), st.binary(min_size=1, max_size=100), st.booleans())
def test_spliced_documents_end_in_a_verdict(place, piece, cut):
    document = vector(NAME)
    changed = document[:place] if cut else document[:place] + piece + document[place + len(piece) :]
    verdict = public(changed)
    assert not verdict.holds


DEEP = (
    b"\x81" * 30000,
    b"\xd8\x1d" * 16000,
    b"\xc6" * 32000,
    b"\x9b" + b"\xff" * 8,
    b"\x5b" + b"\x7f" * 8,
    b"\xbb" + b"\x0f" * 8,
    b"\x9f" * 32000,
    b"\xc5\x82\x1b" + b"\x7f" * 8 + b"\x02",
    b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x02",
)


@pytest.mark.parametrize("deep", DEEP)
def test_deep_and_long_items_are_refused(deep):
    assert failed(public(deep)) == ["form"]
