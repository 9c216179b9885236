"""SEAL's own bytes on the wire: who sends them gets right answers, and whatever else is sent is refused.

Bytes are seal-python's here, so without seeds but for forged ones; a client in JavaScript that sends seeds, and has
nothing of ours, is in tests/outside.
"""

import hashlib
import re
import struct
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
import seal
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he import Homomorphic
from confide.he.enrolment import Dates, Enrolment
from confide.he.envelope import Channel, SealedQuery, SealedReply
from confide.he.kits import ClientKit, ServerKit
from confide.he.linear import LinearClient
from confide.he.packed import pack_ciphertext, unpack_ciphertext, unpack_key_set
from confide.he.replies import Query
from confide.he.seal import Ciphertext, PublicKeys
from confide.he.seal_format import read_ciphertext, with_minor
from confide.he.seal_wire import MOST_REPLY_BYTES, SealReply, packed_keys, packed_query
from confide.model.graph import Graph, sigmoid
from confide.net.http import answer
from confide.wire import MemoryStore, decode, encode
from he.oracle import RNG, Pair, corners, forest, linear, logistic, mlp

NOW = 1_700_000_000
MODELS = {
    "bfv": (Homomorphic(clock=lambda: NOW), Graph((linear(1, 3, 4),))),
    "open": (Homomorphic(clock=lambda: NOW, protect_model=False), logistic(2, 30)),
    "ckks": (Homomorphic(clock=lambda: NOW, precision_bits=6), mlp(1, 4, 2, 1)),
    "batch": (Homomorphic(clock=lambda: NOW, precision_bits=6, goal="throughput"), mlp(1, 4, 2, 1)),
    "trees": (Homomorphic(clock=lambda: NOW, tree_bins=8), Graph((forest(1, 2, 2, 2, steps=8),))),
}
KEY = bytes(range(32))
PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "he-clients.md"


