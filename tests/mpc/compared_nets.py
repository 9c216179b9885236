"""Networks that compare numbers: a transformer block, softmax and argmax inside and at the end, layer norms, trees."""

from __future__ import annotations

import numpy as np

from confide.model.graph import (
    Argmax,
    Attention,
    AveragePool,
    Conv,
    Gelu,
    Graph,
    LayerNorm,
    Relu,
    Residual,
    Sigmoid,
    Softmax,
    Trees,
)
from mpc.nets import linear

TOKENS, CHANNELS = 5, 8


def dense(rng, outputs, channels, tokens=TOKENS, bias=0.125):
    """A matrix on each token."""
    weight = rng.normal(size=(outputs, channels, 1, 1)) / np.sqrt(channels)
    return Conv(weight, bias * rng.normal(size=outputs), 1, tokens)


def norm(rng, channels=CHANNELS, tokens=TOKENS):
    return LayerNorm(rng.uniform(0.5, 1.5, channels), rng.normal(size=channels) / 4, tokens)


def transformer(seed=0, *, first=True, activation=None, tokens=TOKENS, numbers=4):
    """Tokens, an encoder of 2 heads, the mean, and 3 classes; `first`: norms stand before their blocks."""
    rng = np.random.default_rng(seed)
    attending = (
        dense(rng, 3 * CHANNELS, CHANNELS, tokens),
        Attention(CHANNELS, tokens, 2),
        dense(rng, CHANNELS, CHANNELS, tokens),
    )
    feeding = (dense(rng, 12, CHANNELS, tokens), activation or Gelu(), dense(rng, CHANNELS, 12, tokens))
    one, other = norm(rng, tokens=tokens), norm(rng, tokens=tokens)
    blocks = (
        (Residual((one, *attending)), Residual((other, *feeding)))
        if first
        else (Residual(attending), one, Residual(feeding), other)
    )
    # What tokens have in common keeps their variances within a factor of 32, as layer norms on shares ask.
    taken = Conv(rng.normal(size=(CHANNELS, 1, 1, numbers)) / 4, rng.normal(size=CHANNELS), tokens, numbers)
    mean = AveragePool(CHANNELS, 1, tokens, (1, tokens), (1, 1))
    return Graph((taken, *blocks, mean, linear(rng, 3, CHANNELS), Softmax(3)))


def forest(rng, features, count, depth, outputs=1):
    """Crooked trees: each grows at random down to at most `depth`, the last is a leaf alone."""
    nodes, leaves, roots = [], [], []

    def grown(level):
        if level == 0 or (level < depth and rng.uniform() < 0.3):
            leaves.append(rng.normal())
            return -len(leaves)
        place = len(nodes)
        nodes.append([int(rng.integers(features)), float(rng.normal()), 0, 0])
        nodes[place][2] = grown(level - 1)
        nodes[place][3] = grown(level - 1)
        return place

    for number in range(count):
        roots.append(grown(depth if number < count - 1 else 0))
    of, threshold, left, right = zip(*nodes, strict=True)
    return Trees(
        features,
        np.array(roots),
        np.arange(count) % outputs,
        np.array(of),
        np.array(threshold),
        np.array(left),
        np.array(right),
        np.array(leaves),
        rng.normal(size=outputs),
    )


def compared(seed=0):
    """Return small networks by a name."""
    rng = np.random.default_rng(seed)
    return {
        "a transformer": transformer(),
        "a transformer with norms behind": transformer(first=False, activation=Relu()),
        "gelu and softmax inside": Graph((linear(rng, 6, 5), Gelu(), linear(rng, 7, 6), Softmax(7), linear(rng, 2, 7))),
        "a softmax of positions": Graph((dense(rng, 3, 2, 4), Softmax(3, 4))),
        "an argmax": Graph((linear(rng, 6, 5), Relu(), linear(rng, 5, 6), Argmax(5))),
        "an argmax of what was told": Graph((linear(rng, 3, 5), Softmax(3), Argmax(3))),
        "a norm at the end": Graph((linear(rng, 6, 5), norm(rng, 6, 1))),
        "a norm before a matrix": Graph((dense(rng, 6, 3, 4, 2.0), norm(rng, 6, 4), linear(rng, 2, 24))),
        "trees": Graph((forest(rng, 5, 4, 3), Sigmoid())),
        "trees of classes": Graph((forest(rng, 5, 7, 2, 3), Softmax(3))),
        "trees with a vote": Graph((forest(rng, 5, 7, 2, 3), Argmax(3))),
    }
