"""Which part of a module travels: private layers, frozen ones, low-rank additions; each with the bytes it costs."""

import copy

import numpy as np
import pytest

from confide.errors import ModelError
from confide.ideal import PlainSum
from confide.secagg.masked import Masked
from confide.train import Silo, fit, personal_models, train_section
from confide.wire import MemoryStore, drop

torch = pytest.importorskip("torch", reason="torch comes with the train extra")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from confide.train import TorchLearner, low_rank, outputs  # noqa: E402

SETTINGS = train_section(
    rounds=3, local_steps=2, learning_rate=0.2, expected_records=10, quorum=3, fraction_bits=34, update_bound=100.0
)
NORM = ("norm.*",)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.body(x))))


def network():
    torch.manual_seed(3)
    return Network().double()


def silos(seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for place, size in enumerate((8, 20, 13)):
        x = rng.normal(place, 1 + place, size=(size, 6))
        made.append(Silo(f"h{place}", x, rng.integers(0, 3, size)))
    return made


def stores(parties):
    return {silo.name: MemoryStore() for silo in parties}


def after(settings, parties, learner, **more):
    *_, done = fit(learner, parties, settings, **({"aggregator": PlainSum()} | more))
    return done


def textbook(parties, settings, stays, *, frozen=()):
    """Return each silo's model: full-batch averaging of every entry of state_dict that does not stay at a silo."""
    models = [network() for _ in parties]
    share = np.array([len(s.x) for s in parties]) / sum(len(s.x) for s in parties)
    for _ in range(settings.rounds):
        for model, silo in zip(models, parties, strict=True):
            trained = [p for name, p in model.named_parameters() if not name.startswith(frozen)]
            optimiser = torch.optim.SGD(trained, settings.learning_rate)
            if "norm" in frozen:
                model.norm.eval()
            for _ in range(settings.local_steps):
                model.zero_grad()
                functional.cross_entropy(model(torch.tensor(silo.x)), torch.tensor(silo.y)).backward()
                optimiser.step()
        states = [model.state_dict() for model in models]
        for name, tensor in states[0].items():
            if tensor.is_floating_point() and not name.startswith(stays):
                mean = sum(w * state[name] for w, state in zip(share, states, strict=True))
                for state in states:
                    state[name].copy_(mean)
    return models


def assert_same(ours, expected):
    for name, tensor in expected.state_dict().items():
        if tensor.is_floating_point():
            np.testing.assert_allclose(ours.state_dict()[name].numpy(), tensor.numpy(), atol=1e-8, err_msg=name)


@pytest.mark.parametrize(
    ("private", "stays"),
    [(("norm.*",), ("norm",)), (("head.*",), ("head",)), (("norm.running_*",), ("norm.running",))],
    ids=["FedBN", "FedPer", "statistics only"],
)
@pytest.mark.parametrize("aggregator", [PlainSum(), Masked()], ids=["plain", "masked"])
def test_private_layers_equal_the_textbook(private, stays, aggregator):
    parties = silos()
    kept, learner = stores(parties), TorchLearner(network(), SETTINGS, private=private)
    done = after(SETTINGS, parties, learner, stores=kept, aggregator=aggregator)
    own = personal_models(learner, done.parameters, kept)
    for silo, expected in zip(parties, textbook(parties, SETTINGS, stays), strict=True):
        assert_same(own[silo.name], expected)
    state = done.model.state_dict()
    assert all(torch.equal(state[name], t) for name, t in network().state_dict().items() if name.startswith(stays))


def test_private_layers_differ_and_without_private_they_do_not():
    """The negative control: what stays is really the silo's own."""
    parties = silos()
    for private, same in ((NORM, False), ((), True)):
        kept, learner = stores(parties), TorchLearner(network(), SETTINGS, private=private)
        own = personal_models(learner, after(SETTINGS, parties, learner, stores=kept).parameters, kept)
        assert torch.equal(own["h0"].norm.running_mean, own["h1"].norm.running_mean) == same


def test_what_stays_is_in_no_message():
    """A silo's vector is the same to the bit whatever its private statistics are, and as long as what travels."""
    learner = TorchLearner(network(), SETTINGS, private=("norm.running_*",))
    moved = MemoryStore()
    silo = silos()[0]
    learner.change(learner.start, silo, moved, number=1)
    moved.commit({"torch/private": moved.get("torch/private/next")})
    changes = [learner.change(learner.start, silo, store, number=1) for store in (moved, MemoryStore())]
    np.testing.assert_array_equal(*changes)
    assert len(changes[0]) == sum(p.numel() for p in network().parameters())


def test_a_dropout_keeps_the_private_part_it_had():
    settings = train_section(rounds=2, quorum=2, expected_records=10)
    parties = silos()
    kept = stores(parties)
    after(settings, parties, TorchLearner(network(), settings, private=NORM), stores=kept, fault=drop(src="h1"))
    assert kept["h1"].get("torch/private") is None
    assert kept["h0"].get("torch/private") is not None
    assert all(store.get("torch/private/next") is None for store in kept.values())


def test_private_parts_outlive_the_process():
    half = train_section(rounds=2, expected_records=10)
    whole = train_section(rounds=4, expected_records=10)
    parties, kept, once = silos(), stores(silos()), stores(silos())
    all_at_once = after(whole, parties, TorchLearner(network(), whole, private=NORM, seed=1), stores=once)
    first = after(half, parties, TorchLearner(network(), half, private=NORM), stores=kept)
    again = TorchLearner(first.model, half, private=NORM)
    second = after(half, silos(), again, stores=kept, run_id="again")
    np.testing.assert_allclose(second.parameters, all_at_once.parameters, atol=1e-6)
    for name in kept:
        ours, expected = (torch.frombuffer(bytearray(s[name].get("torch/private")[-160:]), dtype=torch.float64)
                          for s in (kept, once))  # fmt: skip
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("body", [b"", b"\x93", b"\xff" * 300])
def test_a_store_of_another_model_is_refused(body):
    store = MemoryStore()
    store.commit({"torch/private": body})
    learner = TorchLearner(network(), SETTINGS, private=NORM)
    with pytest.raises(ModelError, match="private part"):
        learner.change(learner.start, silos()[0], store, number=1)


@pytest.mark.parametrize("frozen", [("body", "norm"), ("body",), ("norm",)])
@pytest.mark.parametrize("by", ["trained", "requires_grad"])
def test_frozen_layers_neither_move_nor_travel(frozen, by):
    module, layers = network(), ("body", "norm", "head")
    trained = [f"{layer}.*" for layer in layers if layer not in frozen]
    if by == "requires_grad":
        for layer in frozen:
            getattr(module, layer).requires_grad_(False)
        trained = ["*"]
    with torch.no_grad():
        module.norm.running_mean += 0.5
    learner = TorchLearner(module, SETTINGS, trained=trained)
    done = after(SETTINGS, silos(), learner)
    before, now = module.state_dict(), done.model.state_dict()
    for name in before:
        still = name.startswith(frozen) or "num_batches" in name
        assert torch.equal(before[name], now[name]) == still, name
    assert len(learner.start) == sum(
        t.numel() for name, t in before.items() if t.is_floating_point() and not name.startswith(frozen)
    )


def test_a_frozen_norm_applies_the_statistics_it_has():
    parties = silos()
    done = after(SETTINGS, parties, TorchLearner(network(), SETTINGS, trained=("body.*", "head.*")))
    assert_same(done.model, textbook(parties, SETTINGS, (), frozen=("norm",))[0])


@pytest.mark.parametrize(
    "wrong",
    [{"trained": ("haed.*",)}, {"private": ("bn*",)}, {"private": ("*",)}, {"trained": ("norm.running_mean",)}],
    ids=["trained typo", "private typo", "nothing travels", "nothing is trained"],
)
def test_patterns_that_leave_nothing_are_refused(wrong):
    with pytest.raises(ModelError, match="Expected"):
        TorchLearner(network(), SETTINGS, **wrong)


def test_buffers_of_a_layer_without_parameters_travel_if_their_names_match():
    module = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)).double()
    assert len(TorchLearner(module, SETTINGS).start) == 12 + 21
    learner = TorchLearner(module, SETTINGS, trained=("1.*",))
    assert len(learner.start) == 21
    done = after(SETTINGS, silos(), learner)
    assert torch.equal(done.model[0].running_mean, torch.zeros(6, dtype=torch.float64))


