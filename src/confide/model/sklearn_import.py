"""From fitted estimators of scikit-learn to a graph. scikit-learn itself is not imported: estimators say what they are.

    LogisticRegression, SGDClassifier, LinearSVC, RidgeClassifier, Perceptron    Linear, and Sigmoid of two classes
    LinearRegression, Ridge, Lasso, ElasticNet, SGDRegressor, LinearSVR          Linear
    PoissonRegressor, GammaRegressor, TweedieRegressor     Linear: the logarithm of the prediction
    MLPClassifier, MLPRegressor                            Linear and Relu, Tanh or Sigmoid
    DecisionTree, ExtraTree, RandomForest, ExtraTrees, GradientBoosting, HistGradientBoosting    Trees
    Pipeline of StandardScaler or MinMaxScaler and one of these    the scale merged into it

Of two classes, one output stands for the second. Of several, outputs are scores whose largest is the class: margins of
linear and boosted models, logits of networks, probabilities of trees and forests.
"""

# Estimators are read by their attributes, which scikit-learn leaves untyped.
# pyright: basic

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.folded import Scale, folded
from confide.model.graph import Graph, Layer, Linear, Relu, Sigmoid, Tanh
from confide.model.tree_import import Tree, from_xgboost, joined, rescaled
from confide.model.trees import Trees

Matrix = NDArray[np.float64]

_ACTIVATIONS: Mapping[str, Callable[[], Layer]] = {"relu": Relu, "tanh": Tanh, "logistic": Sigmoid}


def from_sklearn(
    estimator: Any, *, low: Matrix | None = None, high: Matrix | None = None, classes: tuple[str, ...] | None = None
) -> Graph:
    """Return a fitted estimator as a graph.

    A generalised linear model of counts or positive numbers (Poisson, Gamma, Tweedie with a log link) gives the
    logarithm of its prediction: apply `numpy.exp` to what comes back.

    Trees of scikit-learn round a record to float32 before they compare it, a graph does not: a record between a
    threshold and its float32 neighbour may go the other way.

    Args:
        estimator: one of those above, or XGBoost's.
        low, high: bounds of the raw columns, shape (columns,), where the graph's features shall be columns that a
            preparation has mapped from [low, high] to [-1, 1] (`preprocess.Scale`); None takes raw columns.
        classes: names of the outcomes; None takes the estimator's own.

    Raises:
        ModelError: it is not fitted, or no such estimator.
    """
    steps = [step for _, step in estimator.steps] if type(estimator).__name__ == "Pipeline" else [estimator]
    *before, last = steps
    rule = _RULES.get(type(last).__name__)
    if rule is None:
        raise ModelError(
            f"Expected a linear model, network, tree or forest of scikit-learn, got {type(last).__name__[:40]}; "
            "take one of those that docs/models.md lists"
        )
    try:
        layers = rule(last)
        names = tuple(map(str, getattr(last, "classes_", ()))) if classes is None else classes
        scales = [_scaler(step) for step in before]
    except AttributeError:
        raise ModelError(f"Expected a fitted {type(last).__name__}; call its fit first") from None
    if low is not None and high is not None:
        scales = [Scale((high - low) / 2, (high + low) / 2, 1), *scales]
    first, *rest = layers
    if isinstance(first, Trees):
        for scale in reversed(scales):
            first = rescaled(first, scale.shift - scale.factor, scale.shift + scale.factor)
        return Graph((first, *rest), names)
    return Graph(folded([*scales, *layers]), names)


def _scaler(step: Any) -> Scale:
    match type(step).__name__:
        case "StandardScaler":
            factor = 1 / step.scale_ if step.scale_ is not None else np.ones(step.n_features_in_)
            mean = step.mean_ if step.mean_ is not None and step.with_mean else np.zeros(step.n_features_in_)
            return Scale(np.asarray(factor, np.float64), np.asarray(-mean * factor, np.float64), 1)
        case "MinMaxScaler" if not step.clip:
            return Scale(np.asarray(step.scale_, np.float64), np.asarray(step.min_, np.float64), 1)
        case name:
            raise ModelError(f"Expected StandardScaler or MinMaxScaler before the estimator, got {name[:40]}")


def _linear(estimator: Any) -> tuple[Layer, ...]:
    weight = np.atleast_2d(np.asarray(estimator.coef_, np.float64))
    bias = np.broadcast_to(np.asarray(estimator.intercept_, np.float64).ravel(), weight.shape[:1]).copy()
    return (Linear(weight, bias),)


def _classifier(estimator: Any) -> tuple[Layer, ...]:
    layers = _linear(estimator)
    return (*layers, Sigmoid()) if len(estimator.classes_) == 2 else layers


