"""Sums inside an enclave: who is fooled by what, what opens where, and rules that outvote liars in the clear inside."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from confide.cohort.roster import pinned
from confide.crypto.keys import SigningKey
from confide.crypto.random import SeededRandomness, public_stream
from confide.errors import Aborted, AttestationError, ProtocolError, UsageError
from confide.guarantee import Trust
from confide.ideal import Cohort, Session
from confide.tee import aggregate_enclave
from confide.tee.aggregate import Enclaves, Tee
from confide.tee.aggregate_enclave import Inside, Released, evidence_of
from confide.tee.aggregate_terms import (
    EVIDENCE,
    RESULT,
    UPLOAD,
    Relayed,
    Result,
    Rule,
    Shown,
    Terms,
    Upload,
    agreed,
    joint_nonce,
    relay_tag,
)
from confide.tee.channel import EnclaveKey
from confide.tee.evidence import Bundle
from confide.tee.simulated import Simulated
from confide.wire import Array, MemoryStore, Message, alter, decode, drop, encode, lose, repeat, run
from conformance.cases import Federation
from tee.aggregators import MEASUREMENT, NOW, accepted, as_on_hardware, enclaves

COHORT = Cohort(("silo-0", "silo-1", "silo-2", "silo-3"), 3)


class Several:
    """Members with an aggregator each, as on machines of their own, before their set-up."""

    def __init__(self, rule: str = "mean", liars: int = 0, simulated: bool = True, **changes: Enclaves) -> None:
        self.roles = COHORT.parties(Tee.roles)
        brought = {name: replace(enclaves(), attester=None) for name in COHORT.clients}
        brought |= {"helper": Enclaves(attester=Simulated(MEASUREMENT), now=lambda: NOW), "server": Enclaves()}
        self.members = {
            name: Tee(rule=rule, liars=liars, simulated=simulated, enclaves=one)
            for name, one in (brought | changes).items()
        }
        self.stores = {name: MemoryStore() for name in self.roles}
        self.rngs = {name: SeededRandomness(f"tee/{name}") for name in self.roles}

    def forget(self) -> None:
        """Take from the enclave what it remembers of what it let out; no host can."""
        helper = self.members["helper"]
        helper._enclaves = replace(helper._enclaves, released=Released())

    def set_up(self, fault=None, **others):
        parties = {
            name: self.members[name].setup(role, name, COHORT, self.stores[name], self.rngs[name])
            for name, role in self.roles.items()
        }
        return run(parties | others, stores=self.stores, fault=fault)

    def sum(self, session: Session, vectors, fault=None):
        parties = {
            name: self.members[name].party(role, name, session, vectors.get(name), self.stores[name], self.rngs[name])
            for name, role in self.roles.items()
        }
        return run(parties, stores=self.stores, fault=fault)


def session(number: int = 1, length: int = 5, **changes) -> Session:
    return replace(Session("run", number, COHORT, length, 1000, model_hash=bytes(32)), **changes)


def vectors_of(length: int = 5):
    return {name: np.arange(length, dtype=np.int64) + 10 * at for at, name in enumerate(COHORT.clients)}


def refusals(done) -> set[str]:
    """Return the checks for which clients refused the evidence."""
    return {
        done.failures[name].check for name in COHORT.clients if isinstance(done.failures.get(name), AttestationError)
    }


# --- whom clients seal to ---------------------------------------------------------------------------------------------


def test_members_of_their_own_agree_on_one_fingerprint_and_sum():
    members = Several()
    done = members.set_up()
    assert len(set(done.outputs.values())) == 1
    assert set(done.outputs) == set(members.roles)
    sums = members.sum(session(), vectors_of()).output("server")
    np.testing.assert_array_equal(sums.values, [4 * np.arange(5) + 60])


def test_one_quote_serves_everybody_and_its_nonce_is_everybody_s():
    members = Several()
    done = members.set_up()
    shown = {m.body for m in done.messages if m.tag == EVIDENCE}
    assert len(shown) == 1
    told = decode(shown.pop(), Shown, max_bytes=1 << 20)
    claims = Bundle.decode(told.bundle).read_claims()
    assert claims.nonce == joint_nonce(told.nonces).hex()
    assert claims.purpose == "aggregate"
    assert claims.model_sha256 == agreed(COHORT, pinned(members.stores["silo-0"]), Rule(), told.signer)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"helper": Enclaves(attester=Simulated("00" * 48), now=lambda: NOW)}, "measurement"),
        ({"helper": Enclaves(attester=Simulated(MEASUREMENT, debug=True), now=lambda: NOW)}, "debug"),
        ({"helper": Enclaves(attester=Simulated(MEASUREMENT), now=lambda: NOW - 86_400)}, "validity"),
        ({"silo-0": enclaves(policy=accepted(measurement="11" * 48))}, "measurement"),
        ({"silo-0": enclaves(allow_simulated=False)}, "provider"),
        ({"silo-0": enclaves(now=lambda: NOW + 86_400)}, "validity"),
    ],
    ids=["other code", "debug", "old", "another policy", "no simulation asked for", "late"],
)
def test_evidence_that_a_policy_does_not_name_ends_the_set_up_and_nothing_is_pinned(changes, check):
    members = Several(**changes)
    done = members.set_up()
    assert refusals(done) == {check}
    refused = next(name for name in COHORT.clients if name in done.failures)
    assert members.stores[refused].get("tee/enclave") is None
    with pytest.raises(UsageError, match="run the aggregator's setup first"):
        members.sum(session(), vectors_of())


def test_a_client_without_a_policy_and_a_place_without_an_attester_take_no_part():
    with pytest.raises(UsageError, match="Expected a policy for enclaves"):
        Several(**{"silo-0": Enclaves()}).set_up()
    with pytest.raises(UsageError, match="Expected an attester at the enclave"):
        Several(helper=Enclaves()).set_up()


def test_a_job_for_hardware_takes_no_simulated_evidence_whatever_members_allow():
    done = Several(simulated=False).set_up()
    assert "train.attester='hardware'" in str(done.failures["helper"])
    assert not done.outputs


# --- a server that relays lies ----------------------------------------------------------------------------------------


def forged(body: bytes, *, key: EnclaveKey | None = None, signer: bytes | None = None, attester=None) -> bytes:
    """Return what a server shows in place of the enclave's: its own keys, in the claims that it got."""
    shown = decode(body, Shown, max_bytes=1 << 20)
    bundle = Bundle.decode(shown.bundle)
    claims = bundle.read_claims()
    changed = dict(zip(claims.__struct_fields__, map(claims.__getattribute__, claims.__struct_fields__), strict=True))
    changed |= {"public_key": key.public.hex()} if key else {}
    body = type(claims)(**changed).encode()
    quoted = attester.quote(aggregate_enclave.report_data(body)) if attester else None
    forged = Bundle(
        provider=bundle.provider,
        evidence=quoted.evidence if quoted else bundle.evidence,
        endorsements={},
        claims=body,
    )
    return encode(Shown(forged.encode(), signer or shown.signer, shown.nonces))


