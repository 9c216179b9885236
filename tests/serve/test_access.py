"""API keys, the rate limit and the query quota."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import UsageError
from confide.serve.access import ApiKeys, Quota, RateLimit, certificate_holder, hash_api_key, new_api_key
from confide.serve.keys import usage_store
from confide.serve.protocol import Refusal

ROOT = Path(__file__).parents[2]


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
    assert "; 1 are left" in str(refusal.value)
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


def test_the_total_counts_over_all_models():
    quota = Quota(None, usage_store(None), total_rows=10)
    quota.charge("a", "m", 6)
    with pytest.raises(Refusal, match="at most 10 rows"):
        quota.charge("a", "n", 5)
    quota.charge("a", "n", 4)
    quota.charge("b", "n", 10)


def test_what_one_quota_refuses_the_other_does_not_count():
    quota = Quota(6, usage_store(None), total_rows=8)
    quota.charge("a", "m", 5)
    with pytest.raises(Refusal, match="at most 8"):
        quota.charge("a", "n", 4)
    quota.charge("a", "n", 3)  # the four were not counted for n, or this would be beyond 6
    with pytest.raises(Refusal, match="at most 8"):
        quota.charge("a", "m", 1)
    with pytest.raises(Refusal, match="at most 6"):
        Quota(6, usage_store(None), total_rows=80).charge("a", "m", 7)


def test_a_process_that_ends_in_order_gives_back_what_it_reserved(tmp_path):
    first = Quota(1000, usage_store(tmp_path / "usage.db"), total_rows=2000)
    for _ in range(7):
        first.charge("a", "m", 1)
    first.close()
    second = Quota(1000, usage_store(tmp_path / "usage.db"))
    second.charge("a", "m", 993)
    with pytest.raises(Refusal):
        second.charge("a", "m", 1)


COUNTER = """
import sys
from confide.serve.access import Quota
from confide.serve.keys import open_stores
from confide.serve.limits import Limits
from confide.serve.protocol import Refusal
quota, granted = Quota(int(sys.argv[2]), open_stores(sys.argv[1], Limits()).usage), 0
print("ready", flush=True)
sys.stdin.readline()
try:
    while True:
        quota.charge("a", "m", 1)
        granted += 1
except Refusal:
    quota.close()
print(granted, flush=True)
"""


def granted_by(where: str, rows: int, processes: int) -> int:
    """Return how many rows as many processes were granted together, each asking until it was refused."""
    command = [sys.executable, "-c", COUNTER, where, str(rows)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {"PYTHONPATH": str(ROOT / "src")}}
    running = [subprocess.Popen(command, **options) for _ in range(processes)]
    try:
        for process in running:
            assert process.stdout.readline() == b"ready\n"
        for process in running:
            process.stdin.write(b"\n")
            process.stdin.flush()
        return sum(int(process.stdout.readline()) for process in running)
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_processes_share_the_quota_and_none_of_it_is_lost(tmp_path):
    where, rows = str(tmp_path / "usage.db"), 150
    granted = granted_by(where, rows, 3)
    assert granted <= rows
    assert granted + granted_by(where, rows, 1) == rows


class Careless(Quota):
    """Counts what it read when it began: the negative control."""

    def _take(self, key: str, rows: int, most: int) -> None:
        used = self._left[key] = self._left.get(key, int.from_bytes(self._store.get(key) or b"", "little")) + rows
        if used > most:
            raise Refusal(429, "quota", "")
        self._store.commit({key: used.to_bytes(8, "little")})


def test_a_count_that_is_not_shared_would_be_noticed(tmp_path):
    granted = 0
    for quota in [Careless(10, usage_store(tmp_path / "usage.db")) for _ in range(2)]:
        quota._left["m/a"] = 0  # both began before anything was counted
        for _ in range(10):
            quota.charge("a", "m", 1)
            granted += 1
    assert granted > 10


@pytest.mark.parametrize(
    ("scope", "holder"),
    [
        ({"extensions": {"tls": {"client_cert_name": "CN=clinic 7,O=North"}}}, "CN=clinic 7,O=North"),
        ({"extensions": {"tls": {"client_cert_name": "CN=" + "a" * 300}}}, "sha256:"),
        ({"extensions": {"tls": {"client_cert_name": "CN=kl\u00ednica"}}}, "sha256:"),
        ({"extensions": {"tls": {"client_cert_name": ""}}}, None),
        ({"extensions": {"tls": {}}}, None),
        ({"extensions": None}, None),
        ({}, None),
    ],
    ids=["subject", "long", "letters", "empty", "no name", "no extensions", "nothing"],
)
def test_a_certificate_names_its_holder(scope, holder):
    if holder is None:
        with pytest.raises(Refusal) as refusal:
            certificate_holder(scope)
        assert refusal.value.status == 401
    else:
        found = certificate_holder(scope)
        assert found.startswith(holder)
        assert len(found) <= 200


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
