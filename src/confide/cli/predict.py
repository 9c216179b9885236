"""`confide predict`: ask a service about the rows of a table."""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import TaskID

from confide.cli import console
from confide.cli.console import progress_bars
from confide.cli.joint import OneMachine
from confide.cli.keys import AskPassphrase, Keyring, PassphraseFile, open_key_store, read_api_key
from confide.errors import UsageError
from confide.guarantee import Trust

if TYPE_CHECKING:
    from confide.serve.async_client import AsyncClient
    from confide.serve.protocol import ClientKit


def predict(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="Where `confide serve` listens; wss://... where several answer together."),
    ],
    table: Annotated[Path, typer.Argument(metavar="X.csv", help="Rows to predict; the header names the columns.")],
    schema: Annotated[
        Path | None, typer.Option(help="The model's schema: for dates, codings and a source file's units and names.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file for the predictions; standard output if left out.")] = None,
    class_only: Annotated[bool, typer.Option("--class-only", help="Write the likeliest class alone.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at a time.")] = 2,
    model: Annotated[str | None, typer.Option(help="Which model; may be left out if the server has one.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="How to ask. The server's choice if that hides the query; plain must be named.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File that keeps your secret keys for the next time; forgotten if left out.")
    ] = None,
    lifetime_days: Annotated[float, typer.Option(min=0.01, help="Age at which keys in --keys are made anew.")] = 30.0,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: AskPassphrase = False,
    keyring: Keyring = False,
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first line is your API key.")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="PEM file of the authority that signed the server's certificate.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Your certificate, PEM, if the server asks for one.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="The key of your certificate, PEM.")] = None,
    identity: Annotated[
        Path | None, typer.Option(help="With wss://: your folder, which `confide federation join` made.")
    ] = None,
    ahead: Annotated[
        int, typer.Option(min=0, help="With wss://: have correlations dealt for so many questions before the first.")
    ] = 0,
    insecure_colocated_dealer: OneMachine = False,
    encoder: Annotated[Path | None, typer.Option(help="ONNX file of the encoder that the model's images need.")] = None,
    kit_sha256: Annotated[str | None, typer.Option(help="Hash of the kit that must be served, as published.")] = None,
    signer: Annotated[
        str | None, typer.Option(help="Who must have signed the model: 64 hex digits, or a PEM file.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With tee: which enclaves may see the rows; docs/attestation.md has it."),
    ] = None,
    attester: Annotated[
        Literal["simulated"] | None,
        typer.Option(help="With tee: accept a simulation, which protects nothing, for a trial."),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a request that failed for now is repeated.")] = 4,
    give_up_seconds: Annotated[float, typer.Option(min=0, help="Time after which none is repeated any more.")] = 60.0,
    repeat_questions: Annotated[
        bool,
        typer.Option("--repeat-questions", help="Repeat also a question whose answer was lost: it may count twice."),
    ] = False,
    insecure_plain_http: Annotated[
        bool, typer.Option("--insecure-plain-http", help="Ask another machine without TLS.")
    ] = False,
) -> None:
    """Ask a service for predictions on the rows of a table.

    The rows are checked, prepared and, unless --backend plain is named, encrypted or masked here; secrets stay here.

        confide predict http://127.0.0.1:8080 examples/patients.csv --out predictions.csv

        confide predict wss://model.example.org:8443 examples/patients.csv --identity clinic
    """
    from confide.serve.async_client import AsyncClient

    store = None
    if keys is not None:
        store = open_key_store(
            keys, passphrase_file=passphrase_file, ask_passphrase=ask_passphrase, keyring=keyring,
            lifetime_days=lifetime_days,
        )  # fmt: skip
    elif passphrase_file or ask_passphrase or keyring:
        raise UsageError("Expected --keys FILE beside what encrypts it; without a file no key is kept")
    api_key = read_api_key(api_key_file) if api_key_file else None
    try:
        with _bars() as progress:
            client = AsyncClient(
                url, model=model, backend=backend, store=store, api_key=api_key, ca_file=ca_file,
                certificate=certificate, private_key=private_key, encoder=encoder, kit_sha256=kit_sha256,
                signer=signer, policy=policy, attester=attester, insecure_plain_http=insecure_plain_http,
                retries=retries, give_up_seconds=give_up_seconds, repeat_questions=repeat_questions, progress=progress,
                identity=identity, insecure_colocated_dealer=insecure_colocated_dealer, ahead=ahead,
            )  # fmt: skip
            asyncio.run(_ask(client, table, schema, out, class_only, concurrency))
    finally:
        if store is not None:
            store.close()


@contextmanager
def _bars() -> Generator[Any]:
    """Return a function that shows progress on a terminal, and nowhere else but for whom is waited."""
    from confide.serve.steps import WAITING

    tasks: dict[str, TaskID] = {}
    with progress_bars() as bars:
        bars.disable = not console.err.is_terminal

        def progress(done: int, total: int, what: str) -> None:
            if what.startswith(WAITING):
                console.err.print(console.plain(what))
                return
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield progress


async def _ask(
    client: AsyncClient, table: Path, schema: Path | None, out: Path | None, class_only: bool, concurrency: int
) -> None:
    async with client:
        kit = await client.open()
        prepare = client.preprocess
        if prepare is None:
            raise UsageError(
                f"Expected a model that names its columns; {client.model} takes bare features, ask it from Python"
            )
        if class_only and not kit.classes:
            raise UsageError("Expected a model that names its classes with --class-only; leave it out")
        columns = columns_of(table, prepare, schema)
        with _opened(out) as file:
            writer = csv.writer(file, lineterminator="\n")
            header: list[str] | None = _header(kit, class_only)
            async for answers in client.stream(columns, concurrency=concurrency):
                if header is not None:  # not before there is an answer
                    writer.writerow(header)
                    header = None
                writer.writerows(_rows(answers, kit, class_only))
                file.flush()
        for line in asked_lines(client):
            console.err.print(console.plain(line))
        console.err.print(client.label.sentence())
        for line in client.costs():
            console.err.print(console.plain(line))
        if client.signer:
            console.err.print(f"model signed by {client.signer}")


def asked_lines(client: AsyncClient) -> list[str]:
    """Return what was asked and what that promises, in lines: one for each who learns nothing where several answer."""
    head, promised = f"asked {client.model} under {client.backend}: ", client.guarantee
    if promised.trust is not Trust.NON_COLLUSION:
        return [head + "; ".join(promised.sentences())]
    first, *others = promised.lines()
    return [head + first, *others]


@contextmanager
def _opened(out: Path | None) -> Generator[IO[str]]:
    """Return where predictions go: standard output, or a file that appears when it is complete."""
    from confide.model.artifact import whole_file

    if out is None:
        yield sys.stdout
        return
    with whole_file(out) as binary:
        text = TextIOWrapper(binary, encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()


def columns_of(table: Path, prepare: Any, schema: Path | None) -> Mapping[str, Any]:
    """Return the columns of a table that a model's preparation names, as a schema says where there is one."""
    from confide.data.files import read_arrays, refuse_images
    from confide.data.schema import Schema
    from confide.data.table import read_columns, read_inputs

    if schema is not None:
        return read_inputs(table, Schema.load(schema))
    if table.suffix == ".npz":
        return read_arrays(table, prepare.columns, images=prepare.images)
    refuse_images(table, prepare.images)
    texts = [name for name in prepare.columns if name not in prepare.numbers]
    return read_columns(table, numbers=prepare.numbers, texts=texts)


def _header(kit: ClientKit, class_only: bool) -> list[str]:
    """Return the names of the columns that `_rows` gives."""
    if class_only:
        return ["decision"]
    if kit.classes:
        shown = kit.classes if kit.link == "logit" else kit.classes[-kit.outputs :]
        return [*(f"p({one})" for one in shown), "decision"]
    outputs = [f"output_{at}" for at in range(kit.outputs)]
    return outputs + [f"exp({name})" for name in outputs] * (kit.link == "log")


def _rows(answers: Any, kit: ClientKit, class_only: bool) -> list[list[str]]:
    """Return each answer as a row: the classes' probabilities and the likeliest, or outputs as they are if unnamed."""
    from confide.model import links

    decisions: list[list[str]] = [[] for _ in range(len(answers))]
    if kit.classes:
        decisions = [[one] for one in links.decide(answers, kit.link, kit.classes)]
    if class_only:
        return decisions
    shown = answers
    if kit.classes and kit.link == "logit":
        shown = links.probabilities(answers, kit.link, kit.classes)
    figures = [[f"{value:.6f}" for value in row] for row in shown.tolist()]
    if not kit.classes and kit.link == "log":
        exps = links.mean(answers, kit.link).tolist()
        figures = [[*row, *(f"{value:.6g}" for value in more)] for row, more in zip(figures, exps, strict=True)]
    return [[*row, *decision] for row, decision in zip(figures, decisions, strict=True)]