def by_the_server(change):
    return alter(change, tag=EVIDENCE, src="server")


def test_a_server_that_puts_its_own_key_in_is_refused_and_would_fool_whoever_does_not_verify(monkeypatch):
    """The control: the same lie, and clients that do not look; then the server reads every vector."""
    key = EnclaveKey(SeededRandomness("the server's own"))
    lie = by_the_server(lambda body: forged(body, key=key))
    assert refusals(Several().set_up(lie)) == {"report data"}

    class Believes:
        @staticmethod
        def require():
            return None

    members = Several()
    monkeypatch.setattr("confide.tee.aggregate.verify_evidence", lambda *_, **__: Believes)
    assert set(members.set_up(lie).outputs) == set(members.roles)
    vectors = vectors_of()
    own = {
        name: members.members[name].party("client", name, session(), vectors[name], members.stores[name], rng)
        for name, rng in members.rngs.items()
        if name in COHORT.clients
    }
    done = run(own, stores=members.stores)
    terms = Terms(session(), members.stores["silo-0"], Rule())
    for message in done.messages:
        sealed = decode(message.body, Upload, max_bytes=1 << 20).sealed
        opened = terms.unpack(key.open(sealed, context=terms.sealing(message.src)).body)
        np.testing.assert_array_equal(opened, vectors[message.src])


