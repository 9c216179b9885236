"""The ML-KEM half of the amortised sum's pair secrets: what hangs on it, what is erased, who is caught."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from itertools import combinations

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from msgspec.structs import replace

from confide.cohort import roster
from confide.crypto.keys import DecapsulationKey, encapsulate, label
from confide.crypto.random import SeededRandomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import RECORDED_X25519
from confide.ideal import Cohort
from confide.secagg import Amortised, amortised_keys
from confide.secagg.amortised_chains import ENCAPSULATE, FORWARD, Encapsulated, Encapsulations
from confide.secagg.amortised_keys import BOOK, KEYS, SECRET, PublicKeys
from confide.secagg.amortised_terms import VECTOR, Upload
from confide.wire import Fault, MemoryStore
from conformance.cases import Federation, windows
from secagg.amortised_cases import book_lie, federation, opened, set_up, sums, tamper, terms, wide, zeros
from secagg.tamper import flip


def expected_links(parties: Federation, epoch: int) -> dict[frozenset[str], bytes]:
    """Return each pair's link of an epoch by HKDF written out, from the ciphertexts that travelled."""
    book = amortised_keys.book(parties.stores["server"])
    links: dict[frozenset[str], bytes] = {}
    for message in parties.setup.messages:
        if message.tag != FORWARD:
            continue
        replayed = SeededRandomness(f"conformance/{message.dst}")
        replayed.bytes(64)
        key = DecapsulationKey(replayed.bytes(64))
        for sender, one in opened(message.body, Encapsulations).members.items():
            info = label("confide amortised v1", "first link", book.digest, sender, message.dst, one.ciphertext)
            link = hkdf(key.decapsulate(one.ciphertext), info)
            for _ in range(epoch):
                link = hkdf(link, label("confide amortised v1", "next link"))
            links[frozenset((sender, message.dst))] = link
    return links


def hkdf(secret: bytes, info: bytes) -> bytes:
    return hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info + b"\1", "sha256")


def test_a_pair_secret_is_derived_from_both_secrets_of_the_epoch() -> None:
    """The oracle: the static X25519 secret of the epoch and the link, through HKDF written out."""
    parties = federation(rounds_per_epoch=1)
    book = amortised_keys.book(parties.stores["server"])
    for epoch in (0, 1, 2):
        before = {name: amortised_keys.secret(parties.stores[name]) for name in parties.cohort.clients}
        sums(parties, number=epoch)
        links = expected_links(parties, epoch)
        assert len(set(links.values())) == len(links) == 6
        for one, other in combinations(parties.cohort.clients, 2):
            agreed = before[one].at(epoch).key.shared(book.members[other].keys[epoch])
            info = label("confide amortised v1", "pair", book.digest, epoch, one, other)
            secret = hkdf(agreed + links[frozenset((one, other))], info)
            assert parties.aggregator._agreed[one][1][other] == secret
            assert parties.aggregator._agreed[other][1][one] == secret
            assert hkdf(agreed, info) != secret


def test_a_store_holds_the_links_of_its_epoch_and_of_no_earlier_one() -> None:
    parties = federation(rounds_per_epoch=1)
    store = parties.stores["silo-1"]
    for epoch in (0, 1, 2):
        sums(parties, number=epoch)
        links = amortised_keys.secret(store).links
        expected = [expected_links(parties, earlier) for earlier in range(epoch + 1)]
        assert links == {peer: expected[epoch][frozenset(("silo-1", peer))] for peer in ("silo-0", "silo-2", "silo-3")}
        body = store.get(SECRET)
        assert body is not None
        assert not [link for earlier in expected[:epoch] for link in earlier.values() if link in body]
    replayed = SeededRandomness("conformance/silo-1")
    replayed.bytes(64)
    assert not windows(replayed.bytes(64)) & store.secrets()  # the decapsulation key was in memory only


