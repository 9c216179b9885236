"""The backend tee: nothing leaves before evidence holds, and who stands between learns nothing."""

import hashlib
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from confide.errors import AttestationError, KeysExpired, PrivacyError, ProtocolError, UsageError
from confide.model.graph import Graph, Linear
from confide.tee import backend as module
from confide.tee.backend import Accept, Enclaved, ask_evidence, graph_sha256
from confide.tee.channel import EnclaveKey, context_of
from confide.tee.evidence import Bundle, Provider
from confide.tee.policy import SimulatedRules
from confide.tee.simulated import Simulated
from confide.tee.verify import Check, Verdict
from confide.wire import alter, decode
from tee.enclaves import GRAPH, RNG, Both, X, policy_for


def refused(both: Both, fault=None) -> str:
    """Return the check that refused the evidence; nothing but the nonce may have left the client."""
    transcript = both.setup(fault)
    failure = transcript.failures["client"]
    assert isinstance(failure, AttestationError)
    assert [message.tag for message in transcript.messages if message.src == "client"] == ["tee/nonce"]
    with pytest.raises(UsageError, match="setup"):
        both.predict()
    return failure.check


def test_answers_are_the_model_s_bit_for_bit():
    both = Both()
    both.setup().output("client")
    assert (both.predict().output("client") == GRAPH.apply(X)).all()


def test_both_sides_name_the_key_alike():
    ended = Both().setup()
    assert ended.output("client") == ended.output("server")


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"attester": Simulated(measurement="00" * 48)}, "measurement"),
        ({"attester": Simulated(debug=True)}, "debug"),
        ({"policy": policy_for(simulated=SimulatedRules(measurements=("11" * 48,)))}, "measurement"),
        ({"policy": policy_for(simulated=None)}, "provider"),
        ({"policy": policy_for(model_sha256=("22" * 32,))}, "model"),
        ({"policy": policy_for(model_sha256=())}, "model"),
    ],
)
def test_what_the_policy_does_not_name_is_refused(changes, check):
    assert refused(Both(**changes)) == check


def test_another_model_is_refused_before_any_input_leaves():
    other = Graph((Linear(np.array([[1.0, 1.0, 1.0]]), np.array([0.0])),))
    assert refused(Both(graph=other)) == "model"


def test_a_simulation_is_refused_before_anything_leaves_unless_the_client_asks_for_it():
    both = Both(allow_simulated=False)
    transcript = both.setup()
    assert isinstance(transcript.failures["client"], AttestationError)
    assert not transcript.messages


def test_a_client_without_a_policy_asks_nothing():
    both = Both()
    party = Enclaved().setup("client", both.kit, both.stores["client"], RNG)
    with pytest.raises(PrivacyError, match="policy"):
        next(party)


def test_evidence_of_another_time_is_refused():
    both = Both()
    replayed: list[bytes] = []

    def keep(body: bytes) -> bytes:
        replayed.append(body)
        return body

    both.setup(alter(keep, tag="tee/evidence")).output("client")
    assert refused(Both(clock=both.clock), alter(lambda body: replayed[0], tag="tee/evidence")) == "nonce"
    both.clock.now += both.lifetime_seconds + 100
    assert refused(Both(clock=both.clock), alter(lambda body: replayed[0], tag="tee/evidence")) == "validity"


def swap_key(key: EnclaveKey):
    """A relay that puts its own key into the claims."""

    def change(body: bytes) -> bytes:
        bundle = Bundle.decode(body)
        claims = bundle.read_claims()
        forged = msgspec.structs.replace(claims, public_key=key.public.hex())
        return Bundle(
            provider=bundle.provider, evidence=bundle.evidence, endorsements=bundle.endorsements, claims=forged.encode()
        ).encode()

    return alter(change, tag="tee/evidence")


def test_a_relay_that_puts_in_its_own_key_is_found_out():
    assert refused(Both(), swap_key(EnclaveKey(RNG))) == "report data"


def test_without_verification_that_relay_would_read_the_query(monkeypatch):
    """The control: what the test above refuses is an attack that works."""

    def believe(bundle, policy, **_):
        return Verdict(bundle.provider, (Check("nothing", True, ""),), bundle.read_claims())

    monkeypatch.setattr(module, "verify", believe)
    relay, both = EnclaveKey(RNG), Both()
    ended = both.setup(swap_key(relay))
    assert not ended.failures.get("client")
    query = next(message for message in both.predict().messages if message.tag == "tee/query")
    sealed = decode(query.body, module._Query, max_bytes=1 << 20).sealed
    opened = relay.open(sealed, context=context_of("predict", graph_sha256(GRAPH)))
    assert X.tobytes() in opened.body


