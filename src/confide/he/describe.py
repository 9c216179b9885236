"""A plan in words and numbers: what a person wants to know before a key is made."""

from __future__ import annotations

import math
from collections.abc import Iterator

from confide.he.cost import seconds
from confide.he.message_bytes import keys_bytes, query_bytes, reply_bytes
from confide.he.parameters import LIMIT_BITS, SECURITY_BITS
from confide.he.plan import Plan
from confide.he.plan_batch import BatchPlan, products
from confide.he.plan_network import NetworkPlan
from confide.he.speeds import NATIVE, SEAL
from confide.he.stages import Mapped, Multiplied, Summed


def facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield what is public of a plan, as (name, value)."""
    parameters = plan.parameters
    yield "scheme", f"{parameters.scheme.upper()}, ring degree N = {parameters.degree}"
    bits = " + ".join(str(prime.bit_length()) for prime in parameters.primes)
    yield "primes", f"{bits} = {parameters.total_bits} bits"
    limit = LIMIT_BITS[parameters.degree]
    yield "security", f"{SECURITY_BITS} bits: the table allows {limit} bits at this degree, secrets are uniform ternary"
    switching = len(plan.needs.steps) + plan.needs.relinearisation
    yield "keys", f"{switching} evaluation keys; {_size(keys_bytes(plan))} to upload once"
    rows = f"{plan.slots} rows or fewer" if isinstance(plan, BatchPlan) else "one row"
    yield "query, reply", f"{_size(query_bytes(plan, 1))}, {_size(reply_bytes(plan, 1))} for {rows}"
    if isinstance(plan, NetworkPlan | BatchPlan):
        yield from _network_facts(plan)
    else:
        yield "layout", str(plan)


def _network_facts(plan: NetworkPlan | BatchPlan) -> Iterator[tuple[str, str]]:
    error = plan.estimated_error
    rows = f"{plan.slots} rows" if isinstance(plan, BatchPlan) else "one row"
    yield "rotations", "0" if isinstance(plan, BatchPlan) else str(plan.rotations)
    yield "estimated error", f"{error:.1e} of a typical output (standard deviation)"
    times = (f"{1e3 * seconds(plan, speeds):.0f} ms" for speeds in (SEAL, NATIVE))
    yield "estimated time", f"{next(times)} for {rows} on one core, {next(times)} with the native engine"
    held = "every input of the box" if plan.certified else "typical inputs: not certified for every input of the box"
    yield "range", f"{plan.room_bits:.0f} bits above typical values, enough for {held}"
    if isinstance(plan, BatchPlan):
        yield "packing", f"each feature in a ciphertext of its own, a row in each of {plan.slots} slots"
        return
    half = ", in both halves of complex slots" if plan.entry.halves == 2 else ""
    patches = "patches of the first convolution" if plan.entry.patches else "features"
    yield "packing", f"{patches} in {plan.slots} slots, {plan.entry.copies} copies{half}"


def stage_lines(plan: NetworkPlan | BatchPlan) -> Iterator[tuple[str, str, str, str]]:
    """Yield for each stage what it computes, its rotations, its products with weights, and its primes and scale."""
    for number, stage in enumerate(plan.stages):
        before, after = plan.registers[stage.sources[0]], plan.registers[number + 1]
        scales = f"2^{math.log2(before.scale):.0f} -> 2^{math.log2(after.scale):.0f}"
        level = f"{before.limbs} -> {after.limbs} primes, scale {scales}"
        match stage:
            case Mapped():
                rotations = stage.layout.rotations
                count = rotations.before + rotations.after + stage.conjugate
                yield str(stage.shape), str(count), str(rotations.products), level
            case Summed():
                yield str(stage.shape), "0", str(products(stage)), level
            case Multiplied():
                yield "square" if stage.left == stage.right else "product", "0", "0", level
            case _:
                yield f"combination of {len(stage.sources)}", "0", str(len(stage.sources)), level


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
