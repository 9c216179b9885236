"""Secure aggregation by homomorphic encryption with a keyholder (docs/protocols/he-sum.md walks through it).

Each client encrypts its vector, hidden under a mask that the server knows, for the keyholder. The server adds the
ciphertexts as they come and has the sum opened; the keyholder sees noise, and the server takes the masks away. So the
server never sees a vector in the clear, and the keyholder never sees one encrypted.

    symbol   here         meaning
    m_u      words        a client's packed integers modulo 2^p
    r_u      blind        the key stream of a seed that client and server know
    c_u      Upload       BFV encryption of m_u + r_u under the keyholder's key
    h_u      tag          <r, c_u> mod q, in a parcel for the keyholder; r is the same for all clients, see `sum_tags`
    C        Request      the sum of c_u over those whom the parcels name

The keyholder opens C only if its tag is the sum of the tags of at least max(3, quorum) clients: a server that lies by
itself gets the sum over those whom it names, or nothing. A client sends one message and is free to leave after it.

Paper: BFV, Fan and Vercauteren, ePrint 2012/144; one key for all clients' sums as in Phong et al., "Privacy-preserving
deep learning via additively homomorphic encryption", IEEE TIFS 2018, but held by a party that sees no ciphertext of a
client; linear tags as in `sum_tags`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from confide.cohort import roster
from confide.cohort.collect import SMALLEST_SUM, Collector
from confide.cohort.journal import Journal
from confide.cohort.parcel import Parcel, check_parcel, open_parcel, parcel_bytes, seal_parcel
from confide.crypto.keys import KEY_BYTES, AgreementKey, derive, expand, label
from confide.crypto.masks import add_mask
from confide.crypto.random import Randomness
from confide.crypto.ring import Words, add_words, pack, unpack, word_dtype
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import RECORDED_CLOSED, SUM_REVEALS, Adversary, Claim, Guarantee, Trust
from confide.he import sum_keys
from confide.he.seal import Context, Evaluation, Residues
from confide.he.seal_format import check_residues
from confide.he.sum_layout import RINGS, Layout
from confide.he.sum_tags import TAG_BYTES, Tag, add_tags, decode_tag, encode_tag, tag_of
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.wire import Message, Party, Step, Store, decode, encode

UPLOAD, REQUEST, OPENED = "he/upload", "he/sum", "he/opened"

_PARCEL_BYTES = parcel_bytes(TAG_BYTES)


class Upload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a client sends: its tag in a parcel, the seed of its mask for the server, its ciphertexts, packed."""

    parcel: Parcel
    seed: bytes
    words: bytes


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the keyholder shall open: the sum of the ciphertexts of those whose parcels these are, packed."""

    parcels: dict[str, Parcel]
    words: bytes


class Opened(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keyholder's answer: the coefficients of the sum, packed; nothing if it refuses.

    Args:
        words: still under the masks.
        spoilt: whose parcels did not hold, if that is why nothing was opened.
    """

    words: bytes = b""
    spoilt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EncryptedSums(Sums):
    """The sum, and who misbehaved on the way to it.

    Args:
        blamed: what each named client did wrong.
    """

    blamed: Mapping[str, str] = field(default_factory=dict[str, str])


