"""`confide keys`: the keys that a client keeps, and how the command line opens their file."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli import console
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.serve.key_store import Kept, KeyStore

app = typer.Typer(no_args_is_help=True, help="The secret keys that `confide predict --keys FILE` keeps.")

_DAY_SECONDS = 86400.0
_NAME_DIGITS = 12

Keys = Annotated[Path, typer.Argument(metavar="FILE", help="The key store, as in `confide predict --keys FILE`.")]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="File whose first line is the passphrase that encrypts the keys.")
]
AskPassphrase = Annotated[
    bool, typer.Option("--ask-passphrase", help="Ask at the terminal for the passphrase that encrypts the keys.")
]
Keyring = Annotated[
    bool, typer.Option("--keyring", help="The key that encrypts the keys lies in the system's keyring.")
]


def open_key_store(
    path: Path,
    *,
    passphrase_file: Path | None,
    ask_passphrase: bool,
    keyring: bool,
    lifetime_days: float | None = None,
) -> KeyStore:
    """Return the key store at `path`, made if there is none; None keeps keys without an end."""
    from confide.serve.key_store import KeyStore

    if ask_passphrase + keyring + (passphrase_file is not None) > 1:
        raise UsageError("Expected one of --passphrase-file, --ask-passphrase and --keyring; leave the others out")
    passphrase = None
    if passphrase_file is not None:
        passphrase = passphrase_file.read_text().partition("\n")[0]
        if not passphrase:
            raise UsageError(f"Expected a passphrase in the first line of {passphrase_file}")
    elif ask_passphrase:
        asked = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=not path.exists(), err=True)
        passphrase = str(asked)
    lifetime_seconds = None if lifetime_days is None else lifetime_days * _DAY_SECONDS
    return KeyStore(path, passphrase=passphrase, keyring=keyring, lifetime_seconds=lifetime_seconds)


def _existing(path: Path, passphrase_file: Path | None, ask_passphrase: bool, keyring: bool) -> KeyStore:
    if not path.is_file():
        raise UsageError(f"Expected a key store at {path}; no such file")
    return open_key_store(path, passphrase_file=passphrase_file, ask_passphrase=ask_passphrase, keyring=keyring)


@app.command("list")
def list_keys(
    file: Keys,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: AskPassphrase = False,
    keyring: Keyring = False,
) -> None:
    """Show for which models there are keys, since when, and under which name the server has the public ones.

    confide keys list keys.sqlite
    """
    with _existing(file, passphrase_file, ask_passphrase, keyring) as store:
        found = store.list()
        protection = "encrypted" if store.encrypted else "not encrypted: whoever can read the file has the keys"
    console.err.print(f"{file}: {protection}")
    rows: list[tuple[str, ...]] = [("name", "model", "backend", "server", "made", "at the server", "bytes")]
    for kept in found:
        about = kept.about
        made = datetime.fromtimestamp(kept.made_seconds, UTC).strftime("%Y-%m-%dT%H:%MZ")
        whose = (about.model, about.backend, about.server) if about else ("?", "?", "?")
        here = (*whose, made, kept.key_id[:_NAME_DIGITS] or "not confirmed", str(kept.size_bytes))
        rows.append((kept.part[:_NAME_DIGITS], *map(console.plain, here)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if found else [("no keys",)]:
        console.out.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())


@app.command("delete")
def delete(
    file: Keys,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Names of keys, or their first digits.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All keys of the file.")] = False,
    here_only: Annotated[
        bool, typer.Option("--here-only", help="Do not ask the servers to delete the public keys.")
    ] = False,
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first line is your API key.")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="PEM file of the authority that signed the server's certificate.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Your certificate, PEM, if the server asks for one.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="The key of your certificate, PEM.")] = None,
    insecure_plain_http: Annotated[
        bool, typer.Option("--insecure-plain-http", help="Ask another machine without TLS.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: AskPassphrase = False,
    keyring: Keyring = False,
) -> None:
    """Delete keys: the public ones at their servers first, then all in the file.

    A server that cannot be reached keeps the keys in the file too; --here-only deletes them all the same.

        confide keys delete keys.sqlite 3f9a
    """
    from confide.serve.client import Client

    api_key = read_api_key(api_key_file) if api_key_file else None
    with _existing(file, passphrase_file, ask_passphrase, keyring) as store:
        for kept in _chosen(store.list(), names or [], everything):
            told = "its server was not told"
            if not here_only and kept.key_id and kept.about is not None:
                with Client(
                    kept.about.server, api_key=api_key, ca_file=ca_file, certificate=certificate,
                    private_key=private_key, insecure_plain_http=insecure_plain_http,
                ) as client:  # fmt: skip
                    client.delete_at_server(kept.about.path, kept.key_id)
                told = "here and at its server"
            store.delete(kept.part)
            console.out.print(f"deleted {kept.part[:_NAME_DIGITS]}: {told}")


@app.command("expire")
def expire(
    file: Keys,
    older_than_days: Annotated[float, typer.Option(min=0, help="Age in days.")] = 30.0,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: AskPassphrase = False,
    keyring: Keyring = False,
) -> None:
    """Delete keys from the file that are older than some days; servers forget the public ones by age themselves.

    confide keys expire keys.sqlite --older-than-days 7
    """
    with _existing(file, passphrase_file, ask_passphrase, keyring) as store:
        count = store.expire(older_than_days * _DAY_SECONDS)
    console.out.print(f"deleted the keys of {count} model{'' if count == 1 else 's'}")


def read_api_key(path: Path) -> str:
    """Return the API key in a file, which may hold other words around it."""
    found = re.search(r"confide-[0-9a-f]{64}", path.read_text(errors="replace"))
    if found is None:
        raise UsageError(f"Expected an API key in {path}: confide- and 64 hex digits, as `confide api-key` printed it")
    return found[0]


def _chosen(found: list[Kept], names: list[str], everything: bool) -> list[Kept]:
    """Return the keys that were named. Raises UsageError for a name that none or several have."""
    if everything != (not names):
        raise UsageError("Expected names of keys, or --all; `confide keys list` shows them")
    chosen = list(found) if everything else []
    for name in names:
        matching = [kept for kept in found if kept.part.startswith(name)]
        if len(matching) != 1:
            raise UsageError(
                f"Expected one set of keys called {name!r}, got {len(matching)}; `confide keys list` shows"
            )
        chosen += matching
    return chosen
