"""Trees under CKKS, against scikit-learn's predictions and against comparisons in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier

from confide.errors import DataError, ModelError, ProtocolError
from confide.he.backend import Homomorphic
from confide.he.engine_trees import TreesClient, TreesServer
from confide.he.kits import ClientKit, ServerKit
from confide.he.plan_trees import TreesPlan, bins_for, edges, plan_trees
from confide.he.seal import Context, Evaluation
from confide.he.speeds import SPEEDS
from confide.he.trees import moved, shape_of
from confide.he.trees_levels import Chain, Level, NoRoom, Steps, leaf_factor, reached
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.trees import Trees
from confide.wire import encode
from he.oracle import RNG, Pair, corners, forest, ready, seconds


def engines(pair: Pair) -> tuple[TreesClient, TreesServer]:
    assert isinstance(pair.client, ClientKit)
    assert isinstance(pair.server, ServerKit)
    client, server = pair.client.engine, pair.server.engine
    assert isinstance(client, TreesClient)
    assert isinstance(server, TreesServer)
    return client, server


# --- scikit-learn as the oracle ---------------------------------------------------------------------------------------


def of_sklearn(model: GradientBoostingClassifier) -> Trees:
    """The trees of a model of two classes; scikit-learn compares features as float32."""
    feature, threshold, left, right, value, roots = [], [], [], [], [], []
    for estimator in model.estimators_.ravel():
        tree = estimator.tree_
        inner = np.flatnonzero(tree.children_left >= 0)
        numbers = {int(node): len(feature) + place for place, node in enumerate(inner)}
        for node in np.flatnonzero(tree.children_left < 0).tolist():
            numbers[node] = -1 - len(value)
            value.append(tree.value[node, 0, 0] * model.learning_rate)
        feature += tree.feature[inner].tolist()
        threshold += tree.threshold[inner].tolist()
        left += [numbers[node] for node in tree.children_left[inner].tolist()]
        right += [numbers[node] for node in tree.children_right[inner].tolist()]
        roots.append(numbers[0])
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_)))  # the log odds
    numbers_of = [np.array(part, np.int64) for part in (roots, [0] * len(roots), feature, left, right)]
    trees, outputs, features, lefts, rights = numbers_of
    return Trees(
        features=model.n_features_in_,
        roots=trees,
        outputs=outputs,
        feature=features,
        threshold=np.array(threshold),
        left=lefts,
        right=rights,
        value=np.array(value),
        offset=np.array(start[0], float),
    )


def breast_cancer() -> tuple[GradientBoostingClassifier, np.ndarray]:
    """Twenty trees of depth 3, and the rows that they did not see; features in [-1, 1] by wider round bounds."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (2 * x / (1.1 * x.max(axis=0)) - 1).astype(np.float32).astype(float)
    model = GradientBoostingClassifier(n_estimators=20, max_depth=3, random_state=0).fit(x[::2], y[::2])
    return model, x[1::2]


MODEL, HELD_OUT = breast_cancer()
DRAWN = np.random.default_rng(1).uniform(-1, 1, (10_000, 30)).astype(np.float32).astype(float)
CANCER = ready(Homomorphic(), Graph((of_sklearn(MODEL), Sigmoid())))


@pytest.mark.parametrize(("engine", "bits", "primes"), [("seal", 60, 3), ("native", 50, 4)], ids=["seal", "native"])
def test_the_plan_of_twenty_trees_of_depth_3(engine, bits, primes):
    given_ = {"bins": 256, "sigmoid": True, "protected": True, "input_bound": 1.0, "precision_bits": 10}
    plan = plan_trees(shape_of(of_sklearn(MODEL)), **given_, speeds=SPEEDS[engine])
    assert plan is not None
    assert (plan.parameters.degree, len(plan.parameters.data_primes), plan.leaves) == (8192, primes, 256)
    assert max(prime.bit_length() for prime in plan.parameters.primes) <= bits
    assert plan.key_bytes < (60e6 if bits == 60 else 70e6)
    assert "257 products" in str(plan)
    assert "rotations" in str(plan)


