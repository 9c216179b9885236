from __future__ import annotations

import numpy as np
import pandas
import pytest
import sklearn.base
from sklearn.cluster import KMeans as PlainKMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from confide.crypto.random import SystemRandomness
from confide.dp.queries import count
from confide.dp.spending import Budget
from confide.errors import DataError, ModelError, PrivacyError, UsageError
from confide.model.artifact import create_signing_key, load
from confide.sklearn import (
    PCA,
    GaussianNB,
    GradientBoostingClassifier,
    KMeans,
    LinearRegression,
    LogisticRegression,
    RandomForestClassifier,
    Ridge,
    StandardScaler,
    additive,
    artifact_of,
)
from sklearn import ensemble, linear_model, naive_bayes

EASY = {"epsilon": 30.0, "delta": 1e-2, "bounds": (-4, 4), "random_state": 0}  # the checks fit some twenty records

CLASSIFIER = (
    LogisticRegression(classes=(0, 1), **EASY),
    GaussianNB(classes=(0, 1, 2), **EASY),
    GradientBoostingClassifier(classes=(0, 1), **EASY),
    RandomForestClassifier(classes=(0, 1, 2), n_estimators=2, max_depth=2, **EASY),
)
REGRESSOR = (Ridge(y_bounds=(-4, 4), **EASY), LinearRegression(y_bounds=(-4, 4), **EASY))
OTHER = (KMeans(**EASY), PCA(**EASY), StandardScaler(**EASY))
ALL = (*CLASSIFIER, *REGRESSOR, *OTHER)

#: Checks of scikit-learn that ask for what a private estimator must not do.
EVERYBODY = {
    "check_dtype_object": "a cell that is no number counts for nothing: an error would tell of one record",
    "check_estimators_empty_data_messages": "an empty table is fitted like any other: a refusal would tell it apart",
}
LABELLED = EVERYBODY | {
    "check_supervised_y_no_nan": "a record whose label is not finite counts for nothing: an error would tell of it",
}
OF_CLASSES = LABELLED | {
    "check_classifiers_classes": "the check has other labels than the public classes, which are given once",
    "check_classifiers_train": "the check fits two and three classes; the classes are public and given once",
    "check_classifiers_regression_target": "labels that are no class count for nothing: an error would tell of them",
}
OF_TWO_CLASSES = {name: why for name, why in OF_CLASSES.items() if name != "check_classifiers_train"} | {
    "check_classifier_not_supporting_multiclass": "a third label is no class and counts for nothing, as any other",
}
OF_CLUSTERS = EVERYBODY | {"check_clustering": "labels_ would keep a private number of every record in the model"}


@pytest.fixture(autouse=True)
def few_intervals(monkeypatch):
    """Boosted trees with 32 intervals for each number instead of 1024, so that their fits take milliseconds."""
    monkeypatch.setattr(additive, "_BINS", 32)


def reasons(estimator):
    if isinstance(estimator, GradientBoostingClassifier):
        return OF_TWO_CLASSES
    if isinstance(estimator, CLASSIFIER_TYPES):
        return OF_CLASSES
    if isinstance(estimator, (Ridge, LinearRegression)):
        return LABELLED
    return OF_CLUSTERS if isinstance(estimator, KMeans) else EVERYBODY


CLASSIFIER_TYPES = tuple(map(type, CLASSIFIER))


def name_of(estimator):
    return type(estimator).__name__


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_scikit_learn_s_own_checks_hold_but_those_that_privacy_forbids(estimator):
    found = check_estimator(estimator, expected_failed_checks=reasons(estimator), on_fail=None, on_skip=None)
    failed = {one["check_name"]: one["exception"] for one in found if one["status"] == "failed"}
    assert not failed
    assert len([one for one in found if one["status"] == "passed"]) > 35
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(reasons(estimator))  # none is idle


