"""Encrypted inference against every bar of the comparison, end to end over HTTP on loopback, peers in the same run.

    python bench/he.py [--only NAME ...] [--repeats 50] [--seconds 60] [--no-peer] [--json FILE] [--cifar FILE]
    python bench/he.py --accuracy [--only NAME ...] [--images N] [--folder DIR]
    python bench/he.py --growth [--plot FILE.svg]
    python bench/he.py --timeline [--only NAME ...] [--repeats 400]
    python bench/he.py --train-trees

The server is a process of its own; each repeat asks for one row with `confide.Client` and is timed from the features to
the prediction. For each case: the first answer of a client without keys (kit, key generation, upload, question), the
server's own time and the whole, what that adds to onnxruntime on the plain model, the 95th percentile with 1, 8 and 64
clients at once, a LAN (0.25 ms one way, 1 Gb/s) and a WAN (20 ms, 100 Mb/s) through a shaped relay, bytes, memory and
the largest error. What both sides make ahead of a question, once for each, has rows of its own. Medians; the machine
has few cores, and client, server and relay share them.

Peers are timed without any network (bench/he_peers.py): their client and server together stand beside the whole of
ours. A peer whose parameters are below 128 bits, or whose outputs are much more exact than ours, is "not comparable";
one whose outputs are much less exact says so. What cannot run yet is listed with the reason. `--accuracy` asks for
whole test sets and goes on where it stopped; `--timeline` prints where one small question's time goes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import he_accuracy
import he_growth
import he_many
import he_timeline
from figures import Figure, at_least, at_most, command_line, show, write
from he_cases import MANY, MODELS, NAMES, Case, cases
from he_ours import CROWDS, Measured, bulk_rate, measure
from he_peers import Peer, peers_of, table, write_trees


def percentiles(values: Sequence[float]) -> str:
    ranked = sorted(values)
    return f"p5 {ranked[len(ranked) // 20]:.2f}, p95 {ranked[-1 - len(ranked) // 20]:.2f}, {len(ranked)} runs"


def percentile95(values: Sequence[float]) -> float:
    ranked = sorted(values)
    return ranked[-1 - len(ranked) // 20]


def figures_of(case: Case, ours: Measured, peers: Sequence[Peer]) -> list[Figure]:
    """Return every figure of one case."""
    whole, server = median(ours.end_to_end), median(ours.server)
    error = f"largest error of an output {ours.error:.1e}"
    found = [
        *_beside(case, "end to end", whole, peers, f"{percentiles(ours.end_to_end)}; {error}"),
        *_beside(case, "server", server, peers, percentiles(ours.server)),
        *(_figure(case, name, value, "ms", "in no other figure") for name, value in _ahead(ours) if value is not None),
        _figure(case, "cold first answer", median(ours.cold), "ms", f"{len(ours.cold)} runs"),
        _figure(case, "of it keys made and uploaded", ours.keys_ms, "ms"),
        _figure(case, "plain onnxruntime", ours.plain, "ms"),
        _figure(case, "added to plain", whole - ours.plain, "ms"),
        _figure(case, "times plain", whole / ours.plain, "x"),
    ]
    for clients in CROWDS:
        name, values = f"p95 at {clients} clients", ours.crowd.get(clients)
        if values:
            note = f"{len(values)} answers, {ours.crowd_refused[clients]} refused"
            found.append(_figure(case, name, percentile95(values), "ms", note))
        else:
            found.append(Figure(f"{case.title}, {name}", None, "ms", note="not measured: would take over --seconds"))
    for name, (first, later) in ours.lines.items():
        found.append(_figure(case, f"{name} first answer", first, "ms"))
        found.append(_figure(case, f"{name} later answers", later, "ms"))
    return [
        *found,
        *_beside(case, "keys kB", ours.keys_bytes / 1e3, peers, ""),
        *_beside(case, "query kB", ours.query_bytes / 1e3, peers, ""),
        *_beside(case, "reply kB", ours.reply_bytes / 1e3, peers, ""),
        _figure(case, "server memory MB", ours.memory_bytes / 1e6, ""),
    ]


def _ahead(ours: Measured) -> list[tuple[str, float | None]]:
    return [
        ("server, encryption of zero made ahead", ours.zero_ms),
        ("client, encryption made ahead but for the row", ours.blank_ms),
    ]


def _figure(case: Case, name: str, value: float, unit: str, note: str = "") -> Figure:
    bar = case.bars.get(name)
    return Figure(f"{case.title}, {name}", round(value, 4), unit, None, None, bar, at_most(value, bar), note)


_THEIRS = {"end to end": "total", "server": "server"}


def _beside(case: Case, name: str, value: float, peers: Sequence[Peer], note: str) -> list[Figure]:
    """Return one figure for each peer, or one without."""
    unit = "ms" if name in _THEIRS else ""
    one = _figure(case, name, value, unit, note)
    found: list[Figure] = []
    for peer in peers:
        theirs = getattr(peer, _THEIRS[name]) if name in _THEIRS else getattr(peer, f"{name[:-3]}_bytes") / 1e3
        found.append(replace(one, peer=peer.name, peer_value=round(theirs, 3), note="" if found else note))
    return found or [one]


def compared(peers: Sequence[Peer], error: float) -> list[Peer]:
    """Return the peers, their names saying what sets them apart from an answer that is off by `error`."""
    return [replace(peer, name=f"{peer.name} ({why})") if (why := peer.against(error)) else peer for peer in peers]


def not_yet(case: Case) -> list[Figure]:
    """Return the bars of a case that cannot run."""
    return [Figure(f"{case.title}, {name}", None, "", bar=bar, note=case.why) for name, bar in case.bars.items()] or [
        Figure(case.title, None, "", note=case.why)
    ]


def bulk_figures(case: Case, seconds: float) -> list[Figure]:
    rate, error = bulk_rate(case, seconds)
    bar = case.bars["rows/s"]
    note = f"largest error of an output {error:.1e}"
    return [Figure(case.title, round(rate), "rows/s", None, None, bar, at_least(rate, bar), note)]


def many_figures(case: Case) -> list[Figure]:
    found = he_many.measure(case)
    note = f"largest error of an output {found.error:.1e}"
    return [_figure(case, *one, note) for one in found.figures()]


def tables(chosen: Sequence[Case], options: argparse.Namespace) -> list[Figure]:
    """Measure every case and print its figures as soon as they are there."""
    found: list[Figure] = []
    theirs: dict[str, list[Peer]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            print(f"\n== {case.title}")
            if case.peers not in theirs and not options.no_peer:
                theirs[case.peers] = peers_of(
                    case, repeats=options.repeats, seconds=10 * options.seconds, folder=Path(folder)
                )
                table(theirs[case.peers])
            peers = theirs.get(case.peers, [])
            if case.backend is None:
                figures = not_yet(case)
            elif case.name in MANY:
                figures = many_figures(case)
            elif "rows/s" in case.bars:
                figures = bulk_figures(case, min(options.seconds, 10))
            else:
                ours = measure(case, repeats=options.repeats, seconds=options.seconds)
                figures = figures_of(case, ours, compared(peers, ours.error))
            show(figures)
            found += figures
    return found


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="after which a figure has fewer runs")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--cifar", type=Path, help="x_test and y_test of CIFAR-10, an .npz")
    parser.add_argument("--accuracy", action="store_true", help="ask for whole test sets")
    parser.add_argument("--images", type=int, help="how many of a test set: 10,000, and 500 of CIFAR-10")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where accuracy keeps its answers")
    parser.add_argument("--growth", action="store_true", help="against width, depth and ring degree")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--timeline", action="store_true", help="where one question's time goes (logistic cases)")
    parser.add_argument("--train-trees", action="store_true", help="write bench/models/xgboost.onnx anew")
    options = parser.parse_args()
    if options.train_trees:
        write_trees(MODELS / "xgboost.onnx")
        return
    if options.timeline:
        he_timeline.show(cases(None, options.only or ("logistic", "logistic-open")), options.repeats)
        return
    chosen = [] if options.growth else cases(options.cifar, options.only or NAMES)
    if options.growth:
        found = he_growth.curves(options.seconds, options.plot)
    elif options.accuracy:
        found = he_accuracy.accuracy(chosen, options.images, options.folder)
    else:
        found = tables(chosen, options)
    write(found, options.json)


if __name__ == "__main__":
    main()
