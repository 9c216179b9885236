"""Sums to 95 % test accuracy when parties differ: every algorithm beside the passes of pooled gradient descent.

    python bench/rounds.py [--seeds 10] [--json FILE] [--plot FILE.png]

Breast-cancer, eight parties, classes drawn by a Dirichlet distribution of alpha 1 and 0.1, numbers standardised. Pooled
descent and fedavg with one local step use the defaults of a job (learning rate 1, momentum 0.9); with one local step
federated is pooled descent, so its ratio is 1 by construction and only its messages remain to be saved. The others take
five local steps a sum, at the defaults of a job except momentum 0, which local steps replace. Nothing is tuned per
algorithm or alpha. A ratio counts sums per pooled pass: below 1 a party is asked less often than pooled descent reads
the data, though it computes five times per sum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from figures import Figure, at_most, command_line, write

from confide.train import load_data, parse, train
from confide.train.evaluate import accuracy
from confide.train.local import descend

TARGET, CAP, BAR = 0.95, 200, 2.0
ALGORITHMS = {
    "fedavg, 1 local step": {},
    "fedavg": {"local_steps": 5, "momentum": 0.0},
    "fedprox": {"algorithm": "fedprox", "local_steps": 5, "momentum": 0.0},
    "scaffold": {"algorithm": "scaffold", "local_steps": 5, "momentum": 0.0},
    "fedadam": {"algorithm": "fedadam", "local_steps": 5},
    "fedyogi": {"algorithm": "fedyogi", "local_steps": 5},
    "fedadagrad": {"algorithm": "fedadagrad", "local_steps": 5, "momentum": 0.0},
}


def job_of(seed: int, alpha: float, settings: dict):
    data = {"set": "breast-cancer", "parties": 8, "alpha": alpha, "standardise": True}
    fixed = {"aggregate": "plain", "rounds": CAP, "average": 0.0, "expected_records": 60}
    return parse({"job": {"seed": seed}, "data": data, "train": fixed | settings})


def sums_to_target(job, data) -> int:
    """Return the first round after which the test accuracy is the target; the cap if none is."""
    for done in train(job, data):
        if accuracy(done.model, data.test.x, data.test.y) >= TARGET:
            return done.number
    return CAP


def pooled_passes(job, data) -> int:
    x, y = np.concatenate([s.x for s in data.silos]), np.concatenate([s.y for s in data.silos])
    for steps in range(1, CAP + 1):
        options = {"learning_rate": job.train.learning_rate, "momentum": 0.9, "weight_decay": job.train.weight_decay}
        if accuracy(descend(data.start, x, y, steps=steps, **options), data.test.x, data.test.y) >= TARGET:
            return steps
    return CAP


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found, ratios = [], {}
    print(f"sums to {TARGET:.0%} test accuracy, {options.seeds} splits: median [lowest, highest], mean ratio to pooled")
    for alpha in (1.0, 0.1):
        prepared = [load_data(job_of(seed, alpha, {})) for seed in range(options.seeds)]
        passes = np.array([pooled_passes(job_of(s, alpha, {}), data) for s, data in enumerate(prepared)])
        print(f"alpha {alpha:g}: pooled passes {np.median(passes):g} [{passes.min()}, {passes.max()}]")
        for name, settings in ALGORITHMS.items():
            sums = np.array([sums_to_target(job_of(s, alpha, settings), data) for s, data in enumerate(prepared)])
            ratio = float(sums.sum() / passes.sum())
            print(f"  {name:22s} {np.median(sums):6g} [{sums.min()}, {sums.max()}]   {ratio:6.2f}", flush=True)
            ratios[alpha, name] = sums / passes
            title = f"sums per pooled pass to {TARGET:g}, alpha {alpha:g}, {name}"
            found.append(
                Figure(title, round(ratio, 3), "ratio", "pooled gradient descent", 1.0, BAR, at_most(ratio, BAR))
            )
    write(found, options.json)
    if options.plot:
        draw(ratios, options.plot)


def draw(ratios: dict, path: Path, title: str = f"sums per pooled pass to {TARGET:.0%}") -> None:
    """Each split's ratio as a dot, the median as a line, the bar dashed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for _, name in ratios))
    figure, axis = pyplot.subplots(figsize=(9, 4.2), constrained_layout=True)
    for shift, (alpha, colour) in zip((-0.15, 0.15), ((1.0, "tab:blue"), (0.1, "tab:orange")), strict=True):
        for place, name in enumerate(names):
            values = ratios[alpha, name]
            axis.plot(np.full(len(values), place + shift), values, ".", color=colour, alpha=0.5)
            axis.plot(
                [place + shift - 0.12, place + shift + 0.12], [np.median(values)] * 2, color=colour, linewidth=2,
                label=f"alpha = {alpha:g}" if place == 0 else None,
            )  # fmt: skip
    axis.axhline(1.0, color="gray", linewidth=1)
    axis.axhline(BAR, color="tab:red", linestyle="--", linewidth=1, label=f"bar: {BAR:g} x pooled passes")
    axis.set(yscale="log", ylabel=title)
    axis.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    axis.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
