"""What clients may have in stock at others: more is refused with what to do, and the others are served."""

from __future__ import annotations

import time

import numpy as np
import pytest

from confide.errors import ProtocolError, UsageError
from confide.mpc.two_party import WithDealer
from confide.serve.client import Client
from confide.serve.parties.messages import Order
from confide.serve.parties.stockroom import Place, StockLimits, Stockroom
from confide.wire import MemoryStore
from mpc.sessions import RNG
from serve.parties.houses import houses
from serve.parties.networks import NETWORK

X = np.random.default_rng(5).uniform(-1, 1, (1, NETWORK.features))
BACKEND = WithDealer()
KITS = BACKEND.prepare(NETWORK, RNG)


def size(role, kind, count=1):
    return BACKEND.order_bytes(role, KITS[role], kind, rows=1, count=count)


#: For a set-up and four predictions at the server.
ROOM = size("server", "setup") + size("server", "deal", 4)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with houses(
        tmp_path_factory.mktemp("houses"),
        BACKEND,
        {"dealer": "broker"},
        clients=("clinic", "other", "third"),
        graph=NETWORK,
        stock=64,
        stock_limits=StockLimits(client_bytes=ROOM, total_bytes=2 * ROOM),
    ) as found:
        yield found


def client(running, name="clinic", **more):
    return Client(running.url, identity=running.folder / name, insecure_colocated_dealer=True, **more)


def test_an_order_beyond_a_clients_limit_is_refused_everywhere_and_the_rest_goes_on(running):
    with client(running, ahead=64) as greedy, client(running, "other") as modest:
        modest.predict(X)
        with pytest.raises(ProtocolError, match=r"clinic has .*order fewer ahead.*--client-stock-bytes"):
            greedy.predict(X)
        end = time.monotonic() + 10.0  # the dealer was ordered too: it is told
        while any(one.circle.sessions.count for one in running.servers.values()) and time.monotonic() < end:
            time.sleep(0.02)
        assert not any(one.circle.sessions.count for one in running.servers.values())
        assert np.allclose(modest.predict(X), NETWORK.apply(X), atol=2e-3)
        assert not running.servers["server"].circle.sessions._early  # nothing of them waits for an order
    with client(running, ahead=2) as again:
        assert np.allclose(again.predict(X), NETWORK.apply(X), atol=2e-3)
    assert not any("broker, the dealer, has left" in line for line in running.lines)
    assert not running.broken


def test_setting_up_anew_does_not_fill_the_store(running):
    room = running.servers["server"].stockroom
    for _ in range(5):
        with client(running, ahead=2) as one:  # a store of its own each time: nobody uses what the last one ordered
            assert np.allclose(one.predict(X), NETWORK.apply(X), atol=2e-3)
    assert room.kept_bytes("clinic") <= ROOM


def test_what_was_used_makes_room(running):
    with client(running, "other", ahead=3) as one:
        for _ in range(9):
            assert np.allclose(one.predict(X), NETWORK.apply(X), atol=2e-3)


# --- the room itself --------------------------------------------------------------------------------------------------


class Keeps:
    """A backend that keeps as many bytes as a client has keys in stock."""

    def order_bytes(self, role, kit, kind, *, rows, count):
        return rows * count if kind == "deal" else 0

    def held_bytes(self, role, kit, store):
        return sum(len(store.get(key)) for key in store.keys("stock/"))

    def outlived(self, role, store, run):
        return {}


def place(client, model="m"):
    return Place(prefix=f"p/{model}/{client}/", client=client, backend=Keeps(), role="server", kit=None,
                 mark=f"set-up/{model}/{client}")  # fmt: skip


def order(count):
    return Order("deal", bytes(32), "c", b"", 1, count)


def room(store, *, client=100, total=150, served=("p/m",)):
    def view(prefix):
        return _Below(store, prefix)

    return Stockroom("server", store, view, StockLimits(client_bytes=client, total_bytes=total),
                     lambda prefix: prefix.startswith(served))  # fmt: skip


class _Below:
    def __init__(self, store, prefix):
        self.store, self.prefix = store, prefix

    def get(self, key):
        return self.store.get(self.prefix + key)

    def keys(self, prefix=""):
        return [key.removeprefix(self.prefix) for key in self.store.keys(self.prefix + prefix)]

    def commit(self, changes):
        self.store.commit({self.prefix + key: value for key, value in changes.items()})


def fill(store, where, count, name="a"):
    _Below(store, where.prefix).commit({f"stock/{name}": bytes(count)})


def test_orders_that_have_not_come_yet_count_too():
    one = room(MemoryStore())
    first = one.admit(place("a"), order(60))
    with pytest.raises(ProtocolError, match="--client-stock-bytes"):
        one.admit(place("a"), order(41))
    assert one.admit(place("a"), order(40)) == 40
    one.came(place("a"), first)  # it failed: nothing is there
    assert one.kept_bytes("a") == 40
    assert one.admit(place("a"), order(60))


def test_all_clients_together_have_a_limit_and_what_was_used_is_counted_anew():
    store = MemoryStore()
    one = room(store)
    taken = one.admit(place("a"), order(90))
    fill(store, place("a"), 90)
    one.came(place("a"), taken)
    with pytest.raises(ProtocolError, match="ask without correlations ahead, or have --stock-bytes raised"):
        one.admit(place("b"), order(61))
    assert one.admit(place("b"), order(60)) == 60
    fill(store, place("a"), 10)
    assert one.admit(place("c"), order(80)) == 80
    one = room(MemoryStore(), total=1000, served=("p/m", "p/n"))
    store = one._store
    taken = one.admit(place("a"), order(90))
    fill(store, place("a"), 90)
    one.came(place("a"), taken)
    fill(store, place("a"), 10)  # used
    assert one.admit(place("a", "n"), order(90)) == 90  # a client's limit is over all models
    with pytest.raises(ProtocolError, match="--client-stock-bytes"):
        one.admit(place("a"), order(1))


def test_counts_outlive_the_process_and_what_is_not_served_goes_first():
    store = MemoryStore()
    before = room(store, served=("p/old",))
    taken = before.admit(place("a", "old"), order(90))
    fill(store, place("a", "old"), 90)
    store.commit({place("a", "old").mark: b"set up"})
    before.came(place("a", "old"), taken)
    one = room(store)
    assert one.kept_bytes() == 90
    assert one.admit(place("b"), order(60)) == 60
    assert store.keys("p/old/")  # there is room for both
    assert one.admit(place("a"), order(50)) == 50
    assert not store.keys("p/old/")
    assert store.get(place("a", "old").mark) is None
    assert room(store).kept_bytes() == 0


@pytest.mark.parametrize("given", [{"client_bytes": 0}, {"client_bytes": 2, "total_bytes": 1}])
def test_limits_that_make_no_sense_are_refused(given):
    with pytest.raises(UsageError, match="client_stock_bytes"):
        StockLimits(**given)
