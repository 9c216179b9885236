"""Encrypted sums: exact at every edge, what the keyholder refuses, what each party sees, liars, pins and journals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from msgspec.structs import replace

from confide.cohort import roster
from confide.cohort.parcel import Parcel, seal_parcel
from confide.crypto.keys import AgreementKey
from confide.crypto.masks import add_mask
from confide.crypto.random import SeededRandomness
from confide.crypto.ring import unpack
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import Adversary, Trust
from confide.he import EncryptedSum, aggregate, sum_keys
from confide.he.aggregate import OPENED, REQUEST, UPLOAD, Opened, Request, Upload
from confide.he.sum_keys import BOX, ENROLMENT, HELLO, HELLOS, KEYS, SECRETS, WELCOME, Enrolment, Hello, Hellos, Welcome
from confide.he.sum_layout import RINGS
from confide.he.sum_tags import TAG_BYTES, encode_tag, tag_of
from confide.ideal import Cohort, Session
from confide.secagg import Masked
from confide.wire import Fault, MemoryStore, Message, Transcript, alter, decode, drop, encode, lose, run
from conformance.cases import Federation, assert_is_sum, bytes_are_uniform, windows
from he.oracle import ternary_secret
from secagg.tamper import flip

HE = EncryptedSum()


def federation(clients: int = 5, quorum: int = 3, seed: str = "he") -> Federation:
    return Federation(HE, clients, quorum, seed)


def change(tag: str, kind: type, edit: Callable, *, src: str | None = None) -> Fault:
    return alter(lambda body: encode(edit(decode(body, kind, max_bytes=1 << 30))), src=src, tag=tag)


def sum_of(parties: Federation, fault: Fault | None = None, number: int = 1) -> Transcript:
    session = parties.session(number)
    return parties.sum(session, parties.vectors(session), fault)


def members_of(parties: Federation, fault: Fault | None = None, number: int = 1) -> frozenset[str]:
    session = parties.session(number)
    vectors = parties.vectors(session)
    return assert_is_sum(parties.sum(session, vectors, fault).output("server"), parties.aggregator, vectors)


def everybody(parties: Federation) -> frozenset[str]:
    return frozenset(parties.cohort.clients)


def terms_of(parties: Federation, session: Session, name: str = "server") -> aggregate._Terms:
    return aggregate._Terms(session, parties.stores[name], HE._rings)


def restored(terms: aggregate._Terms, upload: Upload) -> np.ndarray:
    return terms.restored(terms.unpacked(upload.words, terms.layout.word_bits))


def uploads(done: Transcript) -> dict[str, Upload]:
    return {m.src: decode(m.body, Upload, max_bytes=1 << 24) for m in done.messages if m.tag == UPLOAD}


def refused(done: Transcript) -> bool:
    """Check that the keyholder opened nothing, so that the server has nothing."""
    answers = [decode(m.body, Opened, max_bytes=1 << 24) for m in done.messages if m.tag == OPENED]
    return (
        not any(answer.words for answer in answers)
        and isinstance(done.failures.get("helper"), Aborted)
        and isinstance(done.failures.get("server"), Aborted)
    )


# --- the right sum ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0, 1, 3, 25, 1000, 2**18, 2**21, 2**28, 2**35, 2**40, 2**57])
@pytest.mark.parametrize("clients", [3, 5])
def test_sums_are_exact_at_every_edge(clients: int, bound: int) -> None:
    """Everybody at the same edge, then mixed: several values in a coefficient, one, limbs; both rings."""
    parties = federation(clients)
    session = parties.session(length=11, bound=bound)
    for number, value in enumerate((bound, -bound)):
        session = parties.session(number, length=11, bound=bound)
        vectors = {name: np.full(11, value) for name in parties.cohort.clients}
        done = parties.sum(session, vectors).output("server")
        assert done.values.tolist() == [[clients * value] * 11]
    session = parties.session(2, length=4097, bound=bound)  # one more than the larger ring holds
    vectors = parties.vectors(session)
    assert assert_is_sum(parties.sum(session, vectors).output("server"), HE, vectors) == everybody(parties)


def test_fifty_clients_at_the_edge() -> None:
    parties = Federation(HE, 50, 26)
    session = parties.session(length=5, bound=(2**32 - 1) // 100)
    vectors = {name: np.array([1, -1, 0, 1, -1]) * session.bound for name in parties.cohort.clients}
    assert assert_is_sum(parties.sum(session, vectors).output("server"), HE, vectors) == everybody(parties)


def test_a_ring_that_is_too_wide_is_refused() -> None:
    parties = federation()
    with pytest.raises(UsageError, match="bits=66"):
        parties.parties(parties.session(bound=2**62), {})


# --- who is in the sum ------------------------------------------------------------------------------------------------


def test_dropouts_are_free_down_to_three() -> None:
    parties = federation()
    assert members_of(parties, drop(src="silo-1", tag=UPLOAD)) == everybody(parties) - {"silo-1"}
    two = lambda message: [] if message.src in ("silo-1", "silo-4") else [(0, message)]  # noqa: E731
    assert members_of(parties, two, 2) == everybody(parties) - {"silo-1", "silo-4"}


@pytest.mark.parametrize("quorum", [1, 2, 3])
def test_two_are_never_a_sum(quorum: int) -> None:
    parties = federation(3, quorum)
    done = sum_of(parties, lose("silo-1", tag=UPLOAD))
    assert isinstance(done.failures["server"], Aborted)
    assert not [message for message in done.messages if message.tag in (REQUEST, OPENED)]


class Liar:
    """A server that keeps every upload and asks the keyholder for what it likes.

    Args:
        parties: the federation.
        names: in whose name it asks.
        parts: how often it counts each client's ciphertext.
        edit: changes the ciphertexts of what it asks about, shape (2, polynomials, N).
    """

    def __init__(
        self,
        parties: Federation,
        names: tuple[str, ...],
        parts: dict[str, int],
        edit: Callable[[np.ndarray], None] = lambda _: None,
        number: int = 1,
    ) -> None:
        self.terms = terms_of(parties, parties.session(number))
        self.names, self.parts, self.edit = names, parts, edit
        self.held: dict[str, Upload] = {}

    def __call__(self, message: Message) -> list[tuple[int, Message]]:
        if message.tag == UPLOAD:
            self.held[message.src] = decode(message.body, Upload, max_bytes=1 << 24)
        if message.tag != REQUEST:
            return [(0, message)]
        body = encode(Request({name: self.held[name].parcel for name in self.names}, self.words()))
        return [(0, Message(message.src, message.dst, message.tag, body))]

    def words(self) -> bytes:
        total = self.terms.residues().astype(object)
        for name, times in self.parts.items():
            total += times * restored(self.terms, self.held[name]).astype(object)
        residues = (total % self.terms.layout.prime).astype(np.uint64)
        self.edit(residues)
        return self.terms.packed(residues, self.terms.layout.whole_bits)


def once(*numbers: int) -> dict[str, int]:
    return {f"silo-{number}": 1 for number in numbers}


NAMES = tuple(f"silo-{number}" for number in range(5))


def test_the_liar_that_does_not_lie_gets_the_sum() -> None:
    """The control of the tests below."""
    parties = federation()
    assert members_of(parties, Liar(parties, NAMES, once(*range(5)))) == everybody(parties)


LIES = {
    "one client's ciphertext in the name of all": (NAMES, once(0)),
    "one client's ciphertext in the name of three": (NAMES[:3], once(0)),
    "three clients in the name of five": (NAMES, once(0, 1, 2)),
    "five clients in the name of four": (NAMES[:4], once(*range(5))),
    "one client twice": (NAMES, {**once(*range(5)), "silo-0": 2}),
    "a difference": (NAMES[:3], {"silo-0": 1, "silo-1": 1, "silo-2": -1}),
    "a multiple": (NAMES, dict.fromkeys(NAMES, 2)),
    "nothing at all": (NAMES, {}),
    "others than the named": (NAMES[:3], once(2, 3, 4)),
}


@pytest.mark.parametrize("lie", LIES)
def test_the_keyholder_opens_no_other_sum(lie: str) -> None:
    parties = federation()
    assert refused(sum_of(parties, Liar(parties, *LIES[lie])))


def shift_c0(residues: np.ndarray) -> None:
    residues[0, 0, 0] ^= 1


def shift_c1(residues: np.ndarray) -> None:
    residues[1, -1, -1] ^= 1


def chosen(residues: np.ndarray) -> None:
    residues[:] = 0
    residues[1, 0, 0] = RINGS[0].modulus // 2  # the classic question for the secret key's parities


@pytest.mark.parametrize("edit", [shift_c0, shift_c1, chosen])
def test_the_keyholder_opens_no_changed_sum(edit: Callable) -> None:
    parties = federation()
    assert refused(sum_of(parties, Liar(parties, NAMES, once(*range(5)), edit)))


@pytest.mark.parametrize(("quorum", "asked", "allowed"), [(1, 2, False), (1, 3, True), (4, 3, False), (4, 4, True)])
def test_the_keyholder_enforces_quorum_and_minimum_by_itself(quorum: int, asked: int, allowed: bool) -> None:
    """With the right sum over fewer; the honest half of the server, which adds all masks, sees a wrong one."""
    parties = federation(quorum=quorum)
    done = sum_of(parties, Liar(parties, NAMES[:asked], once(*range(asked))))
    answers = [decode(m.body, Opened, max_bytes=1 << 24) for m in done.messages if m.tag == OPENED]
    assert [bool(answer.words) for answer in answers] == [True] * allowed
    assert isinstance(done.failures.get("helper"), Aborted) != allowed


def test_a_stranger_s_parcel_is_refused() -> None:
    parties = federation()

    def edit(body: Request) -> Request:
        return replace(body, parcels={**body.parcels, "stranger": body.parcels["silo-0"]})

    done = sum_of(parties, change(REQUEST, Request, edit))
    assert isinstance(done.failures["helper"], Aborted)
    assert not [message for message in done.messages if message.tag == OPENED]


@pytest.mark.parametrize("keep", [0, 1, -1])
def test_a_sum_of_another_size_or_range_is_malformed(keep: int) -> None:
    parties = federation()
    for number, words in enumerate((lambda words: words[:keep], lambda words: b"\xff" * len(words)), 1):
        done = sum_of(parties, change(REQUEST, Request, lambda body: replace(body, words=words(body.words))), number)  # noqa: B023
        assert isinstance(done.failures["helper"], ProtocolError)


def test_parcels_and_sums_of_other_sessions_are_refused() -> None:
    parties = federation()
    first = sum_of(parties, number=1)
    asked = decode(next(m.body for m in first.messages if m.tag == REQUEST), Request, max_bytes=1 << 24)
    assert refused(sum_of(parties, change(REQUEST, Request, lambda _: asked), 2))
    assert refused(sum_of(parties, change(REQUEST, Request, lambda body: replace(body, words=asked.words)), 3))
    old = asked.parcels["silo-1"]
    mixed = change(REQUEST, Request, lambda body: replace(body, parcels={**body.parcels, "silo-1": old}))
    assert refused(sum_of(parties, mixed, 4))
    swapped = change(
        REQUEST, Request, lambda body: replace(body, parcels={**body.parcels, "silo-1": body.parcels["silo-2"]})
    )
    assert refused(sum_of(parties, swapped, 5))


# --- once per session -------------------------------------------------------------------------------------------------


def test_the_keyholder_answers_a_session_once_whatever_it_is_asked() -> None:
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    first = parties.sum(session, vectors)
    asked = next(m for m in first.messages if m.tag == REQUEST)
    keyholder = parties.party("helper", session, {})
    step = next(keyholder)
    assert [m.body for m in step.send] == [m.body for m in first.messages if m.tag == OPENED]
    with pytest.raises(StopIteration):
        keyholder.send({"server": asked})
    for earlier in (parties.session(0), parties.session(length=13)):
        with pytest.raises(Aborted, match="next attempt"):
            next(parties.party("helper", earlier, {}))
    with pytest.raises(Aborted, match="next attempt"):
        next(parties.party("silo-0", session, vectors))


def test_a_refusal_is_an_answer_too() -> None:
    """A server that guesses has one guess in a session: the right question afterwards gets the same refusal."""
    parties = federation()
    liar = Liar(parties, NAMES, once(0))
    assert refused(sum_of(parties, liar))
    liar.parts = once(*range(5))
    step = next(parties.party("helper", parties.session(), {}))
    assert [decode(m.body, Opened, max_bytes=64) for m in step.send] == [Opened()]
    assert members_of(parties, number=2) == everybody(parties)


# --- who misbehaved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: replace(body, words=body.words[:-1]),
        lambda body: replace(body, words=body.words + b"\0"),
        lambda body: replace(body, seed=body.seed[:-1]),
        lambda body: replace(body, parcel=replace(body.parcel, key=bytes(32))),
        lambda body: replace(body, parcel=replace(body.parcel, box=flip(body.parcel.box))),
        lambda body: replace(body, parcel=replace(body.parcel, box=body.parcel.box[1:])),
        lambda body: replace(body, parcel=replace(body.parcel, signature=flip(body.parcel.signature))),
    ],
)
def test_a_malformed_upload_makes_its_sender_a_named_dropout(edit: Callable) -> None:
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    sums = parties.sum(session, vectors, change(UPLOAD, Upload, edit, src="silo-3")).output("server")
    assert assert_is_sum(sums, HE, vectors) == everybody(parties) - {"silo-3"}
    assert list(sums.blamed) == ["silo-3"]
    assert members_of(parties, number=2) == everybody(parties)


def resealed(parties: Federation, session: Session, name: str, tag: bytes, receiver: bytes | None = None) -> Parcel:
    terms = terms_of(parties, session, name)
    return seal_parcel(
        tag,
        receiver or terms.keys.agreement,
        context=terms.context,
        sender=name,
        identity=roster.identity(parties.stores[name]),
        rng=SeededRandomness("reseal"),
    )


def test_a_tag_that_the_keyholder_cannot_read_is_named() -> None:
    """The server cannot see it, and has added the vector already: nothing is opened, and the next sum leaves it out."""
    parties = federation()
    session = parties.session()
    other = AgreementKey(bytes(range(32))).public
    for number, (tag, receiver) in enumerate([(bytes(TAG_BYTES), other), (b"\xff" * TAG_BYTES, None)], 1):
        session = parties.session(number)
        parcel = resealed(parties, session, "silo-2", tag, receiver)
        done = sum_of(parties, change(UPLOAD, Upload, lambda body: replace(body, parcel=parcel), src="silo-2"), number)  # noqa: B023
        assert refused(done)
        assert "silo-2 sealed a tag" in str(done.failures["server"])


def test_a_client_with_a_wrong_tag_spoils_the_sum_unnamed() -> None:
    """What the documentation admits: no sum, no leak, no name."""
    parties = federation()
    parcel = resealed(parties, parties.session(), "silo-2", encode_tag((1, 2, 3, 4)))
    done = sum_of(parties, change(UPLOAD, Upload, lambda body: replace(body, parcel=parcel), src="silo-2"))
    assert refused(done)
    assert "silo-" not in str(done.failures["server"])


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: replace(body, words=body.words[:-1]),
        lambda body: replace(body, words=flip(body.words, len(body.words) - 1)),
        lambda body: replace(body, spoilt=("stranger",)),
        lambda _: Opened(),
    ],
)
def test_a_keyholder_that_answers_nonsense_ends_the_sum(edit: Callable) -> None:
    """As far as the server can see it: the bit that is flipped is the highest of a value, beyond any sum."""
    parties = federation()
    done = sum_of(parties, change(OPENED, Opened, edit))
    assert isinstance(done.failures.get("server"), ProtocolError) or not np.array_equal(
        done.output("server").values, HE.ideal(parties.vectors(parties.session())).values
    )


# --- what each sees ---------------------------------------------------------------------------------------------------


def test_what_the_server_sees_is_uniform_and_the_plain_words_are_not() -> None:
    parties = federation()
    session = parties.session(length=20_000, bound=(2**32 - 1) // 10)
    vectors = {name: np.full(session.length, 7, np.int64) for name in parties.cohort.clients}
    done = parties.sum(session, vectors)
    assert all(bytes_are_uniform(upload.words) for upload in uploads(done).values())
    plain = terms_of(parties, session).layout.pack(vectors["silo-0"])
    assert not bytes_are_uniform(plain.tobytes())


def opened_words(parties: Federation, session: Session, residues: np.ndarray) -> np.ndarray:
    """What the secret key makes of ciphertexts: the keyholder's sight, used against the rules."""
    terms = terms_of(parties, session, "helper")
    body = aggregate._decrypted(terms, residues, sum_keys.own_secrets(parties.stores["helper"]))
    return unpack(body, terms.bits, terms.layout.coefficients)


