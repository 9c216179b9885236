"""What a role keeps is counted as its store has it, and what a program takes leaves room."""

from __future__ import annotations

import pytest

from confide.mpc import holdings
from confide.mpc.outsourced import Outsourced
from confide.mpc.two_party import WithDealer
from he.oracle import mlp
from mpc.nets import mnist
from mpc.sessions import RNG, ready

GRAPH = mlp(3, 40, 30, 2)


def in_store(session, role) -> int:
    store = session.stores[role]
    return sum(len(store.get(key) or b"") for key in store.keys(""))


@pytest.mark.parametrize("backend", [WithDealer(), Outsourced()], ids=lambda one: one.name)
@pytest.mark.parametrize("rows", [1, 7])
def test_what_is_held_is_what_lies_in_the_store(backend, rows):
    session = ready(backend, GRAPH)
    for role in backend.roles:
        before = backend.held_bytes(role, session.kits[role], session.stores[role])
        assert 0 <= before - in_store(session, role) <= 1024 or role == "dealer"
        assert backend.order_bytes(role, session.kits[role], "setup", rows=0, count=0) <= before or role == "dealer"
    session.deal(rows=rows, count=3)
    for role in backend.roles:
        if role == "dealer":
            continue
        held, lies = backend.held_bytes(role, session.kits[role], session.stores[role]), in_store(session, role)
        assert lies <= held <= 1.2 * lies + 3000
        more = backend.order_bytes(role, session.kits[role], "deal", rows=rows, count=3)
        assert backend.order_bytes(role, session.kits[role], "setup", rows=0, count=0) + more == held
    assert in_store(session, "dealer") < 1000  # the dealer keeps keys alone
    assert not backend.order_bytes("server", session.server, "predict", rows=rows, count=3)


def test_stock_of_earlier_set_ups_is_cleared_and_their_records_stay():
    backend = WithDealer()
    session = ready(backend, GRAPH)
    session.deal(rows=1, count=2)
    run = session.setup().output("client")
    session.deal(rows=1, count=1)
    store, kit = session.stores["server"], session.server
    gone = backend.outlived("server", store, bytes.fromhex(run))
    assert gone
    assert not any(run in key or key.endswith("/record") for key in gone)
    store.commit(gone)
    own = backend.order_bytes("server", kit, "setup", rows=0, count=0)
    one = backend.order_bytes("server", kit, "deal", rows=1, count=1)
    assert backend.held_bytes("server", kit, store) - own - one <= 256
    assert session.predict([[0.5] * 40]).output("client").shape == (1, GRAPH.outputs)


@pytest.mark.parametrize("backend", [WithDealer(), Outsourced()], ids=lambda one: one.name)
def test_rows_at_a_time_fit_into_a_program(backend):
    kit = backend.prepare(mnist(), RNG)["client"]
    rows = backend.rows_at_a_time(kit)
    assert 4 <= rows <= 64
    layout = kit.plans.of(rows).layout
    assert layout.words_bytes + layout.keys_bytes <= holdings.PROGRAM_BYTES
    most = backend.most_rows(kit, session_bytes=1 << 30)
    assert rows < most < 4096
    layout = kit.plans.of(most).layout
    assert (1 << 30) - (32 << 20) <= layout.words_bytes + layout.keys_bytes <= 1 << 30
    assert backend.most_rows(kit, session_bytes=1 << 40) < 4096  # one step's comparison keys have a limit of their own
    kit.plans.of(backend.most_rows(kit, session_bytes=1 << 40))
    assert backend.most_rows(kit, session_bytes=1) == 1
    deals = backend.deals_at_a_time(kit, rows=rows)
    assert 1 <= deals * rows * (layout.words_bytes + layout.keys_bytes) // most <= holdings.ORDER_BYTES
