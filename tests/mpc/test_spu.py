"""Our predictions on shares against SPU, which shares no code with us: the same numbers, rows and checks."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bench import BENCH, script


@pytest.fixture(scope="module", autouse=True)
def beside():
    """Bench's modules find each other, which have names of this folder's too, while these tests run."""
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


SPU = BENCH / "peers" / "spu" / ".venv" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SPU.exists(), reason="SPU has no environment here: confide peers install spu --folder bench/peers"
    ),
]

#: What both may be away from each other: SPU's fixed point has 18 bits after the point, and a bound of its own.
APART = 2e-3


@pytest.mark.parametrize("net", ["logistic", "mnist"])
@pytest.mark.parametrize("protocol", ["ABY3", "SEMI2K"])
def test_our_predictions_are_those_of_spu(net, protocol):
    cases, nets, ours, peer = (script(f"mpc_{name}") for name in ("cases", "nets", "ours", "peer"))
    arrays, _ = cases.numbers(net, None)
    x = np.random.default_rng(5).uniform(-1, 1, (4, *nets.INPUTS[net]))
    link, layers = ours.LOOPBACK, nets.NETS[net]()
    theirs = peer.measure(protocol, link, task="infer", arrays=arrays, x=x, layers=layers, repeats=3)
    assert theirs is not None
    found = np.array([np.ravel(one) for one in theirs.outputs])
    expected = nets.apply(net, arrays, x)
    assert np.abs(found - expected).max() < APART  # or the two would not compute the same thing
    for case in cases.CASES.values():
        if case.net != net:
            continue
        mine = ours.in_process(case, arrays, x, repeats=1)
        assert mine is not None
        y = np.array([np.ravel(one) for one in mine.outputs])
        assert y.shape == found.shape
        assert np.abs(y - found).max() < APART
        assert np.abs(y - found[::-1]).max() > APART  # other rows are told apart
