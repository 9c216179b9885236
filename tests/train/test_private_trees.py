"""Private trees: what one record can add, what the noise is, what follows from the sums, and a job from end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from confide.crypto.random import SeededRandomness
from confide.dp.audit import Scores, draw_coins, gaussian_bound
from confide.dp.mechanisms import counted
from confide.dp.plan import PrivacyPlan
from confide.errors import JobError
from confide.ideal import Sums
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.model.trees import Trees
from confide.train import private_trees, smoothing
from confide.train.additive_columns import AdditiveColumns, additive, leaves_of, with_values
from confide.train.additive_sums import GRID, ROW, CodedSilo, Rows, gradients, products
from confide.train.course import Course
from confide.train.job import parse
from confide.train.local import Silo
from confide.train.private_trees import COUNTS_GRID, PrivateTrees, releases_of
from confide.train.run import load_data, pooled_model, train
from confide.train.sections import TrainSection
from confide.wire import MemoryStore
from train.federation import NAMES, Federation, job_of
from train.federation import tables as tables_of_nodes

PREPARATION = Preprocess(
    (
        Scale(name="age", low=0.0, high=100.0, bins=tuple(range(2, 100, 2)), ordinal=True),
        Scale(name="pain", low=0.0, high=10.0, missing="level", bins=(1.0, 2.0, 5.0), ordinal=True),
        OneHot(name="colour", categories=("red", "green", "blue")),
    ),
)
COLUMNS = AdditiveColumns.of(PREPARATION)


def records(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels that depend on age in a step, and on the colour."""
    rng = np.random.default_rng(seed)
    age, pain = rng.uniform(0, 100, count), rng.uniform(0, 10, count)
    pain[rng.random(count) < 0.1] = np.nan
    colour = np.array(["red", "green", "blue"])[rng.integers(3, size=count)]
    score = 3.0 * (np.abs(age - 50) < 15) - 1.0 + 1.5 * (colour == "red") - 1.5 * (colour == "blue")
    y = (rng.random(count) < 1 / (1 + np.exp(-score))).astype(np.int64)
    return PREPARATION.apply({"age": age, "pain": pain, "colour": colour}), y


def plan_of(columns: AdditiveColumns = COLUMNS, *, epsilon: float = 1.0, rounds: int = 9, **more: Any) -> PrivacyPlan:
    given = {"silos": 4, "quorum": 4, "colluding": 1, "expected_records": 4000} | more
    return PrivacyPlan.calibrate(
        epsilon=epsilon, delta=1e-5, **releases_of(columns, rounds=rounds, counts_share=0.05), **given
    )


def tables(rng: np.random.Generator, codes: int, columns: int) -> Rows:
    own, trend = (rng.integers(-(1 << 14), 1 << 14, codes) * (rng.random(codes) < 0.7) for _ in range(2))
    trends = np.where(rng.random(columns) < 0.5, np.arange(columns), -1)
    trends[trends >= 0] = np.arange((trends >= 0).sum())
    return Rows(own=own, trend=trend, trends=trends, constant=int(rng.integers(1, 3000)))


def without(silo: CodedSilo) -> CodedSilo:
    return CodedSilo(silo.codes[1:], silo.positive[1:], silo.weights[1:])


