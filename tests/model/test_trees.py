"""Trees as a layer: against a walk written out, and as ONNX against onnxruntime, which is not ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from confide.errors import ModelError
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.onnx import from_onnx, to_onnx
from confide.model.trees import Trees, perfect
from confide.train.local import flatten, scores_by_record, unflatten


def grown(trees: int, depth: int, features: int, outputs: int, seed: int) -> Trees:
    """Return perfect trees with drawn nodes."""
    rng = np.random.default_rng(seed)
    empty = perfect(trees, depth, features=features, outputs=outputs)
    nodes, leaves = len(empty.feature), len(empty.value)
    return replace(
        empty,
        feature=rng.integers(0, features, nodes),
        threshold=rng.uniform(-1, 1, nodes),
        value=rng.normal(size=leaves),
        offset=rng.normal(size=outputs),
    )


#: Two trees of different shapes: a stump over a chain, and a single leaf; nodes of two trees interleaved.
CROOKED = Trees(
    features=3,
    roots=np.array([1, 0, -5]),
    outputs=np.array([0, 1, 0]),
    feature=np.array([2, 0, 1]),
    threshold=np.array([0.5, 0.0, -0.25]),
    left=np.array([-1, 2, -3]),
    right=np.array([-2, -2, -4]),
    value=np.array([1.0, 2.0, 4.0, 8.0, 16.0]),
    offset=np.array([0.5, -0.5]),
)


def walked(trees: Trees, row: list[float]) -> list[float]:
    """Walk one record down every tree: the definition."""
    sums = trees.offset.tolist()
    for root, output in zip(trees.roots.tolist(), trees.outputs.tolist(), strict=True):
        at = root
        while at >= 0:
            at = int(trees.left[at] if row[trees.feature[at]] <= trees.threshold[at] else trees.right[at])
        sums[output] += float(trees.value[-1 - at])
    return sums


CASES = [
    grown(5, 3, 4, 1, 1),
    grown(7, 2, 3, 3, 2),
    grown(1, 1, 1, 1, 3),
    replace(CROOKED, outputs=np.array([0, 0, 1])),
]


class TestApply:
    @pytest.mark.parametrize("trees", [*CASES, CROOKED], ids=repr)
    def test_every_record_reaches_the_leaves_that_a_walk_reaches(self, trees: Trees):
        x = np.random.default_rng(0).uniform(-1, 1, (50, trees.features))
        assert np.allclose(trees.apply(x), [walked(trees, row) for row in x.tolist()], rtol=0, atol=1e-12)

    def test_a_value_on_the_threshold_goes_left(self):
        trees = replace(perfect(1, 1, features=1), threshold=np.array([0.25]), value=np.array([1.0, 2.0]))
        assert trees.apply(np.array([[0.25], [np.nextafter(0.25, 1)]])).ravel().tolist() == [1.0, 2.0]

    def test_a_row_does_not_depend_on_the_others(self):
        trees = grown(300, 4, 5, 1, 9)
        x = np.random.default_rng(1).uniform(-1, 1, (40, 5))
        graph = Graph((trees, Sigmoid()))
        alone = np.concatenate([scores_by_record(graph, row[None]) for row in x])
        assert (alone == scores_by_record(graph, x)).all()

    def test_no_record_is_no_row(self):
        assert grown(2, 2, 3, 2, 0).apply(np.zeros((0, 3))).shape == (0, 2)

    def test_what_starts_a_training_says_nothing(self):
        assert not perfect(3, 2, features=2, outputs=2).apply(np.random.default_rng(0).uniform(-1, 1, (9, 2))).any()

    def test_its_parts_are_one_vector_and_back(self):
        graph = Graph((grown(4, 3, 5, 2, 4), Sigmoid()))
        vector = np.random.default_rng(5).integers(0, 5, graph.parameters).astype(np.float64)
        assert (flatten(unflatten(graph, vector)) == vector).all()

    def test_splits_that_change_nothing_are_not_listed(self):
        trees = perfect(2, 2, features=3)
        value = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0])
        found = list(replace(trees, value=value, feature=np.arange(6) % 3).splits())
        assert found == [(0, 0, 0.0), (1, 0, 0.0), (1, 2, 0.0)]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"left": np.array([0, 2, -3])}, "come after their node"),  # a node below itself
        ({"right": np.array([-2, -2, -9])}, "come after their node"),  # a leaf that is not there
        ({"roots": np.array([3, 0, -5])}, "come after their node"),
        ({"feature": np.array([2, 0, 3])}, "features that there are"),
        ({"outputs": np.array([0, 2, 0])}, "features that there are"),
        ({"threshold": np.array([np.nan, 0, 0])}, "finite"),
        ({"value": np.array([1.0, np.inf, 0, 0, 0])}, "finite"),
        ({"offset": np.array([np.nan, 0])}, "finite"),
        ({"threshold": np.zeros(2)}, "one feature, threshold"),
        ({"roots": np.zeros(0, np.int64), "outputs": np.zeros(0, np.int64)}, "at least one tree"),
    ],
)
def test_what_is_no_tree_is_refused(change, text):
    with pytest.raises(ModelError, match=text):
        replace(CROOKED, **change)


def test_trees_come_first_and_alone():
    trees = grown(2, 1, 3, 1, 0)
    with pytest.raises(ModelError, match="as the first layer"):
        Graph((Linear(np.ones((3, 3)), np.zeros(3)), trees))
    with pytest.raises(ModelError, match="to take 1 inputs"):
        Graph((trees, Linear(np.ones((1, 3)), np.zeros(1))))
    with pytest.raises(ModelError, match="nodes and leaves"):
        perfect(10_000, 10, features=1)


class TestOnnx:
    @pytest.mark.parametrize("trees", CASES, ids=repr)
    def test_another_runtime_computes_the_same(self, trees: Trees):
        graph = Graph((trees, Sigmoid()), ("a", "b", "c")[: max(2, len(trees.offset))])
        body = to_onnx(graph)
        onnx.checker.check_model(onnx.load_from_string(body), full_check=True)
        x = np.random.default_rng(0).uniform(-1, 1, (64, trees.features))
        theirs = onnxruntime.InferenceSession(body).run(None, {"x": x})[0]
        assert np.allclose(theirs, graph.apply(x), rtol=0, atol=1e-12)

    @given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 999))
    def test_what_is_written_is_read_back_to_the_bit(self, trees, depth, features, outputs, seed):
        graph = Graph((grown(trees, depth, features, outputs, seed), Sigmoid()))
        if trees < outputs:  # an output without a tree has no leaf that names it
            return
        read = from_onnx(to_onnx(graph))
        assert (flatten(read) == flatten(graph)).all()
        assert to_onnx(read) == to_onnx(graph)

    def test_a_tree_of_one_leaf_keeps_its_value(self):
        graph = Graph((CASES[-1],))
        x = np.random.default_rng(0).uniform(-1, 1, (20, 3))
        assert np.allclose(from_onnx(to_onnx(graph)).apply(x), graph.apply(x), rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"nodes_truenodeids": [0, 0, 0]}, "come after their node"),  # leads back to itself
            ({"nodes_truenodeids": [9, 2, 1]}, "children there are"),
            ({"nodes_featureids": [7, 0, 0]}, "features that there are"),
            ({"nodes_featureids": [-1, 0, 0]}, "features that there are"),
            ({"nodes_trueleafs": [0, 1]}, "two children for each node"),
            ({"tree_roots": [5]}, "roots and features"),
            ({"aggregate_function": 0}, "adds its trees up"),
            ({"post_transform": 1}, "without a transform"),
            ({"n_targets": 0}, "no output without a leaf"),
            ({"n_targets": 10**9}, "no output without a leaf"),
            ({"n_targets": 2000, "leaf_targetids": [0] * 4}, "at most 1024 outputs"),
            ({"leaf_targetids": [0, 0, 1, 0]}, "each add to one output"),
            ({"nodes_modes": numpy_helper.from_array(np.array([0, 4, 0], np.uint8))}, "compare for <="),
            ({"nodes_splits": numpy_helper.from_array(np.zeros(2))}, "fit its nodes and leaves"),
            ({"leaf_weights": numpy_helper.from_array(np.array([0, np.nan, 0, 0]))}, "finite"),
            ({"nodes_hitrates": [1]}, "unknown or repeated attribute"),
        ],
    )
    def test_bytes_from_elsewhere_are_hostile_until_shown_otherwise(self, change, text):
        model = onnx.load_from_string(to_onnx(Graph((grown(1, 2, 2, 1, 0),))))
        node = model.graph.node[0]
        for name, value in change.items():
            for attribute in [one for one in node.attribute if one.name == name]:
                node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute(name, value))
        with pytest.raises(ModelError, match=text):
            from_onnx(model.SerializeToString())

    def test_nodes_under_two_parents_do_not_blow_up(self):
        nodes = 40  # each child is reached twice: 2^40 ways down
        below = [*range(1, nodes), 0]
        leafs = [0] * (nodes - 1) + [1]
        model = onnx.load_from_string(to_onnx(Graph((grown(1, 1, 1, 1, 0),))))
        node = model.graph.node[0]
        kept = {a.name: a for a in node.attribute if a.name in ("n_targets", "aggregate_function", "post_transform")}
        del node.attribute[:]
        node.attribute.extend(kept.values())
        told = {
            "tree_roots": [0],
            "nodes_featureids": [0] * nodes,
            "nodes_splits": numpy_helper.from_array(np.zeros(nodes)),
            "nodes_modes": numpy_helper.from_array(np.zeros(nodes, np.uint8)),
            "nodes_truenodeids": below,
            "nodes_trueleafs": leafs,
            "nodes_falsenodeids": below,
            "nodes_falseleafs": leafs,
            "leaf_targetids": [0],
            "leaf_weights": numpy_helper.from_array(np.ones(1)),
        }
        node.attribute.extend(helper.make_attribute(name, value) for name, value in told.items())
        with pytest.raises(ModelError, match="no node below two others"):
            from_onnx(model.SerializeToString())

    def test_a_chain_of_questions_is_bounded(self):
        """Each question is a step for every record: a small file must not make every answer slow."""

        def chain(nodes: int) -> Graph:
            places = np.arange(nodes)
            left = np.append(places[1:], -1)
            return Graph(
                (
                    Trees(
                        features=1,
                        roots=np.array([0]),
                        outputs=np.array([0]),
                        feature=np.zeros(nodes, np.int64),
                        threshold=np.zeros(nodes),
                        left=left,
                        right=np.full(nodes, -2),
                        value=np.array([1.0, 2.0]),
                        offset=np.zeros(1),
                    ),
                )
            )

        assert from_onnx(to_onnx(chain(64))).outputs == 1
        with pytest.raises(ModelError, match="at most 64 questions"):
            from_onnx(to_onnx(chain(66)))

    def test_an_older_tree_operator_is_named_with_its_replacement(self):
        node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1)
        double = onnx.TensorProto.DOUBLE
        x, y = (helper.make_tensor_value_info(name, double, ["n", 1]) for name in "xy")
        versions = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 3)]
        model = helper.make_model(helper.make_graph([node], "old", [x], [y]), opset_imports=versions)
        with pytest.raises(ModelError, match="TreeEnsemble of ai.onnx.ml 5"):
            from_onnx(model.SerializeToString())