def test_tied_weights_travel_once():
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    module[2].weight = module[0].weight
    learner = TorchLearner(module, SETTINGS)
    assert len(learner.start) == 36 + 6 + 6
    model = after(SETTINGS, silos(), learner).model
    assert model[2].weight is model[0].weight


# --- low rank ---------------------------------------------------------------------------------------------------------


def plain_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_a_low_rank_module_starts_as_the_module_and_leaves_it_alone():
    module, x = plain_network(), silos()[0].x
    before = copy.deepcopy(module)
    added = low_rank(module, ["*"], rank=2)
    np.testing.assert_array_equal(outputs(added, x), outputs(before, x))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True))
    assert all(p.requires_grad for p in module.parameters())


def test_only_b_travels_and_the_mean_of_b_is_the_mean_of_the_weights():
    parties, settings = silos(), train_section(rounds=1, learning_rate=0.2, expected_records=10, fraction_bits=34)
    added = low_rank(plain_network(), ["0"], rank=2, scale=3.0)
    learner = TorchLearner(added, settings)
    assert len(learner.start) == 5 * 2
    done = after(settings, parties, learner)
    ends = []
    for silo in parties:
        change = learner.change(learner.start, silo, MemoryStore(), number=1)
        ends.append(learner.model(learner.start + change)[0].weight.detach())
    expected = sum(len(s.x) * end for s, end in zip(parties, ends, strict=True)) / sum(len(s.x) for s in parties)
    np.testing.assert_allclose(done.model[0].weight.detach(), expected, atol=1e-9)
    assert not torch.equal(expected, plain_network()[0].weight)
    assert torch.equal(done.model[2].weight, plain_network()[2].weight)