class Stranger:
    """One client of one model whose keys, questions and replies are SEAL's own bytes."""

    def __init__(self, name: str) -> None:
        self.backend, self.graph = MODELS[name]
        pair = Pair(self.backend, self.graph)
        assert isinstance(pair.client, ClientKit)
        assert isinstance(pair.server, ServerKit)
        self.kit, self.server, self.store = pair.client, pair.server, MemoryStore()
        self.engine, self.plan = self.kit.engine, self.kit.plan
        self.context, needs = self.engine.context, self.plan.needs
        self.secret, public = self.context.generate(bytes(16), needs)
        form, digits = self.context.key_form, len(self.plan.parameters.data_primes)
        self.packed = public
        self.keys = PublicKeys(
            nonce=public.nonce,
            encryption=unpack_ciphertext(public.encryption, form) if needs.encryption else b"",
            relinearisation=unpack_key_set(public.relinearisation, form, digits=digits, levels={0: digits})
            if needs.relinearisation
            else b"",
            rotation=unpack_key_set(public.rotation, form, digits=digits, levels=self.context.galois_levels(needs))
            if needs.steps
            else b"",
        )
        self.query = self.context.form(limbs=digits, ntt=True, scale=self._scale())

    def _scale(self) -> float:
        bits = getattr(self.plan, "input_scale_bits", None) or getattr(self.plan, "scale_bits", 0)
        return 2.0**bits

    def upload(self, **changes) -> str:
        """Upload the keys, or others; returns their id."""
        dates = Dates(created=NOW, expires=NOW + 100)
        kit = hashlib.sha256(self.kit.encoded).digest()
        keys = msgspec.structs.replace(self.keys, **changes)
        body = encode(Enrolment(kit=kit, dates=dates, authentication=KEY, keys=keys, form="seal"))
        return answer(self.backend.setup("server", self.server, self.store, RNG), body, store=self.store).output

    def question(self, x: np.ndarray, minor: int = 4) -> tuple[bytes, ...]:
        bodies = self.engine.encrypt(self.secret, x)
        return tuple(with_minor(unpack_ciphertext(body, self.query), minor) for body in bodies)

    def ask(self, key_id: str, rows: int, ciphertexts: tuple[bytes, ...]) -> SealReply:
        line = Channel(KEY, kit=self.kit.encoded, key_id=key_id)
        query = line.query(key_id, rows, encode(Query(ciphertexts, "seal")), bytes(16))
        party = self.backend.predict("server", self.server, None, self.store, RNG)
        body = answer(party, encode(query), store=self.store).body
        sealed = decode(body, SealedReply, max_bytes=1 << 28)
        return decode(line.answer(query, sealed), SealReply, max_bytes=1 << 28)

    def outputs(self, reply: SealReply, rows: int) -> np.ndarray:
        exponents = np.frombuffer(reply.exponents, "<i2").astype(int)
        if isinstance(self.engine, LinearClient):
            y = self.plan.fixed.outputs(self._linear(reply, rows), exponents)
        else:
            y = np.ldexp(self._slots(reply)[:rows], exponents)
        return sigmoid(y) if self.plan.sigmoid else y

    def _slots(self, reply: SealReply) -> np.ndarray:
        """What our own client reads in the same numbers."""
        form = self.engine._reply
        return self.engine.decrypt(self.secret, [pack_ciphertext(body, form) for body in reply.ciphertexts])

    def _linear(self, reply: SealReply, rows: int) -> np.ndarray:
        """Coefficients at the places of results, as the page has it, decrypted by SEAL."""
        plan, found = self.plan, np.empty((rows, self.plan.outputs))
        d, t = plan.features, plan.parameters.plain_modulus
        for count, body in enumerate(reply.ciphertexts):
            cipher = self.context.seal.from_cipher_str(body)
            assert not cipher.is_ntt_form()
            plain = self.context.coefficients(self.secret.decrypt(Ciphertext(cipher)))
            for r in range(rows):
                for j in range(plan.outputs):
                    if (r // plan.blocks.rows, j // plan.blocks.width) == divmod(count, plan.blocks.products):
                        place = (r % plan.blocks.rows * plan.blocks.width + j % plan.blocks.width) * d + d - 1
                        value = int(plain[place])
                        found[r, j] = value - t if value > t // 2 else value
        return found


STRANGERS = {name: Stranger(name) for name in MODELS}
IDS = {name: stranger.upload() for name, stranger in STRANGERS.items()}
names = pytest.mark.parametrize("name", MODELS)


# --- right answers ----------------------------------------------------------------------------------------------------


@names
@pytest.mark.parametrize("minor", [0, 1, 4])
def test_answers_are_the_models_in_the_version_that_asked(name, minor):
    stranger = STRANGERS[name]
    x = corners(3, stranger.graph.features, seed=minor)
    reply = stranger.ask(IDS[name], 3, stranger.question(x, minor))
    assert {(body[4], body[16 + 73 + 4]) for body in reply.ciphertexts} == {(minor, minor)}
    error = np.abs(stranger.outputs(reply, 3) - stranger.graph.apply(x)).max(axis=0)
    assert (error <= stranger.server.error_bound).all()


@names
def test_keys_in_either_form_are_the_same_keys(name):
    stranger = STRANGERS[name]
    assert packed_keys(stranger.keys, stranger.context, stranger.plan.needs) == stranger.packed


def test_many_rows_and_outputs_come_back_each_at_its_place():
    stranger = STRANGERS["bfv"]
    rows = stranger.plan.blocks.rows + 5
    x = corners(rows, 4)
    reply = stranger.ask(IDS["bfv"], rows, stranger.question(x))
    assert len(reply.ciphertexts) == 2
    assert (np.abs(stranger.outputs(reply, rows) - stranger.graph.apply(x)) <= stranger.server.error_bound).all()


def test_under_bfv_a_question_may_be_in_coefficient_form():
    stranger = STRANGERS["bfv"]
    x = corners(2, 4, seed=3)
    (body,) = stranger.question(x)
    cipher = stranger.context.seal.from_cipher_str(body)
    stranger.context.from_ntt(Ciphertext(cipher))
    plain = cipher.to_string()
    assert plain != body
    assert packed_query([plain], stranger.context, stranger.plan, 2) == packed_query(
        [body], stranger.context, stranger.plan, 2
    )


@pytest.mark.parametrize("name", ["bfv", "ckks"])
def test_what_a_reply_leaves_out_is_not_in_seals_form_either(name):
    """Coefficients of a linear reply that hold no result are 0: they would show products of the weights."""
    stranger = STRANGERS[name]
    reply = stranger.ask(IDS[name], 1, stranger.question(corners(1, 4)))
    if name == "ckks":
        limbs = stranger.plan.reply_limbs
        assert all(len(body) == 113 + 16 * limbs * stranger.plan.parameters.degree for body in reply.ciphertexts)
        return
    (body,) = reply.ciphertexts
    first = read_ciphertext(body, stranger.context.form(limbs=len(stranger.plan.parameters.data_primes), ntt=False))[0]
    places = stranger.plan.blocks.places(1, 0).ravel()
    assert np.flatnonzero(first.any(axis=0)).tolist() == places.tolist()


# --- hostile bytes ----------------------------------------------------------------------------------------------------


def refused(name: str, ciphertexts, rows: int = 1) -> None:
    stranger = STRANGERS[name]
    with pytest.raises(ProtocolError):
        stranger.ask(IDS[name], rows, tuple(ciphertexts))


#: (place, bytes) of a ciphertext, each of which must matter: headers, id, form, sizes, scale, correction, count.
FIELDS = {
    "magic": (0, b"\x5f"),
    "header size": (2, b"\x18"),
    "major": (3, b"\x03"),
    "minor": (4, b"\x05"),
    "zlib": (5, b"\x01"),
    "zstd": (5, b"\x02"),
    "reserved": (6, b"\x01"),
    "total size": (8, struct.pack("<Q", 1 << 62)),
    "parameters": (16, bytes(32)),
    "form": (48, b"\x02"),
    "polynomials": (49, struct.pack("<Q", 3)),
    "polynomials, huge": (49, struct.pack("<Q", 1 << 60)),
    "degree": (57, struct.pack("<Q", 1 << 40)),
    "primes": (65, struct.pack("<Q", 1)),
    "scale": (73, struct.pack("<d", 3.0)),
    "scale, not a number": (73, struct.pack("<d", float("nan"))),
    "correction": (81, struct.pack("<Q", 2)),
    "inner magic": (89, b"\0"),
    "inner minor": (93, b"\x05"),
    "inner zstd": (94, b"\x02"),
    "inner size": (97, struct.pack("<Q", 16)),
    "count": (105, struct.pack("<Q", (1 << 61) - 1)),
    "number": (113, b"\xff" * 8),
    "last number": (-8, b"\xff" * 8),
}


@pytest.mark.parametrize("name", ["bfv", "ckks"])
@pytest.mark.parametrize("field", FIELDS)
def test_each_field_of_a_ciphertext_matters(name, field):
    place, value = FIELDS[field]
    (body,) = STRANGERS[name].question(corners(1, 4))
    place %= len(body)
    refused(name, [body[:place] + value + body[place + len(value) :]])


@pytest.mark.parametrize("name", ["bfv", "ckks"])
def test_lengths_counts_and_versions_matter(name):
    stranger = STRANGERS[name]
    (body,) = stranger.question(corners(1, 4))
    for other in (b"", body[:1], body[:48], body[:112], body[:-8], body[:-1], body + b"\0", body + body):
        refused(name, [other])
    refused(name, [])
    refused(name, [body, body])
    refused(name, [body], rows=2 if name == "ckks" else 1 << 20)
    refused(name, [pack_ciphertext(body, stranger.query)])  # what our own client sends, under the wrong name
    if name == "ckks":
        with pytest.raises(ProtocolError, match="one version"):
            stranger.ask(IDS[name], 2, (body, with_minor(body, 1)))


def test_a_reply_that_would_be_too_large_is_refused_before_any_work():
    stranger = STRANGERS["ckks"]
    each = 16 * stranger.plan.reply_limbs * stranger.plan.parameters.degree
    with pytest.raises(ProtocolError, match="fewer rows"):
        packed_query([], stranger.context, stranger.plan, MOST_REPLY_BYTES // each + 1)
    with pytest.raises(ProtocolError, match="one version"):  # the next check
        packed_query([], stranger.context, stranger.plan, MOST_REPLY_BYTES // each)


def seeded(body: bytes, kind: int = 1, seed: bytes = bytes(64)) -> bytes:
    """A ciphertext with a seed for its second polynomial."""
    words = (len(body) - 113) // 8 // 2
    array = struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 4, 0, 0, 24 + 8 * words) + struct.pack("<Q", words)
    record = struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 4, 0, 0, 81) + bytes([kind]) + seed
    whole = body[16:89] + array + body[113 : 113 + 8 * words] + record
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 4, 0, 0, 16 + len(whole)) + whole


