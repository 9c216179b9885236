"""Who is who among the organisations of a mode, and whether two that must not collude are one machine.

**What is checked**: the kernel that both run on, the address from which they come, and the identity of their
certificates. An organisation that lies about its machine is not found out: nothing else would keep it from colluding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from confide.errors import PrivacyError
from confide.guarantee import Guarantee, nothing_hidden
from confide.ideal import Kit
from confide.net.machine import is_this_machine

#: What the certificate of each role must say.
MEMBER_ROLES: Mapping[str, str] = {"server": "coordinator", "helper": "helper", "third": "third", "dealer": "dealer"}
#: Roles that promise by not colluding with anybody else.
APART = ("dealer", "helper", "third")
#: What stands in every report where two of them are one machine.
INSECURE = "INSECURE"


@runtime_checkable
class Proven(Protocol):
    """A kit whose holder brings its own half of a model, or, at the server, what stands for such a partner's kit.

    `proof` is what the partner shows: of which training its half is. Kits of other models have an empty one, or none.
    """

    proof: bytes


def proof_of(kit: Kit) -> bytes:
    """Return what the partner with this kit shows of its own half; b"" where it gets its part from the server."""
    return kit.proof if isinstance(kit, Proven) else b""


def is_apart(kits: Mapping[str, Kit]) -> bool:
    """Return whether a partner has its own half of the model, so that the server never had the whole."""
    return any(proof_of(kit) for role, kit in kits.items() if role != "server")


def model_id(name: str, backend: str, kits: Mapping[str, Kit], *, salt: bytes) -> bytes:
    """Return the id of a model as it was prepared: another model, or other shares of it, have another (32 bytes).

    Where halves are apart the server's is not in it: who has the other half could try guesses of the model on the hash.
    """
    parts = [name.encode(), backend.encode()]
    for role in sorted(kits.keys() - {"server"} if is_apart(kits) else kits):
        parts += [role.encode(), hashlib.sha256(kits[role].encode()).digest()]
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in (salt, *parts))
    return hashlib.sha256(b"confide prepared model v2\0" + whole).digest()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of where somebody runs.

    Args:
        role: in the federation: "coordinator" of the server, "client", "node", "dealer" ...
        name: the member's.
        machine: `machine_digest`; zeros if unknown.
        address: from which it came, or at which it was dialled; "" if unknown.
        identity: Ed25519 public key, 32 bytes.
    """

    role: str
    name: str
    machine: bytes
    address: str
    identity: bytes


def together(a: Facts, b: Facts) -> str:
    """Return what two members that must not collude have in common, in words; "" if nothing is known."""
    if a.role not in APART and b.role not in APART:
        return ""
    what = ""
    if a.identity == b.identity:
        what = "show one identity"
    elif a.machine == b.machine and any(a.machine):
        what = "run on one machine"
    elif a.address and a.address == b.address:
        what = "come from one address"
    elif "" in (a.address, b.address) and is_this_machine(a.address or b.address):
        what = "run on one machine"
    said = {"coordinator": "the server"}
    names = [said.get(one.role, f"the {one.role} {one.name}") for one in (a, b)]
    return f"{names[0]} and {names[1]} {what}" if what else ""


def voided(guarantee: Guarantee, insecure: str) -> Guarantee:
    """Return what is left of a guarantee where two organisations that must not collude are one."""
    return nothing_hidden(
        f"{INSECURE}: {insecure}, who together open everything. Apart, it would say: {guarantee.leaks}"
    )


def refusal(common: str) -> PrivacyError:
    """Return the error of a process that does not accept `together`."""
    return PrivacyError(
        f"Expected organisations apart: {common}, so one of them could open everything; run them on machines of "
        "different owners. For a trial alone: --insecure-colocated-dealer at every process (of a Python client "
        "insecure_colocated_dealer=True), and every report says "
        f"{INSECURE}"
    )
