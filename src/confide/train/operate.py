"""A coordinator and a node at work: folder, certificates, host or connection, store, ledger, and the loop between them.

`confide.train.coordinator` and `confide.train.node` know no files and no network; this is where they get theirs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.errors import Aborted, ConfideError, JobError, StoreError, UsageError
from confide.model.artifact import Artifact
from confide.model.artifact import decode as decode_artifact
from confide.net.asking import asking
from confide.net.batch import Member
from confide.net.contexts import client_context, server_context
from confide.net.flower import FlowerHost, FlowerJoin
from confide.net.folders import TLS, identity_seed, stamp
from confide.net.founding import refresh
from confide.net.link import Arrived, Event, Joined, Left, Link
from confide.net.membership import Membership, membership, own, renew, renewal_due, trusted
from confide.net.registrar import Registrar
from confide.net.stream import Host, Join
from confide.net.tls import Peer
from confide.train.attendance import Patience
from confide.train.board import Board
from confide.train.control import (
    MAX_CONTROL_BYTES,
    PROGRESS,
    RELEASE,
    SUBMIT,
    Reason,
    Release,
    Submission,
    control,
)
from confide.train.coordinator import Coordinator
from confide.train.desk import Desk
from confide.train.figures import Evaluation
from confide.train.ledger import Ledger
from confide.train.node import Node
from confide.train.output import labelled
from confide.train.parts import aggregator_of
from confide.train.sections import Job, nodes_of
from confide.wire import Store, decode

#: How often a coordinator looks whether somebody was revoked, and how often certificates are looked at.
_RECHECK_SECONDS, _RENEW_SECONDS = 1.0, 600.0

#: Messages that a node takes in before it commits and sends.
_AT_ONCE = 16

#: Who may call a socket: this user, or the socket's group as well.
_OWN_MODE, _GROUP_MODE = 0o600, 0o660


# --- the coordinator --------------------------------------------------------------------------------------------------


@contextmanager
def hosting(
    folder: Path, *, address: str, port: int, say: Callable[[str], None] = lambda text: None
) -> Generator[tuple[Host, Registrar]]:
    """Listen as the coordinator of a federation, until the block ends.

    Revocations take effect within a second; the coordinator's own certificate is renewed before it expires, without a
    stop.

    Args:
        folder: made by `confide federation init`.
        address, port: where to listen; port 0 takes a free one.
        say: told in one line what happens.
    """
    registrar = Registrar(folder)
    refresh(folder)
    tls = server_context(folder)

    def admit(peer: Peer) -> str | None:
        return registrar.refusal(peer.certificate)

    with Host(address, port, tls.context, admit=admit, enrol=registrar.reply) as host:
        ended = threading.Event()

        def keep_house() -> None:
            renewed = time.monotonic()
            while not ended.wait(_RECHECK_SECONDS):
                host.recheck()
                if time.monotonic() - renewed > _RENEW_SECONDS:
                    renewed = time.monotonic()
                    try:
                        if refresh(folder):
                            say("the coordinator's certificate was renewed")
                    except ConfideError as error:
                        say(f"the coordinator's certificate could not be renewed: {error}")

        keeper = threading.Thread(target=keep_house, name="confide housekeeping", daemon=True)
        keeper.start()
        try:
            yield host, registrar
        finally:
            ended.set()
            keeper.join()


@contextmanager
def hosting_over_flower(
    folder: Path, socket: Path, *, group: bool = False, say: Callable[[str], None] = lambda text: None
) -> Generator[tuple[FlowerHost, Registrar]]:
    """Be the coordinator of a federation over Flower, until the block ends: nothing listens but a Unix socket.

    Who takes part is who signs with an identity that the folder has as a member's; a revocation takes effect within a
    few seconds. The run at the SuperLink ends with the block if every node has been told the end, and else waits for
    the next coordinator.

    Args:
        folder: made by `confide federation init`.
        socket: on which the ServerApp calls.
        group: the socket's group may call too.
        say: told in one line what happens.
    """
    registrar = Registrar(folder)
    key, mode = SigningKey(identity_seed(folder)), _GROUP_MODE if group else _OWN_MODE
    host, over = FlowerHost(socket, key, _members(registrar, say), mode=mode, say=say), True
    try:
        yield host, registrar
    except BaseException as error:
        over = isinstance(error, ConfideError) and not isinstance(error, StoreError | JobError | UsageError)
        raise
    finally:
        host.close(end_run=over)


def _members(registrar: Registrar, say: Callable[[str], None]) -> Callable[[], Mapping[str, Member]]:
    """Return what returns who is let in; while the folder cannot be read it is whoever was before."""
    known: dict[str, Member] = {}
    seen: object = None
    told = ""

    def members() -> Mapping[str, Member]:
        nonlocal known, seen, told
        try:
            if (registry := registrar.registry()) is not seen:
                known = {
                    name: Member(role, identity)
                    for role in ("node", "helper")
                    for name, identity in registrar.roster((role,))
                }
                seen = registry
        except ConfideError as error:
            if told != str(error):
                told = str(error)
                say(f"the members could not be looked up: {told}")
        return known

    return members


def roster_of(registrar: Registrar, nodes: Sequence[str], helper: str | None) -> tuple[Roster, bytes]:
    """Return the roster of a job's nodes in its order, and the helper's identity, or b"" without one."""
    members = dict(registrar.roster())
    if helper is None:
        return Roster(tuple((name, members[name]) for name in nodes)), b""
    helpers = dict(registrar.roster(("helper",)))
    return Roster(tuple((name, members[name]) for name in nodes)), helpers[helper]


def _await_members(
    registrar: Registrar, wanted: Mapping[str, str], desk: Desk, say: Callable[[str], None], within_seconds: float
) -> None:
    """Wait for members of a job who were invited and have not joined yet.

    Args:
        wanted: role by name.

    Raises:
        JobError: somebody was never invited, or has not joined in time.
    """
    told, begin = list[str](), time.monotonic()
    while True:
        missing = [name for name, role in wanted.items() if name not in dict(registrar.roster((role,)))]
        if not missing:
            return
        invited = {one.name for one in registrar.invitations()}
        if strangers := [name for name in missing if name not in invited]:
            raise JobError(
                f"Expected the job's nodes to be members of the federation or invited, missing: "
                f"{', '.join(strangers)}; `confide federation invite {strangers[0]} --role {wanted[strangers[0]]}`"
            )
        if missing != told:
            say(f"waiting for {', '.join(missing)} to join with their invitations")
            told = missing
        if time.monotonic() - begin > within_seconds:
            raise JobError(f"Expected {', '.join(missing)} to join within {within_seconds / 3600:g} hours")
        desk.receive(1.0)


def run_job(
    job: Job,
    schema_text: str,
    *,
    registrar: Registrar,
    desk: Desk,
    store: Store,
    ledger: Ledger,
    patience: Patience,
    say: Callable[[str], None] = lambda text: None,
    started: Callable[[Board], None] = lambda board: None,
    keep: Callable[[bytes], None] = lambda body: None,
    progress: Callable[[str], None] = lambda text: None,
    evaluated: Callable[[Evaluation], None] = lambda found: None,
) -> tuple[Artifact, bytes]:
    """Run one job, or go on with it, and return the model and its signed file, which every node has been told.

    Args:
        job, schema_text: what to run; the tables stay with the nodes.
        registrar: knows the members and holds the coordinator's identity, which signs the model.
        desk: reaches them.
        store: the coordinator's, of which this process holds the lease.
        ledger: gets every line.
        patience: deadlines.
        say: told in one line what happens.
        started: given the board as soon as there is one.
        progress: told what whoever handed the job in should hear.
        keep: given the signed model's file before the run is over, so that no crash comes in between.
        evaluated: given the evaluation, if the job asks for one and it was made; before `keep`.

    Raises:
        JobError, UsageError: the job is none for these members.
        Aborted: it could not be done; every node has been told why.
        StoreError: the store is gone; start again when it is back.
    """
    key = SigningKey(identity_seed(registrar.folder))
    roles = aggregator_of(job).roles
    helper = job.train.helper if {"helper", "keyholder", "enclave"} & set(roles) else None
    wanted = {**dict.fromkeys(nodes_of(job), "node"), **({helper: "helper"} if helper else {})}
    _await_members(registrar, wanted, desk, say, patience.agree_seconds)
    roster, helping = roster_of(registrar, nodes_of(job), helper)
    coordinator = Coordinator(
        job,
        schema_text,
        roster=roster,
        identity=key.public,
        helper=helping,
        link=desk,
        store=store,
        ledger=ledger,
        patience=patience,
        say=say,
    )
    started(coordinator.board)
    desk.begin_run()
    progress(f"offered to {', '.join(nodes_of(job))}: it begins when all of them have agreed")
    try:
        for done in coordinator.rounds():
            progress(f"round {done.number} of {coordinator.course.rounds}: {len(done.members)} nodes")
        done = coordinator.final()
        if done is not None and job.data.evaluate == "federated":
            try:
                found = coordinator.evaluate()
                evaluated(found)
                lines = found.sentences()
            except Aborted as error:  # the model is there, and is released without figures
                lines = [str(error)]
            for line in lines:
                say(line)
                progress(line)
        if done is None:
            raise Aborted("Expected at least one round; every release of the privacy plan went to rounds that failed")
        artifact = labelled(job, coordinator.setting.after(coordinator.course), done, ledger)
        body = artifact.encode(key)
    except StoreError:
        raise
    except ConfideError as error:
        coordinator.finish(reason=str(error))
        raise
    keep(body)
    coordinator.finish(model=body)
    return decode_artifact(body, trust=key.public), body


# --- the analyst ------------------------------------------------------------------------------------------------------


def submit(
    join: Join, me: str, job_text: str, schema_text: str, *, say: Callable[[str], None] = lambda text: None
) -> Release:
    """Hand a job in, and return what it came to; after a lost connection it is asked for again.

    Args:
        join: the analyst's connection.
        me: the analyst's name.
        job_text, schema_text: the two files.
        say: told what happens.

    Raises:
        UsageError: the coordinator refuses the analyst for good.
    """
    asked = control(me, "server", SUBMIT, Submission(job_text, schema_text))
    while True:
        event = join.receive(1.0)
        _require_hope(join, event)
        match event:
            case Joined():
                join.send("server", asked)
            case Left(_, reason):
                say(f"not connected, trying again: {reason}")
            case Arrived(_, envelope) if envelope.message.tag == PROGRESS:
                say(decode(envelope.message.body, Reason, max_bytes=MAX_CONTROL_BYTES).reason)
            case Arrived(_, envelope) if envelope.message.tag == RELEASE:
                return decode(envelope.message.body, Release, max_bytes=1 << 28)
            case _:
                pass


# --- the node ---------------------------------------------------------------------------------------------------------


@contextmanager
def joining(folder: Path, *, url: str | None = None, proxy: str | None = None) -> Generator[tuple[Join, Membership]]:
    """Keep a connection to the coordinator, until the block ends.

    Args:
        folder: made by `confide federation join`.
        url: of the coordinator, in place of what the folder says.
        proxy: "http://host:port" of an HTTP proxy on the way.
    """
    said = membership(folder)
    with Join(url or said.coordinator, client_context(folder), proxy=proxy) as join:
        yield join, said


@contextmanager
def joining_over_flower(folder: Path, socket: Path, *, group: bool = False) -> Generator[tuple[FlowerJoin, Membership]]:
    """Take part over Flower, until the block ends: nothing is dialled, a SuperNode's ClientApp calls on a Unix socket.

    Args:
        folder: made by `confide federation join`.
        socket: on which it calls.
        group: the socket's group may call too.
    """
    said, me = membership(folder), own(folder)
    key, coordinator = SigningKey(identity_seed(folder)), bytes.fromhex(said.coordinator_identity)
    mode = _GROUP_MODE if group else _OWN_MODE
    join = FlowerJoin(socket, me.name, key, coordinator, role=me.role, mode=mode)
    try:
        yield join, said
    finally:
        join.close()


def take_part(
    node: Node,
    join: Join | FlowerJoin,
    folder: Path,
    *,
    url: str | None = None,
    proxy: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    ended: Callable[[], bool] = lambda: False,
    shown: Callable[[], None] = lambda: None,
    scrub: Callable[[], None] = lambda: None,
) -> None:
    """Run a node until `ended`, or until the coordinator refuses it for good.

    Args:
        node, join, folder: who, over which connection, as whom.
        url, proxy: the way that certificates are renewed on, as for `joining`.
        say: told in one line what happens.
        ended: asked after every event.
        shown: called after every event.
        scrub: called after a run's end.

    Raises:
        UsageError: refused; the text says why.
        StoreError: the node's store is gone; start again when it is back.
    """
    looked, idle, shows = time.monotonic(), time.monotonic(), stamp(folder / TLS)
    while not ended():
        if isinstance(join, Join) and time.monotonic() - looked > _RENEW_SECONDS:
            looked = time.monotonic()
            _renew(folder, url, proxy, say)
        if isinstance(join, Join) and stamp(folder / TLS) != shows:  # renewed here, or by people
            shows = stamp(folder / TLS)
            join.renewed(client_context(folder), reconnect=True)
        before = node.ended
        for event in _arriving(join):
            if stamp(folder / TLS) == shows:  # else there is hope
                _require_hope(join, event)
            node.handle(event)
            if isinstance(event, Joined):
                looked = float("-inf")  # the coordinator is there to be asked
        if time.monotonic() - idle > 1.0:  # a run of others never lets the line be quiet
            idle = time.monotonic()
            node.handle(None)
        send(node, join)
        if node.ended is not None and node.ended is not before:
            scrub()  # the run's secrets were deleted; now nothing of them is left in the file
        shown()


def _require_hope(join: Join | FlowerJoin, event: Event | None) -> None:
    """Raise UsageError once the link has given up; that may be a moment after its `Left`."""
    if isinstance(join, Join) and join.given_up and (event is None or isinstance(event, Left)):
        raise UsageError(f"The coordinator is not to be had: {join.given_up}")


def _arriving(join: Join | FlowerJoin) -> Iterator[Event | None]:
    """Yield the next event, or None after a second, and then those that came with it: one commit is for all.

    Over Flower one by one: the next `receive` is what sends the answer to this one.
    """
    event = join.receive(1.0)
    yield event
    for _ in range(_AT_ONCE if isinstance(join, Join) else 0):
        if event is None or (event := join.receive(0.0)) is None:
            return
        yield event


def send(node: Node, link: Link) -> None:
    """Send what a node has to say."""
    for envelope in node.take():
        link.send("server", envelope)


def _renew(folder: Path, url: str | None, proxy: str | None, say: Callable[[str], None]) -> None:
    """Take a new certificate when a third of the time is left."""
    if not renewal_due(folder):
        return
    said = membership(folder)
    identity = bytes.fromhex(said.coordinator_identity)
    try:
        renew(folder, asking(url or said.coordinator, trusted(folder), identity, proxy=proxy))
    except ConfideError as error:
        say(f"the certificate could not be renewed: {error}")
        return
    say("the certificate was renewed")
