"""Who gets a key: an attested server, once for each nonce, after the audit; everybody else gets the name of a check."""

from __future__ import annotations

import threading
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import AttestationError, IntegrityError, ProtocolError, StoreError, UsageError
from confide.tee import known
from confide.tee.broker import NONCE_SECONDS, Broker, BrokerKeys, Nonces
from confide.tee.channel import EnclaveKey, context_of
from confide.tee.evidence import NONCE_BYTES, Bundle, Provider, Quoted
from confide.tee.policy import Policy, SnpRules
from confide.tee.sealed import open_sealed
from confide.tee.simulated import Simulated
from tee.authority import NOW as HARDWARE_NOW
from tee.authority import Amd, Chip
from tee.released import MEASUREMENT, NOW, RNG, Lines, evidence, memory, model_file, policy, sealed_model


class Case:
    """A broker with two sealed models; `tick` passes."""

    def __init__(self, **settings) -> None:
        self.store, self.audit, self.tick = memory(), Lines(), 0.0
        self.sealed, self.key, self.head = sealed_model(self.store)
        self.other = sealed_model(self.store, model_file("another"))[2]
        self.nonces = Nonces(RNG, ticks=lambda: self.tick, most=settings.pop("most", 100))
        given = {"allow_simulated": True, "clock": lambda: NOW, "nonces": self.nonces, "audit": self.audit} | settings
        rules, audit = given.pop("policy", policy()), given.pop("audit")
        self.broker = Broker(rules, BrokerKeys(self.store), audit, rng=RNG, **given)
        self.enclave = EnclaveKey(RNG)

    def bundle(self, nonce: bytes | None = None, **changes) -> bytes:
        model = changes.pop("model_sha256", self.head.graph_sha256)
        nonce = self.broker.challenge() if nonce is None else nonce
        return evidence(nonce, model, key=self.enclave, **changes).encode()

    def release(self, body: bytes, key_id: str = "") -> bytes:
        return self.broker.release(key_id or self.head.key_id, body, address="192.0.2.1")

    def opened(self, sealed_key: bytes) -> bytes:
        return self.enclave.open(sealed_key, context=context_of("unseal", self.head.graph_sha256)).body

    def refused(self, body: bytes, key_id: str = "") -> str:
        """Return the check by which it is refused; the audit has the same in its last line."""
        before = len(self.audit)
        with pytest.raises(AttestationError) as refused:
            self.release(body, key_id)
        assert len(self.audit) == before + 1
        assert (self.audit[-1]["verdict"], self.audit[-1]["check"]) == ("refused", refused.value.check)
        assert self.key.secret.hex() not in str(refused.value)
        return refused.value.check


def test_an_attested_server_gets_the_key_and_the_audit_a_line():
    case = Case()
    assert case.opened(case.release(case.bundle())) == case.key.secret
    assert open_sealed(case.sealed, case.key) == model_file()
    assert case.audit == [
        {
            "time": "2026-09-21T14:13:20Z",
            "key_id": case.head.key_id,
            "model": "model",
            "verdict": "released",
            "check": "",
            "provider": "insecure-simulated",
            "simulated": True,
            "measurement": MEASUREMENT,
            "instance": "",
            "policy_sha256": policy().digest,
            "address": "192.0.2.1",
        }
    ]


def test_what_leaves_opens_for_nobody_else():
    case = Case()
    sealed = case.release(case.bundle())
    with pytest.raises(ProtocolError):
        EnclaveKey(RNG).open(sealed, context=context_of("unseal", case.head.graph_sha256))
    with pytest.raises(ProtocolError):
        case.enclave.open(sealed, context=context_of("predict", case.head.graph_sha256))
    assert case.key.secret not in sealed
    assert case.key.secret.hex() not in repr((case.audit, case.broker, BrokerKeys(case.store).find(case.head.key_id)))


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"attester": Simulated("cd" * 48)}, "measurement"),
        ({"attester": Simulated(MEASUREMENT, debug=True)}, "debug"),
        ({"purpose": "predict"}, "purpose"),
        ({"purpose": "aggregate"}, "purpose"),
        ({"model_sha256": "00" * 32}, "model"),
        ({"now": NOW - 7200}, "validity"),
        ({"now": NOW + 7200}, "validity"),
        ({"public_key": "00" * 10}, "public key"),
        ({"public_key": "zz"}, "public key"),
    ],
)
def test_evidence_that_does_not_hold(changes, check):
    case = Case()
    assert case.refused(case.bundle(**changes)) == check
    assert case.opened(case.release(case.bundle())) == case.key.secret  # the control: the rest of it was right


