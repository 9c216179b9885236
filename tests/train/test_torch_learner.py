"""Rounds of torch modules against the textbook's loops, written out here with torch's own optimisers."""

import copy
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from confide.errors import DataError, JobError, ModelError, UsageError
from confide.ideal import PlainSum
from confide.secagg.masked import Masked
from confide.train import Silo, fit, train_section
from confide.wire import MemoryStore

torch = pytest.importorskip("torch", reason="torch comes with the train extra")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from confide.train import TorchLearner, outputs  # noqa: E402

COMMON = {
    "rounds": 3, "local_steps": 2, "learning_rate": 0.2, "weight_decay": 0.01, "expected_records": 10, "quorum": 3,
    "fraction_bits": 34,
}  # fmt: skip
SIZES = 7, 20, 4


def network(dtype=torch.float64, *, norm=False):
    torch.manual_seed(3)
    middle = [nn.BatchNorm2d(3)] if norm else []
    layers = nn.Conv2d(1, 3, 3, stride=2), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    return nn.Sequential(*layers).to(dtype)


def silos(seed=0, *, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [
        Silo(f"h{place}", rng.normal(size=(size, 1, 8, 8)).astype(dtype), rng.integers(0, 4, size))
        for place, size in enumerate(SIZES)
    ]


class Fixed(TorchLearner):
    """A learner whose order of batches the test knows."""

    def order(self, silo, number):
        return (
            np.random.default_rng([int(silo.name[1:]), number, step]).permutation(len(silo.x))
            for step in range(self._train.local_steps)
        )


def batches(place, number, settings, size, count):
    for step in range(settings.local_steps):
        order = np.random.default_rng([place, number, step]).permutation(count)
        yield from (order[at : at + size] for at in range(0, count, size))


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def fill(module, vector):  # vector_to_parameters would share the memory
    nn.utils.vector_to_parameters(vector.to(next(module.parameters()).dtype).clone(), module.parameters())


def local(module, begin, silo, settings, size, number, *, mu=0.0, shift=None, optimiser=None, anchor=None):
    """Return a silo's parameters after its steps, as any tutorial takes them."""
    fill(module, begin)
    optimiser = (
        optimiser or (lambda p: torch.optim.SGD(p, settings.learning_rate, weight_decay=settings.weight_decay))
    )(module.parameters())
    x, y = torch.tensor(silo.x), torch.tensor(silo.y)
    anchors = [p.detach().clone() for p in module.parameters()]
    if anchor is not None:
        fill(other := copy.deepcopy(module), anchor)
        anchors = list(other.parameters())
    steps = 0
    for rows in batches(int(silo.name[1:]), number, settings, size, len(silo.x)):
        optimiser.zero_grad()
        loss = functional.cross_entropy(module(x[rows]), y[rows])
        loss = loss + mu / 2 * sum(
            ((p - a.detach()) ** 2).sum() for p, a in zip(module.parameters(), anchors, strict=True)
        )
        if shift is not None:
            loss = loss + (nn.utils.parameters_to_vector(module.parameters()) * shift).sum()
        loss.backward()
        optimiser.step()
        steps += 1
    return flat(module.parameters()), steps


def server(settings):
    """Return the server's step: Reddi et al. 2021, Algorithm 2, or averaging."""
    state = {"m": 0.0, "v": settings.adaptivity**2}

    def step(change):
        if settings.algorithm not in ("fedadam", "fedyogi", "fedadagrad"):
            return settings.server_learning_rate * change
        beta, square = settings.second_moment, change**2
        state["m"] = settings.momentum * state["m"] + (1 - settings.momentum) * change
        state["v"] = {
            "fedadam": beta * state["v"] + (1 - beta) * square,
            "fedyogi": state["v"] - (1 - beta) * square * torch.sign(state["v"] - square),
            "fedadagrad": state["v"] + square,
        }[settings.algorithm]
        return settings.server_learning_rate * state["m"] / (torch.sqrt(state["v"]) + settings.adaptivity)

    return step


def textbook(settings, parties, size, module):
    """Return the parameters after each round."""
    module = copy.deepcopy(module)
    weights = flat(module.parameters()).double()
    share = torch.tensor([len(s.x) for s in parties], dtype=torch.float64)
    share = share / share.sum()
    mu = settings.proximal if settings.algorithm == "fedprox" else 0.0
    step, c = server(settings), torch.zeros_like(weights)
    own, places = torch.zeros(len(parties), len(weights), dtype=torch.float64), []
    for number in range(1, settings.rounds + 1):
        fresh, ends = own.clone(), []
        for place, silo in enumerate(parties):
            shift = c - own[place] if settings.algorithm == "scaffold" else None
            end, steps = local(module, weights, silo, settings, size, number, mu=mu, shift=shift)
            fresh[place] = own[place] - c + (weights - end) / (steps * settings.learning_rate)
            ends.append(end.double())
        c, own = c + share @ (fresh - own), fresh
        weights = weights + step(share @ torch.stack(ends) - weights)
        places.append(weights.numpy())
    return places


ALGORITHMS = ["fedavg", "fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad"]


@pytest.mark.parametrize("size", [3, 50], ids=["batches", "whole"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rounds_equal_the_textbook(algorithm, size):
    settings, parties = train_section(**COMMON, algorithm=algorithm, server_learning_rate=0.1), silos()
    done = list(fit(Fixed(network(), settings, batch_size=size), parties, settings, aggregator=PlainSum()))
    for ours, expected in zip(done, textbook(settings, parties, size, network()), strict=True):
        np.testing.assert_allclose(ours.parameters, expected, atol=1e-7)
        np.testing.assert_array_equal(flat(ours.model.parameters()).numpy(), ours.parameters)


def test_single_precision_equals_the_textbook_up_to_its_rounding():
    settings, parties = train_section(**COMMON), silos(dtype=np.float32)
    learner = Fixed(network(torch.float32), settings, batch_size=3)
    *_, ours = fit(learner, parties, settings, aggregator=PlainSum())
    expected = textbook(settings, parties, 3, network(torch.float32))[-1]
    np.testing.assert_allclose(ours.parameters, expected, atol=1e-6)
    assert next(ours.model.parameters()).dtype == torch.float32


def test_the_algorithms_differ():
    """The negative control of the tolerance above."""
    ends = [textbook(train_section(**COMMON, algorithm=name), silos(), 3, network())[-1] for name in ALGORITHMS]
    gaps = [np.abs(a - b).max() for a, b in zip(ends, ends[1:] + ends[:1], strict=True)]
    assert min(gaps) > 1e-4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_masked_equals_plain_bit_for_bit(algorithm):
    settings = train_section(**COMMON, algorithm=algorithm)
    ends = [
        list(fit(TorchLearner(network(), settings, batch_size=3), silos(), settings, aggregator=each))[-1].parameters
        for each in (PlainSum(), Masked())
    ]
    np.testing.assert_array_equal(ends[0], ends[1])


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.2, momentum=0.9, weight_decay=0.01)),
        ({"optimiser": "adamw"}, lambda p: torch.optim.AdamW(p, 0.2, weight_decay=0.01)),
    ],
    ids=["momentum", "adamw"],
)
def test_optimisers_equal_those_of_torch(ours, torchs):
    settings, silo = train_section(**COMMON), silos()[1]
    learner = Fixed(network(), settings, batch_size=3, **ours)
    change = learner.change(learner.start, silo, MemoryStore(), number=1)
    expected, _ = local(network(), torch.tensor(learner.start), silo, settings, 3, 1, optimiser=torchs)
    np.testing.assert_allclose(learner.start + change, expected.numpy(), atol=1e-12)
    with pytest.raises(UsageError, match="scaffold"):
        learner.travel(silo)


