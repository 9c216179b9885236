"""Boosting over silos: the trees of the pooled records, split by split, and those of scikit-learn."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import DataError, JobError
from confide.ideal import PlainSum
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.model.zoo import boosted
from confide.train import parse
from confide.train.boosting import Boosting, boosted_alone
from confide.train.course import Course
from confide.train.job import describe
from confide.train.local import Silo, flatten
from confide.train.parts import AGGREGATORS, aggregator_named
from confide.train.quantiles import even_edges
from confide.train.rounds import Round, federate
from confide.train.sections import TrainSection, TreesSection
from confide.train.tree_columns import codes_of, columns_of
from confide.wire import MemoryStore

RULES = Preprocess(
    (
        Scale(name="age", low=0.0, high=1.0, bins=even_edges(0.0, 1.0, 16), ordinal=True),
        Scale(name="pulse", low=0.0, high=1.0, bins=even_edges(0.0, 1.0, 9), ordinal=True, missing="level"),
        Scale(name="noise", low=0.0, high=1.0, bins=even_edges(0.0, 1.0, 5), ordinal=True),
        OneHot(name="ward", categories=("a", "b", "c", "d"), missing="level"),
    )
)
NAMES = ("north", "east", "south", "west")


def columns(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pulse = rng.uniform(size=n)
    pulse[rng.uniform(size=n) < 0.2] = np.nan
    ward = rng.choice(np.array(["a", "b", "c", "d", ""], object), n)
    return {"age": rng.uniform(size=n), "pulse": pulse, "noise": rng.uniform(size=n), "ward": ward}


def labelled(n: int, seed: int = 0, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return records whose class follows from columns, missing values and their interplay."""
    raw, rng = columns(n, seed), np.random.default_rng(seed + 1)
    absent = np.isnan(raw["pulse"])
    z = 3 * np.sin(5 * raw["age"]) * (raw["ward"] == "b") + 2 * absent + 2 * np.where(absent, 0, raw["pulse"]) - 1.5
    drawn = rng.uniform(size=n) < 1 / (1 + np.exp(-z))
    y = drawn if classes == 2 else np.digitize(z + rng.normal(size=n), [-1.0, 0.5])
    return RULES.apply(raw), y.astype(np.int64)


def silos(x, y, parties: int = 4) -> list[Silo]:
    """Part records unevenly: each party holds twice as many as the one before."""
    cuts = (len(x) * (2.0 ** np.arange(parties)).cumsum() / (2.0**parties - 1)).astype(int)[:-1]
    return [Silo(name, one, own) for name, one, own in zip(NAMES, np.split(x, cuts), np.split(y, cuts), strict=False)]


def section(asked: TreesSection, **given) -> TrainSection:
    usual = {"algorithm": "boosting", "momentum": 0.0, "average": 0.0, "weight_decay": 0.0, "learning_rate": 0.3}
    rounds = 1 + asked.count * asked.depth
    return TrainSection(**{**usual, "rounds": rounds, "expected_records": 300, **given})


def run(x, y, asked: TreesSection, *, fault=None, weights=(), parties: int = 4, **given) -> Iterator[Round]:
    train = section(asked, **given)
    start = boosted(RULES.features, asked.count, asked.depth, 1 if y.max() < 2 else int(y.max()) + 1)
    return federate(
        silos(x, y, parties),
        Boosting(start, train, asked, RULES, class_weights=weights),
        train,
        aggregator=aggregator_named(train, parties),
        rng=SystemRandomness(),
        fault=fault,
    )


def last(rounds: Iterator[Round]) -> Round:
    *_, done = rounds
    return done


def pooled(x, y, asked: TreesSection, **given):
    start = boosted(RULES.features, asked.count, asked.depth, 1 if y.max() < 2 else int(y.max()) + 1)
    return boosted_alone(section(asked), asked, RULES, start, x, y, **given)