class EncryptedSum(Aggregator):
    """The server learns the sum of at least max(3, quorum) vectors; clients send once and may drop out freely.

    **Guarantees** The server learns nothing about a vector beyond the sum, as long as the keyholder is honest; the
    keyholder learns nothing about vectors or their sum, as long as the server is honest. The keyholder answers once in
    a session. A server that lies, alone, gets the sum over the clients whom it names, at least max(3, quorum), or none,
    but for a probability below 2^-63.

    **Leaks** The sum, to the server; who took part, to both. If both pool what they see, every vector. A server that
    lies and pools with one client can have any ciphertext opened, and a client that encrypts no vector can bring the
    secret key out in the sum. Nothing bounds a client's vector beyond its range in the ring; one client can spoil the
    sum without being named.
    """

    name = "he"
    upload = UPLOAD
    roles = ("server", "keyholder", "client")
    guarantee = Guarantee(
        claims=frozenset(
            (
                Claim("update", "server", ("keyholder",)),
                Claim("update", "keyholder", ("server",)),
                Claim("update", "other clients", ("server",)),
                Claim("update", "outsiders"),
            )
        ),
        adversary=Adversary.SEMI_HONEST,
        trust=Trust.NON_COLLUSION,
        security_bits=128,
        # Vectors rest on ring-LWE and on AES-256; X25519 and Ed25519 carry tags, which bind a server that lies.
        post_quantum=True,
        verified_result=False,
        leaks=f"{SUM_REVEALS} Who took part, to server and keyholder; every update, if those two pool what they see. "
        f"No check bounds a client's update. {RECORDED_CLOSED}",
        primary="BFV, N=2048 or 4096, linear tags",
        paper="Fan and Vercauteren, ePrint 2012/144; Carter and Wegman, JCSS 1981 (tags)",
    )

    def __init__(self) -> None:
        self._rings = tuple(Context(ring) for ring in RINGS)

    def check(self, cohort: Cohort) -> None:
        """Refuse cohorts of fewer than three."""
        if len(cohort.clients) < SMALLEST_SUM:
            raise UsageError(
                f"Expected at least {SMALLEST_SUM} clients; a sum of two shows each of them the other's vector"
            )

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Return the party that pins roster and the keyholder's keys; its output is a fingerprint of both."""
        _check(role, me, cohort)
        self.check(cohort)
        if role == "server":
            return sum_keys.introduce(cohort, store)
        if role == "keyholder":
            return sum_keys.enrol_keyholder(cohort, store, self._rings, rng)
        return sum_keys.enrol_client(me, cohort, store, self._rings, rng)

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        """Return the party of one sum: the server's output is `EncryptedSums`, the others have none.

        Raises:
            UsageError: no set-up, strangers in the cohort, a vector that does not fit the session.
        """
        _check(role, me, session.cohort)
        self.check(session.cohort)
        terms = _Terms(session, store, self._rings)
        if role == "server":
            return _serve(terms)
        if role == "keyholder":
            return _open(terms, sum_keys.own_secrets(store), store)
        if vector is None:
            raise UsageError("Expected a vector at a client")
        return _contribute(terms, me, session.checked(vector), store, rng)


def _check(role: str, me: str, cohort: Cohort) -> None:
    if cohort.parties(EncryptedSum.roles).get(me) != role:
        raise UsageError(f"Expected role={role}, me={me} to be the server, the keyholder or a client of the cohort")


# --- what all parties of a sum agree on -------------------------------------------------------------------------------


class _Terms:
    """A session with the pinned keys, and what follows from them without a message."""

    def __init__(self, session: Session, store: Store, rings: tuple[Context, ...]) -> None:
        self.listed, self.keys = roster.pinned(store), sum_keys.pinned_keys(store)
        self.session, self.cohort, self.identities = session, session.cohort, self.listed.keys()
        strangers = [name for name in self.cohort.clients if name not in self.identities]
        if strangers:
            raise UsageError(f"Expected clients of the pinned roster, not {', '.join(strangers)}; run setup with them")
        self.layout = Layout.plan(max(1, session.ring_bits), len(self.cohort.clients), session.length)
        self.ring = rings[self.layout.ring]
        pins = self.cohort.helper, self.listed.digest, self.keys.digest
        self.context = hashlib.sha256(label("confide he v1", session.context, *pins, *self.layout.numbers)).digest()
        self.quorum = max(SMALLEST_SUM, self.cohort.quorum)
        self.bits = self.layout.payload_bits
        self.journal = Journal(f"he/journal/{session.run}", session, self.context)

    def tag_key(self, secret: bytes) -> bytes:
        """Return the key of this session's tags."""
        return expand(secret, label(self.context, "tags"))

    def check(self, name: str, parcel: Parcel) -> None:
        """Check form and signature of a parcel of `name`. Raises ProtocolError."""
        identity = self.identities[name]
        check_parcel(parcel, secret_bytes=TAG_BYTES, context=self.context, sender=name, identity=identity)

    def add_blind(self, words: Words, name: str, seed: bytes, *, negate: bool = False) -> None:
        """Add the mask r_u of the client `name`, or take it away."""
        add_mask(words, derive(seed, label(self.context, "blind", name)), negate=negate)

    def zeros(self) -> Words:
        """Return coefficients to add masks to."""
        return np.zeros(self.layout.coefficients, word_dtype(self.bits))

    # --- ciphertexts and their bytes: each half of all ciphertexts lies behind the other ------------------------------

    def encrypted(self, words: Words) -> Residues:
        """Return fresh encryptions of coefficients, shape (2, polynomials, N)."""
        form = self.ring.form(limbs=1, ntt=False)
        evaluation = Evaluation(self.ring, self.keys.encryption[self.layout.ring], sum_keys.NEEDS)
        residues = self.residues()
        for place, plaintext in enumerate(self.layout.plaintexts(words)):
            cipher = evaluation.encrypt(self.ring.polynomial(plaintext))
            residues[:, place] = self.ring.residues(cipher, form)[:, 0]
        return residues

    def residues(self) -> Residues:
        """Return zeros in the shape of a vector's ciphertexts."""
        return np.zeros((2, self.layout.polynomials, self.layout.parameters.degree), np.uint64)

    def packed(self, halves: Iterable[Residues], bits: tuple[int, int]) -> bytes:
        """Return numbers of so many bits in either half as bytes."""
        return b"".join(pack(half.reshape(-1), width) for half, width in zip(halves, bits, strict=True))

    def unpacked(self, body: bytes, bits: tuple[int, int]) -> list[Residues]:
        """Return the halves that `packed` wrote. Raises ProtocolError on another length."""
        shape = self.layout.polynomials, self.layout.parameters.degree
        count = shape[0] * shape[1]
        cut = count * bits[0] // 8
        parts = zip((body[:cut], body[cut:]), bits, strict=True)
        return [unpack(part, width, count).astype(np.uint64, copy=False).reshape(shape) for part, width in parts]

    def restored(self, halves: Iterable[Residues]) -> Residues:
        """Return what shortened halves stand for, shape (2, polynomials, N)."""
        return np.stack([self.layout.restored(half, place) for place, half in enumerate(halves)])

    def limit_bytes(self, per_client: int) -> int:
        """Return how long a message about all clients may be, ciphertexts apart."""
        return 128 + sum(len(name.encode()) + per_client + 64 for name in self.cohort.clients)