@pytest.mark.parametrize("seed", range(40))
def test_one_record_moves_no_sum_by_more_than_its_sensitivity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns, levels, count = int(rng.integers(1, 6)), 7, int(rng.integers(1, 50))
    rows = tables(rng, columns * levels, columns)
    codes = rng.integers(levels, size=(count, columns)) + levels * np.arange(columns)
    silo = CodedSilo(codes, rng.random(count) < 0.5, np.ones(count))
    residuals = rng.choice([0.0, 1.0, -1.0, 0.3, 1e-9, -1e9], count)
    length = max(rows.length, rows.count * (rows.count + 1) // 2)
    fewer = without(silo)
    pairs = [
        (products(rows, silo, length=length, clip_norm=1.0), products(rows, fewer, length=length, clip_norm=1.0)),
        tuple(
            gradients(rows, part, some, residual_clip=0.5, length=length, clip_norm=1.0)
            for part, some in ((silo, residuals), (fewer, residuals[1:]))
        ),
        tuple(counted(part.codes, length=len(rows.own), grid=COUNTS_GRID) for part in (silo, fewer)),
    ]
    for first, second in pairs:
        moved = (first.total - second.total).astype(object)  # Python's integers: nothing rounds or wraps
        assert int((moved * moved).sum()) <= first.sensitivity**2
    dense = np.array([[int(rows.own[code]) for code in record] for record in codes])
    assert np.array_equal(rows.squares(codes), _squares(rows, codes, dense))


def _squares(rows: Rows, codes: np.ndarray, dense: np.ndarray) -> np.ndarray:
    own = (dense * dense).sum(axis=1) + rows.constant**2
    return own + np.array([sum(int(rows.trend[code]) ** 2 for code in record) for record in codes])


def test_a_long_row_that_is_not_cut_would_move_the_sum_too_far() -> None:
    rows = Rows(own=np.full(3, 1 << 14), trend=np.zeros(3, np.int64), trends=np.full(1, -1), constant=1)
    silo = CodedSilo(np.zeros((1, 1), np.int64), np.ones(1, np.bool_), np.ones(1))
    honest = gradients(rows, silo, -np.ones(1), residual_clip=0.5, length=4, clip_norm=1.0).total
    assert 0.9 * GRID < np.linalg.norm(honest.astype(float)) <= GRID
    assert np.linalg.norm(np.array([1, 1 << 14]) * float(ROW)) > 7 * GRID  # the residual alone is at its clip


def test_the_epsilon_is_that_of_another_accountant() -> None:
    plan = plan_of()
    assert plan.statistics is not None
    squared = COUNTS_GRID**2 / (3 * plan.statistics.share_variance) + plan.rounds * GRID**2 / (3 * plan.share_variance)
    told = dp_accounting.get_epsilon_gaussian(1 / math.sqrt(squared), 1e-5)
    assert plan.epsilon_server == pytest.approx(told, rel=1e-6)
    assert told <= 1.0
    assert plan.releases == 9


def test_the_union_of_the_silos_carries_the_noise_of_the_plan() -> None:
    plan, (x, y) = plan_of(), records(400)
    start = additive(PREPARATION, classes=("no", "yes"))
    encoding = PrivateTrees(start, COLUMNS, plan)
    silos = [Silo(f"s{number}", x[number::4], y[number::4]) for number in range(4)]
    exact = counted(COLUMNS.read(x), length=COLUMNS.codes, grid=COUNTS_GRID).total
    rng, off = SeededRandomness("union"), []
    for _ in range(40):
        total = sum(encoding.contribution(encoding.learner.start, silo, 1, rng, MemoryStore()) for silo in silos)
        off.append(total - exact)
    assert plan.statistics is not None
    found = float(np.mean(np.square(off))) / (4 * plan.statistics.share_variance)
    assert abs(found - 1) < 5 * math.sqrt(2 / np.size(off))


def run(encoding: PrivateTrees, silos: list[Silo], rounds: int, seed: str) -> Course:
    course = Course(encoding, TrainSection(algorithm="additive", rounds=rounds, momentum=0.0, average=0.0))
    stores = [MemoryStore() for _ in silos]
    rng = SeededRandomness(seed)
    while not course.ended:
        sent = []
        for silo, store in zip(silos, stores, strict=True):
            sent.append(encoding.contribution(course.parameters, silo, course.number + 1, rng, store))
            store.commit(encoding.charge(store))
        course.advance(Sums(np.sum(sent, axis=0)[None], (frozenset(silo.name for silo in silos),)))
    return course


@pytest.mark.parametrize("effects", ["steps", "trends"])
def test_private_trees_learn_and_a_course_goes_on_from_its_state(effects: str) -> None:
    (x, y), (new, truth) = records(4000), records(4000, 1)
    silos = [Silo(f"s{number}", x[number::4], y[number::4]) for number in range(4)]

    def encoding() -> PrivateTrees:
        return PrivateTrees(
            additive(PREPARATION, classes=("no", "yes")), COLUMNS, plan_of(epsilon=4.0), effects=effects
        )

    first = encoding()
    course = run(first, silos, 9, "learn")
    model = first.learner.model(course.kept)
    assert roc_auc_score(truth, model.apply(new)[:, 0]) > (0.8 if effects == "steps" else 0.65)  # age is no trend
    again = encoding()
    again.resumed(first.moved)
    assert np.array_equal(again.broadcast(course.parameters), first.broadcast(course.parameters))


def test_a_plan_that_is_spent_releases_nothing_more() -> None:
    x, y = records(40)
    encoding = PrivateTrees(additive(PREPARATION, classes=("no", "yes")), COLUMNS, plan_of(rounds=3))
    silos = [Silo("one", x, y)]
    run(encoding, silos, 3, "spent")
    store = MemoryStore()
    for _ in range(3):
        store.commit(encoding.charge(store))
    with pytest.raises(Exception, match="releases"):
        encoding.contribution(encoding.learner.start, silos[0], 4, SeededRandomness("more"), store)


def test_the_trees_say_what_the_codes_say() -> None:
    x, _ = records(300)
    values = np.random.default_rng(0).normal(size=COLUMNS.codes)
    layer = additive(PREPARATION).layers[0]
    assert isinstance(layer, Trees)
    found = with_values(layer, COLUMNS.columns, values, 0.5).apply(x)[:, 0]
    assert found == pytest.approx(0.5 + values[COLUMNS.read(x)].sum(axis=1))
    assert len(set(leaves_of(COLUMNS.columns).tolist())) == COLUMNS.codes


def test_smoothing_is_the_posterior_mean_of_a_dense_gaussian() -> None:
    rng = np.random.default_rng(3)
    for missing in (False, True):
        count = 24
        observed, variance = rng.normal(size=count).cumsum(), rng.uniform(0.05, 2.0, count)
        best = (-math.inf, np.zeros(0))
        for alone in smoothing.ALONE:
            for along in smoothing.ALONG:
                steps = np.full(count - 1, 16 / count * along**2)
                if missing:
                    steps[0] = 4.0
                reached = np.concatenate([[4.0], steps]).cumsum()
                prior = np.minimum(reached[:, None], reached[None]) + alone**2 * np.eye(count)
                whole = prior + np.diag(variance)
                told = -0.5 * observed @ np.linalg.solve(whole, observed) - 0.5 * np.linalg.slogdet(whole)[1]
                told -= 0.25 * math.log(alone / 0.3) ** 2 + 0.25 * math.log(max(along, 0.01) / 0.1) ** 2
                if told > best[0]:
                    best = (told, prior @ np.linalg.solve(whole, observed))
        (found,) = smoothing.smoothed([observed], [variance], [missing])
        assert found == pytest.approx(best[1], abs=1e-9)


def test_columns_of_different_length_are_smoothed_as_each_alone() -> None:
    rng = np.random.default_rng(4)
    both = [rng.normal(size=9), rng.normal(size=30)]
    around = [np.full(9, 0.3), np.full(30, 0.2)]
    together = smoothing.smoothed(both, around, [False, True])
    for place, apart in enumerate((False, True)):
        (alone,) = smoothing.smoothed([both[place]], [around[place]], [apart])
        assert together[place] == pytest.approx(alone, abs=1e-12)


CANARIES, LEVELS = 20_000, 1000


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "told"), [(1.0, True), (0.5, False)])
def test_canaries_stay_within_the_claim_and_half_the_noise_does_not(noise: float, told: bool) -> None:
    """Each canary has a code of its own and a residual at its clip; its score is its projection of all the sums."""
    preparation = Preprocess((OneHot(name="who", categories=tuple(f"c{level}" for level in range(LEVELS))),))
    columns, rounds = AdditiveColumns.of(preparation), 3
    plan = plan_of(columns, rounds=rounds, silos=1, quorum=1, colluding=0, expected_records=LEVELS)
    assert plan.statistics is not None
    values, present = [], []
    for job in range(CANARIES // LEVELS):
        rng = SeededRandomness(f"canaries {job} {noise}")
        coin = draw_coins(LEVELS, rng)
        silo = Silo("one", np.eye(LEVELS)[coin], np.ones(int(coin.sum()), np.int64))
        encoding = PrivateTrees(additive(preparation, classes=("no", "yes")), columns, plan, effects="steps")
        seen = np.zeros(LEVELS)
        for number in range(rounds):
            store = MemoryStore()
            for _ in range(number):
                store.commit({"dp/released": str(number).encode()})
            sums = encoding.contribution(encoding.learner.start, silo, number + 1, rng, store).astype(float)
            kind = plan.statistics if number == 0 else plan.training
            quiet = sums[-LEVELS:] if number else sums
            exact = np.where(coin, kind.grid, 0) * (1.0 if number == 0 else -1.0)
            quiet = exact + noise * (quiet - exact)  # the negative control: as if a share were scaled down
            seen += quiet * (kind.grid / kind.share_variance) * (1.0 if number == 0 else -1.0)
            if number == 0:
                encoding.update(encoding.learner.start, sums.astype(np.int64), frozenset({"one"}), 1)
        values.append(seen)
        present.append(coin)
    scores = Scores(np.concatenate(values), np.concatenate(present))
    bound = gaussian_bound(scores, delta=1e-5, confidence=1 - 1e-6).epsilon
    assert bound > 0.5  # an audit that sees nothing says nothing
    assert (bound <= 1.0) == told


TABLE: dict[str, Any] = {
    "data": {"set": "breast-cancer", "split": "even"},
    "model": {"kind": "trees"},
    "train": {"quorum": 4},
    "privacy": {"epsilon": 4.0, "expected_records": 455},
}


def test_a_job_from_end_to_end() -> None:
    job = parse(TABLE)
    assert (job.train.algorithm, job.train.rounds) == ("additive", 25)
    data = load_data(job, rng=SeededRandomness("job"))
    *_, done = train(job, data, rng=SeededRandomness("job"))
    assert done.epsilon == pytest.approx(4.0, rel=1e-6)
    assert isinstance(done.model.layers[0], Trees)
    assert roc_auc_score(data.test.y, done.model.apply(data.test.x)[:, 0]) > 0.8


@pytest.mark.parametrize("effects", ["steps", "trends"])
def test_the_first_gradients_say_how_rare_a_class_is_and_move_no_code(effects: str) -> None:
    rng = np.random.default_rng(4)
    age = rng.uniform(20, 60, 40_000)
    raw = {"age": age, "pain": rng.uniform(0, 10, 40_000), "colour": rng.choice(["red", "green"], 40_000)}
    y = (rng.random(40_000) < 0.01).astype(np.int64)
    silo = Silo("one", PREPARATION.apply(raw), y)
    plan = plan_of(silos=1, quorum=1, colluding=0, expected_records=40_000, rounds=15)
    encoding = PrivateTrees(additive(PREPARATION, classes=("no", "yes")), COLUMNS, plan, effects=effects)
    course = Course(encoding, TrainSection(rounds=15, momentum=0.0, average=0.0))
    store, noise = MemoryStore(), SeededRandomness("rare")
    opened = False
    while not course.ended:
        vector = course.encoding.contribution(course.parameters, silo, course.number + 1, noise, store)
        store.commit(course.encoding.charge(store))
        course.advance(Sums(vector[None], (frozenset({"one"}),)))
        trees = course.encoding.learner.model(course.parameters).layers[0]
        if not opened and trees.offset[0]:
            opened = True
            # long rows count less, so it is about that; later rounds go on from there
            assert trees.offset[0] == pytest.approx(np.log(y.mean() / (1 - y.mean())), abs=0.6)
            assert not trees.value.any()
    assert opened
    found = course.encoding.learner.model(course.kept).apply(silo.x)[:, 0]
    assert found.mean() == pytest.approx(y.mean(), rel=0.5)


def test_over_nodes_it_is_a_model_of_one_process_and_no_node_is_told_whether_it_helped(tmp_path: Path) -> None:
    tables_of_nodes(tmp_path)
    privacy = {"epsilon": 8.0, "expected_records": 250}
    job = job_of(tmp_path, model={"kind": "trees"}, train={"rounds": 5, "quorum": 4}, privacy=privacy)
    with Federation(tmp_path, job, seed="nodes") as federation:
        nodes = [federation.start(name) for name in NAMES]
        coordinator = federation.coordinator()
        done = list(coordinator.rounds())
        coordinator.finish(model=b"")
        assert nodes[0].joining() is None
    assert [one.number for one in done] == [1, 2, 3, 4, 5]
    assert done[-1].epsilon == pytest.approx(8.0, rel=1e-6)
    assert isinstance(done[-1].model.layers[0], Trees)
    with pytest.raises(JobError, match="alone"):
        pooled_model(job, load_data(job))


@pytest.mark.parametrize(
    ("section", "key", "value", "text"),
    [
        ("trees", "depth", 3, "trees.depth"),
        ("trees", "edges", "quantiles", "uniform"),
        ("train", "rounds", 2, "at least 3"),
        ("train", "algorithm", "boosting", "additive"),
        ("train", "learning_rate", 0.5, "learning_rate"),
    ],
)
def test_what_private_trees_do_not_know_is_refused(section: str, key: str, value: object, text: str) -> None:
    with pytest.raises(JobError, match=text):
        parse({**TABLE, section: {**TABLE.get(section, {}), key: value}})


def test_effects_are_for_private_trees() -> None:
    table = {name: section for name, section in TABLE.items() if name != "privacy"}
    with pytest.raises(JobError, match="effects"):
        parse({**table, "trees": {"effects": "steps"}})


def test_trends_are_taken_where_the_noise_asks_for_them() -> None:
    for epsilon, effects in ((0.1, True), (30.0, False)):
        assert private_trees.trends("auto", plan_of(epsilon=epsilon), COLUMNS) == effects