@pytest.mark.parametrize("name", ["bfv", "ckks"])
@pytest.mark.parametrize("kind", [1, 2])
def test_seeds_are_drawn_out_as_seal_does(name, kind):
    """Any SEAL reads the same from a seed: the first polynomial stays, the second is new, and no seed is left."""
    stranger = STRANGERS[name]
    (body,) = stranger.question(corners(1, 4))
    drawn = []
    for seed in (bytes(64), bytes(63) + b"\x01"):
        _, (packed,) = packed_query([seeded(body, kind, seed)], stranger.context, stranger.plan, 1)
        drawn.append(read_ciphertext(unpack_ciphertext(packed, stranger.query), stranger.query))
        expected = stranger.context.seal.from_cipher_str(seeded(body, kind, seed)).to_string()
        assert unpack_ciphertext(packed, stranger.query) == expected
    assert (drawn[0][0] == read_ciphertext(body, stranger.query)[0]).all()
    assert (drawn[0][1] != drawn[1][1]).mean() > 0.99


@pytest.mark.parametrize("name", ["bfv", "ckks"])
def test_forged_seeds_are_refused(name):
    (body,) = STRANGERS[name].question(corners(1, 4))
    good = seeded(body)
    refused(name, [seeded(body, 0)])
    refused(name, [seeded(body, 3)])
    refused(name, [good[:-1]])
    refused(name, [good + b"\0"])
    refused(name, [seeded(body, seed=bytes(63))])
    record = len(good) - 81
    for place, value in ((0, 0), (2, 8), (3, 3), (4, 5), (5, 1), (8, 0)):
        refused(name, [good[: record + place] + bytes([value]) + good[record + place + 1 :]])
    refused(name, [good[:113] + b"\xff" * 8 + good[121:]])