def blobs(count=4000, classes=2, seed=0):
    x, y = make_blobs(count, 3, centers=classes, cluster_std=0.8, random_state=seed, center_box=(-3, 3))
    return np.clip(x, -6, 6), y


PRIVATE = {"epsilon": 1.0, "delta": 1e-5, "bounds": (-6, 6)}


# --- each learns what the one without privacy does ------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    ("private", "plain"),
    [
        (LogisticRegression, linear_model.LogisticRegression()),
        (GaussianNB, naive_bayes.GaussianNB()),
        (RandomForestClassifier, ensemble.RandomForestClassifier(max_depth=6, random_state=0)),
    ],
)
def test_classifiers_are_near_scikit_learn_s(private, plain, classes):
    x, y = blobs(classes=classes, seed=3)
    model = private(classes=tuple(range(classes)), random_state=1, **PRIVATE).fit(x, y)
    assert model.score(x, y) > plain.fit(x, y).score(x, y) - 0.04
    proba = model.predict_proba(x)
    assert proba.shape == (len(x), classes)
    assert np.allclose(proba.sum(axis=1), 1)
    assert (model.classes_[proba.argmax(axis=1)] == model.predict(x)).all()


@pytest.mark.parametrize("records", [None, 40_000])
def test_logistic_regression_takes_newton_s_steps_where_records_are_many(records):
    x, y = blobs(40_000, seed=5)
    model = LogisticRegression(classes=(0, 1), expected_records=records, random_state=1, **PRIVATE).fit(x, y)
    assert "sufficient statistics" in model.privacy_.mechanism
    assert model.score(x, y) > linear_model.LogisticRegression().fit(x, y).score(x, y) - 0.02


def test_classes_of_text_and_labels_that_are_none():
    x, y = blobs(seed=3)
    names = np.array(["well", "ill"])[y]
    names[:50] = "unknown"
    model = LogisticRegression(classes=("well", "ill"), random_state=1, **PRIVATE).fit(x, names)
    assert list(model.classes_) == ["ill", "well"]
    assert model.score(x[50:], names[50:]) > 0.9


@pytest.mark.parametrize("effects", ["steps", "trends", "auto"])
def test_boosted_trees_are_near_scikit_learn_s(effects):
    x, y = blobs(20_000, seed=3)
    plain = ensemble.HistGradientBoostingClassifier(max_iter=30).fit(x, y)
    model = GradientBoostingClassifier(classes=(0, 1), effects=effects, random_state=1, **PRIVATE).fit(x, y)
    assert model.score(x, y) > plain.score(x, y) - 0.03
    assert np.allclose(model.predict_proba(x).sum(axis=1), 1)
    assert [len(one) for one in model.effects_] == [32, 32, 32]


def test_boosted_trees_follow_bends_and_categories_and_say_which_columns_matter():
    """Neither a line nor a line through places: the middle of a number, and every other category."""
    draw = np.random.Generator(np.random.PCG64(2))
    x = np.stack([draw.uniform(-6, 6, 20_000), draw.integers(0, 6, 20_000), draw.uniform(-6, 6, 20_000)], axis=1)
    odds = 3.0 * (abs(x[:, 0]) < 2) - 1.0 + 3.0 * (x[:, 1] % 2) - 1.5
    y = draw.uniform(size=len(x)) < 1 / (1 + np.exp(-odds))
    best = ((odds > 0) == y).mean()
    given = {"classes": (False, True), "categories": {1: "abcdef"}, "random_state": 1, **PRIVATE}
    boosted = GradientBoostingClassifier(**given).fit(x, y)
    forest = RandomForestClassifier(**given).fit(x, y)
    for model, loss in ((boosted, 0.03), (forest, 0.12)):
        assert model.score(x, y) > best - loss
        assert model.feature_importances_.sum() == pytest.approx(1)
        assert model.feature_importances_.argmin() == 2
    assert boosted.effects_[1][1::2].min() > boosted.effects_[1][::2].max() + 1
    unknown = boosted.decision_function([[np.nan, 6, np.inf]])  # nothing is known of it
    assert unknown == pytest.approx(boosted.intercept_)


