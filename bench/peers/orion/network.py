"""Orion 1.0.2 (Lattigo) on one network, one row at a time. Runs in its own environment; confide peers install orion.

Reads a JSON object from standard input: `weights`, an .npz with `x` (rows, features) and for layer number k
`k.weight` and `k.bias`; `layers`, in order, each with a `kind` (linear, conv, pool, square) and for images `height`,
`width`, `stride`, `padding` (top, left, bottom, right) or `channels`, `kernel`, `stride`; `parameters`, the ring degree
as `degree_bits`, `prime_bits` and `special_bits`; `warm`, `repeats`. Writes one with the seconds of the client (encode
and encrypt, decrypt and decode) and of the server for each row, those of key generation and compilation, sizes and the
outputs.

Orion keeps both parties in one process and serialises no ciphertext, so none of that is counted; the sizes are those
that its objects have in Lattigo's form: 8 bytes for each coefficient and prime.
"""

import contextlib
import json
import resource
import sys
import time
import types

import numpy as np
import torch

sys.modules["torchvision"] = types.SimpleNamespace(datasets=None, transforms=None)  # for its data sets only

import orion  # noqa: E402
import orion.nn as on  # noqa: E402
from orion.core.orion import scheme  # noqa: E402


class Network(on.Module):
    """A chain of layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def conv_of(spec, weight, bias):
    """Return a convolution with equal padding: a kernel that grows by zeros stands for unequal ones."""
    top, left, bottom, right = spec["padding"]
    pad = max(top, left, bottom, right)
    stride = spec["stride"][0]
    if spec["stride"][0] != spec["stride"][1] or top != left:
        raise SystemExit("Expected equal strides, and as much padding above as at the left")
    # Zeros before the kernel's first row move it down by as much as the padding grew.
    weight = np.pad(weight, ((0, 0), (0, 0), (pad - top, 0), (pad - left, 0)))
    layer = on.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], stride=stride, padding=pad)
    layer.weight.data, layer.bias.data = (torch.tensor(values, dtype=torch.float32) for values in (weight, bias))
    return layer


def network(job, arrays):
    """Return Orion's network and the shape of one input."""
    layers, image = [], None
    for number, spec in enumerate(job["layers"]):
        kind = spec["kind"]
        if kind in ("conv", "linear"):
            weight, bias = arrays[f"{number}.weight"], arrays[f"{number}.bias"]
        if kind == "conv":
            layers.append(conv_of(spec, weight, bias))
            if image is None:
                image = (weight.shape[1], spec["height"], spec["width"])
        elif kind == "pool":
            layers.append(on.AvgPool2d(tuple(spec["kernel"]), stride=tuple(spec["stride"])))
        elif kind == "linear":
            if any(isinstance(layer, on.Conv2d) for layer in layers) and not any(
                isinstance(layer, on.Flatten) for layer in layers
            ):
                layers.append(on.Flatten())
            layer = on.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data, layer.bias.data = (torch.tensor(a, dtype=torch.float32) for a in (weight, bias))
            layers.append(layer)
        elif kind == "square":
            layers.append(on.Quad())
        else:
            raise SystemExit(f"Expected a kind of layer that Orion has, got {kind}")
    return Network(layers), image


def key_bytes(parameters):
    """Return the bytes of one switching key in Lattigo's form: a digit for every `special_bits` primes."""
    data, special = len(parameters["prime_bits"]), len(parameters["special_bits"])
    digits = -(-data // special)
    return digits * 2 * (data + special) * 8 << parameters["degree_bits"]


def main():
    job = json.load(sys.stdin)
    arrays = np.load(job["weights"])
    parameters = job["parameters"]
    degree = 1 << parameters["degree_bits"]
    config = {
        "ckks_params": {
            "LogN": parameters["degree_bits"],
            "LogQ": parameters["prime_bits"],
            "LogP": parameters["special_bits"],
            "LogScale": parameters["prime_bits"][-1],
            "H": degree,  # dense secrets, as everybody else in the comparison
            "RingType": "ConjugateInvariant",
        },
        "orion": {"margin": 2, "embedding_method": "hybrid", "backend": "lattigo", "debug": False, "io_mode": "none"},
    }
    net, image = network(job, arrays)
    rows = torch.tensor(arrays["x"], dtype=torch.float32)
    rows = rows.reshape(-1, 1, *image) if image else rows.reshape(-1, 1, rows.shape[1])
    found = {"encrypt_seconds": [], "server_seconds": [], "decrypt_seconds": [], "outputs": []}
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        begin = time.perf_counter()
        orion.init_scheme(config)
        keys = time.perf_counter()
        net.eval()
        orion.fit(net, rows[0])  # shapes; squares have no range to fit
        level = orion.compile(net)
        found["keygen_seconds"] = keys - begin
        found["compile_seconds"] = time.perf_counter() - keys
        net.he()
        for number in range(job["warm"] + job["repeats"]):
            row = rows[number % len(rows)]
            begin = time.perf_counter()
            query = orion.encrypt(orion.encode(row, level))
            sent = time.perf_counter()
            reply = net(query)
            answered = time.perf_counter()
            output = reply.decrypt().decode()
            done = time.perf_counter()
            found["encrypt_seconds"].append(sent - begin)
            found["server_seconds"].append(answered - sent)
            found["decrypt_seconds"].append(done - answered)
            found["outputs"].append(output.flatten().tolist())
        rotations = len(scheme.lt_evaluator.saved_rotation_keys)
        found["query_bytes"] = len(query.ids) * 2 * (query.level() + 1) * 8 * degree
        found["reply_bytes"] = len(reply.ids) * 2 * (reply.level() + 1) * 8 * degree
    found["rotation_keys"] = rotations
    found["keys_bytes"] = (rotations + 1) * key_bytes(parameters)  # and the relinearisation key
    found["memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    found["modulus_bits"] = sum(parameters["prime_bits"]) + sum(parameters["special_bits"])
    found["degree"] = degree
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
