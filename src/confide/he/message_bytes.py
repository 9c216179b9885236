"""How large questions and replies are, by the plan and the number of rows alone."""

from __future__ import annotations

from confide.he.packed import packed_bytes
from confide.he.plan import Plan
from confide.he.plan_batch import BatchPlan
from confide.he.plan_linear import LinearPlan

#: Largest question that is read at all.
MOST_QUERY_BYTES = 1 << 28

_REPLY_HEAD_BYTES = 256
_SEALED_BYTES = 256
_CIPHERTEXT_HEAD_BYTES = 256
_ENROLMENT_BYTES = 1024


def block_rows(plan: Plan) -> int:
    """Return the rows that a question carries at the cost of one."""
    return plan.slots if isinstance(plan, BatchPlan) else 1


def keys_bytes(plan: Plan) -> int:
    """Return a bound of the size of one client's public keys as they are uploaded."""
    primes, degree, digits = plan.parameters.primes, plan.parameters.degree, len(plan.parameters.data_primes)
    needs = plan.needs
    levels = [*needs.levels(digits).values(), *[digits] * needs.relinearisation]
    switching = sum(used * packed_bytes((*primes[:used], primes[-1]), rows=2, count=degree) for used in levels)
    encryption = needs.encryption * packed_bytes(primes, rows=2, count=degree)
    return switching + encryption + _ENROLMENT_BYTES


def whole_key_bytes(plan: Plan) -> int:
    """Return the bytes of a client's key-switching keys at all data primes, in words: what SEAL makes."""
    digits, needs = len(plan.parameters.data_primes), plan.needs
    return (len(needs.steps) + needs.relinearisation) * 16 * plan.parameters.degree * digits * (digits + 1)


def query_bytes(plan: Plan, rows: int) -> int:
    """Return a bound of the size of a query of `rows` rows."""
    count = plan.blocks.ciphertexts(rows) if isinstance(plan, LinearPlan) else plan.queries(rows)
    size = packed_bytes(plan.parameters.data_primes, rows=2, count=plan.parameters.degree) + _CIPHERTEXT_HEAD_BYTES
    return count * size + _SEALED_BYTES


def reply_bytes(plan: Plan, rows: int) -> int:
    """Return a bound of the size of a reply to `rows` rows."""
    primes, degree = plan.parameters.data_primes, plan.parameters.degree
    if isinstance(plan, LinearPlan):
        count = plan.blocks.ciphertexts(rows) * plan.blocks.products
        size = packed_bytes(primes, rows=1, count=rows * plan.outputs) + packed_bytes(primes, rows=count, count=degree)
    else:
        each = packed_bytes(primes[: plan.reply_limbs], rows=2, count=degree) + _CIPHERTEXT_HEAD_BYTES
        size = plan.replies(rows) * each
    return size + 2 * plan.outputs + _REPLY_HEAD_BYTES + _SEALED_BYTES