def test_decisions_are_scikit_learns_on_10000_rows():
    """What is computed under encryption is the moved trees, to the bound (below); here they are compared in plain."""
    trees = of_sklearn(MODEL)
    for x, least in ((HELD_OUT, 0.99), (DRAWN, 0.99)):
        assert np.allclose(trees.apply(x)[:, 0], MODEL.decision_function(x), atol=1e-6)
        for bins, share in ((256, least), (1024, 0.998)):
            decisions = moved(trees, bins, 1.0).apply(x)[:, 0] > 0
            assert (decisions == (MODEL.predict(x) == 1)).mean() >= share
    coarse = moved(trees, 4, 1.0).apply(DRAWN)[:, 0] > 0
    assert (coarse == (MODEL.predict(DRAWN) == 1)).mean() < 0.99  # the comparison can fail


def agreeing(rows: int) -> None:
    x = np.concatenate([HELD_OUT[:rows], DRAWN[:rows]])
    found = CANCER.predict(x).output("client")[:, 0]
    exact = Graph((moved(of_sklearn(MODEL), 256, 1.0), Sigmoid())).apply(x)[:, 0]
    assert (np.abs(found - exact) <= CANCER.server.error_bound).all()
    same = (found > 0.5) == (MODEL.predict(x) == 1)
    assert same.mean() >= 0.99


def test_encrypted_probabilities_are_those_of_the_moved_trees():
    agreeing(2)


@pytest.mark.slow
def test_encrypted_decisions_are_scikit_learns():
    agreeing(100)


def test_the_bound_is_small_and_not_vacuous():
    _, server = engines(CANCER)
    assert server.error[0] < 2.0**-9 * 2.0 ** server.exponents[0]
    assert server.error[0] < np.ptp(MODEL.decision_function(DRAWN)) / 500


# --- comparisons at edges ---------------------------------------------------------------------------------------------


def stump(threshold: float) -> Trees:
    return Trees(
        features=1,
        roots=np.array([0]),
        outputs=np.array([0]),
        feature=np.array([0]),
        threshold=np.array([threshold]),
        left=np.array([-1]),
        right=np.array([-2]),
        value=np.array([-3.0, 5.0]),
        offset=np.array([0.25]),
    )


EDGE = 2 * 40 / 64 - 1


@pytest.mark.parametrize(
    ("threshold", "x", "left"),
    [
        (EDGE, EDGE, True),
        (EDGE, np.nextafter(EDGE, 2), False),
        (EDGE, np.nextafter(EDGE, -2), True),
        (-1.0, -1.0, True),  # the lower end of the box is not above a threshold there
        (-1.0, -0.9, False),
        (-0.9999, -1.0, True),
        (0.9999, 1.0, False),
        (1.0, 1.0, True),
        (7.0, 1.0, True),
        (-7.0, -1.0, False),
    ],
)
def test_a_value_goes_left_unless_it_is_above_the_threshold(threshold, x, left):
    bins = 64
    assert (moved(stump(threshold), bins, 1.0).apply(np.array([[x]])).item() < 0) is left
    pair = ready(Homomorphic(protect_model=False, tree_bins=bins), Graph((stump(threshold),)))
    y = pair.predict([[x]]).output("client").item()
    assert abs(y - (-2.75 if left else 5.25)) <= pair.server.error_bound[0] < 0.1


@given(st.integers(1, 11), st.floats(0.1, 50), st.integers(0, 1 << 30))
def test_thresholds_move_by_half_an_interval_and_edges_stay(power, bound, seed):
    bins = 2**power
    between = edges(bins, bound)
    trees = forest(seed, 3, 2, 3)
    wild = replace(trees, threshold=np.random.default_rng(seed).uniform(-bound, bound, len(trees.threshold)))
    found = moved(wild, bins, bound).threshold
    assert np.isin(found, between).all()
    inside = (wild.threshold > between[0]) & (wild.threshold < between[-1])
    assert (np.abs(found - wild.threshold)[inside] <= bound / bins * (1 + 1e-9)).all()
    kept = replace(trees, threshold=between[np.random.default_rng(seed).integers(0, bins - 1, len(trees.threshold))])
    assert (moved(kept, bins, bound).threshold == kept.threshold).all()