def test_x25519_secrets_alone_do_not_take_a_pair_mask_away() -> None:
    """A later quantum computer knows every X25519 key. The control: without ML-KEM that is enough."""
    for hybrid in (True, False):
        parties = federation(hybrid=hybrid)
        book = amortised_keys.book(parties.stores["server"])
        session = wide(parties, 1)
        done = zeros(parties, session)
        stolen = amortised_keys.secret(parties.stores["silo-1"])
        agreed = terms(parties, session)
        recorded = opened(next(m.body for m in done.messages if (m.src, m.tag) == ("silo-1", VECTOR)), Upload)
        broken = amortised_keys.pair_secrets(replace(stolen, links=None), book, "silo-1")
        commitments = {
            peer: agreed.pair_commitment("silo-1", peer, agreed.pair_key(secret, "silo-1", peer))
            for peer, secret in broken.items()
        }
        opens = {peer: commitments[peer] == parcel.of_pair_key for peer, parcel in recorded.parcels.items()}
        assert opens == dict.fromkeys(("silo-0", "silo-2", "silo-3"), not hybrid)


def kem_lie(change: Callable[[Encapsulated], Encapsulated], tag: str, src: str, dst: str, peer: str) -> Fault:
    return tamper(
        Encapsulations,
        lambda body: Encapsulations(body.members | {peer: change(body.members[peer])}),
        tag=tag,
        src=src,
        dst=dst,
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, ciphertext=flip(one.ciphertext)),
        lambda one: replace(one, confirmation=flip(one.confirmation)),
        lambda one: Encapsulated(encapsulate(DecapsulationKey(bytes(64)).public)[0], one.confirmation),
    ],
)
@pytest.mark.parametrize("liar", ["silo-0", "server"])
def test_a_ciphertext_that_its_sender_does_not_confirm_is_refused_by_name(
    change: Callable[[Encapsulated], Encapsulated], liar: str
) -> None:
    lie = (
        kem_lie(change, ENCAPSULATE, "silo-0", "server", "silo-1")
        if liar == "silo-0"
        else kem_lie(change, FORWARD, "server", "silo-1", "silo-0")
    )
    done, stores = set_up(lie)
    with pytest.raises(ProtocolError, match="silo-0 confirms"):
        done.output("silo-1")
    assert stores["silo-1"].get(SECRET) is None


def test_a_server_cannot_encapsulate_in_a_client_s_place() -> None:
    """Anybody can make ciphertexts that open; confirming takes the pair's X25519 secret, and with it all is well."""
    _, stores = set_up()
    book = amortised_keys.book(stores["server"])
    agreed = amortised_keys.secret(stores["silo-0"]).key.shared(book.members["silo-1"].keys[0])

    def forge(one: Encapsulated, known: bytes) -> Encapsulated:
        ciphertext, secret = encapsulate(book.members["silo-1"].encapsulation)
        info = label("confide amortised v1", "confirmation", book.digest, "silo-0", "silo-1", ciphertext)
        return Encapsulated(ciphertext, hkdf(known + secret, info))

    done, _ = set_up(kem_lie(lambda one: forge(one, bytes(32)), FORWARD, "server", "silo-1", "silo-0"))
    with pytest.raises(ProtocolError, match="silo-0 confirms"):
        done.output("silo-1")
    done, _ = set_up(kem_lie(lambda one: forge(one, agreed), FORWARD, "server", "silo-1", "silo-0"))
    assert not done.failures


