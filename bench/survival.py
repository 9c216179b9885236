"""Cox regression over the six regions of TCGA-BRCA: against the pooled model, and what differential privacy costs.

    python bench/survival.py [--seeds 30] [--json FILE]

Runs the jobs of examples/survival/ on FLamby's split: the federated loop over six parties, masked sums, the integer
noise split among them. The split is fixed, so seeds change the noise alone, and intervals are about the noise. Seeded
noise makes no claim; these runs compute what one that does computes. The figure is the concordance index on the pooled
test records, and the mean of the regions' own, as FLamby's.

Settings were chosen by cross-validation on the training records (docs/survival.md). Beside them scikit-survival's Cox
model where bench/peers/scikit_survival/.venv exists, and what FLamby has published.
"""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
import tomllib
from pathlib import Path

import numpy as np
from brca_tables import REGIONS, brca_tables
from figures import Figure, at_most, command_line, interval, write

from confide.crypto.random import SeededRandomness
from confide.errors import DataError
from confide.model.graph import Graph
from confide.train import Job, Prepared, load_data, local_models, parse, pooled_model, train
from confide.train.evaluate import concordance
from confide.train.local import Silo, flatten

PEER = Path(__file__).parent / "peers" / "scikit_survival"

#: Largest loss of the concordance index against the pooled model: without privacy, and by epsilon.
BAR, PRIVATE_BARS = 0.01, {3.0: 0.05, 1.0: None}

#: FLamby's concordance indices: pooled test, mean of the regions.
PUBLISHED = {"pooled training": (0.704, 0.676), "FedAvg": (0.735, 0.732), "FedYogi": (0.842, 0.815)}


def job_of(place: Path, **privacy: float) -> Job:
    """Return the job in a file with some of [privacy] changed."""
    table = tomllib.loads(place.read_text())
    if privacy:
        table["privacy"] |= privacy
    return parse(table, base=place.parent)


def index_of(graph: Graph, silo: Silo) -> float:
    """Return the concordance index on a silo's records; NaN where no pair's order is known."""
    try:
        return concordance(graph.apply(silo.x)[:, 0], silo.y[:, 0], silo.y[:, 1].astype(np.int64))
    except DataError:
        return float("nan")


def both(graph: Graph, test: Silo, regions: list[str]) -> tuple[float, float]:
    """Return the index on all test records, and the mean of the regions' own."""
    parts = [np.array(regions) == name for name in REGIONS]
    own = [index_of(graph, Silo("one", test.x[part], test.y[part])) for part in parts]
    return index_of(graph, test), float(np.nanmean(own))


def show(name: str, pooled: float, mean: float, more: str = "") -> None:
    """Print one row."""
    print(f"{name:52}{pooled:8.3f}{mean:8.3f}  {more}", flush=True)


def peer(data: Prepared, ridge: float) -> tuple[float, np.ndarray] | None:
    """Return the index and the coefficients of scikit-survival's model, where its environment is."""
    python = PEER / ".venv" / "bin" / "python"
    if not python.exists():
        return None
    arrays = {part: np.concatenate([getattr(silo, part) for silo in data.silos]) for part in ("x", "y")}
    arrays |= {f"{part}_test": getattr(data.test, part) for part in ("x", "y")}
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **arrays)
        file.flush()
        done = subprocess.run([python, PEER / "cox.py", file.name, str(ridge)], capture_output=True, check=True)
    found = json.loads(done.stdout)
    return found["index"], np.array(found["coefficients"])


def without_privacy(place: Path, regions: list[str]) -> tuple[float, list[Figure]]:
    """Print the rows of the job without privacy; return its index and the figures."""
    job = job_of(place)
    data = load_data(job)
    pooled = pooled_model(job, data)
    *_, done = train(job, data)
    ceiling, found = both(pooled, data.test, regions), both(done.model, data.test, regions)
    apart = float(np.abs(flatten(pooled) - flatten(done.model)).max())
    show("Cox, pooled records", *ceiling)
    show(f"Cox over six regions, {job.train.rounds} masked sums", *found, f"coefficients within {apart:.1e} of pooled")
    alone = [both(model, data.test, regions) for model in local_models(job, data).values()]
    show("Cox of each region alone, mean of six", *np.mean(alone, axis=0))
    lost = float(ceiling[0] - found[0])
    figures = [Figure("Cox over six regions, concordance index lost", lost, "share", bar=BAR, met=at_most(lost, BAR))]
    if (theirs := peer(data, job.train.weight_decay)) is not None:
        index, coefficients = theirs
        away = float(np.abs(coefficients - flatten(done.model)[:-1]).max())
        show(
            "scikit-survival's Cox, pooled records, exact times", index, float("nan"), f"coefficients within {away:.1e}"
        )
        figures.append(Figure("Cox over six regions", found[0], "share", "scikit-survival, pooled", index))
    return found[0], figures


def private(place: Path, epsilon: float, seeds: int, regions: list[str], ceiling: float) -> list[Figure]:
    """Print the row of one epsilon, and return its figures."""
    job, found = job_of(place, epsilon=epsilon), []
    for seed in range(seeds):
        rng = SeededRandomness(f"survival {seed}")
        data = load_data(job, rng=rng)
        *_, done = train(job, data, rng=rng)
        found.append(both(done.model, data.test, regions))
    values = np.array(found)
    lost, wide = ceiling - float(values[:, 0].mean()), interval(values[:, 0])
    bar = PRIVATE_BARS[epsilon]
    said = f"lost {lost:.4f} +- {wide:.4f}" + (f" (bar {bar:g})" if bar else "")
    show(f"private, epsilon = {epsilon:g}, {job.train.rounds} sums, {seeds} seeds", *values.mean(axis=0), said)
    met, title = at_most(lost + wide, bar), f"epsilon {epsilon:g}, concordance index lost"
    return [
        Figure(title, lost, "share", "pooled Cox", ceiling, bar, met),
        Figure(f"epsilon {epsilon:g}, half of the 95 % interval", wide, "share"),
    ]


def main() -> None:
    """Run it."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = brca_tables(Path(folder))
        if place is None:
            print("left out: the records of TCGA-BRCA are not here; see bench/brca_tables.py")
            write([], options.json)
            return
        with (place.parent / "test.csv").open(newline="") as file:
            regions = [row["region"] for row in csv.DictReader(file)]
        print(f"{'concordance index, test records of':52}{'all':>8}{'regions':>8}")
        ceiling, figures = without_privacy(place, regions)
        for epsilon in PRIVATE_BARS:
            figures += private(place.with_name("brca_private.toml"), epsilon, options.seeds, regions, ceiling)
    for name, (pooled, mean) in PUBLISHED.items():
        show(f"FLamby, {name}", pooled, mean, "published")
    write(figures, options.json)


if __name__ == "__main__":
    main()
