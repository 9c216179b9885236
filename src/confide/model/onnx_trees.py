"""Trees as ONNX: a TreeEnsemble of ai.onnx.ml 5, then an Add of the offset.

That operator computes in float64 where its input does, as a graph does. Its nodes count their children as nodes or as
leaves by a flag, and a tree has one node at least.
"""

# `onnx` builds its message classes at run time, and its stubs leave their fields untyped.
# pyright: basic

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.trees import MOST_NODES, Trees

if TYPE_CHECKING:
    import onnx

DOMAIN, VERSION = "ai.onnx.ml", 5

#: What a TreeEnsemble may carry, with AttributeProto's type of it: INT = 2, TENSOR = 4, INTS = 7.
ATTRIBUTES: Mapping[str, int] = {
    "aggregate_function": 2,
    "leaf_targetids": 7,
    "leaf_weights": 4,
    "n_targets": 2,
    "nodes_falseleafs": 7,
    "nodes_falsenodeids": 7,
    "nodes_featureids": 7,
    "nodes_missing_value_tracks_true": 7,
    "nodes_modes": 4,
    "nodes_splits": 4,
    "nodes_trueleafs": 7,
    "nodes_truenodeids": 7,
    "post_transform": 2,
    "tree_roots": 7,
}

#: Questions from the top of a foreign tree to a leaf, and outputs: each question is a step for every record.
_MOST_DEPTH = 64
_MOST_OUTPUTS = 1024

_NOT_ABOVE = 0  # the mode of a node that goes the true way if x is not above its split
_SUM, _NONE = 1, 0  # of aggregate_function and post_transform


def to_nodes(trees: Trees, tensor: str, out: str, number: int, onnx: Any) -> tuple[list[Any], list[Any]]:
    """Return (nodes, initializers) that take `tensor` to `out`."""
    make, raw = onnx.helper, onnx.numpy_helper.from_array
    alone = trees.roots < 0  # a tree of one leaf gets a node, whose two sides are that leaf
    left, right = (np.concatenate([side, trees.roots[alone]]) for side in (trees.left, trees.right))
    roots = trees.roots.copy()
    roots[alone] = len(trees.feature) + np.arange(alone.sum())
    padding = np.zeros(int(alone.sum()))
    targets = np.zeros(len(trees.value), np.int64)
    for output in range(len(trees.offset)):
        targets[_leaves_below(trees, output)] = output
    sums = f"trees{number}"
    ensemble = make.make_node(
        "TreeEnsemble",
        [tensor],
        [sums],
        name=sums,
        domain=DOMAIN,
        aggregate_function=_SUM,
        post_transform=_NONE,
        n_targets=len(trees.offset),
        tree_roots=roots.tolist(),
        nodes_featureids=np.concatenate([trees.feature, padding.astype(np.int64)]).tolist(),
        nodes_splits=raw(np.concatenate([trees.threshold, padding]).astype("<f8"), "splits"),
        nodes_modes=raw(np.full(len(left), _NOT_ABOVE, np.uint8), "modes"),
        nodes_truenodeids=np.where(left < 0, -1 - left, left).tolist(),
        nodes_trueleafs=(left < 0).astype(np.int64).tolist(),
        nodes_falsenodeids=np.where(right < 0, -1 - right, right).tolist(),
        nodes_falseleafs=(right < 0).astype(np.int64).tolist(),
        leaf_targetids=targets.tolist(),
        leaf_weights=raw(trees.value.astype("<f8"), "weights"),
    )
    offset = f"offset{number}"
    add = make.make_node("Add", [sums, offset], [out], name=f"add{number}")
    return [ensemble, add], [raw(trees.offset.astype("<f8"), offset)]


def _leaves_below(trees: Trees, output: int) -> NDArray[np.int64]:
    """Return the leaves of the trees that add to an output."""
    at = trees.roots[trees.outputs == output]
    found = [at[at < 0]]
    while len(at := at[at >= 0]):
        at = np.concatenate([trees.left[at], trees.right[at]])
        found.append(at[at < 0])
    return -1 - np.concatenate(found)


