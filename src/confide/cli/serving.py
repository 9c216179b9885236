"""`confide serve`: a model file as a service."""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from confide.cli import console
from confide.cli.console import stops_cleanly, warnings_as_lines
from confide.cli.enclaves import AttesterName, BrokerCa, BrokerUrl, EnclaveOptions, Endorsements
from confide.cli.joint import (
    CLIENT_STOCK_BYTES,
    STOCK_BYTES,
    ClientStockBytes,
    OneMachine,
    StatusPort,
    StockBytes,
    serve_jointly,
)
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.model.graph import Graph
    from confide.serve.limits import Limits
    from confide.serve.served import Model
    from confide.serve.server import Server
    from confide.serve.source import Source


def serve(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.confide",
            help="A model file of `confide train` or `confide import`; with mpc-outsourced also a folder of shares.",
        ),
    ],
    backend: Annotated[
        list[str],
        typer.Option(
            help="plain, he, paillier or tee, may be repeated, the first is the clients' default; or mpc-dealer, "
            "mpc-outsourced or mpc-3pc."
        ),
    ] = ["he"],  # noqa: B006 (typer copies it)
    open_model: Annotated[
        bool, typer.Option("--open-model", help="With he: faster, but a client can read the weights from one reply.")
    ] = False,
    goal: Annotated[
        Literal["latency", "throughput"],
        typer.Option(help="With he: answer a network's rows one by one, or thousands in one question."),
    ] = "latency",
    engine: Annotated[
        Literal["auto", "native", "seal"],
        typer.Option(help="With he: who computes on networks and trees; auto takes the native evaluator where it is."),
    ] = "auto",
    trust: Annotated[
        str | None, typer.Option(help="Key that must have signed the model: 64 hex digits, or a PEM file.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; all but loopback need TLS. 127.0.0.1 if left out.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="8080 if left out, or the federation's; 0 takes a free one.")
    ] = None,
    attester: AttesterName = "",
    endorsements: Endorsements = "",
    broker: BrokerUrl = None,
    broker_ca: BrokerCa = None,
    federation: Annotated[
        Path | None,
        typer.Option(help="With mpc-*: the folder of `confide federation init`; its members answer together."),
    ] = None,
    dealer: Annotated[
        str | None, typer.Option(metavar="NAME", help="With mpc-dealer, mpc-outsourced: the member who deals.")
    ] = None,
    helper: Annotated[
        str | None, typer.Option(metavar="NAME", help="With mpc-outsourced, mpc-3pc: the member with the second share.")
    ] = None,
    third: Annotated[str | None, typer.Option(metavar="NAME", help="With mpc-3pc: the third server's member.")] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With mpc-*: public rows, a table or .npy, that give the ranges of values."),
    ] = None,
    client_stock_bytes: ClientStockBytes = CLIENT_STOCK_BYTES,
    stock_bytes: StockBytes = STOCK_BYTES,
    status_port: StatusPort = None,
    insecure_colocated_dealer: OneMachine = False,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate chain, PEM.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="TLS private key, PEM.")] = None,
    insecure_plain_http: Annotated[
        bool, typer.Option("--insecure-plain-http", help="Listen beyond loopback without TLS: open to the network.")
    ] = False,
    client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities that certify clients; all others are cut off.")
    ] = None,
    share_port: Annotated[
        bool, typer.Option("--share-port", help="Let other servers of this user listen at the same port.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that answer, each with the model in memory; 0: threads of this one.")
    ] = 2,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL", help="Keeps clients' public keys over restarts: an SQLite file or postgresql://..."
        ),
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help='TOML file with lines HOLDER = "hash"; `confide api-key` makes them.')
    ] = None,
    query_quota: Annotated[
        int | None, typer.Option(min=1, help="Rows per caller and model, ever: features + 1 copy a linear model.")
    ] = None,
    total_quota: Annotated[int | None, typer.Option(min=1, help="Rows per caller over all models, ever.")] = None,
    limit: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="Another bound of docs/serve.md; may be repeated.")
    ] = [],  # noqa: B006 (typer copies it)
    metrics: Annotated[bool, typer.Option("--metrics", help="Serve Prometheus figures at /metrics.")] = False,
) -> None:
    """Serve a model over HTTP: Open Inference Protocol v2, with encrypted queries.

    Prints the address once it accepts connections, then one JSON line for each request, without inputs.

        confide serve model.confide --backend he --backend plain

    With mpc-dealer, mpc-outsourced and mpc-3pc several organisations answer together, over links of their own:
    docs/mpc.md starts them.

        confide serve model.confide --backend mpc-dealer --federation federation --dealer broker
    """
    from confide.serve.listen import serve as listen

    limits = _limits(limit, workers=workers, query_quota=query_quota, total_quota=total_quota)
    enclave = EnclaveOptions(attester, endorsements, broker, broker_ca)
    enclave.check(tuple(backend))
    if "tee" in backend:
        workers = 0  # the enclave's key is in one process
    if limits.counts and store is None:
        raise UsageError("Expected --store with a quota: counts must outlive a restart; name a file or a database")
    from confide.serve import JOINT

    if set(backend) & set(JOINT) or federation is not None:
        beside = {
            "--certificate": certificate, "--private-key": private_key, "--client-ca": client_ca,
            "--api-keys": api_keys, "--share-port": share_port, "--insecure-plain-http": insecure_plain_http,
            "--metrics": metrics,
        }  # fmt: skip
        folder = _check_joint(backend, federation, [name for name, value in beside.items() if value])
        with _kept_at(store) as place:
            serve_jointly(
                [_half_of(model, backend[0], [trust, calibrate])] if model.is_dir() else _source(
                    model, backends=tuple(dict.fromkeys(backend)), open_model=open_model, goal=goal, engine=engine,
                    trust=trust, workers=workers, calibrate=calibrate,
                ).models(),
                federation=folder, partners={"dealer": dealer, "helper": helper, "third": third},
                host=host, port=port, store=place, limits=limits, status_port=status_port,
                one_machine=insecure_colocated_dealer, stock_bytes=(client_stock_bytes, stock_bytes),
            )  # fmt: skip
        return
    if calibrate or dealer or helper or third or insecure_colocated_dealer or status_port is not None:
        raise UsageError(
            "Expected --dealer, --helper, --third, --calibrate and their like with --backend mpc-... and --federation"
        )
    with _kept_at(store) as place:
        server = _server(
            model,
            backends=tuple(dict.fromkeys(backend)),
            open_model=open_model,
            goal=goal,
            engine=engine,
            trust=trust,
            workers=workers,
            enclave=enclave,
            store=place,
            limits=limits,
            api_keys=_api_keys(api_keys) if api_keys else None,
            certificates=client_ca is not None,
            metrics=metrics,
        )

        def ready(url: str) -> None:
            for line in _told(server):
                console.err.print(line)
            console.out.print(f"listening on {url}")
            sys.stdout.flush()  # whoever started this process waits for the line

        try:
            listen(
                server,
                host=host or "127.0.0.1",
                port=8080 if port is None else port,
                certificate=certificate,
                private_key=private_key,
                client_ca=client_ca,
                share_port=share_port,
                insecure_plain_http=insecure_plain_http,
                ready=ready,
            )
        finally:
            server.close()


