"""Secure aggregation within groups: the server learns one sum per group (docs/protocols/groups.md walks through it).

A single sum cannot tell a lie from a large update. Sums over groups can be compared with each other, and a robust rule
(`confide.cohort.robust`) outvotes the groups that hold a liar. The price: each client hides among its group only.

The groups come from randomness to which every client contributes after the keys are pinned: each commits to a nonce,
sees everybody's commitments, then reveals it with a signature over all commitments. No client and no server can choose
the groups alone; who is last may still refuse to reveal, which ends the set-up.

Paper: the group-wise sums of SHARE (Velicheti, Xia, Koyejo, arXiv 2110.02940); commit and reveal as in Blum 1983.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec
import numpy as np

from confide.cohort import roster
from confide.crypto.keys import KEY_BYTES, SIGNATURE_BYTES, commit, label, verify
from confide.crypto.random import Randomness, public_stream
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.secagg.masked import Masked
from confide.wire import Message, Party, Step, Store, decode, encode

#: A row is never over fewer clients, whatever the quorum says.
SMALLEST_GROUP = 3

#: Where everybody keeps the public nonces that the groups come from.
DRAW = "groups/draw"

COMMIT, COMMITS, REVEAL, REVEALS = "groups/commit", "groups/commits", "groups/reveal", "groups/reveals"


class Commitment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SHA-256 over a client's nonce, its name and the roster."""

    digest: bytes


class Commitments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everybody's commitments by name."""

    digests: dict[str, bytes]


