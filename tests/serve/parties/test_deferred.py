"""What is deleted is gone at once and stays gone, whatever was cleared away by then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from confide.serve.parties.deferred import Deferred
from confide.wire import MemoryStore

KEYS = st.sampled_from(["a/1", "a/2", "a/3", "b/1"])
STEP = st.one_of(
    st.dictionaries(KEYS, st.one_of(st.none(), st.binary(max_size=3)), max_size=4),
    st.just("sweep"),
    st.just("kill"),
)


@given(st.lists(STEP, max_size=30))
def test_it_reads_as_a_plain_store_would(steps):
    kept, plain = MemoryStore(), MemoryStore()
    store = Deferred(kept)
    for step in steps:
        if step == "sweep":
            store.sweep()
        elif step == "kill":
            store = Deferred(kept)
        else:
            store.commit(step)
            plain.commit(step)
        left = plain.keys()
        assert store.keys("") == left
        assert store.keys("a/") == plain.keys("a/")
        assert [store.get(key) for key in left] == [plain.get(key) for key in left]
    while store.sweep():
        pass
    assert kept.keys() == plain.keys()


def test_a_deletion_of_many_is_one_small_entry_and_no_byte_of_it_is_left_after():
    kept = MemoryStore()
    store = Deferred(kept)
    store.commit({"a": bytes(1000), "b": bytes(1000)})
    store.commit({"a": None, "b": None})
    assert kept.get("a") is not None
    assert store.get("a") is None
    assert Deferred(kept).get("a") is None
    while store.sweep():
        pass
    assert kept.keys() == []