@given(st.integers(2, 256), st.sampled_from([256, 512, 1024]), st.integers(0, 1 << 30))
def test_trees_over_numbers_of_intervals_decide_as_in_the_clear(levels, bins, seed):
    """What `confide train` makes: x has `levels` even values, and thresholds are halfway between two."""
    stream = np.random.default_rng(seed)
    trees = forest(seed, 3, 4, 3)
    cuts = (2 * stream.integers(0, levels - 1, len(trees.threshold)) + 1) / (levels - 1) - 1
    trees = replace(trees, threshold=cuts)
    x = np.linspace(-1.0, 1.0, levels)[stream.integers(0, levels, (200, 3))]
    assert (moved(trees, bins, 1.0).reached(x) == trees.reached(x)).all()


def test_a_digit_counts_the_edges_below():
    plan = engines(CANCER)[0].plan
    x = np.concatenate([edges(256, 1.0), np.random.default_rng(0).uniform(-1, 1, 1000), [-1.0, 1.0]])
    assert plan.bin_of(x).tolist() == [sum(edge < value for edge in edges(256, 1.0).tolist()) for value in x.tolist()]


# --- shapes -----------------------------------------------------------------------------------------------------------

SHAPES = {
    "one leaf": (Trees(
        features=2, roots=np.array([-1]), outputs=np.array([0]), feature=np.zeros(0, np.int64), threshold=np.zeros(0),
        left=np.zeros(0, np.int64), right=np.zeros(0, np.int64), value=np.array([1.5]), offset=np.array([0.5]),
    ), 64),
    "stumps": (forest(1, 5, 9, 1), 64),
    "depth 2, three classes": (forest(2, 12, 9, 2, outputs=3), 64),
    "depth 3, two ciphertexts": (forest(3, 70, 4, 3), 128),
    "an output without trees": (replace(forest(4, 3, 4, 2, outputs=3), outputs=np.array([0, 2, 2, 0])), 64),
}  # fmt: skip
DEEP = {f"depth {depth}": (forest(depth, 8, 3, depth), 64) for depth in (4, 5, 6, 7, 8)}
WIDE = {"two thousand leaves": (forest(20, 6, 256, 3), 64), "many features": (forest(21, 300, 10, 3), 64)}


def matches(trees: Trees, bins: int) -> None:
    pair = ready(Homomorphic(tree_bins=bins), Graph((trees,)))
    x = corners(2, trees.features, 7)
    y = pair.predict(x).output("client")
    assert (np.abs(y - trees.apply(x)) <= pair.server.error_bound).all()
    assert (pair.server.error_bound <= 2.0**-7 * np.abs(trees.value).max() * len(trees.roots)).all()


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_shape_is_the_model_within_the_bound(name):
    matches(*SHAPES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DEEP | WIDE))
def test_deep_and_wide_shapes_are_the_model_within_the_bound(name):
    matches(*(DEEP | WIDE)[name])


def test_another_box_is_kept():
    trees = forest(30, 4, 3, 2)
    wide = replace(trees, threshold=trees.threshold * 8)
    pair = ready(Homomorphic(input_bound=8.0, tree_bins=64), Graph((wide,)))
    x = 8 * corners(2, 4)
    assert (np.abs(pair.predict(x).output("client") - wide.apply(x)) <= pair.server.error_bound).all()
    assert isinstance(pair.predict(x * 1.001).failures["client"], DataError)


# --- the polynomial ---------------------------------------------------------------------------------------------------


