"""Private inference and training on shares against every bar, beside SPU on the same numbers, inputs and links.

    python bench/mpc.py [--only NAME ...] [--links loopback LAN WAN] [--repeats 20] [--no-peer | --no-ours]
        [--no-cheetah] [--numbers FOLDER] [--cifar FILE] [--images 1000] [--seconds 600] [--json FILE]

A prediction of one row is timed at the client, from its features to its logits. "over TLS" has a process for each party
(and a relay for each directed pair, see mpc_links.py); "in process" has all parties on one thread, without a socket.
Material of a prediction (correlations) is made ahead unless a line says "nothing cached"; its bytes and the dealer's
work have lines of their own. Medians, p5 and p95 after some calls that warm up; outputs are compared with float64.
What cannot run yet has "-" for a value, and its bar.

SPU 0.9.5 runs in bench/peers/spu, a process for each party, no TLS: ABY3 with three servers, SEMI2K with a first party
that deals (INSECURE, and its offline work hidden), CHEETAH without a dealer. A peer's note says what a call cost all
its processes in CPU time, which a busy machine disturbs less. Networks are trained ones if FOLDER has them
(train_relu.py), else numbers of a fixed seed, which cost the same. Everybody shares this machine's cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import mpc_ours
import numpy as np
from figures import Figure, at_least, at_most, command_line, machine, show, write
from mpc_cases import (
    BATCH,
    CASES,
    IMAGES,
    LEAST_GEMM,
    MOST_ACCURACY_POINTS,
    MOST_ERROR,
    STEPS,
    Case,
    Training,
    numbers,
    operands,
    rows_of,
    stepped,
)
from mpc_links import LINKS, LOOPBACK, Link
from mpc_nets import NETS, Arrays, apply
from mpc_ours import Ours
from mpc_peer import TRUST, Spu, installed, measure

NOT_YET = "cannot run yet"
RATE = 0.125  # of a training step; a power of 2, which no fixed point rounds


# --- lines ------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Return percentiles of seconds, in milliseconds."""
    low, high = 1e3 * np.percentile(values, (5, 95))
    return f"p5 {low:.2f}, p95 {high:.2f}, {len(values)} runs"


def error_of(outputs: Sequence[np.ndarray], expected: np.ndarray) -> float:
    """Return the largest difference of outputs that answer the rows of `expected` in turn."""
    pairs = ((output, expected[place % len(expected)]) for place, output in enumerate(outputs))
    return max(float(np.abs(np.ravel(output) - row).max()) for output, row in pairs)


def limited(title: str, value: float | None, unit: str, bar: float | None, note: str = "") -> Figure:
    """Return a figure with an upper bar; without a value the note says why."""
    met = None if value is None else at_most(value, bar)
    return Figure(title, value, unit, None, None, bar, met, note or ("" if value is not None else NOT_YET))


def beside(one: Figure, peers: Sequence[Spu]) -> list[Figure]:
    """Return the figure once for each peer, with its median in milliseconds; once alone without any."""
    lines = [
        replace(one, peer=peer.name, peer_value=1e3 * median(peer.seconds), note=one.note if place == 0 else "")
        for place, peer in enumerate(peers)
    ]
    return lines or [one]


def peer_lines(title: str, link: Link, peers: Sequence[Spu], expected: np.ndarray | None) -> list[Figure]:
    """Return what each peer took, by itself."""
    found: list[Figure] = []
    for peer in peers:
        name = f"{title}, {link.name}, {peer.name}"
        cpu = f"CPU of all processes {1e3 * median(peer.cpu_seconds):.0f} ms"
        error = "" if expected is None else f"; largest error {error_of(peer.outputs, expected):.1e}"
        found += [
            Figure(name, 1e3 * median(peer.seconds), "ms", note=f"{spread(peer.seconds)}; {cpu}{error}"),
            Figure(f"{name}, first call", 1e3 * peer.first_seconds, "ms"),
            Figure(f"{name}, all parties", peer.total_bytes / 1e3, "kB", note=f"{peer.send_actions:.0f} messages"),
        ]
    return found


