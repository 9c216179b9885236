"""A server or a partner at work: folder, certificates, store, links, until the block ends.

`server` and `partner` know no files; this is where they get theirs. Certificates are renewed before they expire,
without a stop; a revocation takes effect within a second at the server, and at its partners, whom the server tells.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from cryptography import x509

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ConfideError, UsageError
from confide.ideal import Backend, Kit
from confide.model.links import link_of
from confide.net.asking import asking
from confide.net.certificates import COORDINATOR, LISTENING_ROLES, fingerprint, read_member
from confide.net.contexts import client_context, server_context
from confide.net.folders import identity_seed
from confide.net.founding import read_settings, refresh
from confide.net.machine import machine_digest
from confide.net.membership import membership, own_certificate, renew, renewal_due, trusted
from confide.net.registrar import Registrar
from confide.net.tls import Peer
from confide.serve import load_backend
from confide.serve.access import Quota
from confide.serve.limits import Limits
from confide.serve.parties.circle import Circle, Me
from confide.serve.parties.partner import Partner
from confide.serve.parties.promises import as_served
from confide.serve.parties.seats import is_apart
from confide.serve.parties.server import ASKING_ROLES, Prepared, Server
from confide.serve.parties.sessions import Bounds
from confide.serve.parties.standing import Standing
from confide.serve.parties.stockroom import StockLimits
from confide.serve.protocol import ClientKit
from confide.serve.served import Model
from confide.wire import Message, Store

_RECHECK_SECONDS, _RENEW_SECONDS = 1.0, 600.0

Say = Callable[[str], None]
Seen = Callable[[str, Message], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a server and a partner have in common.

    Args:
        address, port: where to listen; port 0 takes a free one.
        store: its own, of which this process holds the lease.
        one_machine: accept that roles which must not collude share a machine; everything then says INSECURE.
        bounds: of sessions.
        say: told in one line what happens.
        broken: told of exceptions that nobody expected.
        seen: told of every message of a party, by session.
        rng: of the parties.
        stock_limits: of what lies in the store for clients.
    """

    address: str
    port: int
    store: Store
    one_machine: bool = False
    bounds: Bounds | None = None
    say: Say = lambda text: None
    broken: Callable[[BaseException], None] = lambda error: None
    seen: Seen | None = None
    rng: Randomness | None = None
    stock_limits: StockLimits | None = None


@runtime_checkable
class BoundsRows(Protocol):
    """A backend that knows how many rows fit into one prediction."""

    def most_rows(self, kit: Kit, *, session_bytes: int) -> int:
        """Return how many, from a client's kit, where one may send another so many bytes in a session."""
        ...


def prepared(
    model: Model, limits: Limits, rng: Randomness, *, session_bytes: int = Bounds().session_bytes
) -> list[Prepared]:
    """Return a model prepared under each of its backends.

    Args:
        model: what is served.
        limits: `batch_rows`, of which clients are told less where one prediction holds fewer.
        rng: for the backends.
        session_bytes: what one may send another in one session.

    Raises:
        ModelError: with every problem of `Backend.check`.
    """
    found: list[Prepared] = []
    for backend in model.backends:
        kits = backend.prepare(model.graph, rng)
        max_rows = limits.batch_rows
        if isinstance(backend, BoundsRows):
            max_rows = min(max_rows, backend.most_rows(kits["client"], session_bytes=session_bytes))
        guarantee = backend.guarantee_for(model.graph)
        if not is_apart(kits):
            guarantee = as_served(guarantee)
        kit = ClientKit(
            model=model.name,
            backend=backend.name,
            kit=kits["client"].encode(),
            preprocess=model.preprocess,
            label=model.label,
            guarantee=guarantee,
            features=model.graph.features,
            outputs=model.graph.outputs,
            classes=model.graph.classes,
            needs_keys=True,
            max_rows=max_rows,
            max_query_bytes=limits.query_bytes,
            max_keys_bytes=limits.keys_bytes,
            link=link_of(model.graph, model.link),
            statement=model.statement,
        )
        found.append(
            Prepared(
                name=model.name,
                backend=backend,
                kits=kits,
                client_kit=kit.encode(),
                max_rows=max_rows,
                guarantee=guarantee,
            )
        )
    return found


@contextmanager
def serving(
    folder: Path,
    models: Sequence[Prepared],
    partners: Mapping[str, str],
    conditions: Conditions,
    *,
    limits: Limits,
    quota: Quota | None = None,
) -> Generator[tuple[Server, int]]:
    """Serve models as the founder of a federation; yields the server and its port.

    Args:
        folder: made by `confide federation init`.
        models: prepared.
        partners: the member of each role besides client and server.
        conditions: the rest.
        limits, quota: of clients.

    Raises:
        UsageError: the folder is none, a partner is no member, or nothing can listen there.
    """
    registrar = Registrar(folder)
    _check_members(registrar, partners)
    refresh(folder)
    tls = server_context(folder)
    url = read_settings(folder).coordinator
    me = _me(folder, COORDINATOR, "coordinator", url, conditions)
    server = Server(
        models,
        partners,
        store=conditions.store,
        limits=limits,
        quota=quota,
        rng=conditions.rng or SystemRandomness(),
        standing=Standing("server"),
        stock_limits=conditions.stock_limits,
    )
    circle = _circle(me, server, conditions)

    def admit(peer: Peer) -> str | None:
        return registrar.refusal(peer.certificate)

    def keep_house(due: bool) -> None:
        circle.mesh.post(circle.mesh.recheck)
        circle.mesh.post(lambda: server.revoke(registrar.revoked()))
        if due and refresh(folder):
            conditions.say("the server's certificate was renewed")

    try:
        port = circle.mesh.listen(conditions.address, conditions.port, tls.context, admit=admit, enrol=registrar.reply)
        with _housekeeping(keep_house, conditions.say):
            yield server, port
    finally:
        circle.close()


