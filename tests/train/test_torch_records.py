"""Gradients of single records: those of batches of one for every layer, and integers that no other record moves."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from confide.crypto.random import SeededRandomness
from confide.errors import ModelError, UsageError
from confide.train.torch_check import check, problems
from confide.train.torch_graph import Polynomial, Square
from confide.train.torch_layers import Outer
from confide.train.torch_records import RecordGradients
from confide.train.torch_rounding import Rounding, default_grid
from confide.train.torch_state import Resident

CLIP = 0.7


class Gain(nn.Module):
    """A layer that nobody has a rule for."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return torch.sin(self.gain * x)


class Tokens(nn.Module):
    """Whole numbers from features, so that embeddings can be tried."""

    def forward(self, x):
        return (x.abs() * 3).long().clamp(0, 9)


def chain(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


#: Each layer with the shape of one record.
LAYERS = {
    "linear": (lambda: chain(nn.Linear(6, 5), nn.Tanh()), (6,)),
    "linear without bias": (lambda: chain(nn.Linear(6, 5, bias=False), nn.ReLU()), (6,)),
    "linear on sequences": (lambda: chain(nn.Linear(6, 5), nn.GELU()), (4, 6)),
    "linear on maps": (lambda: chain(nn.Linear(6, 5), nn.Tanh()), (2, 4, 6)),
    "conv1d": (lambda: chain(nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), nn.Tanh()), (2, 11)),
    "conv2d": (lambda: chain(nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(0, 1)), nn.Tanh()), (2, 7, 6)),
    "conv2d in groups": (lambda: chain(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ELU()), (4, 6, 6)),
    "conv2d same": (lambda: chain(nn.Conv2d(2, 4, (5, 3), padding="same", dilation=(1, 2)), nn.Tanh()), (2, 7, 6)),
    "group norm": (lambda: chain(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.AvgPool2d(2)), (2, 6, 6)),
    "group norm on rows": (lambda: chain(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Tanh()), (6,)),
    "layer norm": (lambda: chain(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU()), (6,)),
    "layer norm on maps": (lambda: chain(nn.LayerNorm((5, 4)), nn.Tanh()), (2, 5, 4)),
    "instance norm": (lambda: chain(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Tanh()), (1, 6, 6)),
    "embedding": (lambda: chain(Tokens(), nn.Embedding(10, 3, padding_idx=1)), (4,)),
    "square": (lambda: chain(nn.Linear(6, 5), Square()), (6,)),
    "polynomial": (lambda: chain(nn.Linear(6, 5), Polynomial()), (6,)),
    "transposed convolution": (lambda: chain(nn.ConvTranspose2d(2, 3, 3), nn.Tanh()), (2, 4, 4)),
    "conv3d": (lambda: chain(nn.Conv3d(1, 2, 2), nn.Tanh()), (1, 3, 4, 3)),
    "prelu": (lambda: chain(nn.Linear(6, 5), nn.PReLU(5)), (6,)),
    "one of my own": (lambda: chain(nn.Linear(6, 5), Gain(5)), (6,)),
}


def loss(outputs, y):
    return functional.cross_entropy(outputs, y, reduction="none")


def made(module, shape, slots=16, of=loss):
    """Return the gradients' object of a module that has seen its shape."""
    torch.manual_seed(3)
    module = module()
    module(torch.zeros(1, *shape))
    resident = Resident(module, ("*",), ())
    return RecordGradients(resident, of, slots), resident


def records(shape, count, seed=5, scale=1.0):
    draw = np.random.Generator(np.random.PCG64(seed))
    x = (scale * draw.normal(size=(count, *shape))).astype(np.float32)
    return x, draw.integers(0, 3, count)


def alone(resident, x, y):
    """Return the gradient of each record as a batch of one, by autograd itself, in the order of the flat vector."""
    rows = []
    parameters = dict(resident.module.named_parameters())
    for one, wanted in zip(torch.from_numpy(x), torch.from_numpy(y), strict=True):
        value = loss(resident.module(one[None]), wanted[None]).sum()
        found = torch.autograd.grad(value, [parameters[part.name] for part in resident.parts])
        rows.append(torch.cat([part.flatten() for part in found]).double())
    return torch.stack(rows).numpy()


