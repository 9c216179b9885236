"""A training on shares over several machines: one process of it, from an organisation's folder to its files.

coordinator's folder    the first server: listens, leads, keeps the ledger
a helper's              the second server: listens, and dials the first
a dealer's              dials both
a node's                an owner: dials both, and has a table
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.data.schema import Schema
from confide.errors import JobError, UsageError
from confide.net.certificates import COORDINATOR, Member, fingerprint
from confide.net.contexts import client_context, server_context
from confide.net.enrolment import split_url
from confide.net.folders import identity_seed
from confide.net.founding import read_settings, refresh
from confide.net.machine import machine_digest
from confide.net.membership import membership, own, trusted
from confide.net.registrar import Registrar
from confide.net.tls import Peer
from confide.store import DurableStore, open_store
from confide.train.budget import Budget
from confide.train.job import describe
from confide.train.ledger import Ledger
from confide.train.policy import Policy
from confide.train.sections import Job
from confide.train.shares.budgets import Charges
from confide.train.shares.cast import APART, LEAD, SECOND, Cast, Patience
from confide.train.shares.course import DEALER
from confide.train.shares.letters import VERSION, Hello
from confide.train.shares.site import Site
from confide.train.shares.works import Dealing, Owning, Serving, Working, read_own

_STORE, _LEDGER, _MODEL, _BUDGET = "training.db", "ledger.jsonl", "model.confide", "node.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How one process takes part.

    Args:
        folder: its organisation's in the federation.
        table: of an owner.
        policy: of an owner, for the budget of its data.
        listen: (address, port) of a server, in place of what follows from its address; port 0 takes a free one.
        coordinator: "wss://host:port" of the first server, in place of what the folder says.
        anew: at the first server: go on from no checkpoint.
        patience: how long it waits.
        say: told in one line what happens.
        tell: told what a user asked for, a line at a time.
        show: told how many steps of how many were taken.
        listening: told where a server listens.
        broken: told of exceptions that nobody expected.
        rng: secret randomness.
    """

    folder: Path
    table: Path | None = None
    policy: Policy | None = None
    listen: tuple[str, int] | None = None
    coordinator: str | None = None
    anew: bool = False
    patience: Patience = field(default_factory=Patience)
    say: Callable[[str], None] = lambda text: None
    tell: Callable[[str], None] = lambda text: None
    show: Callable[[int, int], None] = lambda taken, steps: None
    listening: Callable[[str], None] = lambda text: None
    broken: Callable[[BaseException], None] = lambda error: None
    rng: Randomness | None = None


def take_part(job: Job, given: Conditions) -> Working:
    """Take part in a training on shares until it has ended, and return what this process was left with.

    Raises:
        ConfideError: it did not end well; nothing of it was written, but for checkpoints.
        UsageError: folder, job and options do not fit together.
    """
    if job.shares is None or not job.data.nodes:
        raise JobError("Expected data.nodes in a job for several machines: the owners, as the federation calls them")
    member, cast = own(given.folder), _cast(job, given.folder)
    me = cast.party(member.name)
    if me is None or cast.role(me) != member.role:
        raise UsageError(
            f"Expected a job with a part for {member.name}, whose certificate says {member.role}; this one has "
            + ", ".join(f"{name} ({cast.role(party)})" for party, name in cast.members.items())
        )
    if (me not in APART) != (given.table is not None):
        raise UsageError("Expected --data, the own table, at owners of rows alone")
    schema = Schema.load(job.path(str(job.data.schema)))
    with ExitStack() as stack:
        work = _work(me, member, job, schema, given, stack)
        rows = 0 if work.own is None else len(work.own.y)
        site = Site(
            me,
            cast,
            Hello(VERSION, _digest(job), machine_digest(fingerprint(trusted(given.folder)[-1]).encode()), rows),
            SigningKey(identity_seed(given.folder)).public,
            work,
            patience=given.patience,
            run_id=work.rng.bytes(16).hex() if me == LEAD else "",
            say=given.say,
            broken=given.broken,
        )
        with _closed(site, member.name):
            _connect(site, me, job, given)
            site.wait()
    return work


@contextmanager
def _closed(site: Site, name: str) -> Generator[None]:
    try:
        yield
    finally:
        site.close(f"{name} was stopped")


