"""`confide seal`: a model file that only an attested server opens."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from confide.cli import console
from confide.cli.console import warnings_as_lines
from confide.cli.keys import AskPassphrase, Keyring, PassphraseFile, open_key_store
from confide.errors import UsageError


def seal(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.confide", help="A model file of `confide train` or `confide import`.")
    ],
    out: Annotated[Path, typer.Option(metavar="MODEL.sealed", help="The sealed model; never over another file.")],
    keys: Annotated[
        Path, typer.Option(metavar="FILE", help="The broker's keys, for `confide broker`; made if there is none.")
    ],
    trust: Annotated[
        str | None, typer.Option(help="Key that must have signed the model: 64 hex digits, or a PEM file.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: AskPassphrase = False,
    keyring: Keyring = False,
    unencrypted_keys: Annotated[
        bool, typer.Option("--unencrypted-keys", help="Keep the keys as they are: whoever reads the file has them.")
    ] = False,
) -> None:
    """Encrypt a model under a fresh key, which goes to the broker's file of keys and is shown nowhere.

    Anybody may have the sealed file: it tells whose model it is. `confide broker` gives its key to attested servers.

        confide seal model.confide --out model.sealed --keys broker.sqlite --passphrase-file passphrase.txt
    """
    from confide.crypto.random import SystemRandomness
    from confide.model.artifact import read, read_public_key, write_whole
    from confide.tee.broker import BrokerKeys
    from confide.tee.sealed import FileKey, seal_model

    if not (passphrase_file or ask_passphrase or keyring or unencrypted_keys):
        raise UsageError(
            "Expected --passphrase-file, --ask-passphrase or --keyring, which encrypt the file of keys; insist on one "
            "in the clear with --unencrypted-keys"
        )
    if out.exists():
        raise UsageError(f"Expected no file at {out}: another sealed model would be lost; name a new one")
    key = FileKey.draw(SystemRandomness())
    with warnings_as_lines():
        sealed, head = seal_model(
            read(model), key, model=name_of(model), trust=read_public_key(trust) if trust else None
        )
    with open_key_store(keys, passphrase_file=passphrase_file, ask_passphrase=ask_passphrase, keyring=keyring) as store:
        kept = BrokerKeys(store)
        kept.add(key, head, now=time.time())  # before the file: one without its key would be of no use
        try:
            write_whole(out, sealed)
        except BaseException:
            kept.forget(key.key_id)
            raise
        if not store.encrypted:
            console.err.print(f"warning: {keys} is not encrypted: whoever can read it opens every model sealed here")
    console.out.print(f"sealed {console.plain(head.model)}: {out}")
    console.out.print(f"model_sha256: {head.graph_sha256}")
    console.out.print(f"key: {head.key_id}")


def name_of(path: Path) -> str:
    """Return a file's name as the name of a model."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", path.stem)[:64]


def describe_sealed(path: Path, *, trust: str | None) -> bool:
    """Print what a sealed model says to everybody; return False, and print nothing, where `path` is none."""
    from confide.model.artifact import read_public_key
    from confide.tee.sealed import MAGIC_BYTES, is_sealed, owner_of, read_head, read_sealed

    if not path.is_file():
        return False
    with path.open("rb") as file:
        if not is_sealed(file.read(MAGIC_BYTES)):
            return False
    head = read_head(read_sealed(path), where=path.name)
    owner = owner_of(head, trust=read_public_key(trust) if trust else None, where=path.name)
    console.out.print("sealed: an attested server opens it, with the key of its broker")
    console.out.print(owner.label.sentence())
    facts = {
        "model": head.model, "model_sha256": head.graph_sha256, "key": head.key_id, "created": owner.created,
        **owner.metadata, "signer": owner.signer, "fingerprint": owner.fingerprint,
    }  # fmt: skip
    for name, value in facts.items():
        console.out.print(console.plain(f"{name}: {value}"))
    return True