def test_boosted_trees_have_1024_intervals_each_unless_a_test_says_otherwise(monkeypatch):
    monkeypatch.undo()
    x, y = blobs(4000, seed=3)
    model = GradientBoostingClassifier(classes=(0, 1), random_state=1, **PRIVATE).fit(x[:, :1], y)
    assert [len(one) for one in model.effects_] == [1024]
    assert model.score(x[:, :1], y) > y.mean()


def test_a_served_tree_model_answers_as_the_estimator_does(tmp_path):
    x, y = blobs(seed=3)
    x = np.concatenate([x, 10 * x[:50]])  # some beyond the bounds
    x[:, 1] = np.rint(np.clip(x[:, 1], 0, 2))
    categories = {1: ("no", "some", "much")}
    model = GradientBoostingClassifier(classes=("ill", "well"), categories=categories, **PRIVATE)
    model.fit(x, np.array(["ill", "well"])[np.append(y, y[:50])])
    key = create_signing_key(tmp_path / "signing.pem", SystemRandomness())
    artifact_of(model, ["a", "b", "c"]).save(tmp_path / "model.confide", key)
    served = load(tmp_path / "model.confide", trust=key.public)
    raw = {"a": x[:, 0], "b": np.array(categories[1], object)[x[:, 1].astype(int)], "c": x[:, 2]}
    assert np.allclose(served.graph.apply(served.preprocess.apply(raw))[:, 0], model.predict_proba(x)[:, 1], atol=1e-9)
    assert served.label == model.privacy_
    assert served.graph.classes == ("ill", "well")
    with pytest.raises(ModelError):
        artifact_of(model, ["a", "b"])


@pytest.mark.parametrize("private", [LinearRegression, Ridge])
def test_lines_are_near_scikit_learn_s(private):
    draw = np.random.Generator(np.random.PCG64(2))
    x = draw.uniform(-6, 6, (8000, 3))
    y = x @ [2.0, -1.0, 0.0] + 5 + draw.normal(0, 1, 8000)
    plain = linear_model.LinearRegression().fit(x, y)
    model = private(y_bounds=(-20, 30), random_state=1, **PRIVATE).fit(x, y)
    assert np.abs(model.coef_ - plain.coef_).max() < 0.15
    assert abs(model.intercept_ - plain.intercept_) < 0.5
    assert model.score(x, y) > 0.97 * plain.score(x, y)
    exact = private(y_bounds=(-20, 30), random_state=1, **PRIVATE | {"epsilon": 30.0}).fit(x, y)
    assert np.abs(exact.coef_ - plain.coef_).max() < 0.02


def test_components_are_near_numpy_s():
    draw = np.random.Generator(np.random.PCG64(2))
    x = np.clip(
        draw.normal(0, 1, (20_000, 3)) @ np.diag([2.0, 1.0, 0.2]) @ np.linalg.qr(draw.normal(size=(3, 3)))[0], -6, 6
    )
    model = PCA(2, random_state=1, **PRIVATE).fit(x)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    assert abs(model.components_[0] @ vectors[:, 2]) > 0.99
    assert abs(model.components_[1] @ vectors[:, 1]) > 0.98
    assert np.allclose(model.explained_variance_, values[[2, 1]], rtol=0.1)
    assert np.allclose(model.components_ @ model.components_.T, np.eye(2))
    back = model.inverse_transform(model.transform(x))
    assert np.abs(back - x).mean() < 0.3
    assert model.transform(x).shape == (20_000, 2)
    assert list(model.get_feature_names_out()) == ["pca0", "pca1"]


def test_means_and_deviations_are_near_numpy_s():
    x, _ = blobs(20_000, classes=3)
    model = StandardScaler(random_state=1, **PRIVATE).fit(x)
    assert np.abs(model.mean_ - x.mean(axis=0)).max() < 0.1
    assert np.abs(model.scale_ / x.std(axis=0) - 1).max() < 0.05
    assert np.allclose(model.inverse_transform(model.transform(x)), x)
    assert np.isnan(model.transform([[np.nan, 0, 0]])[0, 0])  # as scikit-learn's