def test_another_signer_of_results_is_refused():
    signer = SigningKey(b"\7" * 32).public
    assert refusals(Several().set_up(by_the_server(lambda body: forged(body, signer=signer)))) == {"model"}


def test_evidence_of_an_enclave_with_other_code_is_refused_whoever_s_key_it_names():
    key = EnclaveKey(SeededRandomness("an enclave of the server's"))
    other = Simulated("ab" * 48)
    assert refusals(Several().set_up(by_the_server(lambda b: forged(b, key=key, attester=other)))) == {"measurement"}


def test_evidence_that_was_made_before_is_refused():
    earlier = Several()
    old = next(m.body for m in earlier.set_up().messages if m.tag == EVIDENCE)
    members = Several()
    members.rngs |= {name: SeededRandomness(f"later/{name}") for name in COHORT.clients}
    done = members.set_up(by_the_server(lambda _: old))
    assert all("over the nonce of this client" in str(done.failures[name]) for name in COHORT.clients)

    def with_new_nonces(body: bytes) -> bytes:
        shown, now = decode(old, Shown, max_bytes=1 << 20), decode(body, Shown, max_bytes=1 << 20)
        return encode(Shown(shown.bundle, shown.signer, now.nonces))

    members = Several()
    members.rngs |= {name: SeededRandomness(f"later/{name}") for name in COHORT.clients}
    done = members.set_up(by_the_server(with_new_nonces))
    assert refusals(done) >= {"nonce"}


@pytest.mark.parametrize(
    ("rule", "liars", "quorum"), [("median", 1, 3), ("mean", 0, 4)], ids=["another rule", "another quorum"]
)
def test_an_enclave_that_was_told_something_else_is_refused(rule, liars, quorum):
    members = Several()
    told = Tee(rule=rule, liars=liars, simulated=True, enclaves=enclaves())
    cohort = replace(COHORT, quorum=quorum)
    party = told.setup("enclave", "helper", cohort, members.stores["helper"], SeededRandomness("told"))
    assert refusals(members.set_up(helper=party)) == {"model"}


def test_evidence_for_predictions_is_none_for_sums(monkeypatch):
    real = evidence_of

    def other(inside: Inside, attester, now, **more):
        bundle = real(inside, attester, now, **more)
        claims = bundle.claims.replace(b'"purpose":"aggregate"', b'"purpose":"predict"')
        quoted = attester.quote(aggregate_enclave.report_data(claims))
        return Bundle(provider=bundle.provider, evidence=quoted.evidence, endorsements={}, claims=claims)

    monkeypatch.setattr(aggregate_enclave, "evidence_of", other)
    assert refusals(Several().set_up()) == {"purpose"}


# --- sums -------------------------------------------------------------------------------------------------------------


def uploads(done) -> dict[str, bytes]:
    return {message.src: message.body for message in done.messages if message.tag == UPLOAD}


@pytest.mark.parametrize(
    "earlier",
    [session(1), session(2, run="another"), session(2, attempt=1), session(2, model_hash=b"\1" * 32)],
    ids=["round", "run", "attempt", "model"],
)
def test_a_body_of_another_session_is_not_taken(earlier):
    members = Several()
    members.set_up()
    old = uploads(members.sum(earlier, vectors_of()))
    for store in members.stores.values():  # else the journals refuse by themselves
        store.commit(dict.fromkeys(store.keys("tee/journal/")))
    members.forget()
    done = members.sum(session(2), vectors_of(), alter(lambda _: old["silo-1"], src="silo-1", tag=UPLOAD))
    sums = done.output("server")
    assert sums.members == (frozenset(COHORT.clients) - {"silo-1"},)
    assert set(sums.blamed) == {"silo-1"}


def test_the_enclave_refuses_what_the_server_lets_pass(monkeypatch):
    """A server that checks nothing passes an old body on: the enclave ends the sum."""
    members = Several()
    members.set_up()
    old = uploads(members.sum(session(1), vectors_of()))
    checks = []

    def once(self, name, sealed, signature):
        checks.append(name)
        if len(checks) > 4:
            real(self, name, sealed, signature)

    real = Terms.check
    monkeypatch.setattr(Terms, "check", once)
    done = members.sum(session(2), vectors_of(), alter(lambda _: old["silo-1"], src="silo-1", tag=UPLOAD))
    assert isinstance(done.failures["server"], Aborted)


