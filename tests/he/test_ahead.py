"""What is made ahead: each item used once, never more than the stock holds, and gone with the keys it belongs to."""

import gc
import itertools
import os
import pickle
import threading
import weakref
from contextlib import nullcontext

import pytest

from confide.he.ahead import MOST_AHEAD, HoldsAhead, Stock
from confide.he.loaded import LoadedKeys
from confide.he.parameters import Parameters
from confide.he.seal import Context, Evaluation, Needs, ntt_primes

BFV = Context(Parameters(scheme="bfv", degree=4096, primes=ntt_primes(4096, (36, 36, 37)), plain_modulus=65537))
NEEDS = Needs(encryption=True)
SECRET, PUBLIC = BFV.generate(bytes(16), NEEDS)


def numbered() -> Stock[str, int]:
    counter = itertools.count()
    return Stock(lambda form: next(counter))


def test_a_stock_works_when_it_is_empty():
    stock = numbered()
    assert [stock.take("a"), stock.take("a")] == [0, 1]


def test_nothing_is_made_before_something_was_taken():
    stock = numbered()
    assert not stock.prepare()
    assert len(stock) == 0


def test_a_stock_is_bounded_and_hands_each_item_out_once():
    stock = numbered()
    found = [stock.take("a")]
    assert sum(stock.prepare() for _ in range(100)) == len(stock) == MOST_AHEAD
    found += [stock.take("a") for _ in range(2 * MOST_AHEAD)]
    assert sorted(found) == list(range(1 + 2 * MOST_AHEAD))
    assert len(stock) == 0


def test_the_form_that_was_taken_last_is_prepared_and_forms_do_not_meet():
    made: list[str] = []
    stock: Stock[str, str] = Stock(lambda form: made.append(form) or form, most=3)
    stock.take("a")
    stock.take("b")
    while stock.prepare():
        pass
    assert made == ["a", "b", "b", "b", "b"]
    assert stock.take("a") == "a"  # made now: none was ahead
    assert len(stock) == 3
    assert not stock.prepare()  # the bound is for all forms together


def test_a_failure_leaves_no_hole():
    fails = iter([False, True, False, False, False, False])

    def make(form: str) -> str:
        if next(fails):
            raise MemoryError
        return form

    stock = Stock(make, most=2)
    stock.take("a")
    with pytest.raises(MemoryError):
        stock.prepare()
    assert [stock.prepare(), stock.prepare(), stock.prepare()] == [True, True, False]


@pytest.mark.parametrize("locked", [False, True])
def test_a_process_that_forks_leaves_its_child_nothing(locked):
    """One encryption of zero in two processes would show the difference of what they add to it."""
    reading, writing = os.pipe()
    stock: Stock[str, int] = Stock(lambda form: os.getpid())
    stock.take("a")
    assert stock.prepare()
    with stock._lock if locked else nullcontext():  # as another thread may have it just then
        child = os.fork()
        if not child:
            os.write(writing, f"{stock.take('a')} {stock.prepare()} {stock.take('a')}".encode())
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reading, 100).decode() == f"{child} True {child}"
    assert stock.take("a") == os.getpid()
    os.close(reading)
    os.close(writing)


def test_threads_never_get_the_same_item():
    stock = numbered()
    found: list[list[int]] = [[] for _ in range(4)]
    largest: list[int] = []
    done = threading.Event()

    def prepare() -> None:
        while not done.is_set():
            stock.prepare()
            largest.append(len(stock))

    def take(mine: list[int]) -> None:
        mine.extend(stock.take("a") for _ in range(500))

    makers = [threading.Thread(target=prepare) for _ in range(2)]
    takers = [threading.Thread(target=take, args=(mine,)) for mine in found]
    for thread in [*makers, *takers]:
        thread.start()
    for thread in takers:
        thread.join()
    done.set()
    for thread in makers:
        thread.join()
    taken = [item for mine in found for item in mine]
    assert len(set(taken)) == len(taken) == 2000
    assert max(largest) <= MOST_AHEAD


def test_a_stock_is_not_pickled():
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(numbered())


# --- encryptions of zero ----------------------------------------------------------------------------------------------


def test_zeros_made_ahead_are_fresh_encryptions_of_zero():
    keys = Evaluation(BFV, PUBLIC, NEEDS)
    bodies = [BFV.to_bytes(keys.zero(limbs=2))]
    assert sum(keys.prepare_ahead() for _ in range(10)) == MOST_AHEAD
    for _ in range(MOST_AHEAD + 1):
        zero = keys.zero(limbs=2)
        assert not BFV.coefficients(SECRET.decrypt(zero)).any()
        bodies.append(BFV.to_bytes(zero))
    assert len(set(bodies)) == len(bodies)


def test_a_used_zero_does_not_come_back():
    """What is added to a zero shows in no other: the stock keeps no reference to what has left."""
    keys = Evaluation(BFV, PUBLIC, NEEDS)
    keys.zero(limbs=2)
    keys.prepare_ahead()
    zero = keys.zero(limbs=2)
    before = BFV.to_bytes(zero)
    BFV.add(zero, keys.zero(limbs=2))
    keys.prepare_ahead()
    assert BFV.to_bytes(keys.zero(limbs=2)) not in (before, BFV.to_bytes(zero))


def test_two_keys_have_stocks_of_their_own():
    _, other = BFV.generate(bytes(16), NEEDS)
    one, two = Evaluation(BFV, PUBLIC, NEEDS), Evaluation(BFV, other, NEEDS)
    one.zero(limbs=2)
    assert one.prepare_ahead()
    assert not two.prepare_ahead()  # nothing was taken there
    assert BFV.coefficients(SECRET.decrypt(two.zero(limbs=2))).any()  # under another key


def test_zeros_are_counted_with_the_keys_and_leave_with_them():
    keys = Evaluation(BFV, PUBLIC, NEEDS)
    assert isinstance(keys, HoldsAhead)
    size = 2 * 2 * 4096 * 8
    assert keys.ahead_bytes == MOST_AHEAD * size
    whole = keys.memory_bytes
    loaded = LoadedKeys(2 * whole + 2 * keys.ahead_bytes)
    owner, seen = object(), []
    for name in ("a", "b", "c"):
        keys = loaded.get(owner, name, lambda: (Evaluation(BFV, PUBLIC, NEEDS), 1))
        assert isinstance(keys, Evaluation)
        keys.zero(limbs=2)
        seen.append(weakref.ref(keys._ahead))
        assert loaded.prepare_ahead()
        del keys
    gc.collect()
    assert [ref() is None for ref in seen] == [True, False, False]  # "a" left when "c" came
    assert loaded.held_bytes == 2 * (whole + MOST_AHEAD * size)
    loaded.forget(owner, "b")
    gc.collect()
    assert seen[1]() is None


def test_the_keys_used_last_are_served_first_and_all_in_the_end():
    class Keys:
        ahead_bytes = 0

        def __init__(self, name: str) -> None:
            self.name, self.left = name, 2

        def prepare_ahead(self) -> bool:
            if self.left:
                order.append(self.name)
                self.left -= 1
                return True
            return False

    order: list[str] = []
    loaded, owner = LoadedKeys(100), object()
    for name in ("a", "b", "a"):
        loaded.get(owner, name, lambda name=name: (Keys(name), 1))
    loaded.get(owner, "plain", lambda: (object(), 1))  # keys without anything to prepare
    while loaded.prepare_ahead():
        pass
    assert order == ["a", "a", "b", "b"]
