"""The coordinator's desk where its process may end: between a run's end and the desk's own commit."""

from __future__ import annotations

import msgspec
import pytest

from confide.train.control import Release
from confide.train.desk import Desk, _Queue
from confide.train.run_journal import CURRENT, Current
from confide.wire import MemoryStore, decode, encode


class Nobody:
    """A link to nobody."""

    def send(self, peer, envelope):
        pytest.fail("sent")

    def receive(self, timeout_seconds):
        return None

    def close(self):
        pass


@pytest.mark.parametrize("over", [False, True])
def test_a_release_that_was_kept_stands_once_its_run_is_over_and_not_before(over):
    """Before, the nodes have not been told: the run is taken up again, to its end. After, another would spend again."""
    store, release = MemoryStore(), Release(model=b"model", ledger=b"ledger")
    run = Current("run-1", "job", b"roster")
    waiting = tuple((name, encode({"job": name, "schema": ""})) for name in ("ana", "bob"))
    store.commit({CURRENT: encode(run), "desk/queue": encode(_Queue(waiting))})
    desk = Desk(Nobody(), store)
    assert desk.kept is None
    desk.keep(release)
    if over:
        store.commit({CURRENT: encode(msgspec.structs.replace(run, finished=True))})
    again = Desk(Nobody(), store)  # the process was killed here
    assert again.kept == (release if over else None)
    again.done(release)
    assert again.kept is None  # the next one's
    assert again.next is not None
    assert again.next[0] == "bob"
    kept = [store.get(key) for key in store.keys("desk/release/ana/")]
    assert [decode(body, Release, max_bytes=1000) for body in kept] == [release]
