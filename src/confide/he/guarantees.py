"""What holds for predictions under "he", and what does not: one text per kind of plan."""

from __future__ import annotations

from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.he.parameters import SECURITY_BITS
from confide.he.plan import Plan
from confide.he.plan_linear import FLOODING_BITS, LinearPlan
from confide.he.plan_trees import TreesPlan

_SERVER_SEES = (
    "The server sees who asks, when, and how many rows. It is taken to follow the protocol (honest but curious): the "
    "result is not verified, though nobody on the way can change or mix up messages. Keys are taken to be honestly "
    "generated."
)
_PROTECTED = (
    "The client sees the outputs before any sigmoid, and a power of two above each one's range; features + 1 queries "
    "determine a linear model, as under every technique. Replies are otherwise within "
    f"2^-{FLOODING_BITS} per number of ones that depend on the outputs alone; a client that deviates from the protocol "
    f"(a forged public key or query) learns the weights. {_SERVER_SEES}"
)
_OPEN = (
    "The model is visible to the client: it reads the weights of a linear model off one reply, and no claim is made "
    f"for those of a network with squares. It sees the outputs before any sigmoid. {_SERVER_SEES}"
)
_MLP = (
    "No claim is made for the weights: the noise of a reply depends on them, re-randomised or not. The client sees the "
    "sizes of the layers, the outputs before any sigmoid, and a power of two above each one's range; one answer for "
    "one charge: a question that hides several rows in its slots gets their mean. What it decrypts "
    f"carries noise that depends on its key: it is the client's alone; others see what `publish` gives. {_SERVER_SEES}"
)
_TREES = (
    "No claim is made for the leaves: the noise of a reply depends on them, re-randomised or not. The client sees the "
    "number of features, the largest depth, the number of leaves up to the next power of two, the outputs before any "
    "sigmoid, and a power of two above each one's range; not the number of trees, nor their shapes, features and "
    "thresholds. Queries on both sides of a threshold find it, as under every technique. Thresholds are moved to edges "
    "of public intervals, so a row with a feature in between may be decided otherwise. A question that hides several "
    "rows in its slots gets one answer. What it decrypts carries noise "
    f"that depends on its key: it is for the client alone, rounded before it is shown. {_SERVER_SEES}"
)


def guarantee(plan: Plan | None, *, protect_model: bool) -> Guarantee:
    """Return what holds for `plan`, or for every plan."""
    claims = {Claim("query", "server"), Claim("prediction", "server")}
    if isinstance(plan, LinearPlan):
        leaks = _PROTECTED if protect_model else _OPEN
        claims |= {Claim("weights", "client")} if protect_model else set()
    elif plan is not None:
        leaks = _TREES if isinstance(plan, TreesPlan) else _MLP
    else:
        leaks = f"Linear models: {_PROTECTED} Networks with squares: {_MLP}" if protect_model else _OPEN
        leaks += f" Trees: {_TREES}"
    return Guarantee(
        claims=frozenset(claims),
        adversary=Adversary.SEMI_HONEST,
        trust=Trust.CRYPTOGRAPHY,
        security_bits=SECURITY_BITS,
        post_quantum=True,
        verified_result=False,
        leaks=leaks,
        primary="BFV or CKKS (Microsoft SEAL)" if plan is None else _primary(plan),
        paper="BFV: Fan and Vercauteren, ePrint 2012/144; CKKS: ePrint 2016/421; parameters: HE Standard (2018)",
    )


def _primary(plan: Plan) -> str:
    parameters = plan.parameters
    return f"{parameters.scheme.upper()}, N={parameters.degree}, log q={parameters.total_bits} (Microsoft SEAL)"