def test_another_models_key_is_for_evidence_about_that_model():
    case = Case()
    assert case.other.graph_sha256 == case.head.graph_sha256  # the same weights, so the same claims
    case.release(case.bundle(), case.other.key_id)
    changed = BrokerKeys(case.store)
    key = changed.find(case.other.key_id).key
    changed.add(key, _about(case.other, "11" * 32), now=NOW)
    assert case.refused(case.bundle(), case.other.key_id) == "model"
    case.release(case.bundle(model_sha256="11" * 32), case.other.key_id)


def _about(head, graph_sha256):
    return type(head)(head.model, graph_sha256, head.key_id, head.statement, head.size_bytes)


@pytest.mark.parametrize("key_id", ["00" * 32, "", "x", "../" * 20, "AB" * 32])
def test_a_key_that_is_not_there(key_id):
    case = Case()
    assert case.refused(case.bundle(), key_id or "-") == "key"
    assert case.audit[-1]["key_id"] in ("", key_id)


def test_a_policy_may_name_the_models():
    case = Case(policy=msgspec.structs.replace(policy(), model_sha256=("22" * 32,)))
    assert case.refused(case.bundle()) == "model"


# --- nonces -----------------------------------------------------------------------------------------------------------


def test_a_nonce_is_good_once(monkeypatch):
    case = Case()
    body = case.bundle()
    case.release(body)
    assert case.refused(body) == "nonce"
    monkeypatch.setattr(Nonces, "spend", lambda *_: True)
    case.release(body)  # the control: nothing else refuses a bundle that is sent again


def test_a_nonce_is_spent_by_a_refusal_too():
    case = Case()
    nonce = case.broker.challenge()
    assert case.refused(case.bundle(nonce, purpose="predict")) == "purpose"
    assert case.refused(case.bundle(nonce)) == "nonce"


def test_a_nonce_of_somebody_else():
    case, another = Case(), Case()
    for nonce in (b"", bytes(NONCE_BYTES), another.broker.challenge(), case.broker.challenge()[:-1]):
        assert case.refused(case.bundle(nonce)) == "nonce"
    case.release(case.bundle())


def test_a_nonce_expires():
    case = Case()
    body, late = case.bundle(), case.bundle()
    case.tick = NONCE_SECONDS
    case.release(body)
    case.tick = NONCE_SECONDS + 0.01
    assert case.refused(late) == "nonce"


def test_nonces_are_bounded_and_the_oldest_leave():
    case = Case(most=4)
    first = case.broker.challenge()
    others = [case.broker.challenge() for _ in range(4)]
    assert len(case.nonces) == 4
    assert case.refused(case.bundle(first)) == "nonce"
    case.release(case.bundle(others[0]))
    case.tick = NONCE_SECONDS + 1
    case.broker.challenge()
    assert len(case.nonces) == 1  # what has expired is not kept


def test_a_nonce_is_won_by_one_of_many_at_once():
    case = Case()
    body = case.bundle()
    start, won = threading.Barrier(8), Counter()

    def ask() -> None:
        start.wait()
        try:
            case.release(body)
            won["released"] += 1
        except AttestationError as refused:
            won[refused.check] += 1

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == {"released": 1, "nonce": 7}
    assert Counter(line["verdict"] for line in case.audit) == {"released": 1, "refused": 7}


# --- hardware ---------------------------------------------------------------------------------------------------------


class Guest:
    """An SEV-SNP guest on a chip of the tests' own authority."""

    provider = Provider.SNP

    def __init__(self, chip: Chip, **fields) -> None:
        self._chip, self._fields = chip, fields

    def quote(self, report_data: bytes) -> Quoted:
        return Quoted(self._chip.report(report_data, **self._fields), self._chip.endorsements())


