"""Whose model it is: a client that pins the owner's key takes no kit that says anything else than its owner signed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from confide.crypto.keys import SigningKey
from confide.errors import IntegrityError, ModelError
from confide.ideal import PlainPredict
from confide.model.artifact import Artifact, decode, decode_statement
from confide.model.graph import Graph, Linear
from confide.net.http import InProcess
from confide.serve.client import Client
from confide.serve.protocol import ClientKit
from confide.serve.served import Model
from confide.serve.server import create_app
from confide.serve.signed import checked
from serve.toy import GRAPH, LABEL, PREPROCESS

URL = "http://127.0.0.1:8080"
OWNER, STRANGER = SigningKey(bytes(range(32))), SigningKey(bytes(32))
X = {"age": [25, 80], "sex": ["m", "f"]}


def served(artifact: Artifact, **changes) -> Model:
    facts = {
        "graph": artifact.graph,
        "label": artifact.label,
        "preprocess": artifact.preprocess.encode(),
        "link": artifact.link,
        "statement": artifact.statement,
        **changes,
    }
    return Model("m", backends=(PlainPredict(),), **facts)


def signed(key: SigningKey = OWNER, graph: Graph = GRAPH, **metadata) -> Artifact:
    return decode(Artifact(graph, PREPROCESS, LABEL, metadata).encode(key), trust=key.public)


def kit_of(model: Model) -> ClientKit:
    with Client(URL, backend="plain", transport=InProcess(create_app([model]))) as client:
        return client.kit


def test_the_owner_is_pinned():
    app = create_app([served(signed())])
    for signer in (OWNER.public.hex(), None):
        with Client(URL, backend="plain", signer=signer, transport=InProcess(app)) as client:
            assert client.predict(X).shape == (2, 1)
            assert client.signer == OWNER.public.hex()
    with (
        Client(URL, backend="plain", signer=STRANGER.public.hex(), transport=InProcess(app)) as client,
        pytest.raises(IntegrityError, match="pinned key"),
    ):
        client.predict(X)


def test_a_server_without_a_signature_is_refused_where_one_is_asked_for():
    app = create_app([served(signed(), statement=b"")])
    with (
        Client(URL, backend="plain", signer=OWNER.public.hex(), transport=InProcess(app)) as client,
        pytest.raises(IntegrityError, match="shows none"),
    ):
        client.predict(X)
    with Client(URL, backend="plain", transport=InProcess(app)) as client:
        assert client.signer == ""


KIT = kit_of(served(signed()))
OTHER = kit_of(served(signed(graph=Graph((Linear(np.ones((1, 3)), np.zeros(1)),), ("one", "two")))))


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ("malignant", "benign")},
        {"classes": ()},
        {"label": msgspec.structs.replace(LABEL, epsilon=0.1)},
        {"preprocess": PREPROCESS.encode() + b" "},
        {"preprocess": b""},
        {"link": "logit"},
        {"outputs": 2},
        {"statement": OTHER.statement},
        {"statement": KIT.statement[:-1]},
        {"statement": KIT.statement + b"x"},
        {"statement": b"nonsense"},
        {"statement": KIT.statement[:40] + bytes([KIT.statement[40] ^ 1]) + KIT.statement[41:]},
    ],
    ids=range(12),
)
def test_a_kit_that_differs_from_what_was_signed_is_refused(change):
    for signer in (OWNER.public, None):
        assert checked(KIT, signer) is not None
        with pytest.raises(IntegrityError):
            checked(msgspec.structs.replace(KIT, **change), signer)


def test_a_server_does_not_start_under_another_models_statement():
    with pytest.raises(ModelError, match="classes"):
        served(signed(), graph=Graph(GRAPH.layers, ("yes", "no")))


def test_a_statement_holds_no_weights():
    artifact = signed()
    assert len(artifact.statement) < len(artifact.encode(OWNER)) - 200
    found = decode_statement(artifact.statement, trust=OWNER.public)
    assert (found.classes, found.outputs, found.link) == (("benign", "malignant"), 1, "probability")
    assert (found.label, found.fingerprint) == (LABEL, artifact.fingerprint)
    weight = GRAPH.layers[0].weight
    assert not any(value.tobytes() in artifact.statement for value in weight.ravel())


def test_a_file_that_was_signed_before_classes_were_is_not_enough_for_a_pin():
    header_end = 12 + int.from_bytes(KIT.statement[8:12], "little")
    header = msgspec.msgpack.decode(KIT.statement[12:header_end])
    for name in ("classes", "outputs", "link"):
        del header[name]
    body = msgspec.msgpack.encode({**header, "format": 2})
    head = b"CONFIDE\0" + len(body).to_bytes(4, "little") + body
    old = msgspec.structs.replace(KIT, statement=head + OWNER.sign(head))
    assert checked(old, None) is not None
    with pytest.raises(IntegrityError, match="sign the model again"):
        checked(old, OWNER.public)


def test_the_link_decides_what_people_get():
    weight = np.array([[1.0, 0.5, -0.5], [0.25, -1.0, 0.0], [0.0, 0.0, 2.0]])
    x = np.array([[0.5, -0.5, 0.25], [-1.0, 1.0, 0.0]])
    logits = x @ weight.T
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    several = signed(graph=Graph((Linear(weight, np.zeros(3)),), ("a", "b", "c")))
    with Client(URL, backend="plain", transport=InProcess(create_app([served(several)]))) as client:
        assert client.kit.link == "logit"
        np.testing.assert_allclose(client.probabilities(x), softmax)
        assert client.decide(x) == ["abc"[place] for place in logits.argmax(axis=1)]
    poisson = signed(graph=Graph((Linear(weight[:1], np.zeros(1)),)), link="log")
    with Client(URL, backend="plain", transport=InProcess(create_app([served(poisson)]))) as client:
        np.testing.assert_allclose(client.mean(x), np.exp(logits[:, :1]))
    for contradiction in ("lgo", "log"):  # GRAPH ends in a sigmoid
        with pytest.raises(ModelError, match="link"):
            signed(link=contradiction)