# --- inference --------------------------------------------------------------------------------------------------------


def spu_of(case: Case, link: Link, arrays: Arrays, x: np.ndarray, options: argparse.Namespace) -> list[Spu]:
    """Return what SPU takes for a case under each protocol that was asked for."""
    if options.no_peer:
        return []
    found: list[Spu | None] = []
    for protocol in TRUST:
        slow = protocol == "CHEETAH"
        if slow and options.no_cheetah:
            continue
        share = {"resnet20": 10, "mnist": 2}.get(case.net, 1) * (4 if slow else 1)  # of our repeats, by its speed
        repeats, layers = max(2, options.repeats // share), NETS[case.net]()
        found.append(
            measure(
                protocol,
                link,
                task="infer",
                arrays=arrays,
                x=x,
                layers=layers,
                repeats=repeats,
                seconds=options.seconds,
            )
        )
    return [one for one in found if one is not None]


def inference(case: Case, options: argparse.Namespace) -> list[Figure]:
    """Return every line of one case; each is printed as soon as it is there."""
    arrays, trained = numbers(case.net, options.numbers)
    x, _ = rows_of(case.net, 20, options.cifar)
    expected = apply(case.net, arrays, x)
    print(f"\n== {case.title}: {'trained' if trained else 'drawn'} numbers, {len(x)} inputs")
    found: list[Figure] = []
    if not options.no_ours:
        inside = mpc_ours.in_process(case, arrays, x, repeats=options.repeats)
        found += shown(once(case, inside, expected))
    for link in (LINKS[name] for name in options.links):
        peers = spu_of(case, link, arrays, x, options)
        found += shown(peer_lines(case.task, link, peers, expected))
        if not options.no_ours:
            found += shown(ours_over(case, link, arrays, x, expected, peers, options))
    return found


def once(case: Case, inside: Ours | None, expected: np.ndarray) -> list[Figure]:
    """Return what does not depend on a link: in process, bytes, the dealer, the error."""
    ms = None if inside is None else 1e3 * median(inside.seconds)
    note = "" if inside is None else f"{spread(inside.seconds)}; {inside.trips} trips"
    found = [
        limited(f"{case.title}, in process", ms, "ms", case.bars.get("loopback"), note),
        limited(
            f"{case.title}, online, all parties",
            None if inside is None else inside.online_bytes / 1e6,
            "MB",
            case.online_mb,
        ),
        limited(
            f"{case.title}, largest error of an output",
            None if inside is None else error_of(inside.outputs, expected),
            "",
            MOST_ERROR,
        ),
    ]
    if case.on_demand:
        most = None if inside is None else max(inside.offline_bytes.values(), default=0.0) / 1e6
        work = None if inside is None else 1e3 * inside.dealer_seconds
        found += [
            limited(f"{case.title}, offline, to a party at most", most, "MB", case.offline_mb),
            limited(f"{case.title}, offline, dealer's work", work, "ms", case.dealer_ms),
        ]
    return found


def ours_over(
    case: Case,
    link: Link,
    arrays: Arrays,
    x: np.ndarray,
    expected: np.ndarray,
    peers: Sequence[Spu],
    options: argparse.Namespace,
) -> list[Figure]:
    """Return our lines over one link, beside the peers."""
    found: list[Figure] = []
    for ahead, bar in ((True, case.bars.get(link.name)), (False, case.on_demand.get(link.name))):
        if not ahead and not case.on_demand:
            continue
        ours = mpc_ours.over_tls(case, link, arrays, x, repeats=options.repeats, ahead=ahead)
        title = f"{case.title}, {link.name}, over TLS" + ("" if ahead else ", nothing cached")
        note = ""
        if ours is not None:
            note = f"{spread(ours.seconds)}; largest error {error_of(ours.outputs, expected):.1e}"
        one = limited(title, None if ours is None else 1e3 * median(ours.seconds), "ms", bar, note)
        found += beside(one, peers if ours is not None else ())
    return found


def accuracy(case: Case, options: argparse.Namespace) -> list[Figure]:
    """Return how far accuracy on test images is from that in float64, in points; of trained numbers alone."""
    title = f"{case.title}, accuracy lost over {options.images} images"
    arrays, trained = numbers(case.net, options.numbers)
    x, labels = rows_of(case.net, options.images, options.cifar)
    if not trained or labels is None:
        return [Figure(title, None, "points", bar=MOST_ACCURACY_POINTS, note="no trained numbers or no images here")]
    expected = apply(case.net, arrays, x)
    ours = mpc_ours.in_process(case, arrays, x, repeats=len(x) - mpc_ours.WARM, ahead=False)
    if ours is None:
        return [limited(title, None, "points", MOST_ACCURACY_POINTS)]
    plain = float((expected.argmax(1) == labels).mean())
    private = float((np.array([np.ravel(one) for one in ours.outputs]).argmax(1) == labels).mean())
    note = f"float64 {100 * plain:.2f} %, on shares {100 * private:.2f} %"
    return [
        limited(title, 100 * abs(plain - private), "points", MOST_ACCURACY_POINTS, note),
        limited(f"{case.title}, largest error over them", error_of(ours.outputs, expected), "", MOST_ERROR),
    ]


# --- training, products -----------------------------------------------------------------------------------------------


def training(step: Training, options: argparse.Namespace) -> list[Figure]:
    """Return every line of one kind of training step."""
    arrays, x = operands(step)
    expected = stepped(step, arrays, x, rate=RATE, cut=True)
    print(f"\n== {step.title}")
    found: list[Figure] = []
    ours = mpc_ours.step_in_process(step, arrays, x, rate=RATE, repeats=options.repeats)
    for link in (LINKS[name] for name in options.links):
        peers = [] if options.no_peer else step_peers(step, link, arrays, x, options)
        found += shown(peer_lines(step.title, link, peers, None))
        found += shown([peer_error(step, peer, arrays, x) for peer in peers])
        if link is LOOPBACK:
            ms = None if ours is None else 1e3 * median(ours.seconds)
            note = (
                ""
                if ours is None
                else f"{spread(ours.seconds)}; {ours.trips} trips; clipped line, not sigmoid or softmax"
            )
            one = limited(f"{step.title}, in process, both servers", ms, "ms", step.bar, note)
            found += shown(beside(one, peers if ours else ()))
    return found + shown(step_material(step, ours, expected))


def step_peers(step: Training, link: Link, arrays: Arrays, x: np.ndarray, options: argparse.Namespace) -> list[Spu]:
    """Return what SPU takes for a step under each protocol that was asked for."""
    chosen = [protocol for protocol in TRUST if protocol != "CHEETAH" or not options.no_cheetah]
    repeats = max(3, options.repeats // (2 if step.name == "logistic-step" else 4))
    found = [
        measure(
            protocol, link, task=step.task, arrays=arrays, x=x, repeats=repeats, rows=BATCH, seconds=options.seconds
        )
        for protocol in chosen
    ]
    return [one for one in found if one is not None]


def peer_error(step: Training, peer: Spu, arrays: Arrays, x: np.ndarray) -> Figure:
    """Return how far a peer's weights are from float64's; a peer makes the same step anew in each call."""
    wanted = stepped(step, arrays, x, rate=RATE, cut=False)
    pairs = zip(peer.outputs, (wanted[name] for name in sorted(wanted)), strict=True)
    worst = max(float(np.abs(np.ravel(one) - np.ravel(other)).max()) for one, other in pairs)
    return Figure(f"{step.title}, {peer.name}, largest error of a weight after a step", worst, "")


def step_material(step: Training, ours: Ours | None, expected: Arrays) -> list[Figure]:
    """Return the bytes of a step and of an epoch, and the error of the weights after the first step."""
    most = None if ours is None else max(ours.offline_bytes.values(), default=0.0) / 1e6
    worst = None
    if ours is not None:
        names = sorted(expected, key=lambda name: (name[0] == "b", name))
        pairs = zip(ours.outputs, (expected[name] for name in names), strict=True)
        worst = max(float(np.abs(np.ravel(one) - np.ravel(other)).max()) for one, other in pairs)
    return [
        limited(f"{step.title}, online, all parties", None if ours is None else ours.online_bytes / 1e6, "MB", None),
        limited(f"{step.title}, offline, to a party at most", most, "MB", None),
        limited(
            f"{step.title}, offline, dealer's work", None if ours is None else 1e3 * ours.dealer_seconds, "ms", None
        ),
        limited(
            f"{step.title}, offline, an epoch of {step.batches} steps",
            None if most is None else most * step.batches / 1e3,
            "GB",
            None,
        ),
        limited(f"{step.title}, largest error of a weight after a step", worst, "", None),
    ]


def products(options: argparse.Namespace) -> list[Figure]:
    value = mpc_ours.products(options.repeats)
    title = "product 384x512x512 mod 2^64, one thread"
    met = None if value is None else at_least(value, LEAST_GEMM)
    return [Figure(title, value, "G/s", bar=LEAST_GEMM, met=met, note="" if value is not None else NOT_YET)]


def throughput(case: Case, options: argparse.Namespace) -> list[Figure]:
    arrays, _ = numbers(case.net, options.numbers)
    x, _ = rows_of(case.net, 20, options.cifar)
    value = mpc_ours.sustained(case, arrays, x, calls=2 * options.repeats)
    title = f"{case.title}, sustained with the dealer running"
    return [Figure(title, value, "1/s", note="" if value is not None else NOT_YET)]


# --- all --------------------------------------------------------------------------------------------------------------


def shown(figures: list[Figure]) -> list[Figure]:
    """Print figures, errors with their digits, and return them."""
    for one in figures:
        show([one], digits=6 if one.unit == "" else 2)
    return figures


def trust(options: argparse.Namespace) -> None:
    """Print who is trusted with what, for everybody in the table."""
    print(f"{machine()} before")
    print("ours: semi-honest parties; with a dealer who learns shapes alone and colludes with nobody, or three servers")
    for protocol, (_, words) in TRUST.items():
        print(f"SPU {protocol}: {words}")
    if not options.no_peer and not installed():
        print("SPU is not installed: confide peers install spu --folder bench/peers")
        options.no_peer = True


def main() -> None:
    names = [*CASES, *STEPS, "products", "accuracy", "throughput"]
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-ours", action="store_true", help="SPU's figures of inference alone")
    parser.add_argument("--no-cheetah", action="store_true", help="leave out the slowest peer")
    parser.add_argument("--numbers", type=Path, help="a folder of trained networks: train_relu.py --out")
    parser.add_argument("--cifar", type=Path, help="x_test and y_test of CIFAR-10, an .npz")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seconds", type=float, default=600.0, help="after which a peer is given up")
    options = parser.parse_args()
    trust(options)
    found: list[Figure] = []
    if "products" in options.only:
        found += shown(products(options))
    for name in options.only:
        if name in CASES:
            found += inference(CASES[name], options)
        elif name in STEPS:
            found += training(STEPS[name], options)
    for case in (CASES["mnist"], CASES["resnet20"]):
        if "accuracy" in options.only:
            found += shown(accuracy(case, options))
        if "throughput" in options.only:
            found += shown(throughput(case, options))
    print(f"{machine()} after")
    write(found, options.json)


if __name__ == "__main__":
    main()