def test_a_session_is_let_out_once_though_the_enclave_s_disk_is_turned_back():
    members = Several()
    members.set_up()
    before = {key: members.stores["helper"].get(key) for key in members.stores["helper"].keys("")}
    first = members.sum(session(), vectors_of())
    relayed = [m for m in first.messages if m.dst == "helper"]
    members.stores["helper"] = MemoryStore()
    members.stores["helper"].commit(before)
    enclave = members.members["helper"].party("enclave", "helper", session(), None, members.stores["helper"], None)
    again = next(enclave)
    assert [m.tag for m in again.send] == [RESULT]  # the very bytes, whatever it would be told now
    assert again.send[0].body == next(m.body for m in first.messages if m.tag == RESULT)
    assert len(relayed) == 5
    earlier = members.members["helper"].party("enclave", "helper", session(0), None, members.stores["helper"], None)
    with pytest.raises(Aborted, match="lets each round out once"):
        next(earlier)


# --- a server that asks twice: two sums of one round differ by single clients' vectors --------------------------------


class Lying:
    """A server that has the uploads of a session, and tells the enclave of whom it likes."""

    def __init__(self, members: Several, one: Session) -> None:
        self.members, self.session, self.uploads = members, one, {}
        for name in COHORT.clients:
            party = members.members[name].party(
                "client", name, one, vectors_of()[name], members.stores[name], members.rngs[name]
            )
            step = next(party)
            members.stores[name].commit(step.save)
            self.uploads[name] = decode(step.send[0].body, Upload, max_bytes=1 << 20)

    def told(self, names):
        """Return the enclave's party of the session that was told of `names`, before it is told that this is all."""
        members = self.members
        party = members.members["helper"].party("enclave", "helper", self.session, None, members.stores["helper"], None)
        step = next(party)
        for count, name in enumerate(names):
            if step.send:
                break
            upload = self.uploads[name]
            step = party.send(self._relayed(count, Relayed(name, upload.sealed, upload.signature)))
        return party, step, len(names)

    def result(self, told) -> Result:
        party, step, count = told
        step = step if step.send else party.send(self._relayed(count, Relayed()))
        return decode(step.send[0].body, Result, max_bytes=1 << 20)

    @staticmethod
    def _relayed(count: int, relayed: Relayed):
        return {"server": Message("server", "helper", relay_tag(count), encode(relayed))}


def difference(one: Result, two: Result):
    return one.values.numpy("int64", (5,)) - two.values.numpy("int64", (5,))


def test_two_parties_of_one_session_let_one_result_out():
    """The control: an enclave that forgets between them lets two sums out, and their difference is a vector."""
    everybody = COHORT.clients
    members = Several()
    members.set_up()
    lying = Lying(members, session())
    long, short = lying.told(everybody), lying.told(everybody[:3])
    first = lying.result(short)
    with pytest.raises(Aborted, match="another was faster"):
        lying.result(long)
    again = lying.result(lying.told(everybody))
    assert again == first  # signature and all

    members.forget()
    stolen = difference(lying.result(lying.told(everybody)), first)
    np.testing.assert_array_equal(stolen, vectors_of()["silo-3"])


@pytest.mark.parametrize("anew", [False, True], ids=["same keys", "after a set-up"])
def test_a_round_that_is_out_is_not_let_out_again_in_the_next_attempt(anew):
    """The control as above; what the next attempt gets is the result that is out, whoever uploads in it."""
    members = Several()
    members.set_up()
    first = lying_result(members, session(), COHORT.clients)
    if anew:
        members.rngs["helper"] = SeededRandomness("another set-up")
        assert not members.set_up().failures
        with pytest.raises(Aborted, match="take another run id"):  # the very session, under other keys
            next(members.members["helper"].party("enclave", "helper", session(), None, members.stores["helper"], None))
    second = lying_result(members, session(attempt=1), COHORT.clients[:3])
    assert (second.values, second.members, second.attempt) == (first.values, first.members, 0)
    for other in (session(attempt=2, model_hash=b"\1" * 32), session(attempt=2, bound=999)):
        with pytest.raises(Aborted, match="lets each round out once"):
            next(members.members["helper"].party("enclave", "helper", other, None, members.stores["helper"], None))

    members.forget()
    stolen = difference(first, lying_result(members, session(attempt=2), COHORT.clients[:3]))
    np.testing.assert_array_equal(stolen, vectors_of()["silo-3"])