# --- one sum ----------------------------------------------------------------------------------------------------------


def _contribute(terms: _Terms, me: str, vector: Vector, store: Store, rng: Randomness) -> Party:
    """The client: mask, encrypt, tag; one message."""
    body = terms.journal.resumed(store)
    if body is None:
        key = terms.tag_key(sum_keys.tag_secret(me, terms.listed, terms.keys, store))
        seed = rng.bytes(KEY_BYTES)
        words = terms.layout.pack(vector)
        terms.add_blind(words, me, seed)
        short = [terms.layout.shortened(half, place) for place, half in enumerate(terms.encrypted(words))]
        sent = terms.packed(short, terms.layout.word_bits)
        tag = tag_of(terms.restored(short), terms.layout.prime, key)
        parcel = seal_parcel(
            encode_tag(tag),
            terms.keys.agreement,
            context=terms.context,
            sender=me,
            identity=roster.identity(store),
            rng=rng,
        )
        body = encode(Upload(parcel, seed, sent))
    yield Step(send=(Message(me, terms.cohort.server, UPLOAD, body),), save=terms.journal.entry(body))
    yield Step(save=terms.journal.entry())


class _Total:
    """What the server adds up: ciphertexts, masks, parcels."""

    def __init__(self, terms: _Terms) -> None:
        self._terms = terms
        self.residues = terms.residues()
        self.blind = terms.zeros()
        self.parcels: dict[str, Parcel] = {}

    def accept(self, name: str, body: bytes) -> None:
        """Add the upload of `name`. Raises ProtocolError if it is malformed."""
        limit = self._terms.layout.words_bytes + _PARCEL_BYTES + KEY_BYTES + 128
        upload = decode(body, Upload, max_bytes=limit)
        self._terms.check(name, upload.parcel)
        if len(upload.seed) != KEY_BYTES:
            raise ProtocolError(f"Expected a seed of {KEY_BYTES} bytes")
        layout = self._terms.layout
        for place, half in enumerate(self._terms.unpacked(upload.words, layout.word_bits)):
            self.residues[place] += layout.restored(half, place)
            layout.reduced(self.residues[place])
        self._terms.add_blind(self.blind, name, upload.seed)
        self.parcels[name] = upload.parcel


def _serve(terms: _Terms) -> Party:
    """The server: add as they come, have the sum opened, take the masks away."""
    clients, total = Collector(), _Total(terms)
    yield from clients.collect(UPLOAD, terms.cohort.clients, total.accept)
    names = tuple(name for name in terms.cohort.clients if name in total.parcels)
    if len(names) < terms.quorum:
        clients.abort(f"Expected uploads of at least {terms.quorum} clients, got {len(names)}")
    opened = yield from _ask(terms, total, names)
    for name in opened.spoilt:
        clients.blame(name, "sealed a tag that the keyholder cannot read")
    if opened.spoilt or (not opened.words and terms.layout.coefficients):
        clients.abort("Expected the keyholder to open the sum; it refused, since the tags do not hold")
    words = unpack(opened.words, terms.bits, terms.layout.coefficients)
    add_words(words, total.blind, negate=True)
    values = terms.layout.unpack(words)
    largest = len(names) * terms.session.bound
    if values.size and (values.max() > largest or values.min() < -largest):
        clients.abort("Expected a sum within clients * bound; somebody's vector broke its bound")
    return EncryptedSums(values[None, :], (frozenset(names),), clients.blamed)