def test_clusters_are_near_scikit_learn_s():
    x, y = make_blobs(20_000, 3, centers=[[4, 4, 0], [-4, 4, 0], [0, -4, 3]], cluster_std=0.8, random_state=0)
    model = KMeans(3, random_state=1, **PRIVATE).fit(x)
    assert adjusted_rand_score(y, model.predict(x)) > 0.95
    plain = PlainKMeans(3, n_init=3, random_state=0).fit(x)
    assert model.transform(x).min(axis=1).mean() < 1.1 * plain.transform(x).min(axis=1).mean()
    assert not hasattr(model, "labels_")
    assert (KMeans(3, random_state=1, **PRIVATE).fit_predict(x) == model.predict(x)).all()


def test_one_column_s_unit_does_not_matter_where_bounds_say_it():
    """Columns in grams and in tonnes train the same model."""
    x, y = blobs()
    factor = np.array([1e6, 1.0, 1e-6])
    one = LogisticRegression(classes=(0, 1), random_state=1, **PRIVATE).fit(x, y)
    bounds = (-6 * factor, 6 * factor)
    other = LogisticRegression(classes=(0, 1), random_state=1, **PRIVATE | {"bounds": bounds}).fit(x * factor, y)
    assert np.allclose(one.predict_proba(x), other.predict_proba(x * factor))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_served_model_answers_as_the_estimator_does(classes, tmp_path):
    x, y = blobs(classes=classes, seed=3)
    x = np.concatenate([x, 10 * x[:50]])  # some beyond the bounds
    model = LogisticRegression(classes=tuple(range(classes)), **PRIVATE).fit(x, np.append(y, y[:50]))
    key = create_signing_key(tmp_path / "signing.pem", SystemRandomness())
    artifact_of(model, ["a", "b", "c"]).save(tmp_path / "model.confide", key)
    served = load(tmp_path / "model.confide", trust=key.public)
    answers = served.graph.apply(served.preprocess.apply(dict(zip("abc", x.T, strict=True))))
    scores = model.decision_function(x).reshape(len(x), -1)
    assert np.allclose(answers, 1 / (1 + np.exp(-scores)), atol=1e-9)
    assert served.label == model.privacy_
    assert artifact_of(model).preprocess.columns == ("x0", "x1", "x2")
    with pytest.raises(ModelError):
        artifact_of(model, ["a", "b"])


# --- what is spent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_a_fit_spends_what_it_says_and_its_label_holds(estimator):
    x, y = blobs(300)
    budget = Budget(1.0, 1e-5)
    own = {"epsilon": None, "delta": None, "bounds": (-6, 6), "random_state": None, "budget": budget, "share": 0.5}
    model = sklearn.base.clone(estimator).set_params(**own).fit(x, y)
    assert model.privacy_.epsilon == pytest.approx(budget.spent, rel=1e-3)
    assert (model.privacy_.mu / budget.mu) ** 2 == pytest.approx(0.5, rel=1e-6)
    assert not model.privacy_.voided
    assert model.budget is budget  # clone has not doubled it
    sklearn.base.clone(model).fit(x, y)
    assert 0.99 < budget.spent <= 1.0
    with pytest.raises(PrivacyError, match="left"):
        model.fit(x, y)


def test_one_budget_pays_for_queries_and_models():
    x, y = blobs()
    with Budget(1.0, 1e-5) as budget:
        count(y, budget=budget, share=0.1)
        pipeline = make_pipeline(
            StandardScaler(budget=budget, share=0.3, bounds=(-6, 6)),
            LogisticRegression(budget=budget, share=0.6, bounds=(-4, 4), classes=(0, 1)),
        ).fit(x, y)
    assert pipeline.score(x, y) > 0.85
    assert 0.99 < budget.spent <= 1.0