@pytest.mark.parametrize(
    "change",
    [
        lambda body: Encapsulations({}),
        lambda body: Encapsulations(body.members | {"stranger": body.members["silo-2"]}),
        lambda body: Encapsulations({"silo-2": replace(body.members["silo-2"], ciphertext=b"")}),
        lambda body: Encapsulations({"silo-2": replace(body.members["silo-2"], confirmation=bytes(31))}),
        lambda body: Encapsulations({"silo-0": body.members["silo-2"]}),
    ],
)
def test_the_server_names_who_sent_no_valid_ciphertexts(change: Callable[[Encapsulations], Encapsulations]) -> None:
    done, stores = set_up(tamper(Encapsulations, change, tag=ENCAPSULATE, src="silo-1", dst="server"))
    with pytest.raises(Aborted, match="set silo-1 up again"):
        done.output("server")
    assert all(store.get(key) is None for store in stores.values() for key in (BOOK, SECRET))


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("client", [True, False])
def test_a_set_up_of_both_kinds_is_refused_and_says_who_is_of_the_other(server: bool, client: bool) -> None:
    done, stores = set_up(hybrid=server, others={"silo-1": client})
    if server == client:
        assert not done.failures
        return
    with pytest.raises(Aborted, match=f"hybrid={server} at every party, as here; silo-1 was set up otherwise"):
        done.output("server")
    assert all(store.get(key) is None for store in stores.values() for key in (BOOK, SECRET))


def test_a_server_that_strips_or_swaps_an_ml_kem_key_is_refused() -> None:
    own = DecapsulationKey(bytes(64)).public
    for key in (b"", own, b"\xff" * 1184):
        change = lambda m, key=key: m | {"silo-1": replace(m["silo-1"], encapsulation=key)}  # noqa: E731
        done, stores = set_up(book_lie(change))
        assert isinstance(done.failures["silo-0"], ProtocolError)
        assert stores["silo-0"].get(SECRET) is None
        assert not [m for m in done.messages if (m.src, m.tag) == ("silo-0", ENCAPSULATE)]


@pytest.mark.parametrize("bad", [b"\xff" * 1184, bytes(1183), b"\1"])
def test_a_malformed_ml_kem_key_is_refused_even_if_its_owner_signed_it(bad: bytes) -> None:
    """The server names the owner before anybody encapsulates to it."""
    _, stores = set_up()
    signer, digest = roster.identity(stores["silo-1"]), roster.pinned(stores["silo-1"]).digest

    def signed(own: PublicKeys) -> PublicKeys:
        signature = signer.sign(label("confide amortised v1", "keys", digest, "silo-1", bad, *own.keys))
        return replace(own, encapsulation=bad, signature=signature)

    done, _ = set_up(tamper(PublicKeys, signed, tag=KEYS, src="silo-1", dst="server"))
    with pytest.raises(Aborted, match="ML-KEM-768 public key of 1184 bytes, reduced; set silo-1 up again"):
        done.output("server")
    assert not [message for message in done.messages if message.tag == ENCAPSULATE]


def test_a_sum_of_the_other_kind_than_its_set_up_is_refused_by_every_party() -> None:
    for hybrid in (True, False):
        parties = federation(hybrid=hybrid)
        parties.aggregator = federation(hybrid=not hybrid).aggregator
        session = parties.session()
        for name in parties.roles:
            with pytest.raises(UsageError, match=f"hybrid={not hybrid} to be what set-up had"):
                parties.party(name, session, parties.vectors(session))


def test_without_ml_kem_every_party_s_set_up_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: bytes) -> None:
        raise UnsupportedAlgorithm("ML-KEM-768 is not supported by this backend.")

    monkeypatch.setattr(MLKEM768PrivateKey, "from_seed_bytes", absent)
    cohort, rng = Cohort(("silo-0", "silo-1", "silo-2"), 3), SeededRandomness("absent")
    for role, me in (("server", "server"), ("client", "silo-0")):
        with pytest.raises(UsageError, match="pip install .*cryptography"):
            Amortised().setup(role, me, cohort, MemoryStore(), rng)
        assert Amortised(hybrid=False).setup(role, me, cohort, MemoryStore(), rng)


def test_only_the_hybrid_claims_to_stand_a_quantum_computer() -> None:
    hybrid, classical = Amortised().guarantee, Amortised(hybrid=False).guarantee
    assert (hybrid.post_quantum, classical.post_quantum) == (True, False)
    assert Amortised.guarantee == hybrid
    assert RECORDED_X25519 in classical.leaks
    assert "identities are Ed25519" in hybrid.leaks