def lying_result(members: Several, one: Session, names) -> Result:
    lying = Lying(members, one)
    return lying.result(lying.told(names))


def test_a_server_that_lost_the_result_gets_it_in_the_next_attempt_and_goes_on():
    members = Several()
    members.set_up()
    assert isinstance(members.sum(session(), vectors_of(), drop(tag=RESULT)).failures["server"], Aborted)
    sums = members.sum(session(attempt=1), vectors_of(), lose("silo-2", tag=UPLOAD)).output("server")
    assert sums.members == (frozenset(COHORT.clients),)
    np.testing.assert_array_equal(sums.values, [4 * np.arange(5) + 60])
    sums = members.sum(session(2), vectors_of(), lose("silo-2", tag=UPLOAD)).output("server")
    assert sums.members == (frozenset(COHORT.clients) - {"silo-2"},)


@pytest.mark.parametrize("attempt", [-1, 0, 2])
def test_a_result_that_claims_another_attempt_is_refused(attempt):
    members = Several()
    members.set_up()

    def lie(body: bytes) -> bytes:
        return encode(msgspec.structs.replace(decode(body, Result, max_bytes=1 << 20), attempt=attempt))

    done = members.sum(session(attempt=1), vectors_of(), alter(lie, tag=RESULT))
    assert isinstance(done.failures["server"], ProtocolError)


def test_of_many_runs_the_oldest_results_are_held_no_longer_and_stay_out():
    members = Several()
    members.set_up()
    for at in range(10):
        members.sum(session(run=f"run-{at}"), vectors_of()).output("server")
    helper, store = members.members["helper"], members.stores["helper"]
    assert next(helper.party("enclave", "helper", session(run="run-2"), None, store, None)).send
    for at in (0, 1):
        for attempt in (0, 1):
            with pytest.raises(Aborted, match="lets each round out once"):
                next(helper.party("enclave", "helper", session(run=f"run-{at}", attempt=attempt), None, store, None))
    assert repr(helper._enclaves.released) == "Released(runs=10)"


def test_an_enclave_that_started_again_has_other_keys_and_says_so():
    members = Several()
    members.set_up()
    members.members["helper"] = Tee(simulated=True, enclaves=enclaves())
    with pytest.raises(UsageError, match="it has started again: run setup again"):
        members.sum(session(), vectors_of())
    for name in members.roles:
        members.stores[name].commit({"tee/enclave": None})
    members.rngs["helper"] = SeededRandomness("started again")
    assert not members.set_up().failures
    assert members.sum(session(), vectors_of()).output("server").members == (frozenset(COHORT.clients),)


def test_a_result_that_the_enclave_did_not_sign_is_refused():
    members = Several()
    members.set_up()

    def other(body: bytes) -> bytes:
        result = decode(body, Result, max_bytes=1 << 20)
        values = result.values.numpy("int64", (None,)) + 1
        return encode(msgspec.structs.replace(result, values=Array.of(values)))

    done = members.sum(session(), vectors_of(), alter(other, tag=RESULT))
    assert isinstance(done.failures["server"], ProtocolError)
    assert isinstance(members.sum(session(2), vectors_of(), drop(src="helper")).failures["server"], Aborted)


def test_a_client_s_signed_nonsense_is_its_own_fault(monkeypatch):
    members = Several()
    members.set_up()
    real = Terms.pack

    def beyond(self, vector):
        return real(self, vector * 0 + 1001 if vector[0] == 10 else vector)

    monkeypatch.setattr(Terms, "pack", beyond)
    sums = members.sum(session(), vectors_of()).output("server")
    assert sums.members == (frozenset(COHORT.clients) - {"silo-1"},)
    assert set(sums.blamed) == {"silo-1"}
    np.testing.assert_array_equal(sums.values, [3 * np.arange(5) + 50])