def test_cross_validation_spends_once_a_fold_and_is_refused_in_the_end():
    x, y = blobs(400)
    model = LogisticRegression(budget=Budget(1.0, 1e-5), share=0.3, bounds=(-6, 6), classes=(0, 1))
    with pytest.raises(PrivacyError, match="left"):
        cross_val_score(model, x, y, cv=4, error_score="raise")
    assert len(model.budget.releases) == 6  # three folds: a middle and a descent each


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_what_does_not_fit_is_refused_before_a_record_is_looked_at(estimator):
    class Records:
        def __array__(self, *_, **__):
            raise AssertionError("looked at")

    budget = Budget(1.0, 1e-5)
    count([], budget=budget, share=0.9)
    own = {"epsilon": None, "delta": None, "budget": budget, "share": 0.2}
    with pytest.raises(PrivacyError, match="left"):
        sklearn.base.clone(estimator).set_params(**own).fit(Records(), Records())
    assert len(budget.releases) == 1


def test_a_seed_repeats_a_fit_and_voids_its_label():
    x, y = blobs(300)
    one, other = (LogisticRegression(classes=(0, 1), random_state=7, **PRIVATE).fit(x, y) for _ in "ab")
    assert (one.coef_ == other.coef_).all()
    assert one.privacy_.voided
    fresh = [LogisticRegression(classes=(0, 1), **PRIVATE).fit(x, y) for _ in "ab"]
    assert (fresh[0].coef_ != fresh[1].coef_).all()
    assert not fresh[0].privacy_.voided


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_public_arguments_are_asked_for(estimator):
    x, y = blobs(50)
    for missing in ("bounds", "epsilon", *(name for name in ("classes", "y_bounds") if name in estimator.get_params())):
        with pytest.raises(UsageError, match="Expected"):
            sklearn.base.clone(estimator).set_params(**{missing: None}).fit(x, y)
    for bounds in ((4, -4), (0, np.inf), ([0, 0], [1, 1]), 3, (np.nan, 1)):
        with pytest.raises(UsageError, match="bounds"):
            sklearn.base.clone(estimator).set_params(bounds=bounds).fit(x, y)
    with pytest.raises(UsageError, match="random_state"):
        sklearn.base.clone(estimator).set_params(random_state="now").fit(x, y)


@pytest.mark.parametrize("private", [GradientBoostingClassifier, RandomForestClassifier])
def test_categories_are_refused_where_they_are_no_list_of_a_column(private):
    x, y = blobs(50)
    for categories in ({3: "ab"}, {-1: "ab"}, {"age": "ab"}, {0: ()}, {0: ("a", "a")}):
        with pytest.raises(UsageError, match="categories"):
            private(classes=(0, 1), categories=categories, **EASY).fit(x, y)


def test_what_trees_cannot_do_is_refused():
    x, y = blobs(50)
    for wrong in ({"effects": "waves"}, {"classes": (0, 1, 2)}):
        with pytest.raises(UsageError, match="two classes"):
            GradientBoostingClassifier(**{"classes": (0, 1), **EASY, **wrong}).fit(x, y)
    for wrong in ({"n_estimators": 0}, {"max_depth": 0}, {"max_depth": 13}, {"n_estimators": 1 << 20}):
        with pytest.raises(UsageError, match="Expected"):
            RandomForestClassifier(**{"classes": (0, 1), **EASY, **wrong}).fit(x, y)


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_no_records_one_record_and_wild_records_are_fitted_like_any_other(estimator):
    wild = np.array([[np.nan, 0, 0], [np.inf, 1, 1], [-np.inf, 1, 1], [1e308, -1e308, 5e-324]])
    for x in (np.zeros((0, 3)), np.ones((1, 3)), wild):
        for y in (np.zeros(len(x)), np.full(len(x), np.nan), np.full(len(x), 17.0)):
            model = sklearn.base.clone(estimator).fit(x, y)
            if hasattr(model, "predict"):
                assert len(model.predict(wild)) == 4


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
@pytest.mark.parametrize(
    "x",
    [
        np.array([["123456", "1", "2"]]),
        [123456.0],
        np.array([123456.0]),
        np.array(123456.0),
        pandas.Series([123456.0]),
        np.array([[123456j, 1, 2]]),
        np.full((1, 1, 3), 123456.0),
        [[123456.0, 1], [2]],
    ],
)
def test_no_error_shows_a_value(estimator, x):
    with pytest.raises((DataError, ValueError)) as refused:
        sklearn.base.clone(estimator).fit(x, [0])
    assert "123456" not in str(refused.value)


