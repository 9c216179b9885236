"""A party that only works and sends takes turns with everybody else: one of its steps for each turn of the loop.

A dealer makes correlations for many predictions without waiting for anybody. In one go that keeps a process's thread,
and whoever asks meanwhile waits for all of it; what was made would wait in memory for links that are slower. So between
two steps the loop has its turn, and the next step comes once the links have room for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from confide.serve.parties.circle import Circle
from confide.serve.parties.sessions import Cast
from confide.wire import Party

#: Bytes for one peer that wait to leave, beyond which nothing is made.
MOST_WAITING_BYTES = 4 << 20
_LOOK_SECONDS = 0.005


def in_turns(party: Party, role: str, again: Callable[[str], None]) -> Party:
    """Return a party that does the same, and waits for itself after each step in which it waits for nobody.

    Args:
        party: one that returns, and takes no exception for an answer.
        role: its own.
        again: has a message without a body brought to this party, from itself, under a tag.
    """
    turn = 0
    try:
        step = next(party)
        while True:
            if step.wait_for:
                step = party.send((yield step))
                continue
            turn += 1
            tag = f"turn/{turn}"
            again(tag)
            yield replace(step, await_tag=tag, wait_for=(role,))
            step = party.send({})
    except StopIteration as stop:
        return stop.value
    finally:
        party.close()


def turns_of(circle: Circle, session: str, cast: Cast, party: Party) -> Party:
    """Return a session's party in turns with the other sessions of a process, and with its links."""

    def go_on(tag: str) -> None:
        if not circle.sessions.is_open(session):
            return
        if max((circle.mesh.waiting_bytes(name) for name in cast.others()), default=0) > MOST_WAITING_BYTES:
            circle.mesh.later(_LOOK_SECONDS, lambda: go_on(tag))
        else:
            circle.sessions.turn(session, tag)

    def again(tag: str) -> None:
        circle.mesh.later(0.0, lambda: go_on(tag))

    return in_turns(party, cast.role, again)
