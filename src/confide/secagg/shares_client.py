"""The client of a two-server sum: one message, and it may leave."""

from __future__ import annotations

import numpy as np

from confide.cohort import roster
from confide.crypto.keys import KEY_BYTES, SigningKey
from confide.crypto.random import Randomness
from confide.crypto.ring import add_words, pack
from confide.ideal import Vector
from confide.secagg.norm_check import NormCheck
from confide.secagg.shares_terms import UPLOAD, Terms, Upload
from confide.wire import Message, Party, Step, Store, encode


def play(terms: Terms, me: str, vector: Vector, store: Store, rng: Randomness) -> Party:
    """The client's party: two shares, with a norm bound the evidence, one message.

    Args:
        terms: what all parties agree on.
        me: the client's name.
        vector: its integers, checked against session and norm bound.
        store: with the identity that signs, and the journal.
        rng: secret randomness.
    """
    identity, body = roster.identity(store), terms.journal.resumed(store)
    if body is None:
        if terms.norm is None:
            upload = _plain(terms, me, vector, identity, rng)
        else:
            upload = _with_evidence(terms, terms.norm, me, vector, identity, rng)
        body = encode(upload)
    yield Step(send=(Message(me, terms.cohort.server, UPLOAD, body),), save=terms.journal.entry(body))
    yield Step(save=terms.journal.entry())


def _plain(terms: Terms, me: str, vector: Vector, identity: SigningKey, rng: Randomness) -> Upload:
    seed = rng.bytes(KEY_BYTES)
    words = vector.astype(terms.dtype)  # two's complement: reduced modulo the width of a word
    terms.add_share(words, me, seed, negate=True)
    return Upload(terms.seal_seed(me, seed, identity, rng), pack(words, terms.bits))


def _with_evidence(
    terms: Terms, norm: NormCheck, me: str, vector: Vector, identity: SigningKey, rng: Randomness
) -> Upload:
    """Draw shares until the projections of an honest vector pass: nearly always the first."""
    while True:
        seed = rng.bytes(KEY_BYTES)
        mask = np.zeros(len(vector), terms.dtype)
        terms.add_share(mask, me, seed)
        words = vector.astype(terms.dtype)
        add_words(words, mask, negate=True)
        packed = pack(words, terms.bits)
        proved = norm.prove(me, seed, words, packed, mask, rng)
        if proved is not None:
            evidence, signed = proved
            return Upload(terms.seal_seed(me, seed, identity, rng, signed=signed), packed, evidence)
