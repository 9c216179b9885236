"""`confide import`: a model that was made elsewhere becomes a signed file to serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confide.cli import console
from confide.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.crypto.keys import SigningKey
    from confide.data.schema import Schema
    from confide.model.graph import Graph
    from confide.model.preprocess import Preprocess

_MOST_TOLD = 20  # columns


def import_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model: an ONNX file.")],
    schema: Annotated[Path, typer.Option(help="Its columns, in the order of the model's inputs, with their bounds.")],
    signing_key: Annotated[Path, typer.Option(help="Signs the file; made if it is absent.")],
    out: Annotated[Path, typer.Option(help="The model file, .confide.")],
    classes: Annotated[
        str | None,
        typer.Option(help='Names of the outcomes, "no,yes"; "" for none. Left out: the ONNX file\'s or the schema\'s.'),
    ] = None,
    link: Annotated[
        str | None, typer.Option(help="What an output is: logit, probability, log or identity, if it does not say.")
    ] = None,
) -> None:
    """Make a model file to serve of a model that was trained elsewhere.

    Its label says that it was made elsewhere: nothing is claimed for its training.

        confide import net.onnx --schema schema.toml --signing-key signing.pem --out net.confide
    """
    from confide.data.schema import Schema
    from confide.guarantee import imported_label
    from confide.model.artifact import Artifact
    from confide.model.onnx import LARGEST_BYTES, from_onnx

    if out.suffix != ".confide":
        raise UsageError("Expected --out as .confide")
    if model.suffix != ".onnx" or not model.is_file() or model.stat().st_size > LARGEST_BYTES:
        raise UsageError(f"Expected an ONNX model of at most {LARGEST_BYTES} bytes at {model}")
    known = Schema.load(schema)
    prepare = preprocess_of(known)
    graph = _named(from_onnx(model.read_bytes()), known, classes, link)
    _check(graph, prepare, known)
    metadata = {"link": link} if link else {}
    artifact = Artifact(graph, prepare, imported_label(), metadata)
    artifact.link  # noqa: B018 (refuses a link that is none before a key is made)
    saved = artifact.save(out, signing_key_at(signing_key))
    for line in _told(prepare):
        console.out.print(line)
    console.out.print(f"outcomes: {', '.join(graph.classes) or f'{graph.outputs} outputs without names'}")
    console.out.print(saved.label.sentence())
    console.out.print(f"wrote {out}, signed by {saved.signer}")


def signing_key_at(path: Path) -> SigningKey:
    """Return the signing key of a file; a new one if there is no such file."""
    from confide.crypto.random import SystemRandomness
    from confide.model.artifact import create_signing_key, read_signing_key

    return read_signing_key(path) if path.exists() else create_signing_key(path, SystemRandomness())


def preprocess_of(schema: Schema) -> Preprocess:
    """Return how a schema's columns become features: numbers by their bounds, categories, bare pixels."""
    from confide.data.schema import Category, Image, Number
    from confide.model.pixels import Pixels
    from confide.model.preprocess import OneHot, Preprocess, Scale

    rules: list[Any] = []
    for column in schema.columns:
        match column:
            case Number(name=name, low=low, high=high, missing=missing, outside=outside, bins=bins):
                rules.append(Scale(name=name, low=low, high=high, missing=missing, outside=outside, bins=bins))
            case Category(name=name, categories=categories, missing=missing):
                rules.append(OneHot(name=name, categories=categories, missing=missing))
            case Image(name=name, height=height, width=width, low=low, high=high, to=to):
                rules.append(Pixels(name=name, height=height, width=width, low=low, high=high, to=to or (0.0, 1.0)))
    return Preprocess(tuple(rules))


def _named(graph: Graph, schema: Schema, classes: str | None, link: str | None) -> Graph:
    """Return the graph with the names of its outcomes; refuses where a single output could mean several things."""
    from confide.model.graph import Sigmoid

    if classes is not None:
        names = tuple(name.strip() for name in classes.split(",")) if classes.strip() else ()
    else:
        names = graph.classes or schema.label.classes
    if names and len(names) != max(graph.outputs, 2):
        source = "" if classes is not None else ", the schema's or the file's"
        raise UsageError(
            f"Expected {max(graph.outputs, 2)} classes for {graph.outputs} outputs, got {len(names)}{source}; name "
            'them with --classes, or none with --classes ""'
        )
    if names and graph.outputs == 1 and not isinstance(graph.layers[-1], Sigmoid) and link is None:
        raise UsageError(
            f"Expected --link logit or --link probability: the model's one output decides between {names[0]!r} and "
            f'{names[1]!r}, and no sigmoid at its end says how; or --classes "" if it is a number'
        )
    return replace(graph, classes=names)


def _check(graph: Graph, prepare: Preprocess, schema: Schema) -> None:
    from confide.data.schema import Image

    for column in schema.columns:
        if isinstance(column, Image) and column.to is None:
            raise UsageError(
                f"Expected the range that the model takes pixels in, of column {column.name!r}; state to = [-1, 1] or "
                "to = [0, 1] in the schema, as it was trained: with another one it answers wrongly"
            )
    if prepare.features != graph.features:
        counts = ", ".join(f"{rule.name} {rule.count}" for rule in prepare.rules[:_MOST_TOLD])
        raise UsageError(
            f"Expected columns that give the model's {graph.features} features, got {prepare.features} ({counts}"
            f"{', ...' if len(prepare.rules) > _MOST_TOLD else ''}); change the schema's columns"
        )


def _told(prepare: Preprocess) -> Iterator[str]:
    """Yield which numbers the model is taken to have been trained on, column by column."""
    from confide.model.pixels import Pixels
    from confide.model.preprocess import OneHot

    yield "the model must have been trained on these features, in this order; with others it answers wrongly:"
    for rule in prepare.rules[:_MOST_TOLD]:
        match rule:
            case Pixels(name=name, height=height, width=width):
                low, high = rule.range
                yield (
                    f"  {name}: {height} x {width} pixels, row by row, {rule.low:g} to {rule.high:g} become {low:g} to "
                    f"{high:g}"
                )
            case OneHot(name=name):
                yield f"  {name}: {rule.count} categories, 1 for the one that holds, else 0"
            case _ if rule.count == 1:
                yield f"  {rule.name}: {rule.low:g} to {rule.high:g} become -1 to 1"
            case _:
                yield f"  {rule.name}: {', '.join(rule.features[:_MOST_TOLD])}"
    if len(prepare.rules) > _MOST_TOLD:
        yield f"  and {len(prepare.rules) - _MOST_TOLD} more columns"
