"""`confide attest`: what an enclave shows, check by check."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from confide.cli import console
from confide.cli.keys import read_api_key
from confide.errors import UsageError
from confide.tee.evidence import NONCE_BYTES, Bundle


def attest(
    url: Annotated[str | None, typer.Argument(metavar="[URL]", help="A server with --backend tee.")] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What is accepted, TOML; docs/attestation.md has every key.")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of a server: evidence that --out saved; asks nobody.")
    ] = None,
    now: Annotated[
        int | None, typer.Option(min=0, help="Seconds since 1970 at which it must hold; the clock's if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the evidence, JSON.")] = None,
    write_policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draft a policy that accepts exactly this enclave: read it before use."),
    ] = None,
    attester: Annotated[
        Literal["simulated"] | None, typer.Option(help="Let simulated evidence pass, which shows nothing.")
    ] = None,
    signer: Annotated[
        str | None, typer.Option(help="Who must have signed the model: 64 hex digits, or a PEM file.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name, if the server has several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first line is your API key.")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="PEM file of the authority that signed the server's certificate.")
    ] = None,
    insecure_plain_http: Annotated[
        bool, typer.Option("--insecure-plain-http", help="Ask another machine without TLS.")
    ] = False,
) -> None:
    """Ask an enclave for evidence and check it, or check evidence from a file; nothing else is sent.

    Prints every check, whether it holds and what was found; exits with 1 if one does not.

        confide attest https://model.example.org --write-policy policy.toml

        confide attest https://model.example.org --policy policy.toml
    """
    from confide.tee.policy import read_policy

    if (url is None) == (evidence is None):
        raise UsageError("Expected a URL, or --evidence FILE; give one of them")
    if policy is None and out is None and write_policy is None:
        raise UsageError("Expected --policy FILE to check against; --write-policy FILE drafts one, --out FILE saves")
    for option, path in (("--out", out), ("--write-policy", write_policy)):
        if path is not None and path.exists():
            raise UsageError(f"Expected no file at {option} {path}: what it says would be lost; name a new one")
    if out is not None and out == write_policy:
        raise UsageError("Expected two files for --out and --write-policy; name another one")
    if policy is not None:
        if not policy.is_file():
            raise UsageError(f"Expected an attestation policy at --policy {policy}; there is no such file")
        read_policy(policy)  # before anybody is asked
    if evidence is not None:
        bundle, nonce, pinned = Bundle.decode(_read(evidence)), None, None
    else:
        assert url is not None
        bundle, nonce, pinned = _asked(
            url, model=model, signer=signer, api_key_file=api_key_file, ca_file=ca_file, plain=insecure_plain_http
        )
    if out is not None:
        _write(out, bundle.encode())
        console.err.print(console.plain(f"wrote {out}: {_kind(bundle)}evidence, which nobody has checked"))
    if write_policy is not None:
        from confide.tee.draft import policy_text

        _write(write_policy, policy_text(bundle).encode())
        text = f"wrote {write_policy}: it trusts the {_kind(bundle)}enclave that is there now"
        console.err.print(console.plain(f"{text}; compare it with a build of your own"))
    if policy is None:
        return
    _check(bundle, nonce, pinned, policy=policy, now=now, attester=attester, as_json=as_json)


def _check(
    bundle: Bundle,
    nonce: bytes | None,
    pinned: str | None,
    *,
    policy: Path,
    now: int | None,
    attester: str | None,
    as_json: bool,
) -> None:
    from confide.tee.policy import read_policy
    from confide.tee.verify import report_json, report_lines, verify

    verdict = verify(
        bundle, read_policy(policy), now=time.time() if now is None else now, nonce=nonce,
        allow_simulated=attester == "simulated", model_sha256=pinned,
    )  # fmt: skip
    if as_json:
        # Names and texts of the evidence are in it: nothing that a terminal obeys may leave as it came.
        text = json.dumps(report_json(verdict), indent=2, ensure_ascii=True)
        console.out.print(text.replace("\x7f", "\\u007f"))
    else:
        for line in report_lines(verdict):
            console.out.print(console.plain(line))
    if not verdict.holds:
        raise typer.Exit(1)


def _asked(
    url: str, *, model: str | None, signer: str | None, api_key_file: Path | None, ca_file: Path | None, plain: bool
) -> tuple[Bundle, bytes, str | None]:
    """Return a server's evidence, the nonce it must be for, and the hash of the model that a pinned signer signed."""
    from confide.crypto.random import SystemRandomness
    from confide.model.artifact import decode_statement, read_public_key
    from confide.serve.client import Client

    nonce = SystemRandomness().bytes(NONCE_BYTES)
    api_key = read_api_key(api_key_file) if api_key_file else None
    with Client(
        url, model=model, backend="tee", signer=signer, api_key=api_key, ca_file=ca_file, insecure_plain_http=plain
    ) as client:
        bundle = client.evidence(nonce)
        statement = client.kit.statement
    pinned = decode_statement(statement, trust=read_public_key(signer)).graph_sha256.hex() if signer else None
    return bundle, nonce, pinned


def _kind(bundle: Bundle) -> str:
    return "" if bundle.provider.hardware else "simulated "


def _read(path: Path) -> bytes:
    from confide.tee.evidence import MAX_BUNDLE_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"Expected --evidence {path} to be a file that can be read; {error.strerror}") from None


def _write(path: Path, body: bytes) -> None:
    from confide.model.artifact import whole_file

    with whole_file(path) as file:
        file.write(body)