class TestEqualsPooled:
    @pytest.mark.parametrize("aggregate", sorted(set(AGGREGATORS) - {"groups", "he", "tee"}))
    def test_split_by_split_under_every_aggregator(self, aggregate):
        x, y = labelled(400)
        asked = TreesSection(count=3, depth=3, least_hessian=0.5)
        found = last(run(x, y, asked, aggregate=aggregate))
        assert (found.parameters == flatten(pooled(x, y, asked))).all()

    @pytest.mark.slow
    def test_under_encryption_too(self):
        x, y = labelled(200)
        asked = TreesSection(count=1, depth=2)
        assert (last(run(x, y, asked, aggregate="he")).parameters == flatten(pooled(x, y, asked))).all()

    @pytest.mark.parametrize("parties", [2, 3, 4])
    def test_however_the_records_are_parted(self, parties):
        x, y = labelled(300, seed=parties)
        asked = TreesSection(count=4, depth=4)
        found = last(run(x, y, asked, parties=parties, aggregate="plain"))
        assert (found.parameters == flatten(pooled(x, y, asked))).all()

    def test_with_several_classes(self):
        x, y = labelled(400, classes=3)
        asked = TreesSection(count=6, depth=3)
        found = last(run(x, y, asked, aggregate="plain"))
        assert (found.parameters == flatten(pooled(x, y, asked))).all()
        majority = np.bincount(y).max() / len(y)
        assert (found.model.apply(x).argmax(axis=1) == y).mean() > majority + 0.1

    def test_with_class_weights_bounds_and_an_early_stop(self):
        x, y = labelled(600)
        asked = TreesSection(count=40, depth=3, monotone={"age": 1, "pulse": -1}, patience=3, held_out=0.3)
        found = last(run(x, y, asked, aggregate="plain", weights=(0.4, 1.0), learning_rate=0.3))
        assert (found.parameters == flatten(pooled(x, y, asked, class_weights=(0.4, 1.0)))).all()

    def test_a_party_with_one_class_alone_takes_part(self):
        x, y = labelled(300)
        order = np.argsort(y, kind="stable")
        asked = TreesSection(count=3, depth=2)
        found = last(run(x[order], y[order], asked, aggregate="plain"))
        assert (found.parameters == flatten(pooled(x, y, asked))).all()


class TestEqualsScikitLearn:
    """Its leaves are chosen best first and its gradients are float32, so trees of full depth agree but for rounding."""

    @pytest.mark.parametrize("seed", range(3))
    def test_predictions_agree(self, seed):
        x, y = labelled(1500, seed=seed)
        asked = TreesSection(count=12, depth=3, ridge=2.0, least_hessian=1e-3)
        ours = pooled(x, y, asked).apply(x)[:, 0]
        codes = codes_of(columns_of(RULES), x).astype(np.float64)
        codes[codes[:, 1] == 0, 1] = np.nan  # its own rule for missing values: the better side
        plain = codes[:, :3]  # its categories are sets, ours one against the rest
        theirs = HistGradientBoostingClassifier(
            max_iter=12,
            max_depth=3,
            max_leaf_nodes=8,
            min_samples_leaf=1,
            l2_regularization=2.0,
            learning_rate=0.3,
            early_stopping=False,
        )
        numbers = Preprocess(RULES.rules[:3])
        start = boosted(numbers.features, 12, 3)
        alone = boosted_alone(section(asked), asked, numbers, start, x[:, :4], y)
        expected = theirs.fit(plain, y).predict_proba(plain)[:, 1]
        found = alone.apply(x[:, :4])[:, 0]
        assert np.abs(found - expected).max() < 2e-3
        assert np.median(np.abs(found - expected)) < 1e-5
        assert np.abs(ours - expected).max() > 0.05  # the category tells something: the control


class TestShape:
    def test_a_rising_column_never_lowers_the_prediction(self):
        raw = columns(400)
        x, y = labelled(400)
        asked = TreesSection(count=15, depth=4, monotone={"age": 1})
        model = pooled(x, y, asked)
        free = pooled(x, y, TreesSection(count=15, depth=4))
        grid = np.linspace(0, 1, 33)
        steps = {"bound": [], "free": []}
        for row in range(60):
            one = {name: np.repeat(values[row : row + 1], len(grid)) for name, values in raw.items()} | {"age": grid}
            steps["bound"].append(np.diff(model.apply(RULES.apply(one))[:, 0]).min())
            steps["free"].append(np.diff(free.apply(RULES.apply(one))[:, 0]).min())
        assert min(steps["bound"]) >= -1e-12
        assert min(steps["free"]) < -0.05  # the control: the records say something else

    def test_missing_values_go_to_the_side_that_suits_them(self):
        rng = np.random.default_rng(0)
        rules = Preprocess((RULES.rules[1],))
        values = rng.uniform(size=600)
        absent = rng.uniform(size=600) < 0.3
        y = (np.where(absent, 1.0, values) > 0.5).astype(np.int64)  # missing ones are like high ones
        values[absent] = np.nan
        asked = TreesSection(count=1, depth=1)
        model = boosted_alone(section(asked), asked, rules, boosted(2, 1, 1), rules.apply({"pulse": values}), y)
        found = model.apply(rules.apply({"pulse": np.array([0.1, 0.9, np.nan])}))[:, 0]
        assert found[0] < 0.5 < found[1] == found[2]

    def test_the_offset_is_the_log_odds(self):
        x, y = labelled(500)
        rounds = run(x, y, TreesSection(count=1, depth=1), aggregate="plain")
        first = next(rounds)
        assert first.model.apply(x)[:, 0] == pytest.approx(y.mean(), abs=1e-9)

    def test_a_class_that_nobody_has_gives_a_model_that_says_so(self):
        x, _ = labelled(80)
        found = last(run(x, np.zeros(80, np.int64), TreesSection(count=2, depth=2), aggregate="plain"))
        assert (found.model.apply(x) < 1e-4).all()

    def test_gains_name_the_columns_that_matter(self):
        x, y = labelled(2000)
        asked = TreesSection(count=10, depth=3)
        encoding = Boosting(boosted(RULES.features, 10, 3), section(asked), asked, RULES)
        train = section(asked, aggregate="plain", expected_records=1000)
        course_rounds = federate(silos(x, y), encoding, train, aggregator=PlainSum(), rng=SystemRandomness())
        gains = last(course_rounds).importance
        assert sum(gains.values()) == pytest.approx(1.0)
        assert min(gains, key=gains.__getitem__) == "noise"


