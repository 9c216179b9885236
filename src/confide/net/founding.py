"""The making of a federation, and what keeps it alive: the coordinator's own certificate, the authority's successor.

A coordinator's folder is made whole or not at all. The one file that decides is `issuer.pem`: the trusted authorities
and the revocation list are derived from it and the registry, and written again where they differ.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import UsageError
from confide.net.authority import Authority, issued_by
from confide.net.certificates import COORDINATOR, TlsKey, fingerprint, from_pem, read_member, to_pem
from confide.net.enrolment import split_url
from confide.net.folders import (
    AUTHORITY,
    FEDERATION,
    IDENTITY,
    REVOKED,
    TLS,
    identity_pem,
    identity_seed,
    locked,
    new_folder,
    read,
    read_toml,
    stamp,
    toml,
    write_public,
    write_secret,
)
from confide.net.registry import Issuer, Registry, load_registry, save_registry

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time that this machine's clock says."""
    return datetime.now(UTC)


class Federation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A coordinator's settings.

    Args:
        name: for people.
        coordinator: "wss://host:port", where members reach it.
        hosts: DNS names and IP addresses that its certificate names.
    """

    name: str
    coordinator: str
    hosts: list[str]


def read_settings(folder: Path) -> Federation:
    """Return the settings in a coordinator's folder.

    Raises:
        UsageError: there are none.
    """
    return read_toml(read(folder / FEDERATION), Federation, str(folder / FEDERATION))


def found(
    folder: Path,
    *,
    name: str,
    address: str,
    also: Sequence[str] = (),
    rng: Randomness | None = None,
    now: Clock = utc_now,
) -> None:
    """Make a coordinator's folder: authority, identity, the coordinator's certificate, an empty registry.

    Args:
        folder: must not exist, or be empty.
        name: the federation's, for people.
        address: "host:port" where members reach the coordinator.
        also: further DNS names and IP addresses of it.

    Raises:
        UsageError: a name or address that cannot be, or the folder is there already; nothing is left behind.
    """
    rng = rng or SystemRandomness()
    url = split_url(f"wss://{address}")
    if url is None:
        raise UsageError(f"Expected an address host:port that members can reach; got {address[:80]!r}")
    hosts = list(dict.fromkeys([url[0], *also]))
    for host in hosts:
        check_host(host)
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise UsageError(f"Expected a name of 1 to 64 printable letters for the federation; got {name[:80]!r}")
    with new_folder(folder) as building:
        Issuer(Authority.create(name, rng, now=now())).save(building)
        write_secret(building / IDENTITY, identity_pem(SigningKey.draw_seed(rng)))
        settings = toml(
            {"name": name, "coordinator": f"wss://{address}", "hosts": hosts},
            heading="A federation. After changing hosts: confide federation renew FOLDER",
        )
        write_public(building / FEDERATION, settings)
        save_registry(building, Registry())
        refresh(building, force=True, rng=rng, now=now)


def check_host(host: str) -> None:
    """Refuse what is neither a DNS name nor an IP address. Raises UsageError."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
            raise UsageError(f"Expected DNS names and IP addresses; got {host[:80]!r}") from None


def refresh(folder: Path, *, force: bool = False, rng: Randomness | None = None, now: Clock = utc_now) -> bool:
    """Renew the coordinator's own certificate if a third of its time or less is left, or if `force`.

    Returns:
        Whether there is a new one; connections made from now on get it (`confide.net.contexts.ServerTls.reload`).

    Raises:
        UsageError: the folder is not whole, or the authority has expired.
    """
    with locked(folder):
        return _refresh(folder, Issuer.load(folder), force=force, rng=rng or SystemRandomness(), now=now())


def rotate(folder: Path, *, rng: Randomness | None = None, now: Clock = utc_now) -> str:
    """Replace the authority by a new one that it endorses; both are trusted until `retire`.

    Members learn of it when they renew. Returns the new fingerprint, hex.

    Raises:
        UsageError: the last replacement is not finished, or the folder is not whole.
    """
    with locked(folder):
        old = Issuer.load(folder)
        if old.predecessors:
            raise UsageError(
                "Expected that the last change of authority is over; run confide federation rotate --finish"
            )
        rng, name = rng or SystemRandomness(), read_settings(folder).name
        successor = Authority.create(name, rng, now=now())
        endorsement = old.authority.endorse(successor, rng, now=now())
        issuer = Issuer(successor, old.trusted, (endorsement,))
        issuer.save(folder)  # this is the change; what follows is derived, and done again by the next refresh
        _refresh(folder, issuer, force=True, rng=rng, now=now())
    return fingerprint(successor.certificate)


def retire(folder: Path, *, rng: Randomness | None = None, now: Clock = utc_now) -> None:
    """Trust the newest authority alone.

    Raises:
        UsageError: there is no older one, or members that are not revoked have not renewed since; it names them.
    """
    with locked(folder):
        issuer, registry = Issuer.load(folder), load_registry(folder)
        if not issuer.predecessors:
            raise UsageError("Expected an authority that is being replaced; run confide federation rotate first")
        live = [one for one in registry.members if one.revoked is None]
        late = [one.name for one in live if not issued_by(one.certificates[-1], issuer.authority.certificate)]
        if late:
            raise UsageError(
                f"Expected that every member renewed since the authority was replaced, not yet: {', '.join(late)}; "
                "wait, have them run confide federation renew, or revoke them"
            )
        issuer = Issuer(issuer.authority, endorsements=issuer.endorsements)  # for a member whose last answer was lost
        issuer.save(folder)
        _refresh(folder, issuer, force=True, rng=rng or SystemRandomness(), now=now())


def _refresh(folder: Path, issuer: Issuer, *, force: bool, rng: Randomness, now: datetime) -> bool:
    publish(folder, issuer, load_registry(folder), now=now)
    settings = read_settings(folder)
    if not force:
        own, *_ = from_pem(read(folder / TLS, secret=True), str(folder / TLS))
        if not read_member(own).renewal_due(now) and issued_by(own, issuer.authority.certificate):
            return False
    for host in settings.hosts:
        check_host(host)
    key, identity = TlsKey.draw(rng), SigningKey(identity_seed(folder)).public
    certificate = issuer.authority.issue(
        COORDINATOR,
        "coordinator",
        identity=identity,
        key=key.public,
        rng=rng,
        now=now,
        hosts=settings.hosts,
    )
    write_secret(folder / TLS, key.pem() + to_pem((certificate, *issuer.endorsements)))
    return True


def publish(folder: Path, issuer: Issuer, registry: Registry, *, now: datetime) -> None:
    """Write what follows from both where it differs: the trusted authorities, the revocation list."""
    trusted = to_pem(issuer.trusted)
    if stamp(folder / AUTHORITY) == (None,) or read(folder / AUTHORITY) != trusted:
        write_public(folder / AUTHORITY, trusted)
    revoked = [der for one in registry.members if one.revoked is not None for der in one.certificates]
    serials = [read_member(der).serial for der in revoked if issued_by(der, issuer.authority.certificate)]
    if stamp(folder / REVOKED) == (None,) or not issuer.authority.wrote_list(read(folder / REVOKED), serials):
        write_public(folder / REVOKED, issuer.authority.revocation_list(serials, now=now))
