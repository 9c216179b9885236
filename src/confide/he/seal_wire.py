"""SEAL's own bytes on the wire, for clients that are SEAL and not ours; the rest of the server sees packed ones only.

An upload or a question says `form="seal"` and then holds objects as SEAL 4.0 to 4.4 writes them: uncompressed, with or
without seeds, under BFV in either form. Each is checked in full (`seal_format`), seeds are drawn out by SEAL, and what
is left are the numbers, packed as our own client packs them (`packed`). The reply to such a question is made of
ciphertexts that SEAL loads and decrypts, in the version that wrote the question.

Source: SEAL 4.x, as in `seal_format`; up to 4.3 SEAL reads objects of its own minor version only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import msgspec
import numpy as np

from confide.errors import ProtocolError
from confide.he.packed import pack_ciphertext, pack_key_set, unpack_ciphertext
from confide.he.plan import Plan
from confide.he.plan_linear import LinearPlan
from confide.he.plan_trees import TreesPlan
from confide.he.seal import Context, Needs, PublicKeys
from confide.he.seal_format import (
    Form,
    Residues,
    check_ciphertext,
    check_key_set,
    minor_of,
    says_ntt,
    with_minor,
    write_ciphertext,
)

#: How numbers travel: packed, or as SEAL writes them.
WireForm = Literal["packed", "seal"]

#: Largest reply in SEAL's form; who asks for more sends fewer rows at a time.
MOST_REPLY_BYTES = 1 << 25


class SealReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Results for who asked in SEAL's form: outputs are 2^e times what the ciphertexts hold, for each its e."""

    exponents: bytes
    ciphertexts: tuple[bytes, ...]


def packed_keys(keys: PublicKeys, context: Context, needs: Needs) -> PublicKeys:
    """Return public keys in SEAL's own form, a stranger's, packed.

    Args:
        keys: their three parts are objects of SEAL's; parts that are not needed are empty.
        context: of the plan.
        needs: which parts there must be.

    Raises:
        ProtocolError: anything but these keys.
    """
    if (bool(keys.encryption), bool(keys.relinearisation), bool(keys.rotation)) != (
        needs.encryption, needs.relinearisation, bool(needs.steps),
    ):  # fmt: skip
        raise ProtocolError("Expected the public keys that this plan needs, and no others")
    encryption = relinearisation = rotation = b""
    if needs.encryption:
        encryption = _packed(keys.encryption, context, context.key_form, "public")
    if needs.relinearisation:
        relinearisation = _packed_set(keys.relinearisation, context, {0: len(context.parameters.data_primes)}, "relin")
    if needs.steps:
        rotation = _packed_set(keys.rotation, context, context.galois_levels(needs), "galois")
    return PublicKeys(nonce=keys.nonce, encryption=encryption, relinearisation=relinearisation, rotation=rotation)


def packed_query(
    ciphertexts: Sequence[bytes], context: Context, plan: Plan, rows: int
) -> tuple[int, tuple[bytes, ...]]:
    """Return the minor version of SEAL that wrote a question, and its ciphertexts, a stranger's, packed.

    Args:
        ciphertexts: a stranger's.
        context: of the plan.
        plan: the model's.
        rows: a stranger's: how many rows they hold.

    Raises:
        ProtocolError: not fresh ciphertexts of this plan, several versions, or a reply that would be too large.
    """
    _check_reply_size(plan, rows)
    scale = _input_scale(plan)
    form = context.form(limbs=len(plan.parameters.data_primes), ntt=True, scale=scale)
    packed = tuple(_packed(body, context, form, "cipher") for body in ciphertexts)
    minors = set(map(minor_of, ciphertexts))
    if len(minors) != 1:
        raise ProtocolError("Expected ciphertexts of one version of SEAL")
    return minors.pop(), packed


def linear_reply(c0: Residues, c1: Residues, context: Context, plan: LinearPlan, minor: int) -> tuple[bytes, ...]:
    """Return a linear model's reply as ciphertexts of SEAL's; what `LinearReply` leaves out of c0 is zero in them.

    Args:
        c0: shape (primes, rows, outputs).
        c1: shape (ciphertexts, products, primes, N).
        context: of the plan.
        plan: the model's.
        minor: version of SEAL that shall read it.
    """
    form = context.form(limbs=len(plan.parameters.data_primes), ntt=False)
    return tuple(with_minor(write_ciphertext(whole, form), minor) for whole in _whole(c0, c1, plan))


def _whole(c0: Residues, c1: Residues, plan: LinearPlan) -> Iterator[Residues]:
    """Yield the ciphertexts of a linear model's reply, by ciphertext of the question and product."""
    blocks, rows = plan.blocks, c0.shape[1]
    for count, products in enumerate(c1):
        part = slice(count * blocks.rows, min((count + 1) * blocks.rows, rows))
        for product, second in enumerate(products):
            columns = slice(product * blocks.width, min((product + 1) * blocks.width, blocks.outputs))
            first = np.zeros_like(second)
            first[:, blocks.places(part.stop - part.start, product)] = c0[:, part, columns]
            yield np.stack([first, second])


def network_reply(ciphertexts: Sequence[bytes], context: Context, plan: Plan, minor: int) -> tuple[bytes, ...]:
    """Return a reply under CKKS, packed ciphertexts, as SEAL 4.`minor` reads it."""
    assert not isinstance(plan, LinearPlan)
    limbs, scale = (1, plan.reply.scale) if isinstance(plan, TreesPlan) else (plan.reply_limbs, plan.reply_scale)
    form = context.form(limbs=limbs, ntt=True, scale=scale)
    return tuple(with_minor(unpack_ciphertext(body, form), minor) for body in ciphertexts)


def _check_reply_size(plan: Plan, rows: int) -> None:
    """Refuse a question whose reply in SEAL's form would be too large. Raises ProtocolError."""
    if isinstance(plan, LinearPlan):
        count, limbs = plan.blocks.ciphertexts(rows) * plan.blocks.products, len(plan.parameters.data_primes)
    else:
        count, limbs = plan.replies(rows), plan.reply_limbs
    if count * 16 * limbs * plan.parameters.degree > MOST_REPLY_BYTES:
        raise ProtocolError(f"Expected a reply of at most {MOST_REPLY_BYTES} bytes; send fewer rows at a time")


# --- objects of SEAL's ------------------------------------------------------------------------------------------------


def _input_scale(plan: Plan) -> float:
    match plan:
        case LinearPlan():
            return 1.0
        case TreesPlan():
            return 2.0**plan.input_scale_bits
        case _:
            return 2.0**plan.scale_bits


def _packed(body: bytes, context: Context, form: Form, kind: Literal["cipher", "public"]) -> bytes:
    """Return a ciphertext or public key, a stranger's, packed in `form`."""
    bfv = kind == "cipher" and context.parameters.scheme == "bfv"
    given = replace(form, seeded=len(body) < form.size_bytes, ntt=says_ntt(body) if bfv else form.ntt)
    check_ciphertext(body, given)
    if given != form:
        body = context.expanded(body, kind)
    return pack_ciphertext(body, form)


def _packed_set(body: bytes, context: Context, levels: Mapping[int, int], kind: Literal["relin", "galois"]) -> bytes:
    """Return a set of key-switching keys, a stranger's, packed: of each what its level needs."""
    form, digits = context.key_form, len(context.parameters.data_primes)
    given = replace(form, seeded=len(body) < len(levels) * digits * form.size_bytes)
    check_key_set(body, given, digits=digits, indices=levels.keys())
    if given.seeded:
        body = context.expanded(body, kind)
    return pack_key_set(body, form, digits=digits, levels=levels)