def _ask(terms: _Terms, total: _Total, names: tuple[str, ...]) -> Generator[Step, Mapping[str, Message], Opened]:
    """Return the keyholder's answer about the sum over `names`."""
    keyholder = terms.cohort.helper
    parcels = {name: total.parcels[name] for name in names}
    request = encode(Request(parcels, terms.packed(total.residues, terms.layout.whole_bits)))
    message = Message(terms.cohort.server, keyholder, REQUEST, request)
    received = yield Step(send=(message,), await_tag=OPENED, wait_for=(keyholder,))
    limit = terms.limit_bytes(0) + terms.layout.coefficients * terms.bits // 8
    opened = decode(received[keyholder].body, Opened, max_bytes=limit)
    if not set(opened.spoilt) <= set(names):
        raise ProtocolError("Expected the keyholder to speak of the clients in the sum")
    return opened


def _open(terms: _Terms, secrets: sum_keys.Secrets, store: Store) -> Party:
    """The keyholder: open the sum if the tags hold; whatever it answers, it answers once."""
    server, refusal = terms.cohort.server, ""
    body = terms.journal.resumed(store)
    if body is None:
        received = yield Step(await_tag=REQUEST, wait_for=(server,))
        limit = terms.limit_bytes(_PARCEL_BYTES) + terms.layout.whole_bytes
        request = decode(received[server].body, Request, max_bytes=limit)
        residues = np.stack(terms.unpacked(request.words, terms.layout.whole_bits))
        check_residues(residues[:, None], terms.layout.parameters.primes)
        names = [name for name in terms.cohort.clients if name in request.parcels]
        if len(names) < terms.quorum or len(names) < len(request.parcels):
            raise Aborted(
                f"Expected parcels of at least {terms.quorum} clients, and of clients alone; got {len(names)}"
            )
        tags, spoilt = _opened_tags(terms, request.parcels, AgreementKey(secrets.agreement))
        if spoilt:
            opened, refusal = Opened(spoilt=spoilt), "parcels that do not hold: " + ", ".join(spoilt)
        elif tag_of(residues, terms.layout.prime, terms.tag_key(secrets.tag)) != add_tags(tags, terms.layout.prime):
            opened, refusal = Opened(), "a sum whose tag is not the sum of the clients' tags"
        else:
            opened = Opened(_decrypted(terms, residues, secrets))
        body = encode(opened)
    yield Step(send=(Message(terms.cohort.helper, server, OPENED, body),), save=terms.journal.entry(body))
    if refusal:
        raise Aborted(f"Expected a sum over clients of the session, got {refusal}; nothing was opened")


def _opened_tags(terms: _Terms, parcels: Mapping[str, Parcel], key: AgreementKey) -> tuple[list[Tag], tuple[str, ...]]:
    """Return the tags in parcels, and whose parcels do not hold."""
    tags: list[Tag] = []
    spoilt: list[str] = []
    for name, parcel in parcels.items():
        try:
            terms.check(name, parcel)
            tag = open_parcel(parcel, key, context=terms.context, sender=name)
            tags.append(decode_tag(tag, terms.layout.prime))
        except ProtocolError:
            spoilt.append(name)
    return tags, tuple(spoilt)


def _decrypted(terms: _Terms, residues: Residues, secrets: sum_keys.Secrets) -> bytes:
    """Return the coefficients of a sum, packed, without the noise of its ciphertexts."""
    secret = terms.ring.secret(secrets.decryption[terms.layout.ring])
    form = terms.ring.form(limbs=1, ntt=False)
    plaintexts = np.zeros(residues.shape[1:], np.uint64)
    for place in range(len(plaintexts)):
        cipher = terms.ring.from_residues(np.ascontiguousarray(residues[:, place])[:, None], form)
        plaintexts[place] = terms.ring.coefficients(secret.decrypt(cipher))
    return pack(terms.layout.opened(plaintexts), terms.bits)
