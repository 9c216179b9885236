"""A member's folder: how it comes to be, what it says, how its certificate is renewed.

A request is written, with the key that it is for, before it leaves, and stays until the answer is in place: a process
that is killed anywhere asks the same again and gets the same certificate. The answer may come over a connection (`join`
and `renew` with a function that carries a body) or as a file (`begin_join` or `begin_renewal`, then `complete`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ProtocolError, UsageError
from confide.net.authority import check_authorities, issued_by
from confide.net.certificates import Member, TlsKey, from_pem, read_member, to_pem
from confide.net.enrolment import RENEWAL_KEPT, Invitation, enrolment, read_answer, renewal
from confide.net.folders import (
    AUTHORITY,
    IDENTITY,
    MEMBER,
    PENDING,
    TLS,
    identity_pem,
    identity_seed,
    new_folder,
    read,
    read_toml,
    toml,
    write_public,
    write_secret,
)
from confide.net.founding import Clock, utc_now
from confide.wire import decode, encode

#: Carries a request's body to the coordinator and returns the answer's.
Ask = Callable[[bytes], bytes]

_LARGEST_PENDING_BYTES = 1 << 18


class Membership(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a member's folder says.

    Args:
        federation: its name, for people.
        coordinator: "wss://host:port".
        name, role: the member's own.
        coordinator_identity: hex Ed25519 public key, under which ledgers are signed.
    """

    federation: str
    coordinator: str
    name: str
    role: str
    coordinator_identity: str


class _Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request that waits for its answer, with its secrets; `invitation` is the one-time public key, or empty."""

    membership: Membership
    authorities: tuple[bytes, ...]
    identity_seed: bytes
    key: bytes
    request: bytes
    invitation: bytes
    made: datetime

    def __repr__(self) -> str:
        return "_Pending(secret)"


def membership(folder: Path) -> Membership:
    """Return what a member's folder says.

    Raises:
        UsageError: it is none, or its join is not complete.
    """
    if not (folder / MEMBER).exists() and (folder / PENDING).exists():
        raise UsageError(f"Expected a complete folder of a member at {folder}; run confide federation join again")
    return read_toml(read(folder / MEMBER), Membership, str(folder / MEMBER))


def own_certificate(folder: Path) -> bytes:
    """Return the certificate of a member's or a coordinator's folder, DER.

    Raises:
        UsageError: there is none, or others may read its key.
    """
    return from_pem(read(folder / TLS, secret=True), str(folder / TLS))[0]


def own(folder: Path) -> Member:
    """Return whom the certificate of a member's or a coordinator's folder is for.

    Raises:
        UsageError: as `own_certificate`.
    """
    try:
        return read_member(own_certificate(folder))
    except ProtocolError:
        raise UsageError(f"Expected a certificate of confide in {folder / TLS}; restore it from a backup") from None


def trusted(folder: Path) -> tuple[bytes, ...]:
    """Return the authorities that a folder trusts, DER, the current one first."""
    return from_pem(read(folder / AUTHORITY), str(folder / AUTHORITY))


def renewal_due(folder: Path, *, now: Clock = utc_now) -> bool:
    """Return whether less than a third of the certificate's time is left."""
    return own(folder).renewal_due(now())


# --- asking -----------------------------------------------------------------------------------------------------------


def begin_join(folder: Path, invitation: Invitation, *, rng: Randomness | None = None, now: Clock = utc_now) -> bytes:
    """Draw identity and TLS key, write them into a new folder as pending, and return the request's body.

    With the same invitation again it returns the same request; another invitation begins afresh.

    Raises:
        UsageError: the folder is a member's already, or holds something else, or the invitation has expired.
    """
    if (folder / MEMBER).exists():
        raise UsageError(f"Expected a new folder, {folder} is that of {membership(folder).name}; name another")
    pending = _pending(folder)
    if pending is not None and pending.invitation == invitation.key.public:
        return pending.request
    if now() > invitation.expires:
        raise UsageError("Expected an open invitation, this one has expired; ask the coordinator for a new one")
    rng = rng or SystemRandomness()
    seed, key = SigningKey.draw_seed(rng), TlsKey.draw(rng)
    said = Membership(
        invitation.federation,
        invitation.coordinator,
        invitation.name,
        invitation.role,
        invitation.identity.hex(),
    )
    csr = key.request(invitation.name)
    request = enrolment(invitation.name, invitation.role, csr, SigningKey(seed), invitation.key)
    begun = _Pending(said, invitation.authorities, seed, key.pem(), request, invitation.key.public, now())
    if pending is None:
        with new_folder(folder) as building:
            write_secret(building / PENDING, encode(begun))
    else:
        write_secret(folder / PENDING, encode(begun))
    return request


