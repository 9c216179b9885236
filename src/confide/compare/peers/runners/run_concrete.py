"""Concrete ML on the job's model, one row at a time, through its client and its server.

A logistic regression is quantised to 8 bits as its own class for it does; a network is compiled as torch's, weights and
inputs of 6 bits, rounded accumulators. Training rows give the ranges. Serialising on both sides counts.
"""

import contextlib
import importlib.metadata
import sys
import tempfile
import time

import exchange
import numpy as np

_LINEAR_BITS, _NETWORK_BITS = 8, 6


def version():
    import concrete.ml  # noqa: F401 (that it can be imported)

    return importlib.metadata.version("concrete-ml")


def linear(parts, rows):
    """Return Concrete's quantised form of a regression with one output."""
    from concrete.ml.sklearn import LogisticRegression
    from sklearn.linear_model import LogisticRegression as PlainLogistic

    labels = np.arange(len(rows)) % 2
    plain = PlainLogistic(max_iter=1).fit(rows, labels)
    plain.coef_, plain.intercept_ = parts[0].astype(float), parts[1].astype(float)
    model = LogisticRegression.from_sklearn_model(plain, rows, n_bits=_LINEAR_BITS)
    model.compile(rows)
    return model


def chain(layers, rows):
    """Return Concrete's quantised form of a network."""
    import torch
    from concrete.ml.torch.compile import compile_torch_model

    class Chain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.ModuleList(
                torch.nn.Linear(parts[0].shape[1], parts[0].shape[0]) for kind, parts in layers if kind == "Linear"
            )
            given = [parts for kind, parts in layers if kind == "Linear"]
            for layer, parts in zip(self.dense, given, strict=True):
                layer.weight.data, layer.bias.data = (torch.tensor(part, dtype=torch.float32) for part in parts)

        def forward(self, x):
            dense = iter(self.dense)
            for kind, _ in layers:
                x = next(dense)(x) if kind == "Linear" else x * x if kind == "Square" else torch.relu(x)
            return x

    return compile_torch_model(Chain(), rows, n_bits=_NETWORK_BITS, rounding_threshold_bits=_NETWORK_BITS)


def infer(task, arrays):
    from concrete import fhe
    from concrete.ml.deployment import FHEModelClient, FHEModelDev, FHEModelServer

    layers, rows = exchange.dense(task, arrays), arrays["calibration"]
    single = len(layers) == 1 and task["outputs"] == 1 and task["sigmoid"]
    found = {"of": "outputs" if single else "logits", "client_seconds": [], "server_seconds": [], "outputs": []}
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        model = linear(layers[0][1], rows) if single else chain(layers, rows.astype(np.float32))
        FHEModelDev(f"{folder}/model", model).save()
        client, server = FHEModelClient(f"{folder}/model", f"{folder}/keys"), FHEModelServer(f"{folder}/model")
        client.generate_private_and_evaluation_keys(force=True)
        uploaded = client.get_serialized_evaluation_keys()
        keys = fhe.EvaluationKeys.deserialize(uploaded)
        found |= {"setup_seconds": time.perf_counter() - begin, "key_bytes": len(uploaded)}
        for row in exchange.until_enough(task, arrays["x"]):
            begin = time.perf_counter()
            query = client.quantize_encrypt_serialize(row[None, :].astype(np.float64 if single else np.float32))
            sent = time.perf_counter()
            reply = server.run(query, keys)
            answered = time.perf_counter()
            output = client.deserialize_decrypt_dequantize(reply)
            done = time.perf_counter()
            found["client_seconds"].append(sent - begin + done - answered)
            found["server_seconds"].append(answered - sent)
            found["outputs"].append([float(output[0, 1])] if single else np.ravel(output).astype(float).tolist())
            found |= {"query_bytes": len(query), "reply_bytes": len(reply)}
    return found


if __name__ == "__main__":
    exchange.run(version, inference=infer)