class TestEarlyStop:
    def test_it_stops_and_takes_back_what_made_nothing_better(self):
        rng = np.random.default_rng(0)
        x, y = labelled(400)
        y = rng.permutation(y)  # nothing to learn: any tree is too many
        asked = TreesSection(count=200, depth=4, patience=2, held_out=0.5)
        found = last(run(x, y, asked, aggregate="plain"))
        trees = found.model.layers[0]
        grown = {tree for tree, _, _ in trees.splits()}
        assert found.number < 1 + 200 * 4
        assert max(grown, default=-1) < found.number // 4
        assert len(grown) <= found.number // 4 - 2

    def test_a_score_is_of_records_that_no_tree_has_seen(self):
        x, y = labelled(300)
        asked = TreesSection(count=2, depth=2, patience=1, held_out=0.4)
        encoding = Boosting(boosted(RULES.features, 2, 2), section(asked), asked, RULES)
        records = encoding._records_of(Silo("a", x, y))
        assert len(records) + len(records._held) == 300
        assert 0.25 < len(records._held) / 300 < 0.55
        again = encoding._records_of(Silo("b", x[::-1], y[::-1]))
        assert sorted(map(bytes, again._held)) == sorted(map(bytes, records._held))  # by content, not by place


class TestCourse:
    def test_it_goes_on_from_its_state(self):
        x, y = labelled(300)
        asked = TreesSection(count=3, depth=3)
        train = section(asked)
        encoding = Boosting(boosted(RULES.features, 3, 3), train, asked, RULES)
        course, parts, rng = Course(encoding, train), silos(x, y), SeededRandomness("course")
        while not course.ended:
            fresh = Course(Boosting(boosted(RULES.features, 3, 3), train, asked, RULES), train)
            course = fresh.resumed(course.state()) if course.number else fresh  # a process that knows nothing else
            vectors = [
                course.encoding.contribution(course.parameters, one, course.number + 1, rng, MemoryStore())
                for one in parts
            ]
            assert all(len(one) == course.encoding.length <= course.encoding.longest for one in vectors)
            assert max(np.abs(one).max() for one in vectors) <= course.encoding.bound
            course.advance(PlainSum().ideal(dict(zip(NAMES, vectors, strict=True))))
        assert (course.kept == flatten(pooled(x, y, asked))).all()

    def test_a_silo_that_lost_its_place_finds_it_again(self):
        x, y = labelled(300)
        asked = TreesSection(count=2, depth=3)
        whole = last(run(x, y, asked, aggregate="plain"))
        train = section(asked)
        encoding = Boosting(boosted(RULES.features, 2, 3), train, asked, RULES)
        one = Silo("one", x, y)
        records = encoding._records_of(one)
        trees = encoding._learner.trees(whole.parameters)
        wanted = np.zeros(1, np.int32)
        late = records.histograms(trees, whole.parameters, 1, 0, wanted)  # as if all had been heard at once
        start = encoding.learner.start.copy()
        start[-1:] = trees.offset
        early = records.histograms(encoding._learner.trees(start), start, 0, 0, wanted)  # and then another course
        other = Boosting(boosted(RULES.features, 2, 3), train, asked, RULES)._records_of(one)
        assert (early == other.histograms(trees, start, 0, 0, wanted)).all()
        assert (late == other.histograms(trees, whole.parameters, 1, 0, wanted)).all()
        assert not (early == late).all()


