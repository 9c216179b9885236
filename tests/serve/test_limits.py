"""Bodies are bounded by size, by time and all together; settings that cannot work are refused."""

from __future__ import annotations

import asyncio
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import UsageError
from confide.serve.limits import Bodies, Disconnected, Limits
from confide.serve.protocol import Refusal

ROOT = Path(__file__).parents[2]
SMALL = {"query_bytes": 100, "keys_bytes": 100, "reply_bytes": 100, "buffered_bytes": 150, "key_store_bytes": 1000}


def read(bodies: Bodies, chunks: list[bytes], *, declared: int | None = None, maximum: int = 100) -> bytes:
    """Read a body that comes in `chunks`."""
    left = list(chunks)

    async def receive():
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    return asyncio.run(bodies.read(receive, declared_bytes=declared, max_bytes=maximum))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.none() | st.integers(0, 120))
def test_a_body_is_read_whole_or_refused(chunks, declared):
    bodies = Bodies(Limits(**SMALL))
    whole = b"".join(chunks)
    if len(whole) > 100 or (declared or 0) > 100:
        with pytest.raises(Refusal) as refusal:
            read(bodies, chunks, declared=declared)
        assert refusal.value.status == 413
        assert bodies.held_bytes == 0
    else:
        assert read(bodies, chunks, declared=declared) == whole  # whatever Content-Length said
        assert bodies.held_bytes == len(whole)


def test_reading_stops_at_the_bound():
    left = [bytes(60)] * 100
    bodies = Bodies(Limits(**SMALL))

    async def receive():
        return {"type": "http.request", "body": left.pop(), "more_body": True}

    with pytest.raises(Refusal, match="at most 100 bytes"):
        asyncio.run(bodies.read(receive, declared_bytes=None, max_bytes=100))
    assert len(left) == 98


def test_all_bodies_together_are_bounded():
    bodies = Bodies(Limits(**SMALL))
    read(bodies, [bytes(100)])
    with pytest.raises(Refusal, match="as many bodies") as refusal:
        read(bodies, [bytes(40), bytes(20)])
    assert (refusal.value.status, refusal.value.retry_after_seconds) == (503, 1)
    assert bodies.held_bytes == 100
    bodies.release(100)
    assert len(read(bodies, [bytes(40), bytes(20)])) == 60


def test_a_slow_body_is_given_up():
    bodies = Bodies(Limits(**SMALL, body_seconds=0.02))

    async def receive():
        await asyncio.sleep(10)

    with pytest.raises(Refusal) as refusal:
        asyncio.run(bodies.read(receive, declared_bytes=None, max_bytes=100))
    assert (refusal.value.status, refusal.value.code) == (408, "too_slow")


def test_a_client_that_leaves_gives_its_memory_back():
    bodies = Bodies(Limits(**SMALL))
    events = [{"type": "http.request", "body": bytes(50), "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return events.pop(0)

    with pytest.raises(Disconnected):
        asyncio.run(bodies.read(receive, declared_bytes=None, max_bytes=100))
    assert bodies.held_bytes == 0


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_every_limit_is_more_than_nothing(name, value):
    with pytest.raises(UsageError, match=name):
        Limits(**{name: value})


def test_limits_fit_each_other():
    with pytest.raises(UsageError, match="buffered_bytes"):
        Limits(buffered_bytes=1)
    with pytest.raises(UsageError, match="key_store_bytes"):
        Limits(key_store_bytes=1)
    with pytest.raises(UsageError, match="keys_bytes"):
        Limits(keys_bytes=256 << 20, buffered_bytes=1 << 30)
    Limits(keys_bytes=255 << 20)


def test_every_limit_and_every_refusal_is_documented():
    page = (ROOT / "docs" / "serve.md").read_text()
    for field in fields(Limits):
        assert f"`{field.name}`" in page, field.name
    room = ROOT / "src" / "confide" / "serve"
    sources = "".join(path.read_text() for path in room.glob("*.py") if path.name != "broker.py")  # docs/broker.md
    raised = set(re.findall(r'Refusal\(\s*(\d{3}),\s*"(\w+)"', sources))
    told = {
        (status, code)
        for status, codes in re.findall(r"^\| (\d{3}) \| (.*) \|$", page, re.MULTILINE)
        for code in re.findall(r"`([a-z_]+)`", codes)
        if code not in {"request_id"}
    }
    assert raised == told
