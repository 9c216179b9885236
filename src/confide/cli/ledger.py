"""`confide ledger`: the record of a run, checked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli import console
from confide.cli.console import warnings_as_lines

if TYPE_CHECKING:
    from confide.cohort.roster import Roster
    from confide.train.ledger_check import Seen, Verified

app = typer.Typer(no_args_is_help=True, help="The hash-chained record of a training run.")

_HASH = "[0-9a-f]{64}"


@app.callback()
def root() -> None:
    """Keep `verify` a verb of its own while it is the only one."""


@app.command("verify")
def verify(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER.jsonl", help="The ledger of a training run.")],
    model: Annotated[
        Path | None, typer.Option(help="The model of that run: shows that no last line was cut off.")
    ] = None,
    trust: Annotated[
        str | None, typer.Option(help="Key that must have signed the model: 64 hex digits, or a PEM file.")
    ] = None,
    signer: Annotated[
        str | None, typer.Option(help="The coordinator's key, which must have signed every line: 64 hex digits.")
    ] = None,
    roster: Annotated[
        str | None, typer.Option(help="Whose countersignatures count: a roster's fingerprint, or its file.")
    ] = None,
    head: Annotated[
        list[str],
        typer.Option(help="What a node remembers: a hash of 64 hex digits, or the node's store. May be repeated."),
    ] = [],  # noqa: B006 (typer copies it)
) -> None:
    """Check every link, signature and countersignature of a ledger.

    With --model also that it ends where the model's label says; with --head that it is the one that a node has seen.

        confide ledger verify ledger.jsonl --model model.confide
    """
    from confide.train.ledger_check import verify as verified

    artifact, heads = None, [text for text in head if re.fullmatch(_HASH, text)]
    if model is not None:
        from confide.model.artifact import load, read_public_key

        with warnings_as_lines():
            artifact = load(model, trust=read_public_key(trust) if trust else None)
    label_head = None if artifact is None else artifact.label.ledger
    found = verified(
        ledger,
        head=label_head,
        heads=heads,
        signer=_key(signer) if signer else None,
        roster=_roster(roster) if roster else None,
        seen=[line for text in head if text not in heads for line in _seen(text)],
    )
    _print(found)
    if artifact is not None and label_head is not None:
        by = f"signed by {artifact.signer}" + (", the key of --trust" if trust else "; whose key is that? See --trust")
        console.out.print(f"the model's label names this ledger; the model is {by}")
    if label_head is None and not head:
        console.out.print(
            "whether last lines were cut off, or all of it was written anew, needs --model MODEL.confide or a node's "
            "--head"
        )
    elif found.later:
        console.out.print(f"{found.later} lines come after that model's: countersignatures, or later runs")


def _print(found: Verified) -> None:
    console.out.print(f"{found.entries} entries hold, the last is {found.head}")
    console.out.print(f"runs: {found.runs}")
    if found.epsilon is not None:
        console.out.print(f"epsilon of all runs together, for records that took part in each: {found.epsilon:.3g}")
    if found.signer is None:
        console.out.print("signed by nobody" if not found.signed else f"{found.signed} entries are signed")
    else:
        console.out.print(f"{found.signed} entries are signed, those of the last run by {found.signer.hex()}")
    for name, by in found.countersigned.items():
        console.out.print(f"countersigned by {name}: {by.lines} entries, which vouch for all up to entry {by.up_to}")
    if not found.countersigned:
        console.out.print("countersigned by nobody: its author could have written another one")
    if found.roster is not None:
        console.out.print(f"roster of the last run: {found.roster}")


def _key(text: str) -> bytes:
    from confide.errors import UsageError

    if not re.fullmatch(_HASH, text):
        raise UsageError(f"Expected --signer={text} to be 64 hex digits in lower case; the coordinator prints its key")
    return bytes.fromhex(text)


def _roster(text: str) -> Roster | str:
    """Return a fingerprint, also as people read it aloud, or the roster in a file of lines NAME = "identity"."""
    from confide.cohort.roster import Roster
    from confide.errors import UsageError

    if re.fullmatch(_HASH, compact := re.sub(r"[\s:-]", "", text).lower()):
        return compact
    try:
        lines = tomllib.loads(Path(text).read_text())
        return Roster(tuple((name, bytes.fromhex(identity)) for name, identity in lines.items()))
    except (ValueError, TypeError):  # no text, no TOML, no keys, or one key twice
        raise UsageError(
            f'Expected lines NAME = "identity" in {text}, as `confide federation roster` prints them, or their '
            "fingerprint of 64 hex digits"
        ) from None


def _seen(where: str) -> tuple[Seen, ...]:
    from confide.errors import UsageError
    from confide.store import open_store
    from confide.train.witness import seen

    if "://" not in where and not Path(where).is_file():
        raise UsageError(f"Expected --head={where} to be a hash of 64 hex digits, or the store of a node")
    store = open_store(where)
    try:
        found = seen(store)
    finally:
        store.close()
    if not found:
        raise UsageError(f"Expected --head={where} to be the store of a node that has seen a ledger; it has seen none")
    return found