@contextmanager
def partnering(
    folder: Path,
    conditions: Conditions,
    *,
    url: str = "",
    stock: int = 0,
    load: Callable[[str], Backend] = load_backend,
    coordinator: str | None = None,
) -> Generator[tuple[Partner, int]]:
    """Take part in a federation's predictions as a dealer, a helper or a third; yields the partner and its port.

    Args:
        folder: made by `confide federation join`.
        conditions: the rest.
        url: "wss://host:port" at which others dial this one; "" takes the first host of the certificate.
        stock: predictions that a dealer deals ahead for, for one client and model.
        load: returns a backend by name.
        coordinator: the server's address, in place of what the folder says.

    Raises:
        UsageError: the folder is of another role, or nothing can listen there.
    """
    said = membership(folder)
    if said.role not in LISTENING_ROLES:
        raise UsageError(
            f"Expected the folder of a {', a '.join(LISTENING_ROLES)}; {said.name} was invited as a {said.role}"
        )
    tls = server_context(folder)
    partner = Partner(
        store=conditions.store,
        rng=conditions.rng or SystemRandomness(),
        context=lambda: client_context(folder),
        load=load,
        stock=stock,
        standing=Standing(said.role),
        stock_limits=conditions.stock_limits,
    )
    circle = _circle(_me(folder, said.name, said.role, url, conditions, stock=stock), partner, conditions)

    def admit(peer: Peer) -> str | None:
        known = peer.role in (*ASKING_ROLES, *LISTENING_ROLES)
        if not known:
            return f"Expected a client or a partner, {peer.name} is a {peer.role}"
        return partner.refusal(peer.name, read_member(peer.certificate).identity)

    def keep_house(due: bool) -> None:
        if due and renewal_due(folder):
            identity = bytes.fromhex(said.coordinator_identity)
            renew(folder, asking(coordinator or said.coordinator, trusted(folder), identity))
            circle.mesh.post(circle.mesh.renewed, client_context(folder))
            conditions.say("this member's certificate was renewed")

    try:
        port = circle.mesh.listen(conditions.address, conditions.port, tls.context, admit=admit)
        circle.located(url or f"wss://{hosts_of(own_certificate(folder))[0]}:{port}")
        to = coordinator or said.coordinator
        circle.mesh.call(lambda: circle.dial(COORDINATOR, "coordinator", to, client_context(folder)))
        with _housekeeping(keep_house, conditions.say):
            yield partner, port
    finally:
        circle.close()


def hosts_of(certificate: bytes) -> list[str]:
    """Return the DNS names and IP addresses that a certificate (DER) names, in its order."""
    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names.value if isinstance(name, x509.DNSName | x509.IPAddress)]


# --- inside -----------------------------------------------------------------------------------------------------------


def _me(folder: Path, name: str, role: str, url: str, conditions: Conditions, *, stock: int = 0) -> Me:
    return Me(
        name=name,
        role=role,
        url=url,
        machine=machine_digest(fingerprint(trusted(folder)[-1]).encode()),
        identity=SigningKey(identity_seed(folder)).public,
        one_machine=conditions.one_machine,
        stock=stock,
    )


def _circle(me: Me, hears: Server | Partner, conditions: Conditions) -> Circle:
    hears.circle = Circle(
        me,
        conditions.store,
        hears,
        bounds=conditions.bounds,
        say=conditions.say,
        broken=conditions.broken,
        seen=conditions.seen,
    )
    return hears.circle


def _check_members(registrar: Registrar, partners: Mapping[str, str]) -> None:
    """Refuse partners who are neither members nor invited, before anything listens."""
    known = {one.name: one.role for one in registrar.invitations()}
    known |= {one.name: one.role for one in registrar.members() if one.revoked is None}
    for role, name in partners.items():
        if name not in known:
            raise UsageError(
                f"Expected {name!r} to be a member of the federation or invited; run: confide federation invite {name} "
                f"--role {role} --host ITS-ADDRESS --federation {registrar.folder}"
            )
        if known[name] != role:
            raise UsageError(
                f"Expected {name!r} to be invited as a {role}, it is a {known[name]}; name another member with --{role}"
            )
    if len(set(partners.values())) != len(partners):
        raise UsageError("Expected a member of its own for each role; one organisation in two roles opens everything")


@contextmanager
def _housekeeping(work: Callable[[bool], None], say: Say) -> Generator[None]:
    """Call `work` every second in a thread of its own, with True when certificates are to be looked at."""
    ended = threading.Event()

    def run() -> None:
        told, seconds = "", _RENEW_SECONDS
        while True:
            due = seconds >= _RENEW_SECONDS
            seconds = 0.0 if due else seconds + _RECHECK_SECONDS
            try:
                work(due)
            except (ConfideError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    say(f"housekeeping failed, and is tried again: {told}")
            if ended.wait(_RECHECK_SECONDS):
                return

    keeper = threading.Thread(target=run, name="confide housekeeping", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
