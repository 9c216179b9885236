"""Costs over links, against arithmetic by hand."""

from __future__ import annotations

import pytest

from confide.compare.links import LINKS, Link, over_links
from confide.compare.result import LinkCheck
from confide.wire import Event, Message, Transcript

SLOW = Link(name="slow", delay_seconds=0.02, bits_per_second=1e6)


def question() -> Transcript:
    """The client works 0.1 s and sends 1000 bytes, the server works 0.2 s and sends 500."""
    made = Transcript()
    made.add(Message("client", "server", "q", bytes(1000)), keep_body=False)
    made.add(Message("server", "client", "a", bytes(500)), keep_body=False)
    made.events += [
        Event("client", "", 0.1, (), (0,)),
        Event("server", "q", 0.2, (0,), (1,)),
        Event("client", "a", 0.05, (1,), ()),
    ]
    return made


def test_a_question_and_an_answer():
    work, wires, delays = 0.1 + 0.2 + 0.05, (8000 + 4000) / 1e6, 2 * 0.02
    assert SLOW.seconds(question()) == pytest.approx(work + wires + delays)


def test_parties_work_at_the_same_time_and_share_no_uplink():
    made = Transcript()
    for name, seconds, size in (("a", 0.3, 125), ("b", 0.1, 12_500)):
        index = made.add(Message(name, "server", "v", bytes(size)), keep_body=False)
        made.events.append(Event(name, "", seconds, (), (index,)))
    made.events.append(Event("server", "v", 0.01, (0, 1), ()))
    # a: 0.3 + 1 ms, b: 0.1 + 100 ms; the slower of the two arrives at 0.321
    assert SLOW.seconds(made) == pytest.approx(0.3 + 0.001 + 0.02 + 0.01)


def test_a_figure_for_each_link():
    found = over_links(question(), list(LINKS.values()), stem="latency")
    assert list(found) == [f"latency_{name}_seconds" for name in ("loopback", "lan", "wan", "mobile")]
    assert list(found.values()) == sorted(found.values())
    slower = Link(name="slower", delay_seconds=0.02, bits_per_second=0.5e6)
    assert slower.seconds(question()) - SLOW.seconds(question()) == pytest.approx(12_000 / 1e6)


def test_links_say_what_they_are():
    assert LINKS["mobile"].words() == "mobile: 30 ms one way, 10 Mbit/s up"


def test_how_far_a_modelled_cost_is_off():
    check = LinkCheck(
        link="wan", choice="he", measured_seconds=0.050, modelled_seconds=0.045, measured_loopback_seconds=0.010,
        modelled_loopback_seconds=0.007, queries=20,
    )  # fmt: skip
    assert check.error_share == pytest.approx(-0.1)
    assert check.link_error_share == pytest.approx(0.038 / 0.040 - 1)
    assert "(-10.0 %)" in check.sentence()
    assert "38.00 ms modelled, 40.00 ms measured (-5.0 %)" in check.sentence()
