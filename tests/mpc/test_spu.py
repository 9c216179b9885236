"""Our predictions on shares against SPU, which shares no code with us: the same numbers, rows and checks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))  # how SPU is asked; last, since bench has a "store" too

from mpc_cases import CASES, numbers
from mpc_links import LOOPBACK
from mpc_nets import INPUTS, NETS, apply
from mpc_ours import in_process
from mpc_peer import installed, measure

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="SPU has no environment here: bench/peers/spu/requirements.txt"),
]

#: What both may be away from each other: SPU's fixed point has 18 bits after the point, and a bound of its own.
APART = 2e-3


@pytest.mark.parametrize("net", ["logistic", "mnist"])
@pytest.mark.parametrize("protocol", ["ABY3", "SEMI2K"])
def test_our_predictions_are_those_of_spu(net, protocol):
    arrays, _ = numbers(net, None)
    x = np.random.default_rng(5).uniform(-1, 1, (4, *INPUTS[net]))
    theirs = measure(protocol, LOOPBACK, task="infer", arrays=arrays, x=x, layers=NETS[net](), repeats=3)
    assert theirs is not None
    peer = np.array([np.ravel(one) for one in theirs.outputs])
    expected = apply(net, arrays, x)
    assert np.abs(peer - expected).max() < APART  # or the two would not compute the same thing
    for case in CASES.values():
        if case.net != net:
            continue
        ours = in_process(case, arrays, x, repeats=1)
        assert ours is not None
        mine = np.array([np.ravel(one) for one in ours.outputs])
        assert mine.shape == peer.shape
        assert np.abs(mine - peer).max() < APART
        assert np.abs(mine - peer[::-1]).max() > APART  # other rows are told apart