@pytest.mark.parametrize("part", ["encryption", "relinearisation", "rotation"])
def test_only_the_plans_own_keys_are_taken(part):
    """Missing, superfluous, cut, long, of another set, at other places, numbers beyond their primes."""
    stranger, other = STRANGERS["ckks"], STRANGERS["trees"]
    body = getattr(stranger.keys, part)
    foreign = getattr(other.keys, part)
    parts = {"encryption": "relinearisation", "relinearisation": "rotation", "rotation": "encryption"}
    swapped = getattr(stranger.keys, parts[part])
    for bad in (b"", body[:-1], body + b"\0", body[:70], foreign, swapped, body[:-8] + b"\xff" * 8, bytes(len(body))):
        with pytest.raises(ProtocolError):
            stranger.upload(**{part: bad})
    assert stranger.upload(**{part: body})


def test_rotation_keys_are_at_the_places_of_the_plan():
    stranger = STRANGERS["ckks"]
    maker, made = seal.KeyGenerator(stranger.context.seal), seal.GaloisKeys()
    maker.create_galois_keys([step + 1 for step in stranger.plan.needs.steps], made)
    with pytest.raises(ProtocolError):
        stranger.upload(rotation=made.to_string())
    maker.create_galois_keys(made)
    with pytest.raises(ProtocolError):
        stranger.upload(rotation=made.to_string())


def test_superfluous_keys_are_refused():
    for part in ("relinearisation", "rotation"):
        with pytest.raises(ProtocolError):
            STRANGERS["bfv"].upload(**{part: getattr(STRANGERS["ckks"].keys, part)})


@settings(deadline=None)
@given(st.data(), st.sampled_from(["bfv", "ckks"]), st.booleans())
def test_any_bytes(data, name, with_seed):
    """Cut, extended, overwritten anywhere: refused, or numbers below their primes, which are as good as any."""
    stranger = STRANGERS[name]
    (body,) = stranger.question(corners(1, 4))
    body = seeded(body) if with_seed else body
    place = data.draw(st.integers(0, len(body)) | st.integers(0, 130) | st.integers(len(body) - 90, len(body)))
    piece = data.draw(st.binary(max_size=16))
    end = data.draw(st.sampled_from([place, place + len(piece), len(body)]))
    with suppress(ProtocolError):
        _, (packed,) = packed_query([body[:place] + piece + body[end:]], stranger.context, stranger.plan, 1)
        assert (read_ciphertext(unpack_ciphertext(packed, stranger.query), stranger.query) < 1 << 60).all()


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Enrolment, Dates, PublicKeys, Query, SealedQuery, SealedReply, SealReply])
def test_the_page_for_strangers_names_every_field(kind):
    page = PAGE.read_text()
    assert all(f"`{field}`" in page for field in kind.__struct_fields__)


def test_the_control_a_field_that_is_not_on_the_page():
    assert "`c1`" not in PAGE.read_text()
    assert not re.search("`(LinearReply|NetworkReply)`", PAGE.read_text())
