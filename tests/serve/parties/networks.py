"""Networks for the tests of the MPC backends. No test lives here."""

from __future__ import annotations

import numpy as np

from confide.model.graph import Graph, Linear
from confide.model.layers import Relu

_DRAWN = np.random.default_rng(3)

NETWORK = Graph(
    (
        Linear(_DRAWN.normal(size=(8, 6)) / 3, _DRAWN.normal(size=8) / 3),
        Relu(),
        Linear(_DRAWN.normal(size=(3, 8)) / 3, _DRAWN.normal(size=3) / 3),
    )
)