def _network(estimator: Any) -> tuple[Layer, ...]:
    make = _ACTIVATIONS.get(estimator.activation)
    layers: list[Layer] = []
    for weight, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        if layers and make is not None:
            layers.append(make())
        layers.append(Linear(np.ascontiguousarray(np.asarray(weight, np.float64).T), np.asarray(bias, np.float64)))
    return (*layers, Sigmoid()) if estimator.out_activation_ == "logistic" else tuple(layers)


# --- trees ------------------------------------------------------------------------------------------------------------


def _from_tree(tree: Any, value: Matrix, output: int) -> Tree:
    left, right = (np.asarray(side, np.int64) for side in (tree.children_left, tree.children_right))
    feature = np.where(left < 0, 0, tree.feature).astype(np.int64)
    return Tree(feature, np.asarray(tree.threshold, np.float64), left, right, value, output)


def _forest(estimator: Any) -> tuple[Layer, ...]:
    """Return the mean of trees: of a classifier the share of each class in a leaf, of two classes the second's."""
    members = [each.tree_ for each in getattr(estimator, "estimators_", [estimator])]
    if estimator.n_outputs_ != 1:
        raise ModelError("Expected trees with one target; fit one estimator for each")
    shares = [np.asarray(tree.value[:, 0, :], np.float64) for tree in members]
    if hasattr(estimator, "classes_"):
        shares = [share / share.sum(axis=1, keepdims=True) for share in shares]
        shares = [share[:, 1:] if share.shape[1] == 2 else share for share in shares]
    outputs = shares[0].shape[1]
    trees = [
        _from_tree(tree, share[:, output] / len(members), output)
        for tree, share in zip(members, shares, strict=True)
        for output in range(outputs)
    ]
    return (joined(trees, int(estimator.n_features_in_), np.zeros(outputs)),)


def _boosted(estimator: Any) -> tuple[Layer, ...]:
    features, outputs = int(estimator.n_features_in_), estimator.estimators_.shape[1]
    if estimator.init_ != "zero" and type(estimator.init_).__name__ not in ("DummyClassifier", "DummyRegressor"):
        raise ModelError("Expected boosting that starts from a constant; leave init out")
    start = estimator._raw_predict_init(np.zeros((1, features), np.float32)).ravel()
    trees = [
        _from_tree(member.tree_, estimator.learning_rate * member.tree_.value[:, 0, 0], output)
        for stage in estimator.estimators_
        for output, member in enumerate(stage)
    ]
    layer = joined(trees, features, np.broadcast_to(start, (outputs,)).astype(np.float64))
    if hasattr(estimator, "classes_") and outputs == 1:
        if estimator.loss != "log_loss":
            raise ModelError("Expected boosting by loss='log_loss' of two classes")
        return layer, Sigmoid()
    return (layer,)


def _histogram_boosted(estimator: Any) -> tuple[Layer, ...]:
    trees: list[Tree] = []
    for stage in estimator._predictors:
        for output, predictor in enumerate(stage):
            nodes = predictor.nodes
            leaf = nodes["is_leaf"].astype(bool)
            if nodes["is_categorical"][~leaf].any():
                raise ModelError("Expected trees of numbers; encode categories as columns of 0 and 1")
            left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
            feature = np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64)
            split = np.where(leaf, 0.0, np.minimum(nodes["num_threshold"], np.finfo(np.float64).max))
            trees.append(Tree(feature, split, left, right, nodes["value"].astype(np.float64), output))
    offset = np.asarray(estimator._baseline_prediction, np.float64).ravel()
    layer = joined(trees, int(estimator.n_features_in_), offset)
    two = hasattr(estimator, "classes_") and len(offset) == 1
    return (layer, Sigmoid()) if two else (layer,)


def _xgboost(estimator: Any) -> tuple[Layer, ...]:
    return from_xgboost(estimator).layers


_RULES: Mapping[str, Callable[[Any], tuple[Layer, ...]]] = {
    **dict.fromkeys(
        ("LogisticRegression", "LogisticRegressionCV", "SGDClassifier", "LinearSVC", "RidgeClassifier", "Perceptron"),
        _classifier,
    ),
    **dict.fromkeys(
        ("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "SGDRegressor", "LinearSVR"),
        _linear,
    ),
    **dict.fromkeys(("PoissonRegressor", "GammaRegressor", "TweedieRegressor"), _linear),
    **dict.fromkeys(("MLPClassifier", "MLPRegressor"), _network),
    **dict.fromkeys(
        (
            *("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"),
            *("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"),
        ),
        _forest,
    ),
    **dict.fromkeys(("GradientBoostingClassifier", "GradientBoostingRegressor"), _boosted),
    **dict.fromkeys(("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"), _histogram_boosted),
    **dict.fromkeys(("XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor"), _xgboost),
}