class TestDropouts:
    def test_a_tree_ends_where_others_are_in_the_sum(self):
        """Sisters' sums follow from their parent's only among the same parties."""
        x, y = labelled(400)
        asked = TreesSection(count=3, depth=3)
        train = section(asked)
        course = Course(Boosting(boosted(RULES.features, 3, 3), train, asked, RULES), train)
        parts = silos(x, y)
        rng = SeededRandomness("course")
        away = {3: "west"}  # the second level of the first tree
        while not course.ended:
            here = [one for one in parts if one.name != away.get(course.number + 1)]
            made = {
                one.name: course.encoding.contribution(course.parameters, one, course.number + 1, rng, MemoryStore())
                for one in here
            }
            course.advance(PlainSum().ideal(made))
        trees = course.encoding.learner.model(course.kept).layers[0]
        stump = boosted_alone(train, TreesSection(count=1, depth=1), RULES, boosted(RULES.features, 1, 1), x, y)
        first = [split for split in trees.splits() if split[0] == 0]
        assert first == list(stump.layers[0].splits())  # that of the level before, and its leaves
        assert sorted(set(trees.value[:8].tolist())) == sorted(set(stump.layers[0].value.tolist()))
        assert {tree for tree, _, _ in trees.splits()} == {0, 1, 2}
        assert course.number == 1 + 2 + 3 + 3

    @pytest.mark.parametrize("aggregate", ["plain", "masked", "shares"])
    def test_the_loop_goes_on_without_a_party(self, aggregate):
        x, y = labelled(400)
        upload, seen = AGGREGATORS[aggregate].upload, []

        def lost(message):
            seen.extend([1] * (message.src == "west" and message.tag == upload))
            gone = len(seen) > 5 and message.src == "west" and message.tag == upload
            return [] if gone else [(0, message)]

        found = last(run(x, y, TreesSection(count=4, depth=3), aggregate=aggregate, fault=lost, quorum=3))
        assert found.members == {"north", "east", "south"}
        assert len({tree for tree, _, _ in found.model.layers[0].splits()}) == 4


class TestRefused:
    def test_too_many_records_and_none(self):
        x, y = labelled(300)
        for change in ({"expected_records": 5}, {}):
            parts = silos(x, y)
            if not change:
                parts[0] = Silo("north", x[:0], y[:0])
            asked = TreesSection(count=1, depth=1)
            train = section(asked, **change)
            encoding = Boosting(boosted(RULES.features, 1, 1), train, asked, RULES)
            with pytest.raises(DataError, match="train.expected_records"):
                last(federate(parts, encoding, train, aggregator=PlainSum(), rng=SystemRandomness()))

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"train": {"algorithm": "fedavg"}}, 'train.algorithm="boosting"'),
            ({"train": {"rounds": 7}}, "no train.rounds"),
            ({"train": {"aggregate": "groups"}}, "groups"),
            ({"train": {"compress": "rotate"}}, "compress"),
            ({"train": {"local_steps": 2}}, "local_steps"),
            ({"train": {"momentum": 0.5}}, "no train.momentum"),
            ({"train": {"weight_decay": 0.5}}, "no train.weight_decay"),
            ({"model": {"unit_rows": True}}, "columns as the schema has them"),
            ({"data": {"standardise": True}}, "columns as the schema has them"),
            ({"trees": {"monotone": {"age": 2}}}, "1 (rises) or -1 (falls)"),
            ({"trees": {"bins": 256}}, "trees.bins=256"),
            ({"trees": {"depth": 11}}, "trees.depth=11"),
            ({"model": {"kind": "logistic"}, "trees": {}}, "no [trees]"),
        ],
    )
    def test_what_trees_cannot_do(self, change, text):
        table = {"data": {"set": "breast-cancer"}, "model": {"kind": "trees"}, "trees": {"count": 2}}
        table = table | {name: table.get(name, {}) | keys for name, keys in change.items()}
        with pytest.raises(JobError) as error:
            parse(table)
        assert text in str(error.value)

    def test_boosting_without_trees(self):
        with pytest.raises(JobError, match='model.kind="trees"'):
            parse({"data": {"set": "breast-cancer"}, "train": {"algorithm": "boosting"}})


def test_a_job_prints_what_it_takes_and_reads_it_back():
    trees = {"count": 7, "monotone": {"mean radius": 1}}
    job = parse({"data": {"set": "breast-cancer"}, "model": {"kind": "trees"}, "trees": trees})
    assert (job.train.rounds, job.train.learning_rate) == (1 + 7 * 5, 0.1)
    text = describe(job)
    assert 'monotone = { "mean radius" = 1 }' in text
    assert parse(tomllib.loads(text)).trees == job.trees
    assert "[trees]" not in describe(parse({"data": {"set": "breast-cancer"}}))
