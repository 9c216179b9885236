"""What compression costs: bytes of a party's upload beside the error of the mean update, and the accuracy at the end.

    python bench/compress.py [--seeds 10] [--json FILE] [--plot FILE]

Error: ten parties, 100,000 parameters, one masked sum per round, sixteen rounds of the same updates. An update is a
common part and one of the party's own of equal norm; record counts range from 60 to 240. "dense" draws coordinates
from a Gaussian, "skewed" scales the coordinate of rank r by 1 / r, as layers whose gradients differ by orders of
magnitude do. Bytes are those of the whole upload, keys and shares included. The error is relative,
||released - mean|| / ||mean||, averaged over the last eight rounds, when a clip that follows has settled. Settings are
those of a job; a clip that does not follow is 1.25 times the longest contribution, which a party could only guess.

"not rotated" rounds the same vectors by chance to the same bits without turning them, on the smallest grid that holds
them all: more than a public bound could do, so its best case.

Accuracy: breast-cancer in ten parties at the defaults of a job; where ../shared/data is present, logistic regression on
3,000 MNIST digits in ten parties, 20 rounds of 2 local steps. Same seeds, same splits; the first row is uncompressed.

Error feedback, which is not offered, is computed here in float: what rand-k with a memory at each party would give,
beside fresh subsets and the dealt ones of `Subset`, in training loss on breast-cancer at the defaults of a job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, at_least, at_most, command_line, write

from confide.crypto.fixed import RandomRounding
from confide.crypto.random import SeededRandomness
from confide.ideal import PlainSum
from confide.model.zoo import logistic
from confide.secagg.masked import Masked
from confide.train import load_data, parse, train
from confide.train.compress import Subset
from confide.train.encodings import WeightedUpdates
from confide.train.evaluate import accuracy
from confide.train.learner import GraphLearner, Learner
from confide.train.local import Silo
from confide.train.optimise import optimiser_of
from confide.train.rounds import federate
from confide.train.run import Prepared
from confide.train.sections import Job, TrainSection

MNIST = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"
PARTIES, LENGTH, ROUNDS = 10, 100_000, 16
FLOAT32 = 4.0 * LENGTH
FOLLOWS = {"clip_norm": 1.0, "clip_quantile": 0.9}
WAYS: dict[str, dict[str, Any]] = {
    "none, fixed point": {},
    **{f"rotate, {bits} bits": {"compress": "rotate", "compress_bits": bits, **FOLLOWS} for bits in (4, 6, 8, 12)},
    **{f"rand-k, {share:.0%}": {"compress": "rand-k", "compress_share": share} for share in (0.1, 0.01)},
    **{f"sketch, {share:.0%}": {"compress": "sketch", "compress_share": share} for share in (0.1, 0.01)},
}
#: An upload may take (bits + 4) / 8 bytes per number, what the protocol adds to an uncompressed one, and this.
SPARE_BYTES = 64
ACCURACY_BAR_POINTS = 1.0
ACCURACY_BARS = ("rotate, 4 bits", "rotate, 6 bits", "rotate, 8 bits", "rotate, 12 bits")


class Given(Learner[None]):
    """Updates that are given in advance."""

    def __init__(self, updates: dict[str, np.ndarray]) -> None:
        self._updates, self.start, self.travel = updates, np.zeros(LENGTH), 1.0

    def model(self, parameters: np.ndarray) -> None:
        return None

    def change(self, parameters: np.ndarray, silo: Silo, *, number: int, shift: Any = 0.0) -> np.ndarray:
        return self._updates[silo.name]


def updates(kind: str) -> tuple[list[Silo], dict[str, np.ndarray]]:
    """Return parties and their updates, of norm 1."""
    rng = np.random.default_rng(0)
    scale = 1 / rng.permutation(np.arange(1.0, LENGTH + 1)) if kind == "skewed" else np.ones(LENGTH)
    sizes = np.linspace(60, 240, PARTIES).astype(int)
    silos = [Silo(f"party-{n}", np.zeros((size, 1)), np.zeros(size, np.int64)) for n, size in enumerate(sizes)]
    common = rng.normal(size=LENGTH) * scale
    made = {silo.name: common + rng.normal(size=LENGTH) * scale for silo in silos}
    return silos, {name: update / np.linalg.norm(update) for name, update in made.items()}


def mean_of(silos: list[Silo], given: dict[str, np.ndarray]) -> np.ndarray:
    weights = np.array([len(silo.x) for silo in silos], float)
    return weights @ np.array([given[silo.name] for silo in silos]) / weights.sum()


def released(silos: list[Silo], given: dict[str, np.ndarray], keys: dict[str, Any]) -> tuple[float, float]:
    """Return the bytes of the largest upload and the relative error of the mean that is released."""
    settings = TrainSection(rounds=ROUNDS, average=0.0, momentum=0.0, quorum=6, **keys)
    encoding = WeightedUpdates(Given(given), settings, seed=1)
    done = list(federate(silos, encoding, settings, aggregator=Masked(), rng=SeededRandomness("bench")))
    places = np.array([encoding.learner.start, *(each.parameters for each in done)])
    moves = np.diff(places, axis=0)[ROUNDS // 2 :]
    mean = mean_of(silos, given)
    off = np.sqrt(((moves - mean) ** 2).sum(axis=1)) / np.linalg.norm(mean)
    return max(float(done[-1].bytes_up[silo.name]) for silo in silos), float(off.mean())


def not_rotated(silos: list[Silo], given: dict[str, np.ndarray], bits: int) -> float:
    """Return the relative error of the mean when the vectors are rounded as they are."""
    weights = np.array([len(silo.x) for silo in silos], float)
    vectors = weights[:, None] * np.array([given[silo.name] for silo in silos])
    grid = RandomRounding(bits=bits, reach=float(np.abs(vectors).max()))
    mean = mean_of(silos, given)
    found = grid.decode(grid.encode(vectors, SeededRandomness("peer")).sum(axis=0)) / weights.sum()
    return float(np.linalg.norm(found - mean) / np.linalg.norm(mean))


def breast_cancer(seeds: int, keys: dict[str, Any]) -> float:
    """Return the mean test accuracy in percent."""
    right = []
    for seed in range(seeds):
        data = {"set": "breast-cancer", "parties": PARTIES}
        settings = {"aggregate": "plain", "expected_records": 60, **keys}
        job = parse({"job": {"seed": seed}, "data": data, "train": settings})
        prepared = load_data(job)
        *_, done = train(job, prepared, rng=SeededRandomness(f"bench {seed}"))
        right.append(accuracy(done.model, prepared.test.x, prepared.test.y))
    return 100 * float(np.mean(right))


def mnist(keys: dict[str, Any]) -> float:
    """Return the test accuracy in percent."""
    with np.load(MNIST) as file:
        x, y = file["x_train"][:5000].reshape(5000, -1) / 255.0, file["y_train"][:5000].astype(np.int64)
    silos = [Silo(f"party-{n}", x[300 * n : 300 * (n + 1)], y[300 * n : 300 * (n + 1)]) for n in range(PARTIES)]
    fixed: dict[str, Any] = {"rounds": 20, "local_steps": 2, "learning_rate": 0.1, "momentum": 0.0, "average": 0.0}
    settings = TrainSection(expected_records=300, **fixed, **keys)
    learner = GraphLearner(logistic(784, 10, classes=tuple("0123456789")), settings)
    encoding = WeightedUpdates(learner, settings, seed=1)
    *_, done = federate(silos, encoding, settings, aggregator=PlainSum(), rng=SeededRandomness("digits"))
    return 100 * accuracy(done.model, x[3000:], y[3000:])


def figure(
    name: str, value: float, unit: str, peer: str, peer_value: float, bar: float | None = None, *, most: bool
) -> Figure:
    """Return a figure; `most` tells whether the bar is the most that the value may be, or the least."""
    met = at_most(value, bar) if most else at_least(value, bar)
    return Figure(name, round(value, 5), unit, peer, round(peer_value, 5), None if bar is None else round(bar, 5), met)


def errors() -> tuple[list[Figure], dict[str, dict[str, tuple[float, float]]]]:
    """Print bytes and errors; return the records, and (bytes, error) of each way for each kind of update."""
    rows: list[Figure] = []
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for kind in ("dense", "skewed"):
        silos, given = updates(kind)
        fixed = 1.25 * max(len(silo.x) for silo in silos) / TrainSection().expected_records
        ways = WAYS | {f"{way}, clip fixed": keys | {"clip_norm": fixed, "clip_quantile": 0.0}
                       for way, keys in WAYS.items() if "rotate" in way}  # fmt: skip
        found[kind] = {way: released(silos, given, keys) for way, keys in ways.items()}
        protocol = found[kind]["none, fixed point"][0] - (LENGTH + 1) * 32 / 8
        print(f"{kind}: bytes of an upload | over float32 | relative error of the mean | not rotated")
        for way, (count, off) in found[kind].items():
            bits = ways[way].get("compress_bits")
            peer = not_rotated(silos, given, bits) if bits else None
            print(
                f"  {way:28s} {count:9,.0f} {count / FLOAT32:7.3f} {off:9.5f} {peer or float('nan'):9.5f}", flush=True
            )
            stated = LENGTH * (bits + 4) / 8 if bits else None
            bar = (stated + protocol + SPARE_BYTES) / FLOAT32 if stated else None
            ratio = (f"upload, {way}, {kind}", count / FLOAT32, "ratio", "a float32 update", 1.0, bar)
            rows.append(figure(*ratio, most=True))
            name, base = f"relative error of the mean, {way}, {kind}", found[kind]["none, fixed point"][1]
            against = ("rounded by chance, not rotated", peer) if peer else ("fixed point", base)
            bar = peer if peer and kind == "skewed" and "fixed" in way else None
            rows.append(figure(name, off, "ratio", *against, bar, most=True))
    return rows, found


def accuracies(seeds: int) -> list[Figure]:
    rows: list[Figure] = []
    sets = {"breast-cancer": lambda keys: breast_cancer(seeds, keys)}
    if MNIST.exists():
        sets["MNIST, 3,000 digits"] = mnist
    else:
        print("no ../shared/data: MNIST left out")
    for name, measured in sets.items():
        print(f"{name}: test accuracy")
        whole = measured({})
        for way, keys in WAYS.items():
            value = measured(keys)
            print(f"  {way:28s} {value:6.2f} %", flush=True)
            bar = whole - ACCURACY_BAR_POINTS if way in ACCURACY_BARS else None
            rows.append(figure(f"accuracy, {name}, {way}", value, "%", "uncompressed", whole, bar, most=False))
    return rows


def remembered(job: Job, data: Prepared, share: float, way: str) -> float:
    """Return the training loss of rand-k without integers: "fresh" subsets, "dealt" ones, or "feedback" on these."""
    settings = job.train
    learner, optimiser = GraphLearner(data.start, settings), optimiser_of(settings)
    length = len(learner.start)
    kept = max(1, round(share * length))
    memory = {silo.name: np.zeros(length) for silo in data.silos}
    total = sum(len(silo.x) for silo in data.silos)
    parameters, places = learner.start, []
    for number in range(1, settings.rounds + 1):
        seed, turn = (f"{job.job.seed}/{number}", 1) if way == "fresh" else (job.job.seed, number)
        subset = Subset(length=length, seed=seed, kept=kept)
        mean = np.zeros(length)
        for silo in data.silos:
            vector = len(silo.x) / total * learner.change(parameters, silo, number=number) + memory[silo.name]
            sent = subset.backward(subset.forward(vector, turn), turn)
            if way == "feedback":
                sent *= kept / length
                memory[silo.name] = vector - sent
            mean += sent
        parameters = parameters + optimiser.step(mean)
        places.append(parameters)
    model = learner.model(np.mean(places[settings.rounds - round(settings.average * settings.rounds) :], axis=0))
    x, y = np.concatenate([s.x for s in data.silos]), np.concatenate([s.y for s in data.silos])
    ones = np.clip(model.apply(x)[:, 0], 1e-12, 1 - 1e-12)
    return float(-np.log(np.where(y == 1, ones, 1 - ones)).mean())


def feedback(seeds: int) -> list[Figure]:
    rows: list[Figure] = []
    for name, keys in (("defaults", {}), ("5 local steps, no momentum", {"local_steps": 5, "momentum": 0.0})):
        jobs = [parse({"job": {"seed": s}, "data": {"set": "breast-cancer"}, "train": keys}) for s in range(seeds)]
        prepared = [load_data(job) for job in jobs]
        whole = float(np.mean([remembered(job, data, 1.0, "dealt") for job, data in zip(jobs, prepared, strict=True)]))
        print(f"rand-k in float, {name}: training loss; uncompressed {whole:.3f}")
        for share in (0.5, 0.25, 0.1):
            for way in ("fresh", "dealt", "feedback"):
                each = [remembered(job, data, share, way) for job, data in zip(jobs, prepared, strict=True)]
                print(f"  {share:4.0%} {way:10s} {np.mean(each):.3f}", flush=True)
                title = f"training loss, rand-k {share:.0%}, {way}, {name}"
                rows.append(figure(title, float(np.mean(each)), "nats", "uncompressed", whole, most=True))
    return rows


def plot(found: dict[str, dict[str, tuple[float, float]]], path: Path) -> None:
    """Draw bytes against error."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(9, 4), layout="constrained")
    for axes, (kind, ways) in zip(drawing.subplots(1, 2, sharey=True), found.items(), strict=True):
        for family, colour in (
            ("none", "#444444"),
            ("rotate", "#1f6f8b"),
            ("rand-k", "#c8553d"),
            ("sketch", "#5a8f29"),
        ):
            points = {way: point for way, point in ways.items() if way.startswith(family) and "clip fixed" not in way}
            axes.plot(*zip(*points.values(), strict=True), "o-", color=colour, label=family)
            for way, (count, off) in points.items():
                label = way.partition(", ")[2]
                place = (5, -12) if family in ("none", "sketch") else (5, 5)
                axes.annotate(label, (count, off), textcoords="offset points", xytext=place, fontsize=8)
        axes.axvline(FLOAT32, color="#8a94a3", linestyle=":", label="float32")
        axes.set(xscale="log", yscale="log", xlabel="bytes of an upload", title=f"{kind} updates")
        axes.spines[["top", "right"]].set_visible(False)
    drawing.axes[0].set_ylabel("relative error of the mean")
    drawing.axes[0].legend(frameon=False)
    drawing.savefig(path, dpi=150)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    rows, found = errors()
    if options.plot:
        plot(found, options.plot)
    rows += accuracies(options.seeds) + feedback(options.seeds)
    write(rows, options.json)


if __name__ == "__main__":
    main()
