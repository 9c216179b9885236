"""The peers of bench/he.py, each in an environment of its own under bench/peers, on the weights of our models.

TenSEAL 0.3.18 for dense networks, Orion 1.0.2 for networks with squares, Concrete ML 1.9.0 for the logistic regression
and boosted trees. Each runs without any network: the sum of client and server stands beside our end-to-end time over
HTTP, which is to their advantage.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from he_cases import Case, breast_cancer

from confide.he.parameters import LIMIT_BITS
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.onnx import to_onnx
from confide.model.trees import Trees

PEERS = Path(__file__).parent / "peers"
#: Ring degree and bits of the primes that TenSEAL's users take, and the smallest that do the job (its own tutorial).
TENSEAL = {
    "logistic": ((8192, (60, 40, 40, 60), 40), (4096, (40, 20, 40), 20)),
    "network": ((8192, (45, 38, 38, 38, 45), 38),),
    "mlp": ((8192, (60, 40, 40, 60), 40),),  # the product of its first layer, for 64 of its 128 outputs, alone
}
#: Orion's own settings, with dense secrets: log2 of the ring degree, bits of the data and of the special primes.
ORION = {
    "mlp": (13, (29, 26, 26, 26, 26, 26), (29, 29)),
    "lola": (13, (29, 26, 26, 26, 26, 26), (29, 29)),
    "lenet": (14, (45, 35, 35, 35, 35, 35, 35, 35), (45, 45)),
}
_PRODUCT = 64  # outputs of a product that stands for a network
_PRECISION = 16  # errors that are apart by more than this factor are not the same precision


@dataclass(frozen=True)
class Peer:
    """What one peer took on one model: medians in milliseconds, bytes, and the largest error of a logit.

    `security` is "128 bits" or says why it is not.
    """

    name: str
    client: float
    server: float
    keygen: float
    keys_bytes: int
    query_bytes: int
    reply_bytes: int
    error: float
    security: str
    note: str = ""

    @property
    def total(self) -> float:
        return self.client + self.server

    def against(self, error: float) -> str:
        """Return what sets it apart from an answer of ours that is off by `error`; "" if nothing does."""
        both = f"error {self.error:.0e}, ours {error:.0e}"
        if self.security != "128 bits":
            return f"not comparable: {self.security}"
        if self.error * _PRECISION < error:
            return f"not comparable: {both}"
        return f"less exact: {both}" if self.error > error * _PRECISION else ""


def run(peer: str, script: str, job: dict[str, Any], seconds: float) -> dict[str, Any] | None:
    """Return a peer's answer, or None, saying why, where it is not installed or fails."""
    python = PEERS / peer / ".venv" / "bin" / "python"
    if not python.exists():
        print(f"{peer} is not installed: confide peers install {peer.replace('_', '-')} --folder bench/peers")
        return None
    try:
        done = subprocess.run(
            [str(python), str(PEERS / peer / script)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        print(f"{peer}: no answer in {seconds:.0f} s")
        return None
    if done.returncode:
        print(f"{peer}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout)


def peers_of(case: Case, *, repeats: int, seconds: float, folder: Path) -> list[Peer]:
    """Return every peer of a case that is installed and has an answer."""
    if case.graph is None:
        return []
    found: list[Peer | None] = []
    if case.peers in TENSEAL:
        found += [tenseal(case, setting, repeats, seconds) for setting in TENSEAL[case.peers]]
    if case.peers in ORION:
        found.append(orion(case, ORION[case.peers], repeats, seconds, folder))
    if case.peers in ("logistic", "trees"):
        found.append(concrete(case, repeats, seconds, folder))
    return [peer for peer in found if peer is not None]


def _security(degree: int, modulus_bits: int) -> str:
    limit = LIMIT_BITS[degree]
    return "128 bits" if modulus_bits <= limit else f"log q = {modulus_bits} above {limit}, the limit of 128 bits"


def _milliseconds(answer: dict[str, Any], warm: int, *names: str) -> float:
    """Return the median of the sum of some parts, those that warmed up left out."""
    parts = [answer[f"{name}_seconds"][warm:] for name in names]
    return 1e3 * median(map(sum, zip(*parts, strict=True)))


def logits(case: Case, x: Any) -> Any:
    """Return what the graph gives before a last sigmoid, shape (rows, outputs)."""
    assert case.graph is not None
    layers = case.graph.layers
    last = isinstance(layers[-1], Sigmoid)
    return (Graph(layers[:-1]) if last else case.graph).apply(x)


def _error(answer: dict[str, Any], expected: Any) -> float:
    """Return the largest difference of an output; only the first numbers of what a peer decrypts are outputs."""
    return max(
        float(np.abs(np.array(output)[: expected.shape[1]] - expected[place % len(expected)]).max())
        for place, output in enumerate(answer["outputs"])
    )


# --- TenSEAL ----------------------------------------------------------------------------------------------------------


def tenseal(case: Case, setting: tuple[int, tuple[int, ...], int], repeats: int, seconds: float) -> Peer | None:
    """Return TenSEAL's figures for a chain of dense layers and squares."""
    degree, bits, scale_bits = setting
    rows = case.rows.x[:20]
    assert case.graph is not None
    dense = [layer for layer in case.graph.layers if isinstance(layer, Linear)]
    large, expected = len(dense[0].weight) > _PRODUCT, logits(case, rows)
    if large:  # its product takes seconds: one stands for the network
        dense = [Linear(dense[0].weight[:_PRODUCT], dense[0].bias[:_PRODUCT])]
        expected = Graph(tuple(dense)).apply(rows)
    layers = [{"weight": layer.weight.tolist(), "bias": layer.bias.tolist()} for layer in dense]
    warm, repeats = (0, 3) if large else (10, max(30, repeats // 2))
    job = {
        "poly_modulus_degree": degree,
        "coeff_mod_bit_sizes": bits,
        "scale_bits": scale_bits,
        "layers": layers,
        "rows": rows.tolist(),
        "repeats": repeats + warm,
    }
    answer = run("tenseal", "linear.py", job, seconds)
    if answer is None:
        return None
    return Peer(
        name=f"TenSEAL 0.3.18 N={degree} {list(bits)}" + (f", {dense[0]} alone" if large else ""),
        client=_milliseconds(answer, warm, "client"),
        server=_milliseconds(answer, warm, "server"),
        keygen=1e3 * answer.get("keygen_seconds", 0.0),
        keys_bytes=answer["keys_bytes"],
        query_bytes=answer["query_bytes"],
        reply_bytes=answer["reply_bytes"],
        error=_error(answer, expected),
        security=_security(degree, sum(bits)),
        note="3 runs" if large else "",
    )


# --- Orion ------------------------------------------------------------------------------------------------------------


def chain(graph: Graph) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a graph's layers as peers read them, and their arrays by name."""
    specs: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for number, layer in enumerate(graph.layers):
        kind = {"Linear": "linear", "Conv": "conv", "AveragePool": "pool", "Square": "square"}[type(layer).__name__]
        spec: dict[str, Any] = {"kind": kind}
        for name in ("height", "width", "stride", "padding", "channels", "kernel"):
            if hasattr(layer, name):
                spec[name] = getattr(layer, name)
        for name in ("weight", "bias"):
            if hasattr(layer, name):
                arrays[f"{number}.{name}"] = getattr(layer, name)
        specs.append(spec)
    return specs, arrays


def orion(
    case: Case, setting: tuple[int, tuple[int, ...], tuple[int, ...]], repeats: int, seconds: float, folder: Path
) -> Peer | None:
    """Return Orion's figures."""
    assert case.graph is not None
    specs, arrays = chain(case.graph)
    rows, weights = case.rows.x[:10], folder / f"{case.name}.npz"
    np.savez(weights, x=rows, **arrays)
    degree_bits, data, special = setting
    repeats = 5 if case.name == "lenet" else min(repeats, 30)
    job = {
        "weights": str(weights),
        "layers": specs,
        "parameters": {"degree_bits": degree_bits, "prime_bits": data, "special_bits": special},
        "warm": 1,
        "repeats": repeats,
    }
    answer = run("orion", "network.py", job, seconds)
    if answer is None:
        return None
    memory = f"compilation {answer['compile_seconds']:.0f} s, {answer['memory_bytes'] / 1e9:.1f} GB in all"
    return Peer(
        name=f"Orion 1.0.2 N={answer['degree']} log qp={answer['modulus_bits']}",
        client=_milliseconds(answer, 1, "encrypt", "decrypt"),
        server=_milliseconds(answer, 1, "server"),
        keygen=1e3 * (answer["keygen_seconds"] + answer["compile_seconds"]),
        keys_bytes=answer["keys_bytes"],
        query_bytes=answer["query_bytes"],
        reply_bytes=answer["reply_bytes"],
        error=_error(answer, logits(case, rows)),
        security=_security(answer["degree"], answer["modulus_bits"]),
        note=f"{memory}; {answer['rotation_keys']} rotation keys; {repeats} runs",
    )


# --- Concrete ML ------------------------------------------------------------------------------------------------------


def concrete(case: Case, repeats: int, seconds: float, folder: Path) -> Peer | None:
    """Return Concrete ML's figures: 8 bits for the regression, 6 for trees."""
    assert case.graph is not None
    train, held = breast_cancer()
    rows, arrays = held.x[:20], {"x": train.x, "y": train.labels, "rows": held.x[:20]}
    job: dict[str, Any] = {"kind": case.peers, "arrays": str(folder / "concrete.npz")}
    if case.peers == "logistic":
        layer: Any = case.graph.layers[0]
        arrays |= {"weight": layer.weight, "bias": layer.bias}
        job |= {"bits": 8, "warm": 10, "repeats": max(30, repeats // 2)}
    else:
        arrays |= {"held": case.rows.x}
        job |= {"bits": 6, "trees": 20, "depth": 3, "warm": 0, "repeats": 3}
    np.savez(job["arrays"], **arrays)
    answer = run("concrete_ml", "model.py", job, seconds)
    if answer is None:
        return None
    outputs = {"outputs": [[value] for value in answer["outputs"]]}
    fidelity = f"; decisions as the ensemble's on {100 * answer['fidelity']:.2f} %" if "fidelity" in answer else ""
    return Peer(
        name=f"Concrete ML 1.9.0, {job['bits']} bits",
        client=_milliseconds(answer, job["warm"], "encrypt", "decrypt"),
        server=_milliseconds(answer, job["warm"], "server"),
        keygen=1e3 * answer["keygen_seconds"],
        keys_bytes=answer["keys_bytes"],
        query_bytes=answer["query_bytes"],
        reply_bytes=answer["reply_bytes"],
        error=_error(outputs, logits(case, rows)),
        security="128 bits",
        note=f"p_error {answer['statistics']['p_error']:.0e}{fidelity}",
    )


def boosted_by_xgboost(seconds: float = 120.0) -> Graph | None:
    """Return 20 trees of depth 3 that XGBoost 1.6.2 grows, in Concrete ML's environment, on the training rows."""
    train, held = breast_cancer()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, x=train.x, y=train.labels, rows=held.x)
        job = {"kind": "trees", "arrays": str(path), "bits": 6, "trees": 20, "depth": 3, "train_only": True}
        answer = run("concrete_ml", "model.py", job, seconds)
    if answer is None:
        return None
    graph = Graph((_trees(answer["ensemble"], train.x.shape[1]), Sigmoid()))
    expected = np.array(answer["margins"])
    error = float(np.abs(Graph(graph.layers[:1]).apply(held.x)[:, 0] - expected).max())
    print(f"largest difference of a margin from XGBoost's own, held-out rows: {error:.1e}")
    return graph


def _trees(ensemble: dict[str, Any], features: int) -> Trees:
    """Return XGBoost's trees as ours: below the split in float32 is at most half-way to the float32 before it."""
    numbers: dict[str, list[Any]] = {name: [] for name in ("feature", "threshold", "left", "right", "value", "roots")}
    for tree in ensemble["trees"]:
        places: dict[int, int] = {}
        nodes, leaves = len(numbers["feature"]), len(numbers["value"])
        for node, child in enumerate(tree["left_children"]):
            if child < 0:
                places[node] = -1 - leaves
                leaves += 1
            else:
                places[node] = nodes
                nodes += 1
        numbers["roots"].append(places[0])
        for node, child in enumerate(tree["left_children"]):
            split = np.float32(tree["split_conditions"][node])
            if child < 0:
                numbers["value"].append(float(split))
                continue
            numbers["feature"].append(tree["split_indices"][node])
            numbers["threshold"].append((float(split) + float(np.nextafter(split, np.float32(-np.inf)))) / 2)
            numbers["left"].append(places[child])
            numbers["right"].append(places[tree["right_children"][node]])
    base = ensemble["base_score"]
    indices = {name: np.array(numbers[name], np.int64) for name in ("roots", "feature", "left", "right")}
    return Trees(
        features=features,
        outputs=np.zeros(len(numbers["roots"]), np.int64),
        threshold=np.array(numbers["threshold"]),
        value=np.array(numbers["value"]),
        offset=np.array([np.log(base / (1 - base))]),
        **indices,
    )


def write_trees(path: Path) -> None:
    """Write the boosted trees of the comparison as ONNX."""
    graph = boosted_by_xgboost()
    if graph is None:
        raise SystemExit("Expected Concrete ML's environment, which has XGBoost 1.6.2")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(to_onnx(graph))
    print(f"wrote {path.name}, {path.stat().st_size} bytes")


def table(peers: Sequence[Peer]) -> None:
    """Print what each peer took."""
    for one in peers:
        print(f"    {one.name:<42} client {one.client:.2f} + server {one.server:.2f} ms; error {one.error:.1e}")
        print(
            f"        keys {one.keys_bytes / 1e6:.2f} MB in {one.keygen:.0f} ms, query {one.query_bytes / 1e3:.1f} kB, "
            f"reply {one.reply_bytes / 1e3:.1f} kB; {one.security}{'; ' + one.note if one.note else ''}"
        )