def from_node(node: onnx.NodeProto, width: int, onnx: Any) -> Trees:
    """Return the trees of a node whose attributes have known names and types, without an offset.

    Args:
        width: how many features the input has; 0 if it does not say.

    Raises:
        ModelError: it is no sum of trees that compare for "not above", or they are too many or damaged.
    """
    told = {attribute.name: attribute for attribute in node.attribute}
    whole = {
        name: np.array(told[name].ints, np.int64) for name, kind in ATTRIBUTES.items() if kind == 7 and name in told
    }
    number = {name: told[name].i for name, kind in ATTRIBUTES.items() if kind == 2 and name in told}
    if number.get("aggregate_function", _SUM) != _SUM or number.get("post_transform", _NONE) != _NONE:
        raise ModelError("Expected a TreeEnsemble that adds its trees up, without a transform; export it so")
    feature, roots = (
        whole.get("nodes_featureids", np.zeros(0, np.int64)),
        whole.get("tree_roots", np.zeros(0, np.int64)),
    )
    nodes, targets = len(feature), whole.get("leaf_targetids", np.zeros(0, np.int64))
    if not 0 < nodes + len(targets) <= MOST_NODES or not 0 < number.get("n_targets", 1) <= min(
        max(1, len(targets)), _MOST_OUTPUTS
    ):
        raise ModelError(
            f"Expected a TreeEnsemble of 1 to {MOST_NODES} nodes and leaves, of at most {_MOST_OUTPUTS} outputs and no "
            "output without a leaf"
        )
    tensors = {name: _values(told.get(name), count, onnx) for name, count in _counts(nodes, len(targets)).items()}
    if (tensors["nodes_modes"] != _NOT_ABOVE).any():
        raise ModelError("Expected a TreeEnsemble whose nodes all compare for <= (mode 0); export it so")
    children = [_children(whole, side, nodes, len(targets)) for side in ("true", "false")]
    if not ((roots >= 0) & (roots < nodes)).all() or (nodes and (feature.min() < 0 or feature.max() >= 1 << 20)):
        raise ModelError("Expected a TreeEnsemble with roots and features that there are")
    trees = Trees(
        features=width or int(feature.max(initial=0)) + 1,
        roots=roots,
        outputs=np.zeros(len(roots), np.int64),
        feature=feature,
        threshold=tensors["nodes_splits"],
        left=children[0],
        right=children[1],
        value=tensors["leaf_weights"],
        offset=np.zeros(number.get("n_targets", 1)),
    )
    return _with_outputs(trees, targets)


def _counts(nodes: int, leaves: int) -> dict[str, int]:
    return {"nodes_splits": nodes, "nodes_modes": nodes, "leaf_weights": leaves}


def _values(attribute: Any, count: int, onnx: Any) -> NDArray[np.float64]:
    """Return the numbers of a tensor in an attribute, once its shape agrees with what there is."""
    if attribute is None:
        raise ModelError("Expected a TreeEnsemble with splits, modes and weights")
    tensor, kinds = (
        attribute.t,
        {1: ("<f4", tuple(attribute.t.float_data)), 11: ("<f8", tuple(attribute.t.double_data))},
    )
    kinds[2] = ("u1", tuple(tensor.int32_data))
    if tensor.data_type not in kinds or list(tensor.dims) != [count] or tensor.external_data:
        raise ModelError("Expected a TreeEnsemble whose splits, modes and weights fit its nodes and leaves")
    kind, listed = kinds[tensor.data_type]
    if len(tensor.raw_data) not in (0, count * np.dtype(kind).itemsize) or (
        not tensor.raw_data and len(listed) != count
    ):
        raise ModelError("Expected a TreeEnsemble whose tensors fill their shapes")
    found = np.frombuffer(tensor.raw_data, kind) if tensor.raw_data else np.array(listed)
    return found.astype(np.float64)


def _children(whole: dict[str, NDArray[np.int64]], side: str, nodes: int, leaves: int) -> NDArray[np.int64]:
    places, leafs = whole.get(f"nodes_{side}nodeids"), whole.get(f"nodes_{side}leafs")
    if places is None or leafs is None or len(places) != nodes or len(leafs) != nodes:
        raise ModelError("Expected a TreeEnsemble with two children for each node")
    within = np.where(leafs != 0, (places >= 0) & (places < leaves), (places >= 0) & (places < nodes))
    if not within.all():
        raise ModelError("Expected a TreeEnsemble whose children there are")
    return np.where(leafs != 0, -1 - places, places)


def _with_outputs(trees: Trees, targets: NDArray[np.int64]) -> Trees:
    """Return `trees` with the output of each, which all of its leaves must share."""
    outputs = np.zeros(len(trees.roots), np.int64)
    owner = np.arange(len(trees.roots))
    at = trees.roots
    seen: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    walked, depth = 0, 0
    while len(at):
        leaf = at < 0
        seen.append((owner[leaf], targets[-1 - at[leaf]]))
        owner, at = owner[~leaf], at[~leaf]
        walked += len(at)
        depth += 1
        if walked > MOST_NODES:  # nodes with two parents
            raise ModelError("Expected a TreeEnsemble of trees: no node below two others")
        if depth > _MOST_DEPTH + 1:
            raise ModelError(
                f"Expected trees of at most {_MOST_DEPTH} questions one below the other; take shallower ones"
            )
        owner, at = np.repeat(owner, 2), np.stack([trees.left[at], trees.right[at]], axis=1).ravel()
    owners, found = (np.concatenate(part) for part in zip(*seen, strict=True))
    outputs[owners] = found
    if not ((found >= 0) & (found < len(trees.offset))).all() or (outputs[owners] != found).any():
        raise ModelError("Expected a TreeEnsemble whose trees each add to one output; export one tree for each")
    return replace(trees, outputs=outputs)
