"""The journal: the same bytes again, or nothing; never an older session, never other terms."""

from __future__ import annotations

import pytest

from confide.cohort.journal import Journal
from confide.errors import Aborted
from confide.ideal import Cohort, Session
from confide.wire import MemoryStore


def journal(number: int, attempt: int = 0, context: bytes = b"c" * 32) -> Journal:
    session = Session("run", number, Cohort(("a", "b", "c"), 3), length=1, bound=1, attempt=attempt)
    return Journal("here/run", session, context)


def kept(body: bytes) -> MemoryStore:
    store = MemoryStore()
    store.commit(journal(5, 1).entry(body))
    return store


def test_the_same_session_sends_the_same_bytes() -> None:
    assert journal(5, 1).resumed(MemoryStore()) is None
    assert journal(5, 1).resumed(kept(b"body")) == b"body"


@pytest.mark.parametrize(("number", "attempt"), [(5, 2), (6, 0), (9, 0)])
def test_later_sessions_are_new(number: int, attempt: int) -> None:
    assert journal(number, attempt).resumed(kept(b"body")) is None


@pytest.mark.parametrize("other", [journal(5, 0), journal(4, 9), journal(5, 1, b"d" * 32)])
def test_earlier_sessions_and_other_terms_are_refused(other: Journal) -> None:
    with pytest.raises(Aborted, match="next attempt"):
        other.resumed(kept(b"body"))


def test_without_a_body_nothing_leaves_again() -> None:
    with pytest.raises(Aborted, match="round=5, attempt=1 of run=run"):
        journal(5, 1).resumed(kept(b""))
