"""Rounds to a target accuracy when parties differ, for a network: every algorithm beside the passes of pooled training.

    python bench/rounds_mnist.py [--seeds 1] [--json FILE] [--plot FILE.png] [--data FILE.npz]

MNIST, 6,000 training images over ten parties whose classes are drawn by a Dirichlet distribution of alpha 1 and 0.1;
network and step size are those of bench/peers/SIMULATION.md. A round is one sum, before which every party passes once
or five times over its own images; a pooled pass is one over all images in one place. So the ratio counts how much more
often a party is asked than pooled training reads the data; five passes compute five times as much. The target is 95 %
on the 10,000 test images. Server settings are the same for both alphas and all seeds. A run that does not get there
within the cap counts as the cap, so its ratio is a lower bound.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from figures import Figure, at_most, command_line, write
from torch import nn

from confide.train import Silo, TorchLearner, fit, train_section

MNIST = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"
IMAGES, PARTIES, TARGET, CAP, BAR = 6000, 10, 0.95, 20, 2.0
ALGORITHMS = {
    "fedavg, 1 pass": {},
    "fedavg, 5 passes": {"local_steps": 5},
    "fedprox, 5 passes": {"algorithm": "fedprox", "proximal": 0.01, "local_steps": 5},
    "scaffold, 5 passes": {"algorithm": "scaffold", "local_steps": 5},
    "fedadam, 5 passes": {"algorithm": "fedadam", "server_learning_rate": 0.02, "local_steps": 5},
}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    first, second = nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.Conv2d(8, 16, 5, stride=2, padding=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))


def parties(x: np.ndarray, y: np.ndarray, alpha: float, seed: int) -> list[Silo]:
    """Split class by class; a party that gets fewer than 20 images takes some from the largest."""
    rng = np.random.default_rng(seed)
    places: list[list[int]] = [[] for _ in range(PARTIES)]
    for label in range(10):
        own = rng.permutation(np.flatnonzero(y == label))
        cuts = (np.cumsum(rng.dirichlet(np.full(PARTIES, alpha)))[:-1] * len(own)).astype(int)
        for place, part in zip(places, np.split(own, cuts), strict=True):
            place += part.tolist()
    for place in places:
        while len(place) < 20:
            place.append(max(places, key=len).pop())
    return [Silo(f"p{number}", x[place], y[place]) for number, place in enumerate(places)]


def right(model: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    with torch.no_grad():
        return float((model(torch.from_numpy(x)).argmax(dim=1).numpy() == y).mean())


def rounds_to_target(silos: list[Silo], settings: dict, seed: int, test: tuple[np.ndarray, np.ndarray]) -> int:
    """Return the first round after which the model is right often enough; the cap if none is."""
    options = {"aggregate": "plain", "quorum": 1, "rounds": CAP, "learning_rate": 0.1, "expected_records": 600}
    chosen = train_section(**options | {"update_bound": 50.0} | settings)
    learner = TorchLearner(network(seed), chosen, batch_size=20)
    for done in fit(learner, silos, chosen, run_id=str(seed)):
        if right(done.model, *test) >= TARGET:
            return done.number
    return CAP


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--data", type=Path, default=MNIST)
    options = parser.parse_args()
    if not options.data.is_file():
        print(f"left out: no data at {options.data}")
        write([], options.json)
        return
    with np.load(options.data) as file:
        train_x, train_y = (file["x_train"][:, None] / 255).astype(np.float32), file["y_train"].astype(np.int64)
        test = (file["x_test"][:, None] / 255).astype(np.float32), file["y_test"].astype(np.int64)
    torch.set_num_threads(1)  # batches are small: more threads wait for each other
    found, ratios = [], {}
    chosen = [np.random.default_rng(100 + seed).permutation(len(train_y))[:IMAGES] for seed in range(options.seeds)]
    pooled = [Silo("all", train_x[places], train_y[places]) for places in chosen]
    passes = np.array([rounds_to_target([all_], {}, seed, test) for seed, all_ in enumerate(pooled)])
    print(f"pooled passes to {TARGET:.0%}: {passes.tolist()}", flush=True)
    for alpha in (1.0, 0.1):
        for name, settings in ALGORITHMS.items():
            counts = np.array(
                [
                    rounds_to_target(parties(all_.x, all_.y, alpha, seed), settings, seed, test)
                    for seed, all_ in enumerate(pooled)
                ]
            )
            ratio = float(counts.sum() / passes.sum())
            ratios[alpha, name] = counts / passes
            print(f"  alpha {alpha:<4g} {name:22s} rounds {counts.tolist()}   {ratio:6.2f} per pooled pass", flush=True)
            title = f"rounds per pooled pass to {TARGET:g}, MNIST, alpha {alpha:g}, {name}"
            found.append(Figure(title, round(ratio, 3), "ratio", "pooled training", 1.0, BAR, at_most(ratio, BAR)))
    write(found, options.json)
    if options.plot:
        from rounds import draw

        draw(ratios, options.plot, title=f"rounds per pooled pass to {TARGET:.0%}")


if __name__ == "__main__":
    main()
