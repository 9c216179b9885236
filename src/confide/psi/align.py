"""Two parties with different columns of the same people find the rows they share, in one order: ECDH-PSI.

Each party has a secret factor and blinds points that its identifiers hash to. A point blinded by both is the same,
whoever blinded it first, so equal identifiers meet there, and a point blinded by the other's secret says nothing.

    1  psi/blinded   my points under my factor, sorted
    2  psi/doubled   the other's list under my factor as well, in the other's order
    3  psi/agreed    SHA-256 over all four lists and the points that both have, sorted

Sorting by blinded points puts rows into an order that has nothing to do with any table. The other's doubled list comes
in the order in which it was sent, so each party, and it alone, knows which of its rows a point is. What both lists have
is sorted again: the same points in the same order at both, hence rows that belong together. Both confirm that before
either returns.

    paper         here                      paper    here
    alpha, beta   BlindingKey               H(x)     BlindingKey.of_text before its factor

Source: Meadows (1986); Huberman, Franklin, Hogg, Enhancing privacy and trust in electronic communities (1999);
Agrawal, Evfimievski, Srikant, Information sharing across private databases (2003), section 3 with the proof, under
decisional Diffie-Hellman and a random oracle.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, cast, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.points import POINT_BYTES, BlindingKey
from confide.crypto.random import Randomness
from confide.errors import DataError, ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.wire import Message, Party, Step, decode, encode

BLINDED, DOUBLED, AGREED = "psi/blinded", "psi/doubled", "psi/agreed"

#: Rows of one party that the other takes, unless it is told otherwise.
MOST_ROWS = 1_000_000

#: How identifiers are written alike; both parties take the same.
Rule = Literal["exact", "letters and digits"]

GUARANTEE = Guarantee(
    claims=frozenset(
        {
            Claim("identifiers that only one party has", "the other party"),
            Claim("identifiers", "outsiders"),
        }
    ),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.CRYPTOGRAPHY,
    security_bits=128,
    post_quantum=False,
    verified_result=False,
    leaks=(
        "To both parties: how many rows each has, and which of its own rows the other has too. Nobody checks that a "
        "party asks about people of its own: who puts in a guess learns whether the other has it."
    ),
    primary="ECDH on P-256, SHA-256",
    paper="Agrawal, Evfimievski, Srikant (SIGMOD 2003), section 3",
)


class _Blinded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    context: bytes
    points: bytes


class _Doubled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    points: bytes


class _Agreed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digest: bytes


@dataclass(frozen=True, slots=True)
class Alignment:
    """What one party learns: for its own eyes.

    Args:
        rows: int64, shape (common,): its rows that the other has too; row k here and row k there are one person.
        mine, theirs: rows of both tables.
    """

    rows: NDArray[np.int64] = field(repr=False)
    mine: int
    theirs: int


def align(
    me: str,
    peer: str,
    identifiers: Sequence[str],
    *,
    session: str,
    rng: Randomness,
    rule: Rule = "exact",
    most_rows: int = MOST_ROWS,
) -> Party:
    """Return the party of one alignment; its output is an `Alignment`.

    Args:
        me, peer: the two parties' names.
        identifiers: whose each row is; at least one, all different under the rule.
        session: a name for this alignment that both parties have agreed on.
        rng: secret randomness of this party.
        rule: "exact" takes identifiers as they are, blanks around them left out; "letters and digits" takes these
            alone, in lower case, so that "AB-12 3" is "ab123".
        most_rows: of the other party.

    Raises:
        DataError: an identifier is empty, or two are the same; the text counts them and names none.
        UsageError: the names are the same, identifiers or names are no text, or the rule is none.
        ProtocolError (from the party): the other sent what no honest party does, or has agreed on something else.

    **Guarantees**, if both follow the protocol: `GUARANTEE`; both get as many rows, in the same order of people, which
    is random and new in each session.
    **Leaks**: `GUARANTEE.leaks`; sizes to whoever watches the network.
    """
    if me == peer or not session:
        raise UsageError("Expected two parties with different names, and a session that is named")
    if rule not in get_args(Rule):
        raise UsageError(f"Expected rule={rule!r} to be one of {', '.join(map(repr, get_args(Rule)))}")
    try:
        "".join((me, peer, session)).encode()
    except (TypeError, UnicodeEncodeError):
        raise UsageError("Expected names of parties and session to be text that UTF-8 can write") from None
    if wrong := sum(not isinstance(one, str) for one in cast("Sequence[object]", identifiers)):
        raise UsageError(f"Expected identifiers to be text, {wrong} of {len(identifiers)} are not; write them as text")
    texts = _different([normalised(text, rule) for text in identifiers], rule)
    return _party(me, peer, texts, _context(me, peer, session, rule), BlindingKey(rng), most_rows)


def _party(me: str, peer: str, texts: list[bytes], context: bytes, key: BlindingKey, most_rows: int) -> Party:
    blinded = [key.of_text(context + text) for text in texts]
    order = sorted(range(len(blinded)), key=blinded.__getitem__)
    mine = [blinded[row] for row in order]
    message = Message(me, peer, BLINDED, encode(_Blinded(context, b"".join(mine))))
    received = yield Step(send=(message,), await_tag=BLINDED, wait_for=(peer,))
    told = decode(received[peer].body, _Blinded, max_bytes=POINT_BYTES * most_rows + 256)
    if told.context != context:
        raise ProtocolError(f"Expected {peer} in this session, under the same rule; compare both with its people")
    theirs = _points(told.points, peer)
    if any(not one < other for one, other in pairwise(theirs)) or not set(mine).isdisjoint(theirs):
        raise ProtocolError(f"Expected different points of {peer}'s own, sorted")
    doubled = [key.of_point(point) for point in theirs]
    message = Message(me, peer, DOUBLED, encode(_Doubled(b"".join(doubled))))
    received = yield Step(send=(message,), await_tag=DOUBLED, wait_for=(peer,))
    own = _points(decode(received[peer].body, _Doubled, max_bytes=POINT_BYTES * len(mine) + 256).points, peer)
    if len(own) != len(mine) or len(set(own)) != len(own):
        raise ProtocolError(f"Expected a different point of {peer} for each of the {len(mine)} that it was sent")
    rows = dict(zip(own, order, strict=True))
    common = sorted(rows.keys() & set(doubled))
    # the lists by who owns the points, as each party has them: what was changed on the way shows
    lists = {me: (mine, own), peer: (theirs, doubled)}
    parts = [part for name in sorted(lists) for part in lists[name]] + [common]
    digest = hashlib.sha256(context + b"".join(hashlib.sha256(b"".join(part)).digest() for part in parts)).digest()
    message = Message(me, peer, AGREED, encode(_Agreed(digest)))
    received = yield Step(send=(message,), await_tag=AGREED, wait_for=(peer,))
    if decode(received[peer].body, _Agreed, max_bytes=256).digest != digest:
        raise ProtocolError(f"Expected {peer} to find the same rows in common; no rows are returned")
    return Alignment(np.array([rows[point] for point in common], np.int64), len(mine), len(theirs))


def normalised(text: str, rule: Rule) -> bytes:
    """Return an identifier as both parties write it: composed (NFC, or NFKC), in UTF-8."""
    if rule == "exact":
        return unicodedata.normalize("NFC", text.strip()).encode(errors="surrogatepass")
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(one for one in folded if one.isalnum()).encode(errors="surrogatepass")


def _different(texts: list[bytes], rule: Rule) -> list[bytes]:
    empty = texts.count(b"")
    if empty or not texts:
        raise DataError(f"Expected an identifier in every row, got {empty} of {len(texts)} without one; fill them in")
    if twice := len(texts) - len(set(texts)):
        raise DataError(
            f'Expected different identifiers under the rule "{rule}", {twice} rows repeat that of another; keep one '
            "row for each person"
        )
    return texts


def _points(body: bytes, peer: str) -> list[bytes]:
    if not body or len(body) % POINT_BYTES:
        raise ProtocolError(f"Expected whole points of {peer}, at least one")
    return [body[at : at + POINT_BYTES] for at in range(0, len(body), POINT_BYTES)]


def _context(me: str, peer: str, session: str, rule: Rule) -> bytes:
    """Return what keeps the points of one session apart from those of any other (32 bytes)."""
    fields = (session, *sorted((me, peer)), rule)
    parts = [len(one.encode()).to_bytes(8, "little") + one.encode() for one in fields]
    return hashlib.sha256(b"confide psi 1\0" + b"".join(parts)).digest()
