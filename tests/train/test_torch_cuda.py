"""A federated round on a GPU against the same round on the processor."""

import numpy as np
import pytest

from confide.ideal import PlainSum
from confide.secagg.masked import Masked
from confide.train import Silo, fit, personal_models, train_section
from confide.wire import MemoryStore

torch = pytest.importorskip("torch", reason="torch comes with the train extra")
from torch import nn  # noqa: E402

from confide.train import TorchLearner, outputs  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


def network():
    torch.manual_seed(3)
    convolution = nn.Conv2d(1, 8, 5, stride=2, padding=2)
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))


def silos():
    rng = np.random.default_rng(0)
    return [
        Silo(f"h{place}", rng.normal(size=(size, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, size))
        for place, size in enumerate((30, 50, 41))
    ]


def rounds(device, *, algorithm="fedavg", aggregator=None, private=(), module=None):
    settings = train_section(rounds=2, learning_rate=0.05, expected_records=40, algorithm=algorithm)
    learner = TorchLearner(module or network(), settings, batch_size=10, device=device, private=private)
    stores = {silo.name: MemoryStore() for silo in silos()}
    *_, done = fit(learner, silos(), settings, aggregator=aggregator or PlainSum(), stores=stores)
    return done, personal_models(learner, done.parameters, stores)


@pytest.mark.parametrize("private", [(), ("1.*",)], ids=["all travels", "norm stays"])
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_rounds_on_the_gpu_equal_those_on_the_processor(algorithm, private):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    (here, own_here), (there, own_there) = (rounds(d, algorithm=algorithm, private=private) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(there.parameters, here.parameters, atol=1e-3)
    start = TorchLearner(network(), train_section(), private=private).start
    assert np.abs(here.parameters - start).max() > 2e-2  # so the tolerance tells trained from untrained
    assert next(there.model.parameters()).device.type == "cuda"
    x = silos()[0].x
    for name, model in own_there.items():
        np.testing.assert_allclose(outputs(model, x), outputs(own_here[name], x), atol=2e-2)


def test_masked_equals_plain_bit_for_bit_on_the_gpu():
    torch.backends.cudnn.deterministic = True
    plain, masked = (rounds("cuda", aggregator=aggregator)[0].parameters for aggregator in (PlainSum(), Masked()))
    np.testing.assert_array_equal(plain, masked)


def test_the_gpus_generator_is_left_alone():
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    first, second = (rounds("cuda", module=module)[0].parameters for _ in range(2))
    np.testing.assert_array_equal(first, second)  # dropout comes from the public seed
    assert torch.equal(torch.rand(3, device="cuda"), expected)