def test_a_guest_on_hardware_gets_the_key_and_simulated_evidence_does_not(monkeypatch):
    authority = Amd("genoa")
    trusted = authority.known()
    monkeypatch.setattr(known, "load", lambda: trusted)
    chip, rules = Chip(authority), Policy(snp=SnpRules(measurement=(MEASUREMENT,)))
    case = Case(policy=rules, allow_simulated=False, clock=lambda: HARDWARE_NOW)
    body = case.bundle(attester=Guest(chip), now=HARDWARE_NOW)
    assert case.opened(case.release(body)) == case.key.secret
    line = case.audit[-1]
    assert (line["provider"], line["simulated"], line["measurement"]) == ("snp", False, MEASUREMENT)
    assert line["instance"] == chip.chip.hex()
    other = Guest(chip, measurement=bytes(range(48)))
    assert case.refused(case.bundle(attester=other, now=HARDWARE_NOW)) == "measurement"
    assert case.audit[-1]["measurement"].startswith(bytes(range(48)).hex())
    assert case.refused(case.bundle(attester=Guest(Chip(Amd("genoa"))), now=HARDWARE_NOW)) == "root"
    assert case.refused(case.bundle(now=HARDWARE_NOW)) == "provider"


# --- simulation -------------------------------------------------------------------------------------------------------


def test_simulated_evidence_needs_policy_and_option():
    assert (case := Case(allow_simulated=False)).refused(case.bundle()) == "provider"
    assert (case := Case(allow_simulated=False, policy=policy(simulated=False))).refused(case.bundle()) == "provider"
    with pytest.raises(UsageError, match=r"\[simulated\]"):
        Case(policy=policy(simulated=False))


# --- the audit --------------------------------------------------------------------------------------------------------


class Broken(Lines):
    """An audit whose disk is full."""

    def append(self, line) -> None:
        raise StoreError("full")


def test_no_key_leaves_without_its_line():
    case = Case(audit=Broken())
    with pytest.raises(StoreError):
        case.release(case.bundle())


def test_what_breaks_the_verifier_gets_nothing_and_a_line(monkeypatch):
    case = Case()
    monkeypatch.setattr("confide.tee.broker.verify", lambda *_, **__: {}[0])
    with pytest.raises(KeyError):
        case.release(case.bundle())
    assert (case.audit[-1]["verdict"], case.audit[-1]["check"]) == ("refused", "internal")


def test_a_store_that_was_changed_gives_nothing():
    case = Case()
    entry = msgspec.msgpack.decode(case.store.get(f"sealed/{case.head.key_id}"))
    for changes in ({"secret": bytes(32)}, {"secret": b""}, {"more": 1}):
        case.store.commit({f"sealed/{case.head.key_id}": msgspec.msgpack.encode(entry | changes)})
        with pytest.raises(IntegrityError, match="backup"):
            case.release(case.bundle())


def test_a_key_that_was_forgotten_is_not_there():
    case = Case()
    BrokerKeys(case.store).forget(case.head.key_id)
    assert case.refused(case.bundle()) == "key"
    assert BrokerKeys(case.store).ids() == [case.other.key_id]


# --- hostile bodies ---------------------------------------------------------------------------------------------------

CASE = Case()


def same(body: bytes, good: bytes) -> bool:
    """Return whether `body` says what `good` says; simulated hardware has nobody who endorses it."""
    try:
        return msgspec.structs.replace(Bundle.decode(body), endorsements={}) == Bundle.decode(good)
    except ProtocolError:
        return False


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200) | JSON.map(msgspec.json.encode))
def test_any_bytes_are_no_bundle(body):
    assert CASE.refused(body) == "form"


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "provider": st.sampled_from(["sgx", "tdx", "snp", "nitro", "insecure-simulated", "none"]) | JSON,
            "evidence": st.text("AZaz09+/=", max_size=40) | JSON,
            "endorsements": st.dictionaries(st.text(max_size=8), st.text("AZ=", max_size=8), max_size=3) | JSON,
            "claims": st.text("AZaz09+/=", max_size=40) | JSON,
        },
    )
)
def test_any_field_of_a_bundle_is_refused(changes):
    good = CASE.bundle()
    body = msgspec.json.encode(msgspec.json.decode(good) | changes)
    if not same(body, good):
        CASE.refused(body)


@given(st.data())
def test_any_changed_byte_is_refused_or_says_the_same(data):
    body = CASE.bundle()
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
    if not same(changed, body):
        CASE.refused(changed)