@pytest.mark.parametrize(("module", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_gradient_of_a_record_is_that_of_a_batch_of_one(module, shape):
    gradients, resident = made(module, shape)
    x, y = records(shape, 9)
    found = np.zeros((9, resident.sent_count))
    for place, value in gradients.of(torch.from_numpy(x), torch.from_numpy(y)):
        found[:, place] = (value.dense() if isinstance(value, Outer) else value).detach().numpy()
    assert found == pytest.approx(alone(resident, x, y), rel=1e-4, abs=1e-5)
    gradients.probe(x, y)  # and the probe agrees


@pytest.mark.parametrize(("module", "shape"), [LAYERS["linear"], LAYERS["conv2d"]], ids=["linear", "conv2d"])
@pytest.mark.parametrize("count", [0, 1, 16, 37])
def test_the_sum_is_that_of_clipped_gradients(module, shape, count):
    gradients, resident = made(module, shape)
    x, y = records(shape, 40)
    grid = default_grid(resident.module, resident.sent_count)
    chosen = np.random.Generator(np.random.PCG64(7)).choice(40, count, replace=False).astype(np.int64)
    clipped = gradients.clipped_sum(x, y, chosen, clip_norm=CLIP, grid=grid, rng=SeededRandomness("slots"))
    rows = alone(resident, x[chosen], y[chosen]) if count else np.zeros((0, resident.sent_count))
    norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    wanted = (rows * np.minimum(1, CLIP / norms)).sum(0)
    assert clipped.total.dtype == np.int64
    assert (clipped.sensitivity, clipped.clip_norm, clipped.ignored) == (grid, CLIP, 0)
    assert clipped.total * CLIP / grid == pytest.approx(wanted, abs=0.03 * CLIP * max(1, count) ** 0.5)


#: Shapes whose products round by slot here or may elsewhere, and some that do not.
NETS = {
    "odd": (lambda: nn.Sequential(nn.Linear(30, 7), nn.Sigmoid(), nn.Linear(7, 3)), (30,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 3)), (32,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 3)
        ),
        (1, 8, 8),
    ),
    "sequence": (lambda: chain(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh()), (3, 5)),
}


def submitted(gradients, x, y, chosen, seed, grid):
    """Return the integers with slots drawn as in the neighbour: one word for each record, the last record's last."""
    return gradients.clipped_sum(x, y, chosen, clip_norm=CLIP, grid=grid, rng=SeededRandomness(seed)).total


def excess(module, shape, pairs, *, change=lambda total, end: total):
    """Return the largest distance between the sums of neighbours over the grid, for records of every scale and kind."""
    gradients, resident = made(module, shape)
    grid, worst = default_grid(resident.module, resident.sent_count), 0.0
    draw = np.random.Generator(np.random.PCG64(11))
    for number in range(pairs):
        count = (1, 2, 7, 40)[number % 4]
        x, y = records(shape, count, seed=number, scale=10.0 ** draw.uniform(-3, 3))
        if number % 5 == 4:
            x[-1] = draw.choice([1e38, -1e38, 0.0, 1e-30])
        resident.flat.copy_(
            resident.flat * 0 + torch.from_numpy(draw.normal(0, 10.0 ** draw.uniform(-2, 1), len(resident.flat)))
        )
        ends = [
            change(submitted(gradients, x, y, np.arange(end), f"{number}", grid), end) for end in (count, count - 1)
        ]
        worst = max(worst, float(np.linalg.norm((ends[0] - ends[1]).astype(np.float64))) / grid)
    return worst


@pytest.mark.parametrize(("module", "shape"), NETS.values(), ids=NETS)
def test_a_record_moves_the_sum_by_at_most_the_grid_and_moves_no_other_record(module, shape):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0.9 < excess(module, shape, 20) <= 1


