"""`confide dealer`, `confide helper`, and `confide serve` with a federation: several organisations predict together."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli import console
from confide.cli.console import stops_cleanly
from confide.errors import PrivacyError, UsageError

if TYPE_CHECKING:
    from confide.serve.limits import Limits
    from confide.serve.parties.circle import Circle
    from confide.serve.parties.service import Conditions
    from confide.serve.parties.standing import Standing
    from confide.serve.served import Model
    from confide.store import DurableStore

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="This organisation's, which `confide federation join` made.")
]
Listen = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS:PORT", help="Where to listen; all addresses and port 8444 if left out."),
]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="wss://HOST:PORT", help="Where others dial this one; the certificate's first host if left out."
    ),
]
CoordinatorUrl = Annotated[
    str | None,
    typer.Option(metavar="wss://HOST:PORT", help="Where the server is, in place of what the folder says."),
]
StoreFile = Annotated[
    str | None,
    typer.Option(metavar="FILE|URL", help="SQLite file or postgresql://...; parties.db in the folder if left out."),
]
StatusPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port on loopback for /status.json and /metrics (Prometheus); 0: a free one."),
]
OneMachine = Annotated[
    bool,
    typer.Option(
        "--insecure-colocated-dealer",
        help="For a trial: a dealer, helper or third may share a machine with others. Every report says INSECURE.",
    ),
]
ClientStockBytes = Annotated[
    int,
    typer.Option(
        min=1, help="With mpc-*: bytes of correlations and masked weights that one client may have in the store."
    ),
]
StockBytes = Annotated[
    int,
    typer.Option(min=1, help="With mpc-*: bytes of them for all clients together; beyond it, orders are refused."),
]
CLIENT_STOCK_BYTES, STOCK_BYTES = 4 << 30, 32 << 30

_DEFAULT_LISTEN = "0.0.0.0:8444"
_LINE_SECONDS = 60.0


def dealer(
    folder: Folder = Path("identity"),
    listen: Listen = None,
    url: Url = None,
    stock: Annotated[
        int, typer.Option(min=0, max=64, help="Predictions to deal ahead for, for each client and model; 0: on demand.")
    ] = 8,
    coordinator: CoordinatorUrl = None,
    store: StoreFile = None,
    status_port: StatusPort = None,
    insecure_colocated_dealer: OneMachine = False,
) -> None:
    """Deal correlations for others' predictions: the third organisation of mpc-dealer and mpc-outsourced.

    It sees shapes and how often is asked, never a weight, an input or an output, as long as it colludes with nobody:
    run it in an organisation of its own, on a machine of its own. docs/dealer.md says who must not collude with whom.

        confide dealer identity --listen 0.0.0.0:8444
    """
    _partner(
        "dealer", ("dealer",), folder, listen, url, stock, coordinator, store, status_port, insecure_colocated_dealer,
        (CLIENT_STOCK_BYTES, STOCK_BYTES),
    )  # fmt: skip


def helper(
    folder: Folder = Path("identity"),
    listen: Listen = None,
    url: Url = None,
    coordinator: CoordinatorUrl = None,
    store: StoreFile = None,
    shares: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With mpc-outsourced: its own half of a model that was trained on shares."),
    ] = None,
    client_stock_bytes: ClientStockBytes = CLIENT_STOCK_BYTES,
    stock_bytes: StockBytes = STOCK_BYTES,
    status_port: StatusPort = None,
    insecure_colocated_dealer: OneMachine = False,
) -> None:
    """Be the second server (helper) or the third (third), as the certificate says: mpc-outsourced and mpc-3pc.

    It holds a share of model and input, which says nothing by itself: run it in an organisation of its own.

        confide helper identity --listen 0.0.0.0:8445

    With --shares nobody brings it a share of the model: it has its own, of a training on shares.

        confide helper identity --shares shares
    """
    roles = ("helper",) if shares else ("helper", "third")
    _partner(
        "helper", roles, folder, listen, url, 0, coordinator, store, status_port, insecure_colocated_dealer,
        (client_stock_bytes, stock_bytes), shares,
    )  # fmt: skip


def _partner(
    verb: str,
    roles: Sequence[str],
    folder: Path,
    listen: str | None,
    url: str | None,
    stock: int,
    coordinator: str | None,
    store: str | None,
    status_port: int | None,
    one_machine: bool,
    stock_bytes: tuple[int, int],
    shares: Path | None = None,
) -> None:
    from confide.net.membership import membership, own_certificate
    from confide.serve.parties.halves import backends_with
    from confide.serve.parties.service import hosts_of, partnering

    said = membership(folder)
    if said.role not in roles:
        raise UsageError(
            f"Expected the folder of a {' or a '.join(roles)} with confide {verb}; {said.name} is a member as a "
            f"{said.role}"
        )
    hosts = hosts_of(own_certificate(folder))
    if not hosts:
        raise UsageError(
            f"Expected a certificate with an address of {said.name}, others dial it; have it invited again with: "
            f"confide federation invite {said.name} --role {said.role} --host ITS-ADDRESS"
        )
    address, port = _place(listen or _DEFAULT_LISTEN)
    load = backends_with(shares)
    reached = url or (f"wss://{_bracketed(hosts[0])}:{port}" if port else "")
    with _durable(store or str(folder / "parties.db")) as kept:
        refused = _Refused(said.role, said.name)
        conditions = replace(_conditions(address, port, kept, one_machine, stock_bytes), say=refused.say)
        with (
            _port_explained(f"confide {verb} --listen ADDRESS:PORT takes another, as each process needs"),
            stops_cleanly(),
            partnering(folder, conditions, url=reached, stock=stock, load=load, coordinator=coordinator) as found,
        ):
            partner, taken = found
            shown = reached or f"wss://{_bracketed(hosts[0])}:{taken}"
            _serve_on(partner.circle, partner.standing, shown, status_port, refused)


def serve_jointly(
    models: Sequence[Model],
    *,
    federation: Path,
    partners: Mapping[str, str | None],
    host: str | None,
    port: int | None,
    store: str,
    limits: Limits,
    status_port: int | None,
    one_machine: bool,
    stock_bytes: tuple[int, int],
) -> None:
    """Serve models as the server of a mode, until SIGINT or SIGTERM."""
    from confide.crypto.random import SystemRandomness
    from confide.net.founding import read_settings
    from confide.serve.access import Quota
    from confide.serve.keys import Counts
    from confide.serve.parties.service import prepared, serving

    settings = read_settings(federation)
    given = {role: name for role, name in partners.items() if name is not None}
    ready = [one for model in models for one in prepared(model, limits, SystemRandomness())]
    address, dialled = _place(settings.coordinator.removeprefix("wss://"))
    with _durable(store) as kept:
        conditions = _conditions(host or address, dialled if port is None else port, kept, one_machine, stock_bytes)
        quota = None
        if limits.counts:
            quota = Quota(limits.query_quota, Counts(kept, "serve/usage/"), total_rows=limits.total_quota)
        try:
            explained = _port_explained("it is that of confide federation init --address; --port N takes another")
            serves = serving(federation, ready, given, conditions, limits=limits, quota=quota)
            with explained, stops_cleanly(), serves as found:
                server, taken = found
                server.standing.log = sys.stdout
                shown = f"wss://{_bracketed(host or address)}:{taken}"
                _serve_on(server.circle, server.standing, shown, status_port)
        finally:
            if quota is not None:
                quota.close()


# --- inside -----------------------------------------------------------------------------------------------------------


class _Refused:
    """Says what happens, and remembers that this partner and the server share a machine: trying again mends nothing.

    A client that claims to be on this machine ends nothing: only what is said of the server and this partner counts.
    """

    def __init__(self, role: str, name: str) -> None:
        me = f"the {role} {name}"
        both = (f"the server and {me}", f"{me} and the server")
        self._texts = tuple(f"Expected organisations apart: {two} " for two in both)
        self.why, self.now = "", threading.Event()

    def say(self, text: str) -> None:
        """Print a line, unless it is the refusal, which ends the process."""
        if any(one in text for one in self._texts):
            self.why = text[text.index("Expected organisations apart") :]
            self.now.set()
        elif not self.now.is_set():
            _say(text)


@contextmanager
def _port_explained(advice: str) -> Generator[None]:
    """Say of a port that somebody has where it comes from."""
    try:
        yield
    except UsageError as error:
        if not str(error).startswith("Expected to listen at"):
            raise
        raise UsageError(f"{error}: {advice}") from None


def _serve_on(
    circle: Circle, standing: Standing, url: str, status_port: int | None, refused: _Refused | None = None
) -> None:
    """Say where this process is, then how it stands whenever that has changed, until it is stopped or refused."""
    from confide.net.page import StatusPage

    def snapshot() -> bytes:
        about = {"role": standing.role, "line": standing.line(), "insecure": standing.insecure, "peers": circle.peers}
        stock = [{"model": model, "client": who, "stock": left} for (model, who), left in standing.stock().items()]
        return json.dumps(about | {"stock": stock}).encode()

    page = None if status_port is None else StatusPage(snapshot, metrics=standing.exposition, port=status_port)
    try:
        if page is not None:
            console.out.print(f"status: {page.url}status.json")
        console.out.print(f"listening on {url}")
        sys.stdout.flush()  # whoever started this process waits for the line
        told = standing.line()
        end = threading.Event() if refused is None else refused.now
        while not end.wait(_LINE_SECONDS):
            if (line := standing.line()) != told:
                told = line
                console.err.print(line)
        if refused is not None:
            raise PrivacyError(refused.why)
    finally:
        if page is not None:
            page.close()
        console.err.print(standing.line())


def _conditions(
    address: str, port: int, store: DurableStore, one_machine: bool, stock_bytes: tuple[int, int]
) -> Conditions:
    from confide.serve.parties.service import Conditions
    from confide.serve.parties.stockroom import StockLimits

    if one_machine:
        _say("INSECURE: --insecure-colocated-dealer accepts organisations that share a machine; for a trial alone")
    client_bytes, total_bytes = stock_bytes
    return Conditions(
        address=address, port=port, store=store, one_machine=one_machine, say=_say, broken=_broken,
        stock_limits=StockLimits(client_bytes=client_bytes, total_bytes=total_bytes),
    )  # fmt: skip


def _say(text: str) -> None:
    console.err.print(console.plain(text))


def _broken(error: BaseException) -> None:
    """Say where something failed that nobody expected; its text may hold an input, and is not shown."""
    from confide.serve.work import place_of

    _say(f"a session failed: {place_of(error)}")


@contextmanager
def _durable(where: str) -> Generator[DurableStore]:
    """Open a store of which this process alone has the lease."""
    from confide.store import open_store

    store = open_store(where)
    try:
        with store.exclusive("parties"):
            yield store
    finally:
        store.close()


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"Expected --listen ADDRESS:PORT, got {text[:80]}; 0.0.0.0 stands for every address")
    return host.strip("[]"), int(port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
