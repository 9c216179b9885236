"""Two servers that a client asks under one id and for one program find out when it told them different things.

    server <-> helper   {name}/run/{t}   the first of them begins with an agreement, 16 bytes

The agreement is a hash of everything in a client's question but its share of x: run, counter, rows, the program's hash,
and whether the dealer sends correlations now. It rides in the first message, so it costs no round; what that message
shows besides is masked by numbers that serve once at its sender, whatever the other one was told.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from confide.errors import ProtocolError
from confide.mpc.keys import Mode
from confide.mpc.messages import Ask, Query
from confide.wire import Message, Party, Step, decode, encode

AGREEMENT_BYTES = 16
_LARGEST_QUERY_BYTES = 1 << 30


def agreement(ask: Ask) -> bytes:
    """Return what two servers compare of a question (16 bytes)."""
    return hashlib.sha256(b"confide mpc-outsourced run v1\0" + encode(ask)).digest()[:AGREEMENT_BYTES]


def agreed(mode: Mode, role: str, party: Party) -> Party:
    """Return a server's party of one prediction, that compares with the other server first.

    Args:
        mode: of the party.
        role: one of its holders.
        party: `predict_at_party`'s.

    Raises:
        ProtocolError: they were asked under two ids, or for two programs.
    """
    other = mode.holders[1 - mode.holders.index(role)]
    ask_tag, run_tag = f"{mode.name}/ask", f"{mode.name}/run/"
    own, sent, heard = b"", False, False
    try:
        step = next(party)
        while True:
            if not sent and (begun := _with(own, step, other, run_tag)) is not None:
                step, sent = begun, True
            try:
                received = yield step
            except Exception as error:
                step = party.throw(error)
                continue
            if step.await_tag == ask_tag and "client" in received:
                own = agreement(decode(received["client"].body, Query, max_bytes=_LARGEST_QUERY_BYTES).ask)
            if not heard and step.await_tag.startswith(run_tag) and other in received:
                received, heard = {**received, other: _without(own, received[other])}, True
            step = party.send(received)
    except StopIteration as stop:
        return stop.value
    finally:
        party.close()


def _with(own: bytes, step: Step, other: str, tag: str) -> Step | None:
    """Return a step whose message to the other server begins with the agreement; None if it has none."""
    for place, message in enumerate(step.send):
        if message.dst == other and message.tag.startswith(tag):
            first = replace(message, body=own + message.body)
            return replace(step, send=(*step.send[:place], first, *step.send[place + 1 :]))
    return None


def _without(own: bytes, message: Message) -> Message:
    """Return the other server's first message without the agreement. Raises ProtocolError if it is another one."""
    if message.body[:AGREEMENT_BYTES] != own:
        raise ProtocolError("Expected both servers to be asked under one id and for one program; set up again")
    return replace(message, body=message.body[AGREEMENT_BYTES:])