def test_low_rank_training_equals_the_two_factors_by_hand():
    silo, settings = silos()[1], train_section(local_steps=3, learning_rate=0.3)
    added = low_rank(plain_network(), ["0"], rank=2, scale=1.5)
    learner = TorchLearner(added, settings)
    ours = learner.start + learner.change(learner.start, silo, MemoryStore(), number=1)
    module, a = plain_network(), added[0].parametrizations.weight[0].a.detach()
    b = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    x, y = torch.tensor(silo.x), torch.tensor(silo.y)
    for _ in range(3):
        hidden = torch.tanh(module[0](x) + 1.5 * (x @ a.T) @ b.T)
        (slope,) = torch.autograd.grad(functional.cross_entropy(module[2](hidden), y), b)
        b = (b - 0.3 * slope).detach().requires_grad_(True)
    np.testing.assert_allclose(ours, b.detach().numpy().ravel(), atol=1e-12)
    assert np.abs(ours).max() > 1e-3


def test_the_addition_merges_into_the_weight():
    added = low_rank(plain_network(), ["0", "2"], rank=1)
    done = after(SETTINGS, silos(), TorchLearner(added, SETTINGS))
    x = silos()[0].x
    expected = outputs(done.model, x)
    for layer in (done.model[0], done.model[2]):
        parametrize.remove_parametrizations(layer, "weight")
    assert done.model.state_dict().keys() == plain_network().state_dict().keys()
    np.testing.assert_allclose(outputs(done.model, x), expected, atol=1e-12)
    assert np.abs(outputs(plain_network(), x) - expected).max() > 1e-3


def test_a_is_public_and_seeded():
    a = [low_rank(plain_network(), ["*"], rank=2, seed=seed)[0].parametrizations.weight[0].a for seed in (1, 1, 2)]
    assert torch.equal(a[0], a[1])
    assert not torch.equal(a[0], a[2])


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": 4}, {"layers": ["1"]}, {"layers": ["nothing"]}])
def test_layers_and_ranks_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ModelError, match="Expected"):
        low_rank(plain_network(), **({"layers": ["*"], "rank": 1} | wrong))
    with pytest.raises(ModelError, match=r"'1' to match the name of an nn.Linear layer"):
        low_rank(plain_network(), ["1"], rank=1)


def test_bytes_are_those_of_what_travels():
    """A plain sum sends 8 bytes a value and one for the weight: the parts differ by exactly that."""
    settings = train_section(rounds=1, expected_records=10)
    sizes = {}
    for name, module, options in (
        ("all", network(), {}),
        ("norm stays", network(), {"private": NORM}),
        ("head only", network(), {"trained": ("head.*",)}),
        ("low rank", low_rank(network(), ["body"], rank=1), {}),
    ):
        done = after(settings, silos(), TorchLearner(module, settings, **options))
        sizes[name] = done.bytes_up["h0"]
    values = {"all": 35 + 20 + 18, "norm stays": 35 + 18, "head only": 18, "low rank": 5}
    head = sizes["all"] - 8 * (values["all"] + 1)
    assert 0 < head < 64
    assert all(abs(sizes[name] - 8 * (count + 1) - head) <= 4 for name, count in values.items())
