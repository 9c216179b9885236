"""When the operations of a program run: which messages share a round, and what is computed between rounds.

An operation that sends leaves as soon as its operands are there. So what does not depend on each other shares a round,
and the rounds of a program are the longest chain of operations that send. Whoever reads a program reads it by this one
schedule: the parties, the three servers, and the planner that foretells their messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from confide.mpc.operations import AnyOperation, Kind, Load, Open, Program, Reveal, Sign, operands


@dataclass(frozen=True, slots=True)
class Round:
    """One exchange of messages, and what can be computed once they are there.

    Args:
        sends: numbers of the operations whose messages leave, in the order in which they lie in a message.
        local: numbers of the operations that run after it, each after its operands.
    """

    sends: tuple[int, ...]
    local: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The order of a program.

    Args:
        before: operations on what is fixed with the model alone; no message of this run is needed.
        rounds: at least one if anything is sent.
        ready: for each operation the number of rounds after which its value is there, 0 for those of `before`.
    """

    before: tuple[int, ...]
    rounds: tuple[Round, ...]
    ready: tuple[int, ...]


def rounds(program: Program, *, inputs: Literal["masked", "shared"] = "masked") -> Schedule:
    """Return the schedule of a program.

    Args:
        program: any.
        inputs: "masked": whoever holds an OPEN input knows its mask and sends the masked value, one round; "shared":
            it sends shares, and those who compute open them in a second one. In that round the load sends again.
    """
    trips = 2 if inputs == "shared" else 1
    ready: list[int] = []
    sending: dict[int, list[int]] = {}
    local: dict[int, list[int]] = {}
    for number, operation in enumerate(program.operations):
        after = max((ready[one] for one in operands(operation)), default=0)
        if not sends(operation):
            local.setdefault(after, []).append(number)
            ready.append(after)
            continue
        opened = isinstance(operation, Load) and operation.kind is Kind.OPEN
        last = after + (trips if opened else 1)
        for one in range(after + 1, last + 1):
            sending.setdefault(one, []).append(number)
        ready.append(last)
    found = tuple(
        Round(tuple(sending.get(one, ())), tuple(local.get(one, ()))) for one in range(1, max(ready, default=0) + 1)
    )
    return Schedule(tuple(local.get(0, ())), found, tuple(ready))


def sends(operation: AnyOperation) -> bool:
    """Return whether a message leaves for an operation."""
    match operation:
        case Load():
            return operation.origin == "input"
        case Open() | Sign() | Reveal():
            return True
        case _:
            return False
