"""Estimators of scikit-learn as graphs; scikit-learn is the oracle."""

import json
import warnings

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, StandardScaler

from confide.errors import ModelError
from confide.model.graph import Trees
from confide.model.onnx import from_onnx, to_onnx
from confide.model.sklearn_import import from_sklearn
from confide.model.tree_import import from_xgboost
from sklearn import ensemble, linear_model, neural_network, svm, tree

X, Y3 = make_classification(300, 6, n_informative=5, n_redundant=0, n_classes=3, random_state=0)
X = np.float64(np.float32(X))  # trees of scikit-learn round to float32
Y = np.where(Y3 > 0, "yes", "no")
REAL = X @ np.arange(6) + 0.1 * X[:, 0] ** 2
SEED = {"random_state": 0}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


CLASSIFIERS = [
    linear_model.LogisticRegression(),
    neural_network.MLPClassifier((7, 5), activation="relu", max_iter=30, **SEED),
    neural_network.MLPClassifier((4,), activation="tanh", max_iter=30, **SEED),
    neural_network.MLPClassifier((4,), activation="logistic", max_iter=30, **SEED),
    tree.DecisionTreeClassifier(max_depth=4, **SEED),
    tree.DecisionTreeClassifier(max_leaf_nodes=6, **SEED),
    ensemble.RandomForestClassifier(7, max_depth=4, **SEED),
    ensemble.ExtraTreesClassifier(5, max_depth=4, **SEED),
    ensemble.GradientBoostingClassifier(n_estimators=7, **SEED),
    ensemble.HistGradientBoostingClassifier(max_iter=7, **SEED),
    make_pipeline(StandardScaler(), linear_model.LogisticRegression()),
    make_pipeline(MinMaxScaler(), ensemble.RandomForestClassifier(5, max_depth=3, **SEED)),
]
REGRESSORS = [
    linear_model.LinearRegression(),
    linear_model.Ridge(),
    linear_model.Lasso(),
    linear_model.SGDRegressor(**SEED),
    svm.LinearSVR(**SEED),
    neural_network.MLPRegressor(hidden_layer_sizes=(5,), max_iter=30, **SEED),
    tree.DecisionTreeRegressor(max_depth=4, **SEED),
    ensemble.RandomForestRegressor(6, max_depth=4, **SEED),
    ensemble.GradientBoostingRegressor(n_estimators=7, **SEED),
    ensemble.HistGradientBoostingRegressor(max_iter=7, **SEED),
    make_pipeline(StandardScaler(), linear_model.Ridge()),
]