@pytest.mark.parametrize(
    ("loss", "made"),
    [
        (functional.mse_loss, lambda y: np.eye(4, dtype=np.float32)[y]),
        (functional.binary_cross_entropy_with_logits, lambda y: np.eye(4)[y]),
    ],
    ids=["mse", "bce"],
)
def test_other_losses_take_float_targets(loss, made):
    settings = train_section(**COMMON)
    parties = [Silo(s.name, s.x, made(s.y)) for s in silos()]
    learner = Fixed(network(), settings, loss=loss)
    change = learner.change(learner.start, parties[0], MemoryStore(), number=1)
    module = network()
    optimiser = torch.optim.SGD(module.parameters(), 0.2, weight_decay=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        loss(module(torch.tensor(parties[0].x)), torch.tensor(parties[0].y, dtype=torch.float64)).backward()
        optimiser.step()
    np.testing.assert_allclose(learner.start + change, flat(module.parameters()).numpy(), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parameters_and_statistics_come_back_exactly(dtype):
    module = network(dtype, norm=True)
    with torch.no_grad():
        module[1].running_mean.uniform_(-3, 3)
    learner = TorchLearner(module, train_section())
    again = learner.model(learner.start)
    assert learner.start.dtype == np.float64
    assert len(learner.start) == sum(t.numel() for t in module.state_dict().values()) - 1  # all but the counter
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training
    values = np.random.default_rng(0).normal(size=len(learner.start))
    narrow = torch.tensor(values).to(dtype).double().numpy()
    np.testing.assert_array_equal(TorchLearner(learner.model(values), train_section()).start, narrow)


def test_the_callers_module_and_the_returned_ones_are_nobody_elses():
    settings, module = train_section(**COMMON), network()
    before = flat(module.parameters()).clone()
    learner = TorchLearner(module, settings)
    first = learner.model(learner.start)
    learner.change(learner.start, silos()[0], MemoryStore(), number=1)
    assert torch.equal(flat(module.parameters()), before)
    assert torch.equal(flat(first.parameters()), before)
    assert all(p.grad is None for p in first.parameters())


class Odd(nn.Module):
    """Everything that could leak from one silo to the next: dropout, counters, a buffer that is assigned to."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 6)
        self.norm = nn.BatchNorm1d(6, momentum=None)
        self.last = nn.Linear(6, 4)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("passes", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.seen = self.seen + x.mean().detach()
        self.passes = self.passes + 1
        hidden = functional.dropout(self.norm(self.inner(x.flatten(1))), 0.5, self.training)
        return self.last(hidden) * (1 + self.passes)


def test_what_a_silo_contributes_depends_on_nothing_but_its_arguments():
    settings, parties = train_section(**COMMON), silos(dtype=np.float32)
    torch.manual_seed(0)
    module = Odd()

    def change(learner, silo, number=1):
        torch.rand(int(number))  # whatever else uses torch's generator
        return learner.change(learner.start, silo, MemoryStore(), number=number)

    used = TorchLearner(module, settings, batch_size=4)
    busy = [change(used, silo) for silo in (*parties, *parties[::-1])]
    fresh = [change(TorchLearner(module, settings, batch_size=4), silo) for silo in parties]
    for place in range(3):
        np.testing.assert_array_equal(busy[place], fresh[place])
        np.testing.assert_array_equal(busy[5 - place], fresh[place])
    assert np.abs(change(used, parties[1], 2) - fresh[1]).max() > 1e-3  # another round: another order, other dropout
    for silo, moved in zip(parties, fresh, strict=True):  # the buffer that is assigned to comes first, and travels
        orders = used.order(silo, 1)
        seen = sum(silo.x[order[at : at + 4]].mean() for order in orders for at in range(0, len(order), 4))
        assert moved[0] == pytest.approx(seen, abs=1e-5)
        assert abs(seen) > 1e-4
    other = TorchLearner(module, settings, batch_size=4, seed=2)
    assert np.abs(change(other, parties[1]) - fresh[1]).max() > 1e-3


def test_torchs_generator_and_threads_are_left_alone():
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    learner = TorchLearner(Odd(), train_section(), batch_size=4)
    torch.manual_seed(5)
    learner.change(learner.start, silos(dtype=np.float32)[1], MemoryStore(), number=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_the_default_order_is_a_permutation_of_its_own_for_each_silo_round_and_pass():
    settings, parties = train_section(local_steps=2), silos()
    orders = [
        order.tolist()
        for seed in (1, 2)
        for number in (1, 2)
        for order in TorchLearner(network(), settings, seed=seed).order(parties[1], number)
    ]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    again = TorchLearner(network(), settings).order(parties[1], 1)
    assert [order.tolist() for order in again] == orders[:2]


def test_statistics_are_averaged_like_parameters():
    settings, parties = train_section(**{**COMMON, "rounds": 1, "update_bound": 100.0}), silos()
    *_, done = fit(Fixed(network(norm=True), settings, batch_size=4), parties, settings, aggregator=PlainSum())
    ends = []
    for silo in parties:
        module = network(norm=True)
        local(module, flat(module.parameters()), silo, settings, 4, 1)
        ends.append(module[1].running_var)
    expected = sum(len(s.x) * end for s, end in zip(parties, ends, strict=True)) / sum(SIZES)
    np.testing.assert_allclose(done.model[1].running_var.numpy(), expected.numpy(), atol=1e-8)
    assert not torch.equal(done.model[1].running_var, network(norm=True)[1].running_var)


def test_shift_and_pull_act_on_parameters_alone_where_statistics_travel():
    settings, silo = train_section(**COMMON, algorithm="fedprox", proximal=0.7), silos()[1]
    learner, module, rng = (
        Fixed(network(norm=True), settings, batch_size=4),
        network(norm=True),
        np.random.default_rng(0),
    )
    shift, begin = rng.normal(size=len(learner.start)), learner.start.copy()
    begin[6:] += rng.normal(size=len(begin) - 6)  # behind the means and variances of three channels
    end, _ = local(
        module, torch.tensor(begin[6:]), silo, settings, 4, 1,
        mu=0.7, shift=torch.tensor(shift[6:]), anchor=torch.tensor(learner.start[6:]),
    )  # fmt: skip
    ours = begin + learner.change(learner.start, silo, MemoryStore(), number=1, shift=shift, begin=begin)
    expected = torch.cat([module[1].running_mean, module[1].running_var, end])
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-10)


def test_scaffold_ignores_statistics_that_no_gradient_moves():
    settings, silo = train_section(**COMMON, algorithm="scaffold"), silos()[0]
    learner = TorchLearner(network(norm=True), settings, batch_size=4)
    travel = learner.travel(silo)
    assert np.isinf(travel).sum() == 6
    assert (travel[np.isfinite(travel)] == 0.2 * 2 * 2).all()


def test_bytes_do_not_tell_the_record_counts():
    settings = train_section(**{**COMMON, "rounds": 1})
    *_, done = fit(TorchLearner(network(), settings), silos(), settings)
    assert len({done.bytes_up[f"h{place}"] for place in range(3)}) == 1
    assert len(set(SIZES)) == 3


def test_a_diverging_silo_is_named():
    settings = train_section(**COMMON)
    parties = silos()
    parties[1] = Silo("h1", parties[1].x * 1e200, parties[1].y)
    with pytest.raises(ModelError, match="finite update of h1"):
        list(fit(TorchLearner(network(), settings), parties, settings, aggregator=PlainSum()))


def test_an_error_of_the_module_names_the_silo():
    learner = TorchLearner(Odd(), train_section(), batch_size=19)
    with pytest.raises(ValueError, match="more than 1 value") as error:  # batch normalisation of the 20th record alone
        learner.change(learner.start, silos(dtype=np.float32)[1], MemoryStore(), number=4)
    assert error.value.__notes__ == ["while h1 trained in round 4"]


def test_a_silo_without_records_is_named():
    learner = TorchLearner(network(), train_section())
    with pytest.raises(DataError, match="h9"):
        learner.change(
            learner.start, Silo("h9", np.zeros((0, 1, 8, 8)), np.zeros(0, np.int64)), MemoryStore(), number=1
        )


def test_records_are_neither_copied_nor_widened():
    x = np.zeros((3, 1, 8, 8), np.float32)
    assert Silo("a", x, np.zeros(3, np.int64)).x is x
    x.flags.writeable = False
    learner = TorchLearner(network(torch.float32), train_section())
    learner.change(learner.start, Silo("a", x, np.zeros(3, np.int64)), MemoryStore(), number=1)


def test_whole_numbers_reach_the_module_as_they_are():
    module = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 2))
    silo = Silo("a", np.array([[1, 2], [3, 8]]), np.array([0, 1]))
    learner = TorchLearner(module, train_section())
    assert np.abs(learner.change(learner.start, silo, MemoryStore(), number=1)).max() > 0


def test_outputs_are_those_of_the_module_in_evaluation_mode():
    module, x = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 4)), silos(dtype=np.float32)[1].x
    ours = outputs(module, x, batch_size=7)
    np.testing.assert_array_equal(ours, module.eval()(torch.tensor(x)).detach().double().numpy())
    assert outputs(module.train(), x[:1]).shape == (1, 4)
    assert module.training


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"momentum": 1.0}, {"optimiser": "lbfgs"}, {"optimiser": "adamw", "momentum": 0.9}]
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(UsageError, match="Expected"):
        TorchLearner(network(), train_section(), **wrong)


def test_parameters_of_two_types_are_refused():
    module = network()
    module[3].double(), module[0].float()
    with pytest.raises(ModelError, match="one floating type"):
        TorchLearner(module, train_section())


def test_a_section_is_checked_as_a_job_file_is():
    with pytest.raises(JobError) as error:
        train_section(rounds=0, learning_rte=1.0, algorithm="fedavgg")
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(JobError, match="proximal"):
        train_section(proximal=0.1)
    adam = train_section(algorithm="fedadam")
    assert (adam.momentum, adam.server_learning_rate, train_section().momentum) == (0.9, 0.1, 0.0)
    with pytest.raises(JobError, match="aggregate"):
        fit(TorchLearner(network(), train_section()), silos(), train_section(aggregate="maskd"))


def test_the_ledger_names_the_settings_and_every_round(tmp_path):
    from confide.train.ledger import Ledger, verify

    settings, ledger = train_section(**{**COMMON, "rounds": 2}), Ledger(tmp_path / "ledger.jsonl")
    list(fit(TorchLearner(network(), settings), silos(), settings, ledger=ledger))
    assert verify(tmp_path / "ledger.jsonl").entries == 3
    first = msgspec.json.decode((tmp_path / "ledger.jsonl").read_bytes().splitlines()[0])
    assert msgspec.json.decode(first["train"])["rounds"] == 2


ABSENT = """
import sys
sys.modules["torch"] = None
import confide.train
from confide.errors import MissingExtra
confide.train.train_section()
try:
    confide.train.TorchLearner
except MissingExtra as missing:
    print(missing)
"""


def test_training_imports_without_torch():
    lazy = "import sys, confide.train; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", lazy], check=True)
    done = subprocess.run([sys.executable, "-c", ABSENT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Expected the package torch; install it with: pip install 'confide[train]'"


@pytest.mark.parametrize(
    "chosen", [{"momentum": 0.9}, {"algorithm": "fedadam"}, {"compress": "rand-k"}, {"server_learning_rate": 1.5}]
)
def test_running_statistics_travel_under_plain_averages_alone(chosen):
    """Anything else can make a running variance negative, and a model that answers NaN."""
    normalised = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    settings = train_section(**COMMON | chosen)
    with pytest.raises(JobError, match="private="):
        fit(TorchLearner(normalised, settings), silos(), settings)
    fit(TorchLearner(normalised, settings, private=("1.running_*",)), silos(), settings)