def test_what_the_keyholder_sees_is_uniform_and_without_the_masks_it_is_the_sum() -> None:
    parties = federation()
    session = parties.session(length=20_000, bound=(2**32 - 1) // 10)
    vectors = {name: np.full(session.length, 7, np.int64) for name in parties.cohort.clients}
    done = parties.sum(session, vectors)
    terms = terms_of(parties, session)
    asked = decode(done.view("helper")[-1].body, Request, max_bytes=1 << 30)
    words = opened_words(parties, session, np.stack(terms.unpacked(asked.words, terms.layout.whole_bits)))
    assert terms.bits == 32
    assert bytes_are_uniform(words.tobytes())
    for name, upload in uploads(done).items():  # the control
        terms.add_blind(words, name, upload.seed, negate=True)
    assert (words == 35).all()


def test_both_together_read_everything() -> None:
    """The negative control of the claims: what non-collusion carries falls with it."""
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    upload = uploads(parties.sum(session, vectors))["silo-0"]
    terms = terms_of(parties, session)
    words = opened_words(parties, session, restored(terms, upload))
    terms.add_blind(words, "silo-0", upload.seed, negate=True)
    np.testing.assert_array_equal(terms.layout.unpack(words), vectors["silo-0"])


def test_a_lying_server_that_pools_with_one_client_reads_another() -> None:
    """Why the claims stop at servers that follow the protocol: a client knows the weights, so it can make a tag fit."""
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    traitor = terms_of(parties, session, "silo-4")
    key = traitor.tag_key(sum_keys.tag_secret("silo-4", traitor.listed, traitor.keys, parties.stores["silo-4"]))
    prime, held = traitor.layout.prime, {}

    def pooled(message: Message) -> list[tuple[int, Message]]:
        if message.tag == UPLOAD:
            held[message.src] = decode(message.body, Upload, max_bytes=1 << 24)
        if message.tag != REQUEST:
            return [(0, message)]
        victim = restored(traitor, held["silo-0"])
        tags = {name: tag_of(restored(traitor, held[name]), prime, key) for name in ("silo-0", "silo-1", "silo-2")}
        missing = tuple(-(tags["silo-1"][row] + tags["silo-2"][row]) % prime for row in range(4))
        parcels = {name: held[name].parcel for name in tags}
        parcels["silo-4"] = resealed(parties, session, "silo-4", encode_tag(missing))
        body = encode(Request(parcels, traitor.packed(victim, traitor.layout.whole_bits)))
        return [(0, Message(message.src, message.dst, message.tag, body))]

    done = parties.sum(session, vectors, pooled)
    opened = decode(next(m.body for m in done.messages if m.tag == OPENED), Opened, max_bytes=1 << 24)
    words = unpack(opened.words, traitor.bits, traitor.layout.coefficients)
    traitor.add_blind(words, "silo-0", held["silo-0"].seed, negate=True)
    np.testing.assert_array_equal(traitor.layout.unpack(words), vectors["silo-0"])


def test_a_client_that_encrypts_no_vector_brings_the_secret_key_out() -> None:
    """What the documentation admits, and why keys last a run: BFV is safe against who chooses vectors, no further."""
    parties = federation()
    session = parties.session(length=RINGS[0].degree, bound=1000)
    terms = terms_of(parties, session, "silo-4")
    key = terms.tag_key(sum_keys.tag_secret("silo-4", terms.listed, terms.keys, parties.stores["silo-4"]))
    residues = terms.residues()
    residues[1, 0, 0] = terms.layout.prime * 1000 >> terms.bits  # a constant c1: the phase is 1000 q/2^p s
    short = [terms.layout.shortened(half, place) for place, half in enumerate(residues)]
    tag = encode_tag(tag_of(terms.restored(short), terms.layout.prime, key))
    parcel, seed = resealed(parties, session, "silo-4", tag), bytes(range(32))
    forged = Upload(parcel, seed, terms.packed(short, terms.layout.word_bits))
    vectors = {name: np.zeros(session.length, np.int64) for name in parties.cohort.clients}
    done = parties.sum(session, vectors, change(UPLOAD, Upload, lambda _: forged, src="silo-4"))
    opened = decode(next(m.body for m in done.messages if m.tag == OPENED), Opened, max_bytes=1 << 24)
    words = unpack(opened.words, terms.bits, terms.layout.coefficients)
    for name, upload in uploads(done).items():
        if name != "silo-4":
            terms.add_blind(words, name, upload.seed, negate=True)
    found = np.rint(terms.layout.unpack(words) / 1000).astype(int).tolist()
    secret = HE._rings[0].secret(sum_keys.own_secrets(parties.stores["helper"]).decryption[0])
    assert found == ternary_secret(HE._rings[0], secret)


def test_the_masks_are_those_of_the_paper() -> None:
    """r_u from the seed by the library's primitives alone: see `tests/crypto`; here, that label and name are in it."""
    parties = federation()
    session = parties.session()
    terms = terms_of(parties, session)
    seed, found, other = bytes(range(32)), terms.zeros(), terms.zeros()
    terms.add_blind(found, "silo-0", seed)
    add_mask(other, aggregate.derive(seed, aggregate.label(terms.context, "blind", "silo-0")))
    np.testing.assert_array_equal(found, other)
    terms.add_blind(other, "silo-1", seed, negate=True)
    assert other.any()


def test_nobody_but_the_keyholder_ever_holds_its_secrets() -> None:
    """Not in a store, not in a message; the control finds each in the keyholder's own store."""
    parties = federation()
    done = parties.setup.merge(sum_of(parties))
    secrets = sum_keys.own_secrets(parties.stores["helper"])
    own = parties.stores["helper"].secrets()
    elsewhere = set[bytes]().union(*(windows(message.body) for message in done.messages))
    for name in (*parties.cohort.clients, "server"):
        elsewhere |= parties.stores[name].secrets()
    for secret in (secrets.agreement, secrets.tag, *secrets.decryption):
        found = windows(secret[-16 * 64 :] if len(secret) > 32 else secret)  # a key's numbers, behind SEAL's header
        assert found <= own
        assert not found & elsewhere
    assert repr(secrets) == "Secrets()"
    assert not [name for name in (*parties.cohort.clients, "server") if parties.stores[name].get(SECRETS)]


# --- set-up -----------------------------------------------------------------------------------------------------------


def again(parties: Federation, fault: Fault | None = None) -> Transcript:
    built = {
        name: HE.setup(role, name, parties.cohort, parties.stores[name], SeededRandomness(f"again/{name}"))
        for name, role in parties.roles.items()
    }
    return run(built, stores=parties.stores, fault=fault)


def test_everybody_gets_the_same_fingerprint_and_it_names_the_keys() -> None:
    one, other = federation(), federation(seed="he")  # SEAL's keys differ though the seeds are the same
    assert len(set(one.setup.outputs.values())) == 1
    assert set(one.setup.outputs.values()) != set(other.setup.outputs.values())


def test_set_up_again_changes_nothing() -> None:
    parties = federation()
    before = [message.body for message in parties.setup.messages]
    done = again(parties)
    assert done.outputs == parties.setup.outputs
    assert [message.body for message in done.messages] == before


def test_pinned_keys_are_never_replaced() -> None:
    parties, other = federation(), federation()
    keys, before = sum_keys.pinned_keys(other.stores["helper"]), parties.stores["silo-0"].get(KEYS)
    done = again(parties, change(WELCOME, Welcome, lambda body: replace(body, keys=keys)))
    assert all(isinstance(done.failures[name], ProtocolError) for name in parties.cohort.clients)
    assert parties.stores["silo-0"].get(KEYS) == before
    parties.stores["helper"].commit({SECRETS: None, KEYS: None})  # a keyholder that starts anew
    assert isinstance(again(parties).failures["server"], ProtocolError)


def spoilt_key(body: Welcome) -> Welcome:
    first, *rest = body.keys.encryption
    return replace(body, keys=replace(body.keys, encryption=(replace(first, encryption=first.encryption[:-1]), *rest)))


@pytest.mark.parametrize(
    ("tag", "kind", "edit", "who"),
    [
        (HELLO, Hello, lambda body: replace(body, key=bytes(32)), "server"),
        (HELLO, Hello, lambda body: replace(body, signature=flip(body.signature)), "server"),
        (HELLOS, Hellos, lambda body: replace(body, roster=b""), "helper"),
        (HELLOS, Hellos, lambda body: replace(body, hellos={}), "helper"),
        (
            HELLOS,
            Hellos,
            lambda body: replace(body, hellos=dict.fromkeys(body.hellos, body.hellos["silo-0"])),
            "helper",
        ),
        (ENROLMENT, Enrolment, lambda body: replace(body, boxes={}), "server"),
        (WELCOME, Welcome, lambda body: replace(body, box=flip(body.box)), "silo-0"),
        (WELCOME, Welcome, lambda body: replace(body, keys=replace(body.keys, agreement=bytes(32))), "silo-0"),
        (WELCOME, Welcome, lambda body: replace(body, keys=replace(body.keys, encryption=())), "silo-0"),
        (WELCOME, Welcome, spoilt_key, "silo-0"),
    ],
)
def test_set_up_refuses_what_nobody_honest_sends(tag: str, kind: type, edit: Callable, who: str) -> None:
    parties = federation()
    for name in parties.roles:  # as on the first day, so that no pin helps
        parties.stores[name].commit({KEYS: None, BOX: None})
    done = again(parties, change(tag, kind, edit))
    assert isinstance(done.failures[who], ProtocolError)


def test_another_roster_is_refused_by_the_keyholder() -> None:
    parties, other = federation(), federation(seed="other")
    listed = other.stores["server"].get(roster.ROSTER)
    done = again(parties, change(HELLOS, Hellos, lambda body: replace(body, roster=listed)))
    assert isinstance(done.failures["helper"], ProtocolError)


def test_keyholder_with_other_keys_than_the_clients_opens_nothing() -> None:
    """Everything is bound to the pinned keys, so that a server cannot sit between."""
    parties, other = federation(), federation()
    parties.stores["helper"].commit({key: other.stores["helper"].get(key) for key in (SECRETS, KEYS)})
    assert refused(sum_of(parties))


def test_misuse_is_named() -> None:
    parties, rng = federation(), SeededRandomness("x")
    session, store = parties.session(), parties.stores["silo-0"]
    with pytest.raises(UsageError, match="at least 3 clients"):
        HE.setup("server", "server", Cohort(("a", "b"), 2), MemoryStore(), rng)
    with pytest.raises(UsageError, match="role=client, me=server"):
        HE.party("client", "server", session, None, store, rng)
    with pytest.raises(UsageError, match="vector"):
        HE.party("client", "silo-0", session, None, store, rng)
    with pytest.raises(UsageError, match="setup"):
        HE.party("server", "server", session, None, MemoryStore(), rng)
    strangers = Session("run", 1, Cohort((*parties.cohort.clients, "stranger"), 3), 4, 10)
    with pytest.raises(UsageError, match="stranger"):
        HE.party("server", "server", strangers, None, parties.stores["server"], rng)
    parties.stores["silo-0"].commit({BOX: None})
    with pytest.raises(UsageError, match="box"):
        next(HE.party("client", "silo-0", session, np.zeros(12, np.int64), store, rng))
    for key in (SECRETS, KEYS):
        parties.stores["helper"].commit({key: None})
        with pytest.raises(UsageError, match="keyholder's keys"):
            HE.party("keyholder", "helper", session, None, parties.stores["helper"], rng)


def test_the_guarantee_names_what_it_rests_on() -> None:
    claims = {(claim.hidden_from, claim.if_honest) for claim in HE.guarantee.claims}
    assert {("server", ("keyholder",)), ("keyholder", ("server",))} <= claims
    assert (HE.guarantee.trust, HE.guarantee.adversary) == (Trust.NON_COLLUSION, Adversary.SEMI_HONEST)
    assert "No check bounds" in HE.guarantee.leaks
    assert HE.guarantee.post_quantum > Masked().guarantee.post_quantum
    assert parties_of(HE.roles) == {"server": "server", "helper": "keyholder", "a": "client"}


parties_of = partial(Cohort.parties, Cohort(("a",), 1))
