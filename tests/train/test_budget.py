"""The lifetime budget: never above its limit, charged once, and counted against plain fractions."""

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from confide.dp.plan import PrivacyPlan
from confide.errors import IntegrityError, PrivacyError, UsageError
from confide.serve.keys import SqliteStore
from confide.train.budget import Account, Budget, Spent
from confide.wire import MemoryStore

JOB = "a" * 64


def book(store, data_set="ward", **limits):
    return Budget(store, data_set, **limits)


def charge(budget, run="r", round=1, attempt=0, epsilon=0.1, delta=1e-5, job=JOB):
    return budget.charge(run=run, job=job, round=round, attempt=attempt, epsilon=epsilon, delta=delta)


def test_an_empty_store_has_spent_nothing():
    budget = book(MemoryStore(), greatest_epsilon=1.0)
    assert budget.spent() == Spent(0.0, 0.0)
    assert budget.accounts == ()
    assert budget.releases("r") == 0
    assert not budget.is_charged(run="r", round=1, attempt=0)


def test_a_run_is_what_its_last_release_says_and_runs_add_up():
    store = MemoryStore()
    budget = book(store)
    for number, (run, epsilon) in enumerate([("a", 0.3), ("b", 0.2), ("a", 0.5), ("b", 0.25)]):
        store.commit(charge(budget, run, round=number, epsilon=epsilon))
    again = book(store)
    assert again.spent() == budget.spent() == Spent(0.75, 2e-5)
    assert again.spent(besides="a") == Spent(0.25, 1e-5)
    assert again.accounts == (Account("a", JOB, 0.5, 1e-5, 2), Account("b", JOB, 0.25, 1e-5, 2))
    assert again.releases("a") == 2
    assert again.sentence().startswith("data set ward: epsilon=0.75 and delta=2e-05 spent by 2 runs")
    assert "basic composition" in again.sentence()


def test_the_same_job_run_again_is_charged_again():
    store = MemoryStore()
    budget = book(store, greatest_epsilon=1.0, greatest_delta=1e-3)
    store.commit(charge(budget, "run-1", epsilon=0.6))
    with pytest.raises(PrivacyError, match=r"limits.greatest_epsilon=1"):
        charge(budget, "run-2", epsilon=0.6)
    assert budget.spent() == Spent(0.6, 1e-5)


def test_a_retry_is_charged_once():
    store = MemoryStore()
    budget = book(store, greatest_epsilon=0.1, greatest_delta=1e-3)
    changes = charge(budget)
    assert charge(budget) == changes  # not committed yet: a step that failed may have lost them
    assert budget.is_charged(run="r", round=1, attempt=0)
    store.commit(changes)
    assert charge(budget) == {}
    assert charge(book(store), epsilon=99.0) == {}  # after a restart; what was charged stands
    with pytest.raises(PrivacyError):
        charge(budget, attempt=1, epsilon=0.2)  # another attempt is another release
    assert budget.spent() == Spent(0.1, 1e-5)


def test_two_charges_before_one_commit_do_not_overwrite_each_other():
    store = MemoryStore()
    budget = book(store, greatest_epsilon=1.0, greatest_delta=1e-3)
    together = charge(budget, "a", epsilon=0.4) | charge(budget, "b", epsilon=0.4)
    with pytest.raises(PrivacyError):
        charge(budget, "c", epsilon=0.4)
    store.commit(together)
    assert book(store).spent() == Spent(0.8, 2e-5)


def test_what_was_not_committed_is_not_charged_and_what_was_survives(tmp_path):
    path = tmp_path / "store.sqlite"
    budget = book(SqliteStore(path))
    store = SqliteStore(path)
    store.commit(charge(book(store), "a", epsilon=0.4))
    charge(budget, "b", epsilon=0.4)  # the process dies before the commit: nothing of it left
    assert book(SqliteStore(path)).spent() == Spent(0.4, 1e-5)


def test_data_sets_have_budgets_of_their_own():
    store = MemoryStore()
    store.commit(charge(book(store, "ward"), epsilon=0.4))
    assert book(store, "lab").spent() == Spent(0.0, 0.0)
    assert not book(store, "lab").is_charged(run="r", round=1, attempt=0)
    assert book(store, "ward").spent().epsilon == 0.4


def test_sums_without_noise_are_counted_apart():
    store = MemoryStore()
    budget = book(store, greatest_epsilon=0.0, greatest_delta=0.0)
    store.commit(charge(budget, "open", epsilon=None, delta=0.0))
    store.commit(charge(budget, "open", round=2, epsilon=None, delta=0.0))
    assert budget.spent() == Spent(0.0, 0.0, without=1)
    assert "1 runs without differential privacy, which no epsilon bounds" in book(store).sentence()
    with pytest.raises(UsageError, match="never shrink"):
        charge(budget, "open", round=3, epsilon=0.0, delta=0.0)


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [
        (-0.1, 1e-5),
        (float("nan"), 1e-5),
        (float("inf"), 1e-5),
        (0.5, -1e-5),
        (0.5, float("nan")),
        (0.1, 1e-5),
        (0.5, 0),
        (None, 1e-5),
    ],
)
def test_what_no_accountant_says_is_refused(epsilon, delta):
    budget = book(MemoryStore())
    charge(budget, epsilon=0.2)
    with pytest.raises(UsageError, match="never shrink"):
        charge(budget, round=2, epsilon=epsilon, delta=delta)
    assert budget.spent() == Spent(0.2, 1e-5)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 65, "a\n"])
