"""`confide fit-polynomial`: a network's activations become squares or polynomials, by training in the clear."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from confide.cli import console
from confide.cli.console import warnings_as_lines
from confide.errors import UsageError


def fit_polynomial(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The network: .onnx, or a signed .confide file.")],
    table: Annotated[Path, typer.Argument(metavar="DATA", help="Records with labels; .npz with x and y, or a table.")],
    out: Annotated[Path, typer.Option(help="Where the network goes: .onnx, or .confide with --signing-key.")],
    schema: Annotated[Path | None, typer.Option(help="The table's schema; left out for .npz with x and y.")] = None,
    activation: Annotated[str, typer.Option(help="square, or polynomial.")] = "square",
    degree: Annotated[int, typer.Option(min=2, max=63, help="Of the polynomials.")] = 4,
    epochs: Annotated[int, typer.Option(min=2, help="Passes over the records.")] = 30,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Records of a step.")] = 64,
    held_out: Annotated[float, typer.Option(help="Share of the records that accuracy is measured on.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the order of records and of what is held out.")] = 1,
    trust: Annotated[str | None, typer.Option(help="Key that must have signed a .confide model.")] = None,
    signing_key: Annotated[Path | None, typer.Option(help="Signs a .confide file; made if it is absent.")] = None,
) -> None:
    """Fine-tune a network to squares or polynomials, which encrypted serving runs, and print what it costs.

    This trains in the clear on your records, without privacy: a .confide file says so in its label.

        confide fit-polynomial net.onnx digits.npz --activation square --out square.onnx
    """
    from confide.model.artifact import write_whole
    from confide.model.onnx import to_onnx
    from confide.train.polynomial import fit_polynomial as trained

    if activation not in ("square", "polynomial"):
        raise UsageError("Expected --activation square or polynomial")
    if out.suffix not in (".onnx", ".confide") or (out.suffix == ".confide") != (signing_key is not None):
        raise UsageError("Expected --out as .onnx, or as .confide together with --signing-key")
    with warnings_as_lines():
        graph, prepare = _model(model, trust)
    x, y, prepare = _records(table, schema, graph, prepare)
    if out.suffix == ".confide" and prepare is None:
        raise UsageError(
            "Expected --schema with a .confide file: its users must know the columns; for images write .onnx, then "
            "make a file as docs/models.md shows"
        )
    done = trained(
        graph,
        x,
        y,
        activation=activation,
        degree=degree,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        held_out=held_out,
        seed=seed,
    )
    if signing_key is None:
        write_whole(out, to_onnx(done.graph))
    else:
        _save(done.graph, prepare, out, signing_key)
    kind = "squares" if activation == "square" else f"polynomials of degree {degree}"
    console.out.print(f"{done.replaced} activations became {kind}: {', '.join(map(str, done.graph.layers))}")
    what = "accuracy" if y.dtype.kind in "iu" and y.ndim == 1 else "mean squared error"
    console.out.print(
        f"{what} on held-out records: {done.before:.4f} before, {done.after:.4f} after "
        f"({done.plain:.4f} without training)"
    )
    console.out.print(f"held-out records that leave an interval: {done.outside:.2%}")
    console.out.print(f"written to {out}")


def _model(model: Path, trust: str | None) -> tuple[Any, Any]:
    """Return a file's graph, and its preparation if it has one."""
    from confide.model.artifact import load, read_public_key
    from confide.model.onnx import LARGEST_BYTES, from_onnx

    if model.suffix == ".onnx":
        if not model.is_file() or model.stat().st_size > LARGEST_BYTES:
            raise UsageError(f"Expected an ONNX model of at most {LARGEST_BYTES} bytes at {model}")
        return from_onnx(model.read_bytes()), None
    artifact = load(model, trust=read_public_key(trust) if trust else None)
    return artifact.graph, artifact.preprocess


def _records(table: Path, schema: Path | None, graph: Any, prepare: Any) -> tuple[Any, Any, Any]:
    """Return features as a graph takes them, labels, and the preparation of a table."""
    from confide.data.schema import Category, Number, Schema
    from confide.data.table import read_table
    from confide.model.preprocess import OneHot, Preprocess, Scale

    if schema is None:
        if table.suffix != ".npz" or not table.is_file():
            raise UsageError("Expected --schema for a table, or .npz with arrays x and y")
        try:
            with np.load(table, allow_pickle=False) as arrays:
                x, y = np.asarray(arrays["x"], np.float64), np.asarray(arrays["y"])
        except (KeyError, ValueError, OSError, EOFError):
            raise UsageError(f"Expected arrays of numbers x and y in {table}") from None
        if x.ndim < 2 or y.dtype.kind not in "iuf":
            raise UsageError("Expected x of shape (n, ...) and y of numbers, shape (n,)")
        return x.reshape(len(x), -1), y, None
    known = Schema.load(schema)
    records = read_table(table, known)
    if prepare is None:
        rules: list[Any] = []
        for column in known.columns:
            match column:
                case Number(name=name, low=low, high=high, missing=missing, outside=outside, bins=bins):
                    rules.append(Scale(name=name, low=low, high=high, missing=missing, outside=outside, bins=bins))
                case Category(name=name, categories=categories, missing=missing):
                    rules.append(OneHot(name=name, categories=categories, missing=missing))
                case _:
                    raise UsageError("Expected numbers and categories; give images as .npz with arrays x and y")
        prepare = Preprocess(tuple(rules))
    return prepare.apply(records.columns), records.labels, prepare


def _save(graph: Any, prepare: Any, out: Path, signing_key: Path) -> None:
    from confide.crypto.random import SystemRandomness
    from confide.guarantee import PrivacyLabel
    from confide.model.artifact import Artifact, create_signing_key, read_signing_key

    key = read_signing_key(signing_key) if signing_key.exists() else create_signing_key(signing_key, SystemRandomness())
    label = PrivacyLabel(aggregator="local", parties=("fit-polynomial",), quorum=1, colluding=0, rounds=1)
    Artifact(graph, prepare, label, {"trained": "fit-polynomial, in the clear"}).save(out, key)