def test_dropouts_and_repeats():
    members = Several()
    members.set_up()
    done = members.sum(session(), vectors_of(), lose("silo-2", tag=UPLOAD))
    np.testing.assert_array_equal(done.output("server").values, [3 * np.arange(5) + 40])
    assert members.sum(session(2), vectors_of(), repeat()).output("server").members == (frozenset(COHORT.clients),)


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "clients"), [("median", 5), ("trimmed-mean", 5), ("multi-krum", 6)])
def test_a_rule_outvotes_a_client_that_flips_signs_where_the_sum_is_spoilt(rule, clients):
    """The oracle is the honest mean: a rule stays within the honest clients' spread, the sum leaves it."""
    rng = public_stream(3, "flip")
    honest = rng.normal(200, 10, (clients, 30))
    vectors = {f"silo-{at}": np.rint(row).astype(np.int64) for at, row in enumerate(honest)}
    vectors["silo-1"] = -50 * vectors["silo-1"]
    found = {}
    for name, liars in (("mean", 0), (rule, 1)):
        parties = Federation(as_on_hardware(name, liars), clients)
        sums = parties.sum(parties.session(length=30, bound=20_000), vectors).output("server")
        assert sums.members == (frozenset(parties.cohort.clients),)
        found[name] = sums.values[0] / clients
    good = np.delete(honest, 1, axis=0)
    assert ((found[rule] >= good.min(axis=0) - 1) & (found[rule] <= good.max(axis=0) + 1)).all()
    assert (found["mean"] < 0).all()


def test_a_rule_s_result_is_numpy_s_own_median_times_the_members():
    parties = Federation(as_on_hardware("median", 1), 5)
    vectors = {f"silo-{at}": np.array([at * at, -at, 7]) for at in range(5)}
    sums = parties.sum(parties.session(length=3), vectors, lose("silo-4", tag=UPLOAD)).output("server")
    left = np.array([vectors[f"silo-{at}"] for at in range(4)], float)
    np.testing.assert_array_equal(sums.values[0], np.rint(4 * np.median(left, axis=0)))


def test_too_few_for_a_rule_is_an_abort_and_a_cohort_that_never_has_enough_is_refused():
    parties = Federation(as_on_hardware("multi-krum", 1), 5)
    one = parties.session()
    done = parties.sum(one, parties.vectors(one), lose("silo-4", tag=UPLOAD))
    assert "at least 5 clients, got 4" in str(done.failures["server"])
    with pytest.raises(UsageError, match="at least 5 clients; multi-krum"):
        Tee(rule="multi-krum", liars=1).check(COHORT)
    with pytest.raises(UsageError, match="a mean, which outvotes nobody"):
        Tee(rule="mean", liars=1)
    with pytest.raises(UsageError, match=r"sums below 2\^53"):
        parties.party("server", parties.session(bound=2**52), {})


# --- what is promised -------------------------------------------------------------------------------------------------


def test_what_is_promised_rests_on_hardware_and_a_simulation_promises_nothing():
    guarantee = Tee().guarantee
    assert guarantee.trust is Trust.HARDWARE
    assert {claim.if_honest for claim in guarantee.claims} == {
        ("hardware vendor", "whoever has physical access to the enclave's host")
    }
    assert "caches" in guarantee.leaks
    simulated = Tee(simulated=True).guarantee
    assert not simulated.claims
    assert "INSECURE SIMULATION" in simulated.leaks


def test_no_secret_is_in_a_repr_or_in_the_enclave_s_store():
    parties = Federation(as_on_hardware())
    (inside,) = parties.aggregator._inside.values()
    assert repr(inside) == "Inside(secret)"
    rng = SeededRandomness("conformance/helper")
    secrets = [rng.bytes(64), rng.bytes(32), rng.bytes(32)]
    assert EnclaveKey(SeededRandomness("conformance/helper")).public == inside.key.public
    kept = b"".join(body for key in parties.stores["helper"].keys("") if (body := parties.stores["helper"].get(key)))
    assert not any(secret in kept for secret in secrets)
    assert SigningKey(secrets[2]).public == inside.signer.public