class Nonce(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A client's nonce, and its signature over the nonce and the commitments that it was shown."""

    nonce: bytes
    signature: bytes


class Nonces(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everybody's nonces by name; public, and pinned in every store under `DRAW`."""

    nonces: dict[str, Nonce]


@dataclass(frozen=True, slots=True)
class GroupSums(Sums):
    """One row per group, what the inner aggregator said about each, and the groups that have no row.

    Args:
        inner: the inner aggregator's output for each row, in the order of the rows.
        left_out: the reason for each group without a row, by its clients.
    """

    inner: tuple[Sums, ...] = ()
    left_out: Mapping[tuple[str, ...], str] = field(default_factory=dict[tuple[str, ...], str])


def drawn(store: Store) -> bytes:
    """Return the 32 public bytes that the groups come from.

    Raises:
        UsageError: the store holds no draw.
    """
    saved = store.get(DRAW)
    if saved is None:
        raise UsageError("Expected a draw in the store; run the aggregator's setup first")
    return _outcome(roster.pinned(store).digest, decode(saved, Nonces, max_bytes=len(saved)).nonces)


def _outcome(roster_digest: bytes, nonces: Mapping[str, Nonce]) -> bytes:
    parts = [part for name, revealed in nonces.items() for part in (name, revealed.nonce)]
    return hashlib.sha256(label("confide groups draw v1", roster_digest, *parts)).digest()


def groups_of(clients: Sequence[str], seed: bytes, size: int) -> tuple[tuple[str, ...], ...]:
    """Return the groups: a uniform permutation of `clients`, cut into len(clients) // size parts of even size.

    Args:
        clients: in the roster's order.
        seed: 32 public bytes.
        size: the smallest number of clients in a group; fewer than 2 `size` clients are one group.

    Returns:
        Groups of `size` to 2 `size` - 1 clients that differ by one at most, each in the roster's order.
    """
    order = public_stream(seed.hex(), "groups").permutation(len(clients))
    parts = np.array_split(order, max(1, len(clients) // size))
    return tuple(tuple(clients[int(index)] for index in np.sort(part)) for part in parts)


class Groups(Aggregator):
    """The server learns one sum per group of clients, by an inner aggregator that pins a roster.

    Args:
        size: smallest group, >= 3; a group below its quorum is left out and named.
        inner: sums within a group; between clients and one server, "masked" if None.

    Raises:
        UsageError: a smaller size, or an inner aggregator with other roles.

    **Guarantees** What the inner aggregator guarantees, within each group: a row is over at least
    max(3, ceil(quorum * group / clients)) clients. Nobody chooses the groups alone.

    **Leaks** One sum per group, so that a client hides among its group and not among all; the groups are public.
    """

    name = "groups"

    def __init__(self, size: int = 5, inner: Aggregator | None = None) -> None:
        self._size = size
        self._inner = inner or Masked(neighbours=max(2, 2 * size))  # complete: no group has more than 2 size - 1
        if size < SMALLEST_GROUP or sorted(self._inner.roles) != ["client", "server"]:
            raise UsageError(f"Expected size={size} >= {SMALLEST_GROUP}, and an inner aggregator with one server")
        self.upload = self._inner.upload
        inside = self._inner.guarantee
        hidden = ("all clients of its group but the group's quorum - 1",)
        self.guarantee = Guarantee(
            claims=frozenset(
                Claim(claim.asset, claim.hidden_from, hidden) if claim.hidden_from == "server" else claim
                for claim in inside.claims
            ),
            adversary=Adversary.SEMI_HONEST if inside.claims else Adversary.NONE,
            trust=Trust.CRYPTOGRAPHY if inside.claims else inside.trust,
            security_bits=inside.security_bits,
            post_quantum=inside.post_quantum,
            verified_result=False,
            leaks=f"One sum per group of at least {size} clients: a client hides among those of its group in the sum, "
            f"never fewer than {SMALLEST_GROUP}, and not among all. Who is in which group; who dropped out. "
            f"Of each group: {inside.leaks}",
            primary=f"{inside.primary}, within groups",
            paper=f"{inside.paper}; SHARE, arXiv 2110.02940",
        )

    def check(self, cohort: Cohort) -> None:
        """Refuse cohorts of fewer than three."""
        if len(cohort.clients) < SMALLEST_GROUP:
            raise UsageError(f"Expected at least {SMALLEST_GROUP} clients, which is the smallest group")

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Return the party that sets up the inner aggregator and draws the groups; its output is a fingerprint."""
        self.check(cohort)
        if store.get(DRAW) is not None:  # or a server could draw until it likes the groups
            raise UsageError("Expected no draw in the store; to draw again on purpose, remove it at every party")
        if role == "server":
            return self._draw_server(cohort, store, rng)
        return self._draw_client(me, cohort, store, rng)

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        """Return the party of one sum: the server's output is `GroupSums`, a client has none.

        Raises:
            UsageError: no set-up, a cohort that is not the roster's, a vector that does not fit the session.
        """
        sessions = self._sessions(session, store)
        if role == "server":
            inner = {part.cohort.clients: self._inner.party("server", me, part, None, store, rng) for part in sessions}
            return _together(inner, session.cohort)
        own = next((part for part in sessions if me in part.cohort.clients), None)
        if own is None:
            raise UsageError(f"Expected role={role}, me={me} to be the server or a client of the cohort")
        return self._inner.party(role, me, own, vector, store, rng)

    def _sessions(self, session: Session, store: Store) -> tuple[Session, ...]:
        """Return the inner session of each group; its run names the draw, so that no two draws share keys."""
        seed, clients = drawn(store), session.cohort.clients
        if tuple(roster.pinned(store).keys()) != clients:
            raise UsageError("Expected the cohort that the groups were drawn for; run the aggregator's setup with it")
        run = f"{session.run}/groups/{self._size}/{seed.hex()}"
        return tuple(
            replace(
                session, run=run, cohort=replace(session.cohort, clients=group, quorum=self._quorum(session, group))
            )
            for group in groups_of(clients, seed, self._size)
        )

    def fewest(self, clients: int, quorum: int) -> int:
        """Return the fewest clients that a row can be over, in a cohort of `clients`."""
        smallest = clients // max(1, clients // self._size)
        return max(SMALLEST_GROUP, -(-quorum * smallest // clients))

    def _quorum(self, session: Session, group: Sequence[str]) -> int:
        cohort = session.cohort
        return max(SMALLEST_GROUP, -(-cohort.quorum * len(group) // len(cohort.clients)))

    # --- the draw -----------------------------------------------------------------------------------------------------

    def _draw_server(self, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        yield from self._inner.setup("server", cohort.server, cohort, store, rng)
        terms = _DrawTerms(cohort, roster.pinned(store))
        received = yield Step(await_tag=COMMIT, wait_for=cohort.clients)
        digests = {name: _read(name, received[name].body, Commitment).digest for name in cohort.clients}
        shown = _to_all(cohort, COMMITS, encode(Commitments(digests)))
        received = yield Step(send=shown, await_tag=REVEAL, wait_for=cohort.clients)
        nonces = {name: _read(name, received[name].body, Nonce) for name in cohort.clients}
        seed = terms.seed(digests, nonces)
        yield Step(send=_to_all(cohort, REVEALS, encode(Nonces(nonces))), save={DRAW: encode(Nonces(nonces))})
        return terms.fingerprint(seed)

    def _draw_client(self, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        yield from self._inner.setup("client", me, cohort, store, rng)
        terms, server = _DrawTerms(cohort, roster.pinned(store)), cohort.server
        nonce = rng.bytes(KEY_BYTES)
        own = Commitment(terms.commitment(me, nonce))
        received = yield Step(send=(Message(me, server, COMMIT, encode(own)),), await_tag=COMMITS, wait_for=(server,))
        digests = decode(received[server].body, Commitments, max_bytes=terms.limit_bytes).digests
        if tuple(digests) != cohort.clients or digests[me] != own.digest:
            raise ProtocolError("Expected a commitment of every client, the own one among them")
        mine = Nonce(nonce, roster.identity(store).sign(terms.signed(me, digests, nonce)))
        received = yield Step(send=(Message(me, server, REVEAL, encode(mine)),), await_tag=REVEALS, wait_for=(server,))
        nonces = decode(received[server].body, Nonces, max_bytes=terms.limit_bytes).nonces
        if nonces.get(me) != mine:
            raise ProtocolError("Expected the own nonce among those that were revealed")
        seed = terms.seed(digests, nonces)
        yield Step(save={DRAW: encode(Nonces(nonces))})
        return terms.fingerprint(seed)


class _DrawTerms:
    """The roster, and what the draw derives from it."""

    def __init__(self, cohort: Cohort, listed: roster.Roster) -> None:
        self._clients, self._identities, self._digest = cohort.clients, listed.keys(), listed.digest
        self.limit_bytes = 64 + sum(len(name.encode()) + KEY_BYTES + SIGNATURE_BYTES + 32 for name in self._clients)

    def commitment(self, name: str, nonce: bytes) -> bytes:
        """Return the commitment of `name` to `nonce`."""
        return commit(nonce, label("confide groups v1", self._digest, name))

    def signed(self, name: str, digests: Mapping[str, bytes], nonce: bytes) -> bytes:
        """Return what a reveal's signature is over: the nonce and every commitment."""
        return label("confide groups reveal v1", self._digest, name, nonce, *(digests[peer] for peer in self._clients))

    def seed(self, digests: Mapping[str, bytes], nonces: Mapping[str, Nonce]) -> bytes:
        """Return the outcome of the draw.

        Raises:
            ProtocolError: a nonce is missing, is not the one committed to, or was signed over other commitments.
        """
        if tuple(nonces) != self._clients:
            raise ProtocolError("Expected a nonce of every client")
        for name, revealed in nonces.items():
            if len(revealed.nonce) != KEY_BYTES or self.commitment(name, revealed.nonce) != digests[name]:
                raise ProtocolError(f"Expected the nonce that {name} committed to")
            try:
                verify(self._identities[name], self.signed(name, digests, revealed.nonce), revealed.signature)
            except ProtocolError:
                raise ProtocolError(f"Expected a reveal that {name} signed, over the commitments shown here") from None
        return _outcome(self._digest, nonces)

    def fingerprint(self, seed: bytes) -> str:
        """Return what people compare: roster and draw in one."""
        return hashlib.sha256(label("confide groups roster v1", self._digest, seed)).hexdigest()


_Sent = TypeVar("_Sent", Commitment, Nonce)


def _read(name: str, body: bytes, kind: type[_Sent]) -> _Sent:
    """Return what a client sent to the draw.

    Raises:
        Aborted: it is malformed; the text names the client.
    """
    try:
        return decode(body, kind, max_bytes=KEY_BYTES + SIGNATURE_BYTES + 32)
    except ProtocolError as error:
        raise Aborted(f"{error} from {name}; set that client up again") from None


def _to_all(cohort: Cohort, tag: str, body: bytes) -> tuple[Message, ...]:
    return tuple(Message(cohort.server, name, tag, body) for name in cohort.clients)


# --- several inner servers in one ---------------------------------------------------------------------------------


class _Together:
    """The inner servers of one session, in step: no group enters a stage before all have left the one before."""

    def __init__(self, inner: Mapping[tuple[str, ...], Party]) -> None:
        self.waiting: dict[tuple[str, ...], tuple[Party, Step]] = {}
        self.sums: dict[tuple[str, ...], Sums] = {}
        self.left_out: dict[tuple[str, ...], str] = {}
        self.send: tuple[Message, ...] = ()
        self.save: dict[str, bytes | None] = {}
        for group, party in inner.items():
            self._move(group, party, None)

    def _move(self, group: tuple[str, ...], party: Party, received: Mapping[str, Message] | None) -> None:
        """Resume one group's server until it waits for a client or ends."""
        self.waiting.pop(group, None)
        try:
            step = next(party) if received is None else party.send(received)
            while not step.wait_for:
                self._keep(step)
                step = party.send({})
        except StopIteration as stop:
            self.sums[group] = stop.value
        except ProtocolError as error:
            self.left_out[group] = str(error)
        else:
            self._keep(step)
            self.waiting[group] = party, step

    def _keep(self, step: Step) -> None:
        self.send += step.send
        self.save |= step.save

    def take(self, tag: str, received: Mapping[str, Message]) -> None:
        """Hand on what arrived under `tag`, or that the deadline has passed, to whom it concerns."""
        for group, (party, step) in list(self.waiting.items()):
            own = {name: message for name, message in received.items() if name in group}
            if step.await_tag == tag and (own or not received):
                self._move(group, party, own)

    def step(self, tag: str) -> Step:
        """Return the common step at `tag`, with everything that leaves."""
        sources = tuple(name for _, step in self.waiting.values() if step.await_tag == tag for name in step.wait_for)
        step = Step(send=self.send, await_tag=tag, wait_for=sources, each=True, save=self.save)
        self.send, self.save = (), {}
        return step


def _together(inner: Mapping[tuple[str, ...], Party], cohort: Cohort) -> Party:
    """Play the inner servers to their ends; the output is `GroupSums`.

    Raises:
        Aborted: the groups that are left hold fewer clients than the cohort's quorum.
    """
    together = _Together(inner)
    tag = ""
    while together.waiting:
        tags = [step.await_tag for _, step in together.waiting.values()]
        tag = tag if tag in tags else tags[0]
        received = yield together.step(tag)
        together.take(tag, received)
    if together.send or together.save:
        yield Step(send=together.send, save=together.save)
    done = [group for group in inner if group in together.sums]
    sums = tuple(together.sums[group] for group in done)
    members = tuple(found for one in sums for found in one.members)
    if sum(map(len, members)) < cohort.quorum or not done:
        reasons = "; ".join(f"{', '.join(group)}: {reason}" for group, reason in together.left_out.items())
        raise Aborted(f"Expected groups that hold quorum={cohort.quorum} clients; {reasons}")
    return GroupSums(np.concatenate([one.values for one in sums]), members, sums, together.left_out)