class _Numbers(Steps[float]):
    """The steps on plain numbers."""

    def __init__(self, leaf: float) -> None:
        self.leaf = leaf
        self.seen = 0

    def square(self, value: float) -> float:
        return value * value

    def product(self, one: float, other: float) -> float:
        return one * other

    def minus(self, value: float, constant: float) -> float:
        return value - constant

    def times_leaves(self, value: float) -> float:
        self.seen += 1
        return value * self.leaf

    def level(self, value: float) -> Level:
        return Level(limbs=1, scale=1.0, error=0.0)


@pytest.mark.parametrize("depth", range(1, 9))
def test_a_leaf_counts_if_no_condition_is_broken(depth):
    half = (depth + 1) / 2
    for pattern in product((0, 1), repeat=depth):
        steps = _Numbers(2.5)
        found = reached(steps, sum(pattern) / half - 1, depth) * leaf_factor(depth)
        assert math.isclose(found, 0.0 if any(pattern) else 2.5, abs_tol=1e-12)
        assert steps.seen == 1


def test_a_modulus_that_is_too_small_is_noticed():
    chain = Chain(degree=8192, primes=(2.0**40, 2.0**40), special=2.0**60, leaf_scale=2.0**20, least_scale=2.0**30)
    level = Level(limbs=2, scale=2.0**34, error=0.0)
    assert chain.square(level).scale == 2.0**68
    with pytest.raises(NoRoom):
        chain.product(chain.square(level), level)


# --- what a reply and a schedule show ---------------------------------------------------------------------------------


def test_a_reply_holds_one_of_each_output_and_nothing_else():
    trees = forest(40, 12, 9, 2, outputs=3)
    pair = ready(Homomorphic(tree_bins=64), Graph((trees,)))
    client, server = engines(pair)
    secret, public = client.context.generate(bytes(16), client.plan.needs)
    x = corners(1, 12)
    (reply,) = server.answer(server.keys(public), client.encrypt(secret, x), RNG)
    form = client.context.form(limbs=1, ntt=True, scale=client.plan.reply.scale)
    plain = secret.decrypt(client.context.load(reply, form))
    slots = client.context.decode_traced(plain, form, 4)
    expected = np.append(np.ldexp(trees.apply(x)[0], -server.exponents), 0.0)
    assert (np.abs(slots - expected) <= max(np.ldexp(server.error, -server.exponents))).all()
    assert np.median(np.abs(client.context.decode(plain))) > 10 * np.abs(expected).max()


def test_protected_replies_are_fresh_and_open_ones_are_not():
    graph = Graph((forest(41, 4, 3, 2),))
    for protect, fresh in ((True, True), (False, False)):
        pair = ready(Homomorphic(protect_model=protect, tree_bins=64), graph)
        client, server = engines(pair)
        secret, public = client.context.generate(bytes(16), client.plan.needs)
        keys = server.keys(public)
        query = client.encrypt(secret, corners(1, 4))
        one, other = (seconds(client, server.answer(keys, query, RNG)) for _ in range(2))
        assert (one != other) is fresh