def test_names_that_would_meet_others_in_the_store(name):
    with pytest.raises(UsageError, match="letters, digits"):
        Budget(MemoryStore(), name)
    with pytest.raises(UsageError, match="letters, digits"):
        charge(book(MemoryStore()), run=name)


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode([[["r", JOB, "x", 0.0, 1]]])])
def test_a_damaged_budget_is_not_an_empty_one(body):
    store = MemoryStore()
    store.commit({"budget/ward": body})
    with pytest.raises(IntegrityError, match="restore"):
        book(store)


def test_a_whole_plan_fits_into_a_budget_of_its_epsilon():
    plan = PrivacyPlan.calibrate(
        epsilon=1.0, delta=1e-5, clip_norm=0.5, rounds=20, length=5, silos=3, quorum=3, colluding=1, expected_records=90
    )
    store = MemoryStore()
    budget = book(store, greatest_epsilon=1.0, greatest_delta=1e-5)
    for number in range(1, 21):
        spent = plan.spent(budget.releases("r") + 1)
        store.commit(charge(budget, round=number, epsilon=spent))
    assert 0.99 < budget.spent().epsilon <= 1.0
    with pytest.raises(PrivacyError):
        plan.spent(budget.releases("r") + 1)


class Charges(RuleBasedStateMachine):
    """Charges in any order, retried, committed or lost in a crash; the model is a dictionary of fractions."""

    LIMIT, DELTA = 1.0, 1e-4

    def __init__(self):
        super().__init__()
        self.store = MemoryStore()
        self.budget = self.fresh()
        self.spent = {}  # by run: what a node has charged, committed or not
        self.durable = {}
        self.pending = {}
        self.keys = set()
        self.durable_keys = set()

    def fresh(self):
        return Budget(self.store, "ward", greatest_epsilon=self.LIMIT, greatest_delta=self.DELTA)

    @rule(
        run=st.sampled_from("abcd"),
        round=st.integers(1, 6),
        attempt=st.integers(0, 2),
        more=st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.7, 1.0, 1e-17, 5.0]),
        commit=st.booleans(),
    )
    def charge(self, run, round, attempt, more, commit):
        epsilon = self.spent.get(run, 0.0) + more
        after = self.spent | {run: epsilon}
        if (run, round, attempt) in self.keys:
            changes = charge(self.budget, run, round, attempt, epsilon=epsilon)
            if (run, round, attempt) in self.durable_keys:
                assert changes == {}
        elif sum(map(Fraction, after.values())) > Fraction(self.LIMIT) * (1 + Fraction(1, 2**52)):
            with pytest.raises(PrivacyError):
                charge(self.budget, run, round, attempt, epsilon=epsilon)
            return
        else:
            try:
                changes = charge(self.budget, run, round, attempt, epsilon=epsilon)
            except PrivacyError:
                assert sum(map(Fraction, after.values())) > Fraction(self.LIMIT)
                return
            self.spent, self.keys = after, self.keys | {(run, round, attempt)}
        self.pending |= changes
        if commit:
            self.commit()

    @rule()
    def commit(self):
        self.store.commit(self.pending)
        self.durable, self.durable_keys, self.pending = dict(self.spent), set(self.keys), {}

    @rule()
    def crash(self):
        self.budget, self.pending = self.fresh(), {}
        self.spent, self.keys = dict(self.durable), set(self.durable_keys)

    @invariant()
    def holds(self):
        spent = self.budget.spent()
        exact = sum(map(Fraction, self.spent.values()))
        assert spent.epsilon == float(exact) <= self.LIMIT
        assert spent.delta <= self.DELTA
        assert {a.run: a.releases for a in self.budget.accounts} == {
            run: sum(key[0] == run for key in self.keys) for run in self.spent
        }
        assert self.fresh().spent().epsilon == float(sum(map(Fraction, self.durable.values())))


TestCharges = Charges.TestCase


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_a_limit_of_the_very_sum_is_enough_and_less_is_not(epsilons):
    """The control: a budget one step smaller refuses the last charge."""
    total = float(sum(map(Fraction, epsilons)))
    store = MemoryStore()
    for number, epsilon in enumerate(epsilons):
        store.commit(charge(book(store, greatest_epsilon=total, greatest_delta=1.0), f"run-{number}", epsilon=epsilon))
    assert book(store).spent().epsilon == total
    with pytest.raises(PrivacyError):
        charge(book(store, greatest_epsilon=total, greatest_delta=1.0), "one-more", epsilon=total / 2 + 1e-3)