@contextmanager
def runs_on_shares(graph: Graph) -> Generator[None]:
    """Say of a model that encryption does not take whether it runs as it is where several organisations answer."""
    from confide.errors import ModelError
    from confide.mpc.lowering import check

    try:
        yield
    except ModelError as error:
        if type(error) is not ModelError or check(graph):
            raise
        raise ModelError(f"{error}\nit runs as it is with --backend mpc-dealer, on shares: docs/mpc.md") from None


def _limits(given: Sequence[str], *, workers: int, query_quota: int | None, total_quota: int | None) -> Limits:
    from confide.serve.limits import Limits

    values: dict[str, Any] = {"query_quota": query_quota, "total_quota": total_quota, "workers": workers or 2}
    numbers = {field.name for field in fields(Limits)} - values.keys()
    for one in given:
        name, _, text = one.partition("=")
        if name not in numbers:
            raise UsageError(f"Expected --limit NAME=VALUE with a name of docs/serve.md, got {name!r}")
        try:
            values[name] = int(text) if text.isdigit() else float(text)
        except ValueError:
            raise UsageError(f"Expected --limit {name}=VALUE with a number") from None
    return Limits(**values)


@contextmanager
def _kept_at(store: str | None) -> Generator[str]:
    """Yield where keys are kept: a file that ends with this server, SIGTERM included, if no other is named."""
    if store is not None:
        with stops_cleanly():
            yield store
        return
    with stops_cleanly(), tempfile.TemporaryDirectory(prefix="confide-serve-") as folder:
        yield str(Path(folder) / "keys.db")


def _check_joint(backends: Sequence[str], federation: Path | None, beside: Sequence[str]) -> Path:
    """Return the federation's folder; refuse what does not go together where several organisations answer."""
    from confide.serve import JOINT

    if not federation:
        raise UsageError(
            f"Expected --federation FOLDER with --backend {', '.join(backends)}: it names the organisations that "
            "answer together; `confide federation init` makes it"
        )
    if beside:
        raise UsageError(
            f"Expected no {', '.join(beside)} with --federation: its certificates say who is who, and --status-port "
            "shows figures"
        )
    if others := [name for name in backends if name not in JOINT]:
        raise UsageError(
            f"Expected --backend {', '.join(JOINT)} with --federation, not {', '.join(others)}; run another confide "
            "serve for what one server answers alone"
        )
    if len(set(backends)) > 1:
        raise UsageError("Expected one --backend with --federation: each mode has organisations of its own")
    return federation