def test_a_record_that_moves_the_others_is_caught():
    """The mean over the batch in place of the sum, as Opacus' default denominator would have it."""
    module, shape = NETS["mlp"]
    assert excess(module, shape, 12, change=lambda total, end: total * 40 // max(1, end)) > 1.05


def test_wild_records_count_as_zero_and_leave_the_others_alone():
    module, shape = NETS["mlp"]
    gradients, resident = made(module, shape)
    grid = default_grid(resident.module, resident.sent_count)
    x, y = records(shape, 20)
    x[3], x[11] = np.nan, np.inf
    with_them = gradients.clipped_sum(x, y, np.arange(20), clip_norm=CLIP, grid=grid, rng=SeededRandomness("w"))
    others = np.array([n for n in range(20) if n not in (3, 11)])
    without = gradients.clipped_sum(x, y, others, clip_norm=CLIP, grid=grid, rng=SeededRandomness("w"))
    assert with_them.ignored == 2
    assert np.array_equal(with_them.total, without.total)


def test_integers_of_outer_products_keep_their_norm_whatever_the_factors():
    """The sum of one record's integers, over factors of extreme scales; tight, so that no noise is wasted."""
    gradients, resident = made(*NETS["odd"])
    grid, draw, largest = default_grid(resident.module, resident.sent_count), np.random.Generator(np.random.PCG64(1)), 0
    rounding = Rounding(resident, clip_norm=CLIP, grid=grid)
    x, y = records((30,), 1)
    found = gradients.of(torch.from_numpy(x), torch.from_numpy(y))
    for _ in range(300):
        wild = []
        for place, value in found:
            scales = 10.0 ** draw.uniform(-18, 18, 2)
            if isinstance(value, Outer):
                left, right = (
                    torch.from_numpy(s * draw.normal(size=v.shape)).float()
                    for s, v in zip(scales, (value.left, value.right), strict=True)
                )
                wild.append((place, Outer(left, right)))
            else:
                wild.append((place, torch.from_numpy(scales[0] * draw.normal(size=value.shape)).float()))
        total = torch.zeros(resident.sent_count, dtype=torch.float64)
        assert rounding.add(wild, torch.tensor([True]), total) == 1
        norm = sum(int(v) ** 2 for v in total.tolist())
        assert norm <= grid**2
        largest = max(largest, norm)
    assert largest > (0.95 * grid) ** 2


def test_slots_without_a_record_are_nothing():
    module, shape = NETS["cnn"]
    x, y = records(shape, 10)
    totals = []
    for slots in (1, 4, 16):
        gradients, resident = made(module, shape, slots)
        grid = default_grid(resident.module, resident.sent_count)
        totals.append(submitted(gradients, x, y, np.arange(10), "s", grid))
    assert np.linalg.norm(totals[0] - totals[1]) < 1e-3 * grid
    assert np.linalg.norm(totals[0] - totals[2]) < 1e-3 * grid


class Mixing(nn.Module):
    """Batch normalisation under another name: no static check sees it."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x):
        return self.inner(torch.tanh(self.inner(x)))


class Beside(nn.Module):
    """Uses a layer's weight outside the layer's call."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x):
        return self.inner(x) + x @ self.inner.weight


@pytest.mark.parametrize(
    ("module", "message"), [(Mixing, "batch of one"), (Twice, "called once"), (Beside, "batch of one")]
)
def test_modules_that_mix_or_miss_are_found_out_on_random_records(module, message):
    gradients, _ = made(lambda: nn.Sequential(module(), nn.Linear(5, 3)), (5,))
    with pytest.raises(ModelError, match=message):
        gradients.probe(*records((5,), 1))


def test_a_loss_of_the_whole_batch_is_refused():
    gradients, _ = made(*NETS["mlp"], of=functional.cross_entropy)
    with pytest.raises(ModelError, match="one loss for each"):
        gradients.probe(*records((32,), 1))


def test_a_grid_too_coarse_is_refused():
    _, resident = made(*NETS["mlp"])
    with pytest.raises(UsageError, match="grid"):
        Rounding(resident, clip_norm=1.0, grid=20)


# --- the check --------------------------------------------------------------------------------------------------------


def test_every_problem_is_named_at_once_with_its_replacement():
    shared = nn.Linear(4, 4)
    module = nn.Sequential(
        nn.Conv2d(3, 48, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(48),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.InstanceNorm2d(48, track_running_stats=True),
        nn.LSTM(4, 4),
        nn.BatchNorm1d(30),
        shared,
        nn.Sequential(nn.Linear(4, 4)),
        nn.Embedding(9, 2, max_norm=1.0),
    )
    module[8][0].weight = shared.weight
    said = "\n".join(map(str, problems(module)))
    for text in (
        "0 (Conv2d): padding_mode",
        "take nn.GroupNorm(24, 48)",
        "2 (ReLU): it overwrites",
        "3 (Dropout)",
        "4 (InstanceNorm2d)",
        "5 (LSTM)",
        "nn.LayerNorm(30)",
        "the same parameter as 7.weight",
        "9 (Embedding)",
    ):
        assert text in said, text
    with pytest.raises(ModelError, match="GroupNorm"):
        check(module)


@pytest.mark.parametrize(("module", "shape"), LAYERS.values(), ids=LAYERS)
def test_what_is_supported_passes_the_check(module, shape):
    built = module()
    built(torch.zeros(1, *shape))
    assert not problems(built)


def test_lazy_frozen_and_empty_modules():
    assert "size is not known" in str(problems(nn.Sequential(nn.LazyLinear(3)))[0])
    frozen = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 2))
    assert not problems(frozen, ("1.*",))
    assert "BatchNorm" in str(problems(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), ("1.*",))[0])  # even frozen
    assert "nothing is trained" in str(problems(nn.Sequential(nn.Linear(4, 2).requires_grad_(False)))[0])


def test_products_of_fewer_bits_are_refused():
    gradients, _ = made(*NETS["mlp"])
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(UsageError, match="highest"):
            gradients.clipped_sum(
                *records((32,), 1), np.arange(1), clip_norm=1.0, grid=1024, rng=SeededRandomness("bits")
            )
    finally:
        torch.set_float32_matmul_precision("highest")


def test_autocast_around_a_round_changes_no_integer():
    """In bfloat16 a product of integers is none: one record then moved the sum by 1.7 times what was accounted."""
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 1, 8, 8)), 512, 0).astype(np.float32)
    y, grid = np.zeros(512, np.int64), 1 << 14
    gradients, _ = made(lambda: chain(nn.Conv2d(1, 4, 3), nn.Tanh()), (1, 8, 8), slots=512)

    def total(count):
        return submitted(gradients, x[:count], y[:count], np.arange(count), "one seed", grid)

    plain = total(310)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(total(310), plain)
        assert np.linalg.norm(total(311) - plain) <= grid
