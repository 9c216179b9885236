"""How an encrypted network grows with its width, its depth and the ring degree: used by bench/he.py."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
from figures import Figure
from he_cases import Case, Rows, chain_of, ready
from he_ours import LIMITS, measure

from confide.he import Homomorphic
from confide.he.message_bytes import keys_bytes

WIDTHS, DEPTHS = (16, 32, 64, 128, 256, 512), (1, 2, 3, 4, 5, 6)
WIDTH, DEPTH = 64, 2  # what stays the same while the other grows


def points() -> list[tuple[str, int, int, int]]:
    """Return (curve, width, depth, wanted bits) of every point; more bits want a larger ring."""
    found = [("width", width, DEPTH, 10) for width in WIDTHS]
    found += [("depth", WIDTH, depth, 10) for depth in DEPTHS]
    return found + [("precision", WIDTH, DEPTH, bits) for bits in (6, 10, 16, 20, 24)]


def curves(seconds: float, plot: Path | None) -> list[Figure]:
    """Print and return the figures of every point; the ring degree is the planner's choice and stands beside each."""
    found: list[Figure] = []
    shown: list[tuple[str, int, float, int]] = []
    for curve, width, depth, bits in points():
        graph = chain_of(width, depth)
        x = np.random.default_rng(4).uniform(-1, 1, (20, width))
        title = f"{width} wide, {depth} squares, {bits} bits"
        case = Case("growth", title, Rows(x, np.full(20, -1)), graph)
        case = ready(case, precision_bits=bits)
        if not isinstance(case.backend, Homomorphic):
            print(f"{curve:<10} {title:<32} {case.why}")
            continue
        plan = case.backend.plan(graph)
        degree = plan.parameters.degree
        if keys_bytes(plan) > LIMITS.keys_bytes:
            print(f"{curve:<10} {title:<32} N={degree:<6} keys of {keys_bytes(plan) / 1e6:.0f} MB: no store holds it")
            continue
        ours = measure(case, repeats=30, seconds=min(seconds, 20), crowds=())
        server, whole = median(ours.server), median(ours.end_to_end)
        print(
            f"{curve:<10} {title:<32} N={degree:<6} server {server:9.2f} ms, end to end {whole:9.2f} ms, "
            f"cold {median(ours.cold):9.1f} ms, keys {ours.keys_bytes / 1e6:7.2f} MB, "
            f"query {ours.query_bytes / 1e3:7.1f} kB, reply {ours.reply_bytes / 1e3:6.1f} kB, error {ours.error:.1e}",
            flush=True,
        )
        shown.append((curve, {"width": width, "depth": depth, "precision": bits}[curve], server, degree))
        name = f"{curve}: {title}, N={degree}"
        found += [
            Figure(f"{name}, server", round(server, 3), "ms"),
            Figure(f"{name}, end to end", round(whole, 3), "ms"),
            Figure(f"{name}, keys", round(ours.keys_bytes / 1e6, 3), "MB"),
        ]
    if plot:
        draw(shown, plot)
    return found


def draw(shown: list[tuple[str, int, float, int]], path: Path) -> None:
    """Write one panel for each curve: the server's time, marked by the ring degree that the planner took."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    for axis, curve in zip(axes, ("width", "depth", "precision"), strict=True):
        here = [(at, server, degree) for name, at, server, degree in shown if name == curve]
        axis.plot([at for at, _, _ in here], [server for _, server, _ in here], "-", color="tab:grey")
        for place, degree in enumerate(sorted({degree for _, _, degree in here})):
            some = [(at, server) for at, server, other in here if other == degree]
            axis.plot(*zip(*some, strict=True), "o", color=f"C{place}", label=f"N = {degree}")
        axis.set(yscale="log", xlabel=curve, ylabel="server, ms")
        if curve == "width":
            axis.set(xscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=150)