ODD = ("x", None, 10**400, 1j, {"a": 1}, np.datetime64("2020-01-01"), [1.0])


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_one_odd_cell_or_label_changes_nothing_of_other_records(estimator, odd):
    x, y = blobs(60)
    bare = fitted(estimator, x, y)
    cells = [*x.tolist(), [odd, 0.0, 0.0]]
    table = np.empty((61, 3), object)
    table[:] = [[*x[row]] if row < 60 else [0, 0.0, 0.0] for row in range(61)]
    table[60, 0] = odd
    found = [fitted(estimator, rows, [*y.tolist(), 0]) for rows in (cells, table)]
    if "classes" in estimator.get_params() or "y_bounds" in estimator.get_params():
        found.append(fitted(estimator, [*x.tolist(), [0.0, 0.0, 0.0]], [*y.tolist(), odd]))
    for one in found:
        assert all(np.array_equal(one[name], bare[name]) for name in bare)


def fitted(estimator, x, y):
    model = sklearn.base.clone(estimator).fit(x, y)
    return {name: value for name, value in vars(model).items() if name.endswith("_") and isinstance(value, np.ndarray)}


@pytest.mark.parametrize(
    "wrong",
    [
        KMeans(2.5, **EASY),
        KMeans("3", **EASY),
        KMeans(max_iter=1.5, **EASY),
        Ridge(alpha=-1e9, y_bounds=(0, 1), **EASY),
        Ridge(alpha="a", y_bounds=(0, 1), **EASY),
        PCA(1.5, **EASY),
        RandomForestClassifier(classes=(0, 1), n_estimators="3", **EASY),
        LogisticRegression(classes=(0, 1), expected_records=float("nan"), **EASY),
        GradientBoostingClassifier(classes=(0, 1), expected_records=-5, **EASY),
        GaussianNB(classes=(0, 1), **{**EASY, "bounds": (0, 5e-324)}),
        GaussianNB(classes=(0, "a"), **EASY),
        GaussianNB(classes=(0, 1), **{**EASY, "epsilon": "1"}),
    ],
    ids=repr,
)
def test_arguments_of_another_kind_are_refused(wrong):
    with pytest.raises(UsageError, match="Expected"):
        wrong.fit(*blobs(50))


def test_missing_targets_count_for_nothing_whatever_stands_for_them():
    x, y = blobs(200)
    bare = LinearRegression(y_bounds=(0, 1), **EASY).fit(x[:150], y[:150].astype(float))
    for missing in (np.nan, None, np.inf):
        targets = np.array([*y[:150].tolist(), *[missing] * 50], object)
        assert np.array_equal(LinearRegression(y_bounds=(0, 1), **EASY).fit(x, targets).coef_, bare.coef_)


def test_records_that_count_for_nothing_change_nothing():
    x, y = blobs(200)
    extra = np.array([[np.nan, 0, 0], [np.inf, 1, 1]])
    for estimator in ALL:
        one = sklearn.base.clone(estimator).fit(x, y)
        other = sklearn.base.clone(estimator).fit(np.concatenate([x, extra]), np.append(y, [1, 0]))
        for name in (name for name in vars(one) if name.endswith("_") and name != "privacy_"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
