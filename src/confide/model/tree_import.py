"""Trees of other libraries, joined into one layer, and XGBoost's own JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.graph import Graph, Sigmoid
from confide.model.trees import Trees

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """One tree as libraries keep it: nodes and leaves in one set of arrays, the root first.

    Args:
        feature: int64, shape (places,): what a node compares.
        threshold: float64, shape (places,): x not above it goes left.
        left, right: int64, shape (places,): children, below 0 for a leaf.
        value: float64, shape (places,): a leaf's.
        output: the column that it adds to.
    """

    feature: Indices
    threshold: Matrix
    left: Indices
    right: Indices
    value: Matrix
    output: int


def joined(trees: Sequence[Tree], features: int, offset: Matrix) -> Trees:
    """Return trees as one layer. Raises ModelError if a child comes before its parent."""
    parts: list[tuple[Indices, Matrix, Indices, Indices, Matrix, int]] = []
    nodes = leaves = 0
    for tree in trees:
        leaf = tree.left < 0
        place = np.where(leaf, -(leaves + np.cumsum(leaf)), nodes + np.cumsum(~leaf) - 1)  # -1 - number of a leaf
        inner = ~leaf
        left, right = place[tree.left[inner]], place[tree.right[inner]]
        parts.append((tree.feature[inner], tree.threshold[inner], left, right, tree.value[leaf], int(place[0])))
        nodes, leaves = nodes + int(inner.sum()), leaves + int(leaf.sum())
    feature, threshold, left, right, value, roots = zip(*parts, strict=True)
    return Trees(
        features=features,
        roots=np.array(roots, np.int64),
        outputs=np.array([tree.output for tree in trees], np.int64),
        feature=np.concatenate(feature).astype(np.int64),
        threshold=np.concatenate(threshold).astype(np.float64),
        left=np.concatenate(left).astype(np.int64),
        right=np.concatenate(right).astype(np.int64),
        value=np.concatenate(value).astype(np.float64),
        offset=offset,
    )


def below(threshold: Matrix) -> Matrix:
    """Return the largest float64 below each threshold: x < t is x <= that, so that "below" reads as "not above"."""
    return np.nextafter(threshold, -np.inf)


def rescaled(trees: Trees, low: Matrix, high: Matrix) -> Trees:
    """Return trees for features that were mapped from [low, high] to [-1, 1].

    A record within float64's rounding of a threshold may go the other way.
    """
    half = (high - low) / 2
    middle = (high + low) / 2
    return replace(trees, threshold=(trees.threshold - middle[trees.feature]) / half[trees.feature])


def from_xgboost(model: Any, *, classes: tuple[str, ...] = ()) -> Graph:
    """Return a boosted model of XGBoost: its trees, and a sigmoid for two classes.

    Of several classes the outputs are the margins: the largest is the class, softmax their probabilities. Of a count
    or another positive target (objectives with a log link) the output is the logarithm of the prediction.

    Args:
        model: an `XGBClassifier`, `XGBRegressor` or `Booster`, or the JSON that `save_model("model.json")` writes, as
            text or bytes; it may come from anybody.
        classes: names of the outcomes.

    Raises:
        ModelError: it is no such JSON, or it has linear, dropped, categorical or multi-output trees.
    """
    body: Any = model
    if not isinstance(model, str | bytes | bytearray):
        booster = model.get_booster() if hasattr(model, "get_booster") else model
        body = bytes(booster.save_raw(raw_format="json"))
    try:
        learner = json.loads(body)["learner"]
        return _xgboost(learner, classes)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RecursionError, UnicodeDecodeError):
        raise ModelError("Expected the JSON of an XGBoost model; write it with save_model('model.json')") from None


def _xgboost(learner: Any, classes: tuple[str, ...]) -> Graph:
    booster = learner["gradient_booster"]
    if booster["name"] != "gbtree":
        raise ModelError(f"Expected trees of XGBoost (booster='gbtree'), got {str(booster['name'])[:20]!r}")
    settings = learner["learner_model_param"]
    features, count = int(settings["num_feature"]), max(1, int(settings.get("num_class", 0)))
    objective = str(learner["objective"]["name"])
    start = np.array(json.loads(str(settings["base_score"])), np.float64).ravel()
    if objective in ("binary:logistic", "reg:logistic"):
        start = np.log(start / (1 - start))  # the margin of a probability
    elif objective in ("count:poisson", "reg:gamma", "reg:tweedie"):
        start = np.log(start)
    offset = np.broadcast_to(start, (count,)).copy()
    kept = booster["model"]
    trees = [_xgboost_tree(tree, int(output)) for tree, output in zip(kept["trees"], kept["tree_info"], strict=True)]
    layer = joined(trees, features, offset)
    sigmoid = objective in ("binary:logistic", "reg:logistic")
    return Graph((layer, Sigmoid()) if sigmoid else (layer,), classes)


def _xgboost_tree(tree: Any, output: int) -> Tree:
    if any(tree.get("split_type", [])) or int(tree["tree_param"].get("size_leaf_vector", 0)) > 1:
        raise ModelError("Expected trees of numbers with one output each; encode categories as columns of 0 and 1")
    left, right = (np.array(tree[side], np.int64) for side in ("left_children", "right_children"))
    split = np.array(tree["split_conditions"], np.float32).astype(np.float64)  # a leaf's value stands here too
    if not all(math.isfinite(each) for each in split):
        raise ModelError("Expected finite thresholds and values")
    return Tree(np.array(tree["split_indices"], np.int64), below(split), left, right, split, output)
