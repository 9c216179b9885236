"""`confide label`: what a model promises, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from confide.cli import console
from confide.cli.console import warnings_as_lines
from confide.errors import UsageError


def label(
    model: Annotated[Path, typer.Argument(metavar="MODEL.confide", help="A model file that `confide train` wrote.")],
    trust: Annotated[
        str | None, typer.Option(help="Key that must have signed the model: 64 hex digits, or a PEM file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, for programs.")] = False,
) -> None:
    """Print a model's privacy label as a page: the guarantee, who sees what, and what can undermine it.

    Read it from the top. epsilon bounds what anybody can learn about one record: up to 1 is strong, beyond 10 little
    is promised. The worst attacker's line says the same in rates: how often somebody who knows all other records
    recognises one, at 1 % false alarms. What the promise rests on and does not cover stands below. Nothing is
    computed from records, and nothing is looked up: the label is signed together with the model.

        confide label model.confide --trust signing.pem.pub
    """
    from confide.model.artifact import load, read_public_key
    from confide.model.label import facts, page

    if model.is_dir():
        raise UsageError(f"Expected a model file, {model} is a folder; of one of shares tells: confide inspect {model}")
    with warnings_as_lines():
        artifact = load(model, trust=read_public_key(trust) if trust else None)
    if as_json:
        told = msgspec.json.format(msgspec.json.encode(facts(artifact, pinned=trust is not None)))
        console.out.print(told.decode())
        return
    for line in page(artifact, pinned=trust is not None):
        console.out.print(console.plain(line))
