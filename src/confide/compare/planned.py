"""What the planner of a technique knows of a prediction before anything is sent: the numbers that its costs grow with.

    he, he-open   seconds of the server by the planner's own speeds, bytes of a question and its reply
    mpc-*         rounds, comparisons, products, bytes of the busiest direction, bytes of all

They are exact for a model, whatever its layers, where its size alone says little: a ciphertext holds thousands of
numbers or one, and a ring is twice as large or it is not. `costs` fits machines' seconds to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from confide.he.backend import Homomorphic
from confide.he.cost import seconds
from confide.he.message_bytes import query_bytes, reply_bytes
from confide.he.plan_linear import LinearPlan
from confide.he.plan_trees import TreesPlan
from confide.he.speeds import NATIVE
from confide.ideal import Backend
from confide.model.graph import Graph
from confide.mpc.lowering import architecture_of, program_for
from confide.mpc.planner import HOLDERS, name_of
from confide.mpc.planner import plan as planned_on_shares

Numbers = tuple[float, ...]


def planned(backend: Backend, graph: Graph) -> Numbers | None:
    """Return what a backend's plan says of one row; None for a backend without a planner.

    Args:
        backend: that runs the model (`check` finds nothing).
        graph: the model.
    """
    if isinstance(backend, Homomorphic):
        plan = backend.plan(graph)
        sent = float(query_bytes(plan, 1) + reply_bytes(plan, 1))
        if isinstance(plan, LinearPlan):
            return (0.0, sent)
        return (_of_trees(plan) if isinstance(plan, TreesPlan) else seconds(plan, NATIVE), sent)
    if backend.name not in HOLDERS:
        return None
    total = planned_on_shares(program_for(architecture_of(graph, None), 1), name_of(backend.name)).total
    every = sum(total.sent.values())
    return tuple(map(float, (total.rounds, total.comparisons, total.products, total.largest, every)))


def in_words(choice: str, plan: Numbers) -> str:
    """Return a plan as people read it."""
    if choice.startswith("he"):
        return f"{plan[1]:,.0f} bytes for a question and its answer"
    rounds, comparisons, products, _, every = (round(number) for number in plan)
    return (
        f"{rounds} messages one after the other, {every:,} bytes between all, {comparisons:,} comparisons, "
        f"{products:,} multiply-adds"
    )


def _of_trees(plan: TreesPlan) -> float:
    """Return the seconds of rotations and products, which are nearly all of the work."""
    limbs, degree = len(plan.parameters.data_primes), plan.parameters.degree
    return (NATIVE.products(degree, limbs, plan.products) + plan.rotations * NATIVE.switch(degree, limbs)) / 1e3


def work_terms(choice: str, plan: Numbers, features: int) -> Numbers:
    """Return what the seconds of work grow with."""
    return (1.0, *plan, float(features)) if choice.startswith("he") else (1.0, *plan[:3], plan[4])


def sent_terms(choice: str, plan: Numbers, features: int) -> Numbers:
    """Return what the bytes on the longest path grow with."""
    return plan[1:] if choice.startswith("he") else (1.0, *plan[3:], float(features))


def trip_terms(choice: str, plan: Numbers, features: int) -> Numbers:
    """Return what the one-way trips grow with."""
    return (1.0,) if choice.startswith("he") else (1.0, plan[0])


#: By the quantity of `costs.Fitted`.
TERMS: Mapping[str, Callable[[str, Numbers, int], Numbers]] = {
    "work": work_terms,
    "sent": sent_terms,
    "trips": trip_terms,
}