def _cast(job: Job, folder: Path) -> Cast:
    assert job.shares is not None
    first, second = job.shares.servers
    members = {LEAD: COORDINATOR, SECOND: second, DEALER: job.shares.dealer} | {name: name for name in job.data.nodes}
    named: Mapping[str, str] = {first: LEAD} | {name: party for party, name in members.items()}
    pinned = {named[name]: bytes.fromhex(shown) for name, shown in job.shares.identities.items()}
    if own(folder).role != "coordinator":
        pinned[LEAD] = bytes.fromhex(membership(folder).coordinator_identity)
    return Cast(members=members, identities=pinned, one_machine=job.shares.insecure_colocated_dealer)


def _work(me: str, member: Member, job: Job, schema: Schema, given: Conditions, stack: ExitStack) -> Any:
    common: dict[str, Any] = {
        "job": job,
        "schema": schema,
        "rng": given.rng or SystemRandomness(),
        "tell": given.tell,
        "show": given.show,
    }
    folder = given.folder
    if me == DEALER:
        return Dealing(**common)
    key = SigningKey(identity_seed(folder))
    if me not in APART:
        assert given.table is not None
        place = job.path(job.output.model) if job.output.model else folder / _MODEL
        charges = None if job.privacy is None else _charges(job, given, stack)
        return Owning(
            **common, own=read_own(job, schema, member.name, given.table), place=place, key=key, charges=charges
        )
    store = _store(folder / _STORE, "training", stack)
    if me == SECOND:
        return Serving(**common, number=1, store=store)
    ledger = Ledger(job.path(job.output.ledger) if job.output.ledger else folder / _LEDGER, signer=key)
    if ledger.spent is not None:
        given.say(
            f"warning: earlier runs in this ledger spent epsilon={ledger.spent:.3g} together; this run adds to it"
        )
    return Serving(**common, number=0, store=store, ledger=ledger, anew=given.anew)


def _charges(job: Job, given: Conditions, stack: ExitStack) -> Charges:
    policy, store = given.policy or Policy(), _store(given.folder / _BUDGET, "node", stack)
    limits = policy.limits
    assert job.privacy is not None
    if job.privacy.epsilon > limits.most_epsilon_per_job:
        raise UsageError(
            f"Expected privacy.epsilon={job.privacy.epsilon} of at most limits.most_epsilon_per_job="
            f"{limits.most_epsilon_per_job} of the policy"
        )
    budget = Budget(
        store,
        policy.data.data_set,
        greatest_epsilon=limits.greatest_epsilon,
        greatest_delta=limits.greatest_delta,
    )
    return Charges(store, budget, hashlib.sha256(describe(job, output=False).encode()).hexdigest())


def _store(place: Path, lease: str, stack: ExitStack) -> DurableStore:
    store = open_store(place)
    stack.callback(store.close)
    stack.enter_context(store.exclusive(lease))
    return store


def _digest(job: Job) -> bytes:
    """Return what all must agree on: the job but for its output, and the schema's text."""
    try:
        schema = job.path(str(job.data.schema)).read_bytes()
    except OSError:
        raise JobError(f"Expected a readable schema at {job.path(str(job.data.schema))}") from None
    parts = describe(job, output=False).encode(), schema
    digest = hashlib.sha256(b"confide training on shares job v1\0")
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


# --- links ------------------------------------------------------------------------------------------------------------


def _connect(site: Site, me: str, job: Job, given: Conditions) -> None:
    folder = given.folder
    assert job.shares is not None
    second = str(job.shares.address)
    if me == LEAD:
        registrar = Registrar(folder)
        refresh(folder)
        _listen(
            site,
            given,
            read_settings(folder).coordinator,
            lambda peer: registrar.refusal(peer.certificate),
            enrol=registrar.reply,
        )
        return
    if me == SECOND:
        known = set(site.cast.members.values())

        def admit(peer: Peer) -> str | None:
            return None if peer.name in known else f"Expected a member with a part in the job, {peer.name} has none"

        _listen(site, given, second, admit)
    context = client_context(folder)
    first = given.coordinator or membership(folder).coordinator

    def dial() -> None:
        site.mesh.dial(COORDINATOR, first, context)
        if me != SECOND:
            site.mesh.dial(site.cast.members[SECOND], second, context, role=site.cast.role(SECOND))

    site.mesh.call(dial)


def _listen(site: Site, given: Conditions, url: str, admit: Callable[[Peer], str | None], enrol: Any = None) -> None:
    found = split_url(url)
    if found is None:
        raise UsageError(f"Expected an address wss://HOST:PORT, got {url}")
    host, port = found
    place = given.listen or (host if host in ("127.0.0.1", "::1") else "0.0.0.0", port)  # noqa: S104
    taken = site.mesh.listen(*place, server_context(given.folder).context, admit=admit, enrol=enrol)
    given.listening(f"{place[0]}:{taken}")