def fitted(estimator, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # networks that did not converge
        return estimator.fit(X, y)


def name_of(estimator):
    return "-".join(type(step).__name__ for _, step in getattr(estimator, "steps", [("", estimator)]))


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_two_classes(estimator):
    model = fitted(estimator, Y)
    graph = from_sklearn(model)
    assert graph.classes == ("no", "yes")
    np.testing.assert_allclose(graph.apply(X)[:, 0], model.predict_proba(X)[:, 1], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(from_onnx(to_onnx(graph)).apply(X), graph.apply(X))


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_three_classes(estimator):
    model = fitted(estimator, Y3)
    graph = from_sklearn(model)
    assert graph.classes == ("0", "1", "2")
    wanted = model.predict_proba(X)
    scores = graph.apply(X)
    if not np.allclose(scores, wanted):  # logits, then
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "estimator",
    [
        linear_model.SGDClassifier(**SEED),
        svm.LinearSVC(**SEED),
        linear_model.RidgeClassifier(),
        linear_model.Perceptron(),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("classes", [2, 3])
def test_margins(estimator, classes):
    model = fitted(estimator, Y if classes == 2 else Y3)
    scores = from_sklearn(model).apply(X)
    wanted = model.decision_function(X).reshape(len(X), -1)
    np.testing.assert_allclose(scores, sigmoid(wanted) if classes == 2 else wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", REGRESSORS, ids=name_of)
def test_numbers(estimator):
    model = fitted(estimator, REAL)
    np.testing.assert_allclose(from_sklearn(model).apply(X)[:, 0], model.predict(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "estimator",
    [linear_model.PoissonRegressor(), linear_model.GammaRegressor(), linear_model.TweedieRegressor(power=1.5)],
    ids=name_of,
)
def test_positive_numbers_come_as_their_logarithm(estimator):
    model = fitted(estimator, np.exp(REAL / 20))
    np.testing.assert_allclose(np.exp(from_sklearn(model).apply(X)[:, 0]), model.predict(X), rtol=1e-9)


@pytest.mark.parametrize("estimator", [CLASSIFIERS[0], CLASSIFIERS[6], CLASSIFIERS[10], CLASSIFIERS[11]], ids=name_of)
def test_features_that_a_preparation_scales(estimator):
    model = fitted(estimator, Y)
    low, high = X.min(axis=0) - 0.5, X.max(axis=0) + 1
    graph = from_sklearn(model, low=low, high=high)
    scaled = 2 * (X - low) / (high - low) - 1
    np.testing.assert_allclose(graph.apply(scaled)[:, 0], model.predict_proba(X)[:, 1], rtol=1e-9, atol=1e-9)


def test_a_tree_of_one_leaf():
    model = fitted(tree.DecisionTreeRegressor(max_depth=1, min_samples_leaf=200), REAL)
    graph = from_sklearn(model)
    assert isinstance(graph.layers[0], Trees)
    np.testing.assert_allclose(graph.apply(X)[:, 0], model.predict(X))


@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (linear_model.LogisticRegression(), "Expected a fitted LogisticRegression"),
        (svm.SVC(), "got SVC"),
        (make_pipeline(PolynomialFeatures(), linear_model.Ridge()).fit(X, REAL), "StandardScaler or MinMaxScaler"),
        (tree.DecisionTreeRegressor(max_depth=2).fit(X, np.stack([REAL, REAL], axis=1)), "one target"),
        (ensemble.GradientBoostingRegressor(init=linear_model.Ridge()).fit(X, REAL), "starts from a constant"),
    ],
)
def test_what_is_no_graph_is_refused(estimator, text):
    with pytest.raises(ModelError, match=text):
        from_sklearn(estimator)


def xgboost(**changes):
    """Return the JSON of two stumps, as XGBoost writes it: x < t goes left."""
    one = {
        "left_children": [1, -1, -1],
        "right_children": [2, -1, -1],
        "split_indices": [1, 0, 0],
        "split_conditions": [0.5, -0.25, 0.75],
        "split_type": [0, 0, 0],
        "tree_param": {"size_leaf_vector": "1", "num_nodes": "3"},
    }
    two = one | {"split_indices": [0, 0, 0], "split_conditions": [-1.0, 2.0, 0.0]}
    learner = {
        "gradient_booster": {"name": "gbtree", "model": {"trees": [one, two], "tree_info": [0, 0]}},
        "learner_model_param": {"num_feature": "3", "num_class": "0", "base_score": "[2.5E-1]"},
        "objective": {"name": "binary:logistic"},
    }
    return json.dumps({"learner": learner | changes})


def test_xgboosts_own_json():
    x = np.array([[-2.0, 0.4, 0.0], [-2.0, 0.5, 0.0], [-1.0, 0.6, 0.0]])
    margins = np.log(0.25 / 0.75) + np.array([1.75, 2.75, 0.75])
    graph = from_xgboost(xgboost(), classes=("a", "b"))
    np.testing.assert_allclose(graph.apply(x)[:, 0], sigmoid(margins))
    real = from_xgboost(xgboost(objective={"name": "reg:squarederror"}).encode())
    np.testing.assert_allclose(real.apply(x)[:, 0], 0.25 + np.array([1.75, 2.75, 0.75]))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        b"\xff",
        "[" * 100_000,
        xgboost(gradient_booster={"name": "gblinear"}),
        xgboost(objective=3),
    ],
)
def test_json_that_is_none_is_refused(body):
    with pytest.raises(ModelError, match="Expected"):
        from_xgboost(body)