def _half_of(place: Path, backend: str, beside: Sequence[object]) -> Model:
    """Return the model of a folder of shares; refuse what goes with a model file alone."""
    from confide.serve.parties.halves import model_of_half

    if backend != "mpc-outsourced" or any(beside):
        raise UsageError(
            f"Expected --backend mpc-outsourced with {place}, a folder of shares, and neither --trust nor --calibrate; "
            "give a model file for others"
        )
    return model_of_half(_model_name(place.resolve()), place)


def _source(
    path: Path,
    *,
    backends: tuple[str, ...],
    open_model: bool,
    goal: Literal["latency", "throughput"],
    engine: Literal["auto", "native", "seal"],
    trust: str | None,
    workers: int,
    calibrate: Path | None = None,
    enclave: EnclaveOptions | None = None,
) -> Source:
    """Return the source of the model in a file, which it checks."""
    from confide.cli.calibrating import ranges_from
    from confide.model.artifact import decode, read_public_key
    from confide.serve.source import model_file

    if path.is_dir():
        raise UsageError(
            f"Expected a model file at {path}, a folder; one of shares is served with --backend mpc-outsourced and "
            "--federation: docs/training-on-shares.md"
        )
    with warnings_as_lines():
        body = (enclave or EnclaveOptions()).model_file(path)
        artifact = decode(body, trust=read_public_key(trust) if trust else None, where=str(path))
    return model_file(
        _model_name(path),
        body,
        signer=bytes.fromhex(artifact.signer),
        backends=backends,
        open_model=open_model,
        goal=goal,
        engine=engine,
        threads=min(64, max(1, (os.cpu_count() or 1) // max(1, workers))),
        ranges=ranges_from(calibrate, artifact.graph, artifact.preprocess) if calibrate else None,
        attester=enclave.attester if enclave else "",
        endorsements=enclave.given() if enclave else {},
        fetch=enclave is not None and enclave.fetch,
    )


def _server(
    path: Path,
    *,
    backends: tuple[str, ...],
    open_model: bool,
    goal: Literal["latency", "throughput"],
    engine: Literal["auto", "native", "seal"],
    trust: str | None,
    workers: int,
    enclave: EnclaveOptions,
    store: str,
    limits: Limits,
    api_keys: dict[str, str] | None,
    certificates: bool,
    metrics: bool,
) -> Server:
    """Prepare the model of a file; raises before any process is started if the file is not what it should be."""
    from confide.serve.keys import open_stores
    from confide.serve.pool import create_pooled_app
    from confide.serve.server import create_app

    source = _source(
        path, backends=backends, open_model=open_model, goal=goal, engine=engine, trust=trust, workers=workers,
        enclave=enclave,
    )  # fmt: skip
    models = source.models()  # a mistake shows here already
    shared: dict[str, Any] = {
        "limits": limits,
        "api_keys": api_keys,
        "certificates": certificates,
        "log": sys.stdout,
        "metrics": metrics,
    }
    with runs_on_shares(models[0].graph):
        if workers:
            return create_pooled_app(source, store=store, **shared)
        stores = open_stores(store, limits)
        return create_app(models, store=stores.keys, usage=stores.usage, **shared)


def _told(server: Server) -> list[str]:
    """Return what the operator should know before anybody asks."""
    from confide.tee.simulated import WARNING

    lines: list[str] = []
    for about in server.abouts:
        if about.protection == "simulated":
            lines.append(f"warning: {WARNING}")
        lines += [f"{about.backend}: {line}" for line in about.lines]
        quotas = [quota for quota in (server.limits.query_quota, server.limits.total_quota) if quota is not None]
        if not any(quota < about.determined_rows for quota in quotas):
            lines.append(
                f"warning: no quota is below {about.determined_rows} rows, so a caller may copy {about.model}; set "
                "--query-quota"
            )
    return list(dict.fromkeys(lines))


def _model_name(path: Path) -> str:
    """Return a file's name as a model name: letters, digits, '-', '_' and '.' only."""
    return "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in path.stem
    )[:64]


def _api_keys(path: Path) -> dict[str, str]:
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise UsageError(f'Expected lines HOLDER = "hash" in {path}; `confide api-key HOLDER` prints one') from None
    if not all(isinstance(value, str) for value in table.values()):
        raise UsageError(f'Expected lines HOLDER = "hash" in {path}; `confide api-key HOLDER` prints one')
    return table
