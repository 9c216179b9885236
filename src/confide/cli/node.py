"""`confide node`: an organisation's side of a federation."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli import console
from confide.cli.node_approvals import Identity, approve, pending, refuse, show
from confide.cli.node_check import check
from confide.cli.proxies import Surroundings, proxy_for, surroundings
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.cli.progress import NodeView
    from confide.net.flower import FlowerJoin
    from confide.net.membership import Membership
    from confide.net.stream import Join
    from confide.tee.aggregate import Enclaves
    from confide.train.budget import Budget
    from confide.train.node import Node
    from confide.train.offer import Offer
    from confide.train.policy import Policy

node_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="An organisation's side of a federation; without a command, run it.",
)
for verb in (pending, show, approve, refuse, check):
    node_app.command()(verb)


@dataclass(frozen=True, slots=True)
class _Way:
    """How the coordinator is met: at a URL, through a proxy or not; or on a socket, over Flower."""

    url: str
    proxy: str | None
    flower: Path | None
    group: bool

    def meeting(self, folder: Path) -> AbstractContextManager[tuple[Join | FlowerJoin, Membership]]:
        from confide.train.operate import joining, joining_over_flower

        if self.flower is None:
            return joining(folder, url=self.url, proxy=self.proxy)
        return joining_over_flower(folder, self.flower, group=self.group)


@node_app.callback()
def run(
    context: typer.Context,
    coordinator: Annotated[
        str | None, typer.Option(help="wss://HOST:PORT of the coordinator; the member's own if left out.")
    ] = None,
    identity: Identity = None,
    data: Annotated[
        Path | None, typer.Option(help="This organisation's table, or a source file; docs/data.md.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="What this organisation allows; docs/policy.md.")] = None,
    proxy: Annotated[
        str | None,
        typer.Option(help="http://HOST:PORT of a proxy, or direct; HTTPS_PROXY if left out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the released model; in the folder if left out.")] = None,
    once: Annotated[bool, typer.Option("--once", help="End after one job.")] = False,
    attester: Annotated[
        str | None,
        typer.Option(help="At an enclave: what signs its evidence; simulated is a trial that protects nothing."),
    ] = None,
    flower: Annotated[
        Path | None,
        typer.Option(
            metavar="SOCKET", help="Over Flower: the socket on which its ClientApps call; nothing is dialled."
        ),
    ] = None,
    flower_group: Annotated[
        bool, typer.Option("--flower-group", help="The group of the socket may call too, for a SuperNode's own user.")
    ] = False,
) -> None:
    """Run a node: one outbound connection, this organisation's table, its policy.

    confide node --identity member --data table.csv --policy policy.toml
    """
    context.obj = identity
    if context.invoked_subcommand is not None:
        if any((coordinator, data, policy, proxy, out, once, attester, flower, flower_group)):
            raise UsageError(
                f"Expected only --identity before {context.invoked_subcommand}, which runs no node; put its options "
                "behind it"
            )
        return
    if policy is None:
        raise UsageError("Expected --policy, what this organisation allows; docs/policy.md has one to start from")
    if flower is not None and (coordinator is not None or proxy is not None):
        raise UsageError("Expected --flower without --coordinator and --proxy: nothing is dialled; leave them out")
    folder = identity or Path()
    way = _way(folder, coordinator, proxy, flower, group=flower_group, said=surroundings(context))
    _run(folder, data, policy, way, out, once=once, attester=attester)


def _way(
    folder: Path, url: str | None, proxy: str | None, flower: Path | None, *, group: bool, said: Surroundings
) -> _Way:
    from confide.net.membership import membership

    # looked up before anything is written, so that a coordinator's folder is named as such and stays as it is
    own_coordinator = membership(folder).coordinator
    address = url or own_coordinator
    return _Way(address, None if flower else proxy_for(address, proxy, said), flower, group)


def _run(
    identity: Path, data: Path | None, policy: Path, way: _Way, out: Path | None, *, once: bool, attester: str | None
) -> None:
    from confide.cli.progress import node_display
    from confide.crypto.keys import SigningKey
    from confide.crypto.random import SystemRandomness
    from confide.model.artifact import write_whole
    from confide.net.folders import identity_seed
    from confide.net.membership import own
    from confide.store import Patient, open_store
    from confide.train.approval import Approvals
    from confide.train.gate import PolicyGate
    from confide.train.node import Member, Node
    from confide.train.operate import take_part
    from confide.train.policy import load_policy

    rules, me = load_policy(policy), own(identity)
    enclaves = _enclaves(rules, policy, me.role, attester)
    if me.role == "node" and data is None:
        raise UsageError("Expected --data, this organisation's table; `confide node check` looks at it first")
    place, own_place = out or identity / "model.confide", identity / "own.confide"
    with ExitStack() as stack:
        stack.enter_context(console.stops_cleanly())
        store = open_store(identity / "node.db")
        stack.callback(store.close)
        stack.enter_context(store.exclusive("node"))
        kept = Patient(store, say=console.err.print)
        join, said = stack.enter_context(way.meeting(identity))
        display = stack.enter_context(node_display())
        approvals = Approvals(identity)
        gate = PolicyGate(rules, kept, approvals, data, coordinator=said.coordinator_identity, enclaves=enclaves)

        def release(offer: Offer, model: bytes) -> None:
            write_whole(place, model)
            lines = [f"job {_name_of(offer)}: wrote {place}"]
            if (found := node.joining()) is not None:
                joining, alone = found
                alone.save(own_place, SigningKey(identity_seed(identity)))
                use = "use your own" if joining.fall_back else "your own, if you need to fall back"
                lines += [*joining.sentences(), f"{use}: {own_place}, from your records alone and not to be passed on"]
            for line in lines:
                display.tell(console.plain(line))

        node = Node(
            Member(me.name, me.role, identity_seed(identity)),
            data if me.role == "node" else None,
            gate,
            kept,
            rng=SystemRandomness(),
            say=lambda text: console.err.print(console.plain(text)),
            release=release,
            enclaves=enclaves,
        )

        def show() -> None:
            display.show(_view(node, gate.budget, me.name, said.coordinator, waits=f"--identity {identity}"))

        show()
        take_part(
            node,
            join,
            identity,
            url=way.url,
            proxy=way.proxy,
            say=console.err.print,
            ended=lambda: once and node.ended is not None,
            shown=show,
            scrub=store.scrub,
        )


def _enclaves(rules: Policy, place: Path, role: str, attester: str | None) -> Enclaves:
    """Return which enclaves a node accepts by its policy, and what signs the evidence of one that is an enclave."""
    from confide.tee.attest import load_attester
    from confide.tee.simulated import WARNING
    from confide.train.policy import enclaves_of

    if attester is None:
        return enclaves_of(rules, place)
    if role != "helper":
        raise UsageError(f"Expected --attester at a helper alone, this member is a {role}; leave it out")
    made = load_attester(attester)
    if attester == "simulated":
        console.err.print(console.plain(WARNING))
    return replace(enclaves_of(rules, place), attester=made)


def _view(node: Node, budget: Budget, name: str, coordinator: str, *, waits: str) -> NodeView:
    """Return what a terminal shows of a node; `waits` ends the command that a person is to run."""
    from confide.cli.progress import NodeView

    now = node.standing
    phase = {
        "": "waiting for the coordinator and its job",
        "pending": f"{now.reason} {waits}",
        "refused": f"refused: {now.reason}",
        "accepted": "done" if node.ended else "in the run",
    }[now.state]
    return NodeView(
        name=name,
        coordinator=coordinator,
        job=now.job,
        phase=console.plain(phase),
        round=now.round,
        rounds=now.rounds,
        taken=now.taken,
        epsilon=budget.spent().epsilon,
        epsilon_budget=budget.greatest_epsilon,
    )


def _name_of(offer: Offer) -> str:
    from confide.train.offer import read

    return read(offer)[0].job.name
