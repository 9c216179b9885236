"""API keys, the rate limit and the query quota."""

from __future__ import annotations

import threading

import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import UsageError
from confide.serve.access import ApiKeys, Quota, RateLimit, hash_api_key, new_api_key
from confide.serve.keys import usage_store
from confide.serve.protocol import Refusal


def test_an_api_key_names_its_holder():
    one, two = (new_api_key(SeededRandomness(name)) for name in ("1", "2"))
    keys = ApiKeys({"clinic": hash_api_key(one), "lab.2": hash_api_key(two)})
    assert keys.holder(f"Bearer {one}") == "clinic"
    assert keys.holder(f"bearer  {two} ") == "lab.2"
    for wrong in (None, "", "Bearer", "Bearer ", f"Basic {one}", one, f"Bearer {one}x", f"Bearer {hash_api_key(one)}"):
        with pytest.raises(Refusal) as refusal:
            keys.holder(wrong)
        assert refusal.value.status == 401


def test_api_keys_are_long_and_differ():
    made = {new_api_key(SeededRandomness(str(number))) for number in range(50)}
    assert len(made) == 50
    assert all(len(key) == len("confide-") + 64 for key in made)


@pytest.mark.parametrize(
    "hashes", [{"a b": "0" * 64}, {"": "0" * 64}, {"a": "secret"}, {"a": "G" * 64}, {"a": "0" * 63}, {"a": "0" * 65}]
)
def test_a_key_in_place_of_its_hash_is_refused_and_not_shown(hashes):
    with pytest.raises(UsageError) as error:
        ApiKeys(hashes)
    assert "secret" not in str(error.value)


def test_the_rate_limit_is_a_token_bucket():
    now = [0.0]
    rate = RateLimit(2.0, clock=lambda: now[0])
    for _ in range(2):
        rate.take("a")
    with pytest.raises(Refusal) as refusal:
        rate.take("a")
    assert (refusal.value.status, refusal.value.retry_after_seconds) == (429, 1)
    rate.take("b")  # another caller
    now[0] = 0.5
    rate.take("a")
    with pytest.raises(Refusal):
        rate.take("a")
    now[0] = 100.0  # a long rest fills the bucket and no more
    for _ in range(2):
        rate.take("a")
    with pytest.raises(Refusal):
        rate.take("a")


def test_slow_rates_say_how_long_to_wait():
    now = [0.0]
    rate = RateLimit(0.1, clock=lambda: now[0])
    rate.take("a")
    now[0] = 3.0
    with pytest.raises(Refusal) as refusal:
        rate.take("a")
    assert refusal.value.retry_after_seconds == 7
    now[0] = 10.0
    rate.take("a")


def test_callers_without_number_do_not_fill_the_memory():
    rate = RateLimit(1.0, clock=lambda: 0.0)
    for number in range(5000):
        rate.take(str(number))
    assert len(rate._buckets) <= 4096


def test_the_quota_counts_rows_for_each_caller_and_model():
    quota = Quota(10, usage_store(None))
    quota.charge("a", "m", 9)
    with pytest.raises(Refusal) as refusal:
        quota.charge("a", "m", 2)
    assert (refusal.value.status, refusal.value.code, refusal.value.retry_after_seconds) == (429, "quota", None)
    quota.charge("a", "m", 1)  # the refused rows were not counted
    with pytest.raises(Refusal):
        quota.charge("a", "m", 1)
    quota.charge("b", "m", 10)
    quota.charge("a", "n", 10)


@pytest.mark.parametrize(("rows", "used"), [(31, 7), (1000, 1), (1000, 51), (1000, 999), (1, 1)])
def test_a_crash_can_only_count_too_many(tmp_path, rows, used):
    first = Quota(rows, usage_store(tmp_path / "usage.db"))
    for _ in range(used):
        first.charge("a", "m", 1)
    second = Quota(rows, usage_store(tmp_path / "usage.db"))  # the first one was killed: nothing was said to it
    left = 0
    try:
        while True:
            second.charge("a", "m", 1)
            left += 1
    except Refusal:
        pass
    assert used + left <= rows
    assert used + left >= rows - max(1, rows // 20)


def test_threads_share_the_quota_exactly():
    quota = Quota(100, usage_store(None))
    granted = []

    def work() -> None:
        for _ in range(50):
            try:
                quota.charge("a", "m", 1)
            except Refusal:
                return
            granted.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 100
