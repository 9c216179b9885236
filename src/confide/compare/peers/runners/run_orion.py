"""Orion on a dense network with squares, one row at a time. Both parties are one process; it serialises no ciphertext.

Sizes are those that its objects have in Lattigo's form: 8 bytes for each coefficient and prime.
"""

import contextlib
import importlib.metadata
import sys
import time
import types

import exchange
import numpy as np

#: log2 of the ring degree, by products in a row: 26 bits for each and two special primes of 29.
DEGREES = {13: 218, 14: 438, 15: 881}


def load():
    sys.modules["torchvision"] = types.SimpleNamespace(datasets=None, transforms=None)  # for its data sets only
    import orion

    return orion


def version():
    with contextlib.redirect_stdout(sys.stderr):
        load()
    return importlib.metadata.version("orion-fhe")


def parameters(depth):
    """Return log2 of the degree and the bits of data and special primes at 128 bits of security."""
    for middle, special in ((26, 29), (35, 45)):
        data = [special, *[middle] * (depth + 2)]
        for log_degree, limit in DEGREES.items():
            if sum(data) + 2 * special <= limit:
                return log_degree, data, [special] * 2
    raise SystemExit(
        f"a network of {depth} products in a row does not fit without bootstrapping, which is not asked for"
    )


def network(layers):
    """Return Orion's network."""
    import orion.nn as on
    import torch

    class Network(on.Module):
        def __init__(self, chain):
            super().__init__()
            self.layers = torch.nn.ModuleList(chain)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    chain = []
    for kind, parts in layers:
        if kind == "Linear":
            layer = on.Linear(parts[0].shape[1], parts[0].shape[0])
            layer.weight.data, layer.bias.data = (torch.tensor(part, dtype=torch.float32) for part in parts)
            chain.append(layer)
        else:
            chain.append(on.Quad())
    return Network(chain)


def infer(task, arrays):
    orion = load()
    import torch

    log_degree, data, special = parameters(len(task["layers"]))
    degree = 1 << log_degree
    config = {
        "ckks_params": {
            "LogN": log_degree,
            "LogQ": data,
            "LogP": special,
            "LogScale": data[-1],
            "H": degree,  # dense secrets, as everybody else in the comparison
            "RingType": "ConjugateInvariant",
        },
        "orion": {"margin": 2, "embedding_method": "hybrid", "backend": "lattigo", "debug": False, "io_mode": "none"},
    }
    rows = torch.tensor(np.asarray(arrays["x"]), dtype=torch.float32)
    found = {"of": "logits", "client_seconds": [], "server_seconds": [], "outputs": []}
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        net, begin = network(exchange.dense(task, arrays)), time.perf_counter()
        orion.init_scheme(config)
        net.eval()
        orion.fit(net, rows[:1])
        level = orion.compile(net)
        net.he()
        found["setup_seconds"] = time.perf_counter() - begin
        for row in exchange.until_enough(task, rows):
            begin = time.perf_counter()
            query = orion.encrypt(orion.encode(row[None, :], level))
            sent = time.perf_counter()
            reply = net(query)
            answered = time.perf_counter()
            output = reply.decrypt().decode()
            done = time.perf_counter()
            found["client_seconds"].append(sent - begin + done - answered)
            found["server_seconds"].append(answered - sent)
            found["outputs"].append(output.flatten().tolist()[: task["outputs"]])
        found["query_bytes"] = len(query.ids) * 2 * (query.level() + 1) * 8 * degree
        found["reply_bytes"] = len(reply.ids) * 2 * (reply.level() + 1) * 8 * degree
        from orion.core.orion import scheme

        digits = -(-len(data) // len(special))
        key = digits * 2 * (len(data) + len(special)) * 8 << log_degree
        found["key_bytes"] = (len(scheme.lt_evaluator.saved_rotation_keys) + 1) * key  # and the relinearisation key
    return found


if __name__ == "__main__":
    exchange.run(version, inference=infer)
