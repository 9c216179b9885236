"""`confide broker`: the keys of sealed models, for attested servers alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confide.cli import console
from confide.cli.console import stops_cleanly
from confide.cli.keys import AskPassphrase, Keyring, PassphraseFile, open_key_store
from confide.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from confide.tee.policy import Policy


def broker(
    policy: Annotated[
        Path, typer.Argument(metavar="POLICY.toml", help="Which code gets keys; docs/attestation.md has its form.")
    ],
    keys: Annotated[Path, typer.Option(metavar="FILE", help="The keys, as `confide seal` left them.")],
    audit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines, one for each request for a key; FILE.audit.jsonl if left out."),
    ] = None,
    attester: Annotated[
        Literal["simulated"] | None,
        typer.Option(help="Accept simulated evidence too, for a trial: anybody gets every key."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; all but loopback need TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8090,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate chain, PEM.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="TLS private key, PEM.")] = None,
    requests_per_second: Annotated[
        float, typer.Option(min=0.01, help="For each address, or 64 bits of IPv6; a key takes two requests.")
    ] = 10.0,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: AskPassphrase = False,
    keyring: Keyring = False,
) -> None:
    """Give the keys of sealed models to servers that show evidence of code which the policy accepts.

    Prints the address once it accepts connections, then one JSON line for each request. The audit has more: each line
    is on the disk before a key leaves.

        confide broker policy.toml --keys broker.sqlite --passphrase-file passphrase.txt
    """
    from confide.crypto.random import SystemRandomness
    from confide.net.http import is_loopback
    from confide.serve.broker import LIMITS, BrokerServer
    from confide.serve.listen import serve as listen
    from confide.tee.audit import AuditFile
    from confide.tee.broker import Broker, BrokerKeys
    from confide.tee.policy import read_policy
    from confide.tee.simulated import WARNING

    if not keys.is_file():
        raise UsageError(f"Expected the keys of sealed models at {keys}; make them with: confide seal MODEL.confide")
    if (certificate is None) != (private_key is None):
        raise UsageError("Expected both --certificate and --private-key, or neither")
    if certificate is None and not is_loopback(host):
        raise UsageError(
            f"Expected --certificate and --private-key with --host {host}: without TLS anybody between could change "
            "what is sent; a broker speaks plain HTTP on 127.0.0.1 alone"
        )
    accepted, rng = read_policy(policy), SystemRandomness()
    require_packages(accepted)
    lines = AuditFile(keys.with_name(f"{keys.name}.audit.jsonl") if audit is None else audit)
    with (
        stops_cleanly(),
        open_key_store(keys, passphrase_file=passphrase_file, ask_passphrase=ask_passphrase, keyring=keyring) as store,
    ):
        kept = BrokerKeys(store)
        made = Broker(accepted, kept, lines, rng=rng, allow_simulated=attester == "simulated")
        limits = replace(LIMITS, requests_per_second=requests_per_second)
        server = BrokerServer(made, rng=rng, limits=limits, log=sys.stdout)

        def ready(url: str) -> None:
            if made.allow_simulated:
                console.err.print(f"warning: {WARNING}: anybody who asks gets every key")
            if not store.encrypted:
                console.err.print(f"warning: {keys} is not encrypted: whoever can read it opens every sealed model")
            console.err.print(f"keys: {len(kept.ids())}, policy: {accepted.digest}")
            console.out.print(f"listening on {url}")
            sys.stdout.flush()  # whoever started this process waits for the line

        try:
            listen(server, host=host, port=port, certificate=certificate, private_key=private_key, ready=ready)
        finally:
            server.close()


def require_packages(policy: Policy) -> None:
    """Raise MissingExtra where a policy accepts evidence that could not be read here, before anybody shows some."""
    if (policy.sgx is not None or policy.tdx is not None) and find_spec("dcap_qvl") is None:
        raise MissingExtra("dcap-qvl", "tee")