def test_no_message_shows_query_or_prediction():
    both = Both()
    both.setup().output("client")
    transcript = both.predict()
    seen = b"".join(message.body for message in transcript.messages)
    for values in (X, GRAPH.apply(X)):
        assert not any(value.tobytes() in seen for value in values.ravel())


def test_what_was_accepted_holds_for_one_policy_and_a_time():
    both = Both(policy=policy_for(max_age_seconds=600))
    both.setup().output("client")
    both.clock.now += 599
    both.predict().output("client")
    kept = both.policy
    both.policy = policy_for(max_age_seconds=600, model_sha256=(graph_sha256(GRAPH), "33" * 32))
    with pytest.raises(KeysExpired):
        both.predict()
    both.policy = kept
    both.clock.now += 2
    with pytest.raises(KeysExpired):
        both.predict()
    both.clock.now -= 4000  # a clock that went back says nothing about age
    with pytest.raises(KeysExpired):
        both.predict()


def test_a_pinned_signer_s_model_is_asked_for_beside_the_policy_s():
    both = Both()
    both.setup().output("client")
    accept = Accept(both.policy, allow_simulated=True, model_sha256="44" * 32, clock=both.clock)
    with pytest.raises(KeysExpired):
        Enclaved(accept=accept).predict("client", both.kit, X, both.stores["client"], RNG)
    bundle = both.server.enclave.bundle(bytes(32))
    assert [one.name for one in accept.verdict(bundle, bytes(32)).checks if not one.holds] == ["model"]
    alone = replace(accept, policy=policy_for(model_sha256=()), model_sha256=graph_sha256(GRAPH))
    assert alone.verdict(bundle, bytes(32)).holds


@pytest.mark.parametrize("size", [0, 31, 33, 100])
def test_a_nonce_of_another_size_is_refused(size):
    both = Both()
    ended = both.setup(alter(lambda _: ask_evidence(bytes(size)), tag="tee/nonce"))
    assert isinstance(ended.failures["server"], ProtocolError)


def test_a_prediction_that_is_no_number_is_refused_without_its_input():
    both = Both(graph=Graph((Linear(np.array([[1e300, 0.0, 0.0]]), np.array([0.0])),)))
    both.policy = policy_for(both.graph)
    both.setup().output("client")
    with np.errstate(over="ignore"):
        failure = both.predict(np.array([[1e300, 0.0, 0.0]])).failures["server"]
    assert isinstance(failure, ProtocolError)
    assert "1e300" not in str(failure)


def test_the_hash_of_a_model_is_that_of_its_file(tmp_path):
    from confide.crypto.keys import SigningKey
    from confide.guarantee import imported_label
    from confide.model.artifact import Artifact, decode_statement, load
    from confide.model.preprocess import Preprocess, Scale

    prepare = Preprocess(tuple(Scale(name=name, low=0, high=1) for name in "abc"))
    key = SigningKey(bytes(32))
    Artifact(GRAPH, prepare, imported_label()).save(tmp_path / "m.confide", key)
    again = load(tmp_path / "m.confide", trust=key.public)
    stated = decode_statement(again.statement, trust=key.public).graph_sha256.hex()
    assert stated == graph_sha256(GRAPH) == graph_sha256(again.graph)


def test_a_server_s_kit_stays_where_it_is():
    both = Both()
    with pytest.raises(UsageError):
        both.server.encode()
    with pytest.raises(UsageError, match="--attester"):
        Enclaved().prepare(GRAPH, RNG)
    with pytest.raises(ProtocolError):
        both.backend.decode_kit("client", b"\xc1" + hashlib.sha256(b"").digest())


def test_the_guarantee_of_a_simulation_claims_nothing():
    assert not Enclaved(attester=Simulated()).guarantee_for(GRAPH).claims
    assert "INSECURE" in Enclaved(attester=Simulated()).guarantee_for(GRAPH).leaks
    guest = Simulated()
    guest.provider = Provider.SNP
    own = Enclaved(attester=guest).guarantee_for(GRAPH)
    assert own.claims == Enclaved.guarantee.claims
    assert "CacheWarp" in own.leaks  # AMD's, and Intel's alone not
    assert "WireTap" not in own.leaks
    hardware = Enclaved().guarantee_for(GRAPH)
    assert all("vendor" in " ".join(claim.if_honest) for claim in hardware.claims if claim.hidden_from == "server")


def test_numbers_of_another_shape_are_refused():
    both = Both()
    both.setup().output("client")
    for wrong in (X[:, :2], X[None]):
        assert isinstance(both.predict(wrong).failures["server"], ProtocolError)
