"""How a process stands: stock that falls where it is used, and a dealer's count of what it dealt."""

from __future__ import annotations

import io

import pytest

from confide.serve.parties.messages import Order
from confide.serve.parties.sessions import Cast, Ended, Figures
from confide.serve.parties.standing import Standing


def after(role: str) -> Standing:
    """Return how a role stands after 8 dealt ahead, one asked from stock and one on demand; a dealer hears of two."""
    standing, cast = Standing(role), Cast(role, {})
    asked = [("deal", 8, True), ("predict", 0, True)] + [("predict", 0, False)] * (role != "dealer")
    for kind, count, dealt in asked:
        order = Order(kind, bytes(32), "ann", b"", 1, count, dealt)
        standing.ended(order, Ended("ann/1", cast, None, 1, Figures()))
    return standing


@pytest.mark.parametrize("role", ["server", "helper"])
def test_stock_falls_when_it_is_used_and_not_when_it_is_dealt_on_demand(role):
    standing = after(role)
    assert list(standing.stock().values()) == [7]
    assert f'confide_parties_stock{{role="{role}"}} 7\n' in standing.exposition().decode()


def test_a_dealer_counts_what_it_dealt():
    standing = after("dealer")
    text = standing.exposition().decode()
    assert '# TYPE confide_parties_dealt_total counter\nconfide_parties_dealt_total{role="dealer"} 8\n' in text
    assert "confide_parties_stock" not in text
    assert "dealt ahead for 8 predictions of 1 pairs" in standing.line()


def test_a_log_that_was_closed_ends_no_session():
    standing, log = Standing("server"), io.StringIO()
    standing.log = log
    order = Order("predict", bytes(32), "ann", b"", 1, 0, False)
    standing.ended(order, Ended("ann/1", Cast("server", {}), None, 1, Figures()))
    assert '"caller":"ann"' in log.getvalue()
    log.close()
    standing.ended(order, Ended("ann/2", Cast("server", {}), None, 1, Figures()))
    assert 'kind="predict"' in standing.exposition().decode()
