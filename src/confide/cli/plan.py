"""`confide plan`: what an encrypted prediction will take, before a key is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from confide.cli import console
from confide.cli.console import warnings_as_lines
from confide.cli.serving import runs_on_shares
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.model.fitted import Fit
    from confide.model.graph import Graph
    from confide.model.preprocess import Preprocess
    from confide.mpc.planner import Estimate


def plan(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model file that `confide train` wrote, or an ONNX file.")
    ],
    backend: Annotated[
        Literal["he", "mpc-dealer", "mpc-outsourced", "mpc-3pc"], typer.Option(help="Encrypted, or on shares.")
    ] = "he",
    open_model: Annotated[
        bool, typer.Option("--open-model", help="Replies as they come: faster for linear models, which they show.")
    ] = False,
    scheme: Annotated[str | None, typer.Option(help="bfv or ckks, for linear models; bfv if left out.")] = None,
    goal: Annotated[
        Literal["latency", "throughput"], typer.Option(help="Rows one by one, or networks in batches of thousands.")
    ] = "latency",
    engine: Annotated[
        Literal["auto", "native", "seal"], typer.Option(help="Whom to plan for; auto: who would serve it here.")
    ] = "auto",
    precision_bits: Annotated[int, typer.Option(min=1, max=40, help="Wanted precision of the outputs, bits.")] = 10,
    activation_degree: Annotated[
        int | None, typer.Option(min=1, max=8, help="Replace ReLU and the like by polynomials of this degree.")
    ] = None,
    trust: Annotated[
        str | None, typer.Option(help="Key that must have signed the model: 64 hex digits, or a PEM file.")
    ] = None,
    certify: Annotated[
        bool | None,
        typer.Option(
            "--certify/--no-certify", help="Room for every input, or for typical ones; the cheaper by default."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With mpc-*: public rows, a table or .npy, that give the ranges of values."),
    ] = None,
) -> None:
    """Show the plan of encrypted predictions: parameters, keys, bytes, levels, expected error and time. No weights.

    confide plan model.confide

    confide plan model.confide --backend mpc-dealer
    """
    if backend != "he":
        _shares(model, backend, calibrate, trust)
        return
    if calibrate is not None:
        raise UsageError("Expected --calibrate with --backend mpc-dealer or mpc-outsourced; he has --certify")
    from confide.he.backend import Homomorphic
    from confide.he.describe import facts, stage_lines
    from confide.he.plan_batch import BatchPlan
    from confide.he.plan_network import NetworkPlan

    if scheme not in (None, "bfv", "ckks"):
        raise UsageError(f"Expected --scheme {scheme!r} to be bfv or ckks")
    encrypted = Homomorphic(
        protect_model=not open_model,
        goal=goal,
        engine=engine,
        scheme=scheme,  # type: ignore[arg-type]  (one of the two)
        precision_bits=precision_bits,
        activation_degree=activation_degree,
        certify=certify,
    )
    graph = opened(model, trust)[0]
    with runs_on_shares(graph):
        found = encrypted.plan(graph)
    for name, value in facts(found):
        console.out.print(f"{name}: {value}")
    for fit in _fits(graph, activation_degree):
        console.out.print(f"polynomial: {fit}, which the estimated error leaves out")
    if isinstance(found, NetworkPlan | BatchPlan):
        table = Table("stage", "rotations", "products", "level", box=None)
        for line in stage_lines(found):
            table.add_row(*line)
        console.out.print(table)


def _shares(
    model: Path,
    backend: Literal["mpc-dealer", "mpc-outsourced", "mpc-3pc"],
    calibrate: Path | None,
    trust: str | None,
) -> None:
    """Print what one row takes on shares: as a whole, on a fast and on a slow link, what that promises, by layer."""
    from confide.cli.calibrating import features_from
    from confide.mpc.lowering import architecture_of, program_for
    from confide.mpc.planner import plan as planned
    from confide.mpc.ranges import by_rows
    from confide.mpc.rehearsal import largest_error

    graph, prepare = opened(model, trust)
    rows = features_from(calibrate, prepare) if calibrate else None
    architecture = architecture_of(graph, None if rows is None else by_rows(graph, rows))
    found, errors = planned(program_for(architecture, 1), backend), list[str]()
    if rows is not None:
        error, count = largest_error(graph, architecture, rows)
        errors = [f"largest error of an output by fixed point: {error:.1e}, over {count} of the rows"] if count else []
    for line in (*_total_lines(found, backend), *errors, *_promised(graph, backend), "", *_layer_lines(found)):
        console.out.print(line)


def _total_lines(found: Estimate, backend: str) -> list[str]:
    """Return what a prediction takes as a whole."""
    from confide.mpc.planner import HOLDERS, name_of

    total, (first, second) = found.total, HOLDERS[name_of(backend)]
    lines = [
        f"one prediction of one row under {backend}; more rows take that much more bytes, in as many rounds",
        f"rounds: {total.rounds} (messages one after the other; each takes the delay of one way)",
        *(f"{src} to {dst}: {size:,} bytes" for (src, dst), size in total.sent.items()),
    ]
    dealt = total.keys_bytes + total.words_bytes
    if dealt:
        lines.append(
            f"dealt before, for each prediction: {dealt:,} bytes from the dealer to the {second}, of which "
            f"{total.keys_bytes:,} for comparisons"
        )
    if total.keys_bytes:
        lines.append(f"  {total.keys_bytes:,} bytes to the {first}")
    lines.append(f"work of each who computes: {total.comparisons:,} comparisons, {total.products:,} multiply-adds")
    for name, delay, rate in (("0.5 ms, 1 Gbit/s", 5e-4, 1e9), ("20 ms, 200 Mbit/s", 2e-2, 2e8)):
        online = found.seconds(one_way_seconds=delay, bits_per_second=rate)
        before = f"; {found.dealing_seconds(bits_per_second=rate):.3f} s for what is dealt before" if dealt else ""
        lines.append(f"{name}: {online:.3f} s of messages, computing not counted{before}")
    return lines


def _promised(graph: Graph, backend: str) -> list[str]:
    """Return what serving under a backend promises."""
    from confide.serve import load_backend
    from confide.serve.parties.promises import as_served

    return as_served(load_backend(backend).guarantee_for(graph)).lines()


def _layer_lines(found: Estimate) -> list[str]:
    """Return the costs by layer as lines of columns; every number stands there whole, however narrow a terminal is."""
    rows = [["layer", "rounds", "bytes sent", "bytes dealt", "comparisons", "multiply-adds"]]
    for cost in (*found.layers, found.total):
        numbers = (cost.rounds, sum(cost.sent.values()), cost.keys_bytes + cost.words_bytes)
        rows.append([cost.label, *(f"{each:,}" for each in (*numbers, cost.comparisons, cost.products))])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    places = [f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])]
    return ["  ".join(places).format(*row) for row in rows]


def _fits(graph: Graph, degree: int | None) -> tuple[Fit, ...]:
    """Return the polynomials that are planned in the place of activations, with their errors."""
    from confide.model.fitted import approximated
    from confide.model.trees import Trees

    if degree is None or isinstance(graph.layers[0], Trees):
        return ()
    return approximated(graph, -1.0, 1.0, degree)[1]


def opened(path: Path, trust: str | None) -> tuple[Graph, Preprocess | None]:
    """Return the network of a model file or an ONNX file, and how rows are prepared for it, if the file says."""
    from confide.model.artifact import load, read_public_key
    from confide.model.onnx import LARGEST_BYTES, from_onnx

    if path.suffix != ".onnx":
        with warnings_as_lines():
            artifact = load(path, trust=read_public_key(trust) if trust else None)
        return artifact.graph, artifact.preprocess
    if trust:
        raise UsageError("Expected --trust with a signed model file; an ONNX file has no signature")
    if not path.is_file():
        raise UsageError(f"Expected {path} to be a model file; check the path")
    if path.stat().st_size > LARGEST_BYTES:
        raise UsageError(f"Expected an ONNX file of at most {LARGEST_BYTES} bytes")
    return from_onnx(path.read_bytes()), None