def calls_of(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The evaluator's calls of one prediction, with the sizes and steps that they work on."""
    pair = ready(Homomorphic(tree_bins=64, engine="seal"), Graph((trees,)))
    found: list[tuple] = []

    def recorded(of: type, name: str) -> None:
        real = getattr(of, name)

        def wrapped(self, *args, **options):
            found.append((name, *(arg for arg in args if isinstance(arg, int)), *options.items()))
            return real(self, *args, **options)

        monkeypatch.setattr(of, name, wrapped)

    with monkeypatch.context():
        for name in ("times_plain", "add", "add_plain", "plus_plain", "times", "rescale", "switch"):
            recorded(Context, name)
        for name in ("rotate", "conjugate", "relinearise", "zero"):
            recorded(Evaluation, name)
        pair.predict(corners(1, trees.features)).output("client")
    monkeypatch.undo()
    return found


def test_the_schedule_and_the_kit_do_not_depend_on_the_model(monkeypatch):
    one, other = forest(42, 5, 3, 3), forest(43, 5, 3, 3)
    blank = replace(one, value=np.zeros_like(one.value), feature=np.zeros_like(one.feature), offset=np.zeros(1))
    schedules = [calls_of(trees, monkeypatch) for trees in (one, other, blank)]
    assert len(schedules[0]) > 30
    assert schedules[0] == schedules[1] == schedules[2]
    more = forest(44, 5, 4, 3)  # 32 labels either way: the number of trees does not show
    plans = [Homomorphic().plan(Graph((trees,))) for trees in (one, other, blank, more)]
    assert encode(plans[0]) == encode(plans[1]) == encode(plans[2]) == encode(plans[3])


def test_the_guarantee_names_what_a_client_sees():
    backend = Homomorphic()
    found = backend.guarantee_for(Graph((forest(1, 5, 3, 2),)))
    for word in ("depth", "number of leaves", "No claim is made for the leaves", "Thresholds are moved"):
        assert word in found.leaks
    assert found.hides("query", "server")
    assert not found.hides("weights", "client")
    assert "CKKS" in found.primary


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_run_is_listed_with_its_replacement():
    backend = Homomorphic()
    deep = forest(1, 3, 1, 9)
    (problem,) = backend.check(Graph((deep,)))
    assert "depth" in str(problem)
    behind = Graph((forest(1, 3, 2, 2), Linear(np.ones((1, 1)), np.zeros(1)), Sigmoid()))
    (problem,) = backend.check(behind)
    assert problem.layer == "layer 1 (Linear)"
    (problem,) = backend.check(Graph((forest(1, 3, 4096, 4),)))
    assert "leaves" in str(problem)
    with pytest.raises(ModelError, match="depth"):
        backend.prepare(Graph((deep,)), RNG)


def test_a_strangers_plan_is_checked():
    plan = engines(CANCER)[0].plan
    assert plan.checked() == plan
    wrong = (
        {"bins": 3}, {"bins": 1 << 13}, {"bins": 0}, {"leaves": 200}, {"leaves": 1 << 13}, {"depth": 0}, {"depth": 9},
        {"depth": 6}, {"babies": 3}, {"babies": 512}, {"babies": 0}, {"outputs": 0}, {"outputs": 300}, {"features": 0},
        {"features": 1 << 20}, {"scale_bits": 58}, {"input_scale_bits": 200}, {"leaf_scale_bits": 0},
        {"input_bound": 0.0}, {"input_bound": math.inf}, {"parameters": replace_scheme(plan)},
    )  # fmt: skip
    for change in wrong:
        with pytest.raises(ProtocolError):
            msgspec.structs.replace(plan, **change).checked()


def replace_scheme(plan: TreesPlan):
    return msgspec.structs.replace(plan.parameters, scheme="bfv", plain_modulus=257)


def test_a_strangers_ciphertexts_are_checked():
    client, server = engines(CANCER)
    secret, public = client.context.generate(bytes(16), client.plan.needs)
    keys = server.keys(public)
    (query,) = client.encrypt(secret, corners(1, 30))
    for body in ((), (b"",), (query[:-1],), (query + b"\0",), (b"\xff" * len(query),)):
        with pytest.raises(ProtocolError):
            server.answer(keys, body, RNG)
    with pytest.raises(ProtocolError):
        client.decrypt(secret, (query,))


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 3), st.integers(1, 200))
def test_plans_are_plans_that_a_client_takes(features, outputs, depth, most):
    plan = plan_trees(
        (features, outputs, depth, most),
        bins=bins_for(features),
        sigmoid=False,
        protected=True,
        input_bound=1.0,
        precision_bits=8,
    )
    if plan is not None:
        assert plan.checked() == plan
        assert plan.babies * plan.giants * plan.copies == plan.leaves
        assert np.isin(np.arange(plan.period), plan.source()).all()


def test_the_shape_of_trees():
    assert shape_of(forest(1, 7, 5, 3, outputs=2)) == (7, 2, 3, 24)
    assert shape_of(SHAPES["one leaf"][0]) == (2, 1, 1, 1)