def begin_renewal(folder: Path, *, rng: Randomness | None = None, now: Clock = utc_now) -> bytes:
    """Draw the next TLS key, write it as pending, and return the request's body; while it is pending, the same again.

    Raises:
        UsageError: the folder is not a member's.
    """
    said, pending = membership(folder), _pending(folder)
    certificate = bytes.fromhex(own(folder).fingerprint)
    if pending is not None and not pending.invitation and abs(now() - pending.made) < RENEWAL_KEPT / 2:
        return pending.request
    rng = rng or SystemRandomness()
    key, seed = TlsKey.draw(rng), identity_seed(folder)
    request = renewal(said.name, key.request(said.name), certificate, SigningKey(seed), made=now())
    begun = _Pending(said, trusted(folder), seed, key.pem(), request, b"", now())
    write_secret(folder / PENDING, encode(begun))
    return request


def complete(folder: Path, answer: bytes, *, now: Clock = utc_now) -> Member:
    """Check the coordinator's answer to the pending request and put it in place.

    Returns:
        Whom the new certificate is for.

    Raises:
        ProtocolError: refused, or not an answer to this request by the federation's authority; nothing was changed.
        UsageError: nothing is pending, or this machine's clock is wrong.

    **Guarantees**: what is put in place is for this folder's key, name, role and identity, and rests on an authority
    that this folder trusted before.
    """
    pending = _pending(folder)
    if pending is None:
        raise UsageError(f"Expected a pending request in {folder}; run confide federation join or renew first")
    granted, said, key = read_answer(answer), pending.membership, TlsKey.from_pem(pending.key)
    member = read_member(granted.certificate)
    identity = SigningKey(pending.identity_seed).public
    if not key.belongs_to(granted.certificate) or member.identity != identity:
        raise ProtocolError(f"Expected the certificate that answers the request in {folder}; it is for other keys")
    if (member.name, member.role) != (said.name, said.role):
        raise ProtocolError(f"Expected a certificate for {said.name} as {said.role}; ask the coordinator")
    known = trusted(folder) if (folder / MEMBER).exists() else pending.authorities
    check_authorities(known, granted.authorities, granted.endorsements)
    if not any(issued_by(granted.certificate, authority) for authority in granted.authorities):
        raise ProtocolError("Expected a certificate by the federation's authority; ask the coordinator")
    member.check_dates(now())
    if not (folder / MEMBER).exists():
        write_secret(folder / IDENTITY, identity_pem(pending.identity_seed))
    write_public(folder / AUTHORITY, to_pem(granted.authorities))
    write_secret(folder / TLS, key.pem() + to_pem((granted.certificate,)))
    if not (folder / MEMBER).exists():
        heading = f"Whose folder this is. The identity's public half:\n{identity.hex()}"
        write_public(folder / MEMBER, toml(msgspec.structs.asdict(said), heading=heading))
    (folder / PENDING).unlink()
    return member


def join(
    folder: Path, invitation: Invitation, ask: Ask, *, rng: Randomness | None = None, now: Clock = utc_now
) -> Member:
    """Become a member: `begin_join`, ask, `complete`."""
    return complete(folder, ask(begin_join(folder, invitation, rng=rng, now=now)), now=now)


def renew(folder: Path, ask: Ask, *, rng: Randomness | None = None, now: Clock = utc_now) -> Member:
    """Take the next certificate: `begin_renewal`, ask, `complete`."""
    return complete(folder, ask(begin_renewal(folder, rng=rng, now=now)), now=now)


def _pending(folder: Path) -> _Pending | None:
    if not (folder / PENDING).exists():
        return None
    try:
        return decode(read(folder / PENDING, secret=True), _Pending, max_bytes=_LARGEST_PENDING_BYTES)
    except ProtocolError:
        raise UsageError(f"Expected a request that confide wrote in {folder / PENDING}; remove that file") from None
