"""What a coordinator knows about its members, as one file: entries, their certificates, open and used invitations.

Only what stands here is let in: a certificate that the authority's key made elsewhere is not. The file is replaced
whole; processes that change it take turns (`confide.net.folders.locked`), those that read it see that it was replaced.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from confide.errors import ProtocolError, UsageError
from confide.net.authority import Authority, self_signed
from confide.net.certificates import TlsKey, fingerprint, from_pem, read_member, to_pem
from confide.net.folders import ISSUER, REGISTRY, read, write_secret
from confide.structs import known

_FORMAT = 1
#: A member's certificates that are let in at the same time: the ones it renewed and may still hold, and the newest.
_CERTIFICATES = 4
#: Invitations are kept this long after they expire, so that a lost answer can be given again.
_REMEMBERED = timedelta(days=30)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member, or a former one.

    Args:
        identity: Ed25519 public key, hex.
        certificates: DER, oldest first.
        revoked: since when nothing of it is let in; None if it is.
        hosts: under which other members dial it; () for one that only dials.
    """

    name: str
    role: str
    identity: str
    certificates: tuple[bytes, ...]
    revoked: datetime | None = None
    hosts: tuple[str, ...] = ()

    def holds(self, certificate: str) -> bool:
        """Return whether the fingerprint `certificate` is that of one of these certificates."""
        return any(fingerprint(der) == certificate for der in self.certificates)

    def renewed(self, der: bytes, replaces: str) -> Entry:
        """Return the entry with one more certificate; it forgets old ones, but not the one that `replaces` names."""
        kept = [one for one in self.certificates if fingerprint(one) == replaces]
        others = [one for one in self.certificates if one not in kept]
        return msgspec.structs.replace(self, certificates=(*kept, *others[-(_CERTIFICATES - 2) :], der))


class Open(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An invitation, open or used.

    Args:
        key: public half of its one-time key, hex; the secret half is not kept.
        request, certificate: hex SHA-256 of the request that used it and of what it got; empty while it is open.
        hosts: what the certificate will name.
    """

    key: str
    name: str
    role: str
    expires: datetime
    request: str = ""
    certificate: str = ""
    hosts: tuple[str, ...] = ()


class Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything; `replace` gives the next state."""

    members: tuple[Entry, ...] = ()
    invitations: tuple[Open, ...] = ()
    format: int = _FORMAT

    def live(self, name: str) -> Entry | None:
        """Return the member of that name that is not revoked."""
        return next((one for one in self.members if one.name == name and one.revoked is None), None)

    def with_member(self, entry: Entry) -> Registry:
        """Return the registry with `entry` in the place of the one with its identity, or at the end."""
        others = [entry if one.identity == entry.identity else one for one in self.members]
        return self._with(members=others if entry in others else [*others, entry])

    def with_invitation(self, invitation: Open, *, now: datetime) -> Registry:
        """Return the registry with `invitation` in the place of the one with its key, and without forgotten ones."""
        others = [one for one in self.invitations if one.key != invitation.key and one.expires + _REMEMBERED > now]
        return self._with(invitations=[*others, invitation])

    def without_open_invitations(self, name: str) -> Registry:
        """Return the registry without the unused invitations for `name`."""
        return self._with(invitations=[one for one in self.invitations if one.name != name or one.request])

    def _with(self, *, members: Iterable[Entry] | None = None, invitations: Iterable[Open] | None = None) -> Registry:
        return Registry(
            self.members if members is None else tuple(members),
            self.invitations if invitations is None else tuple(invitations),
        )


def load_registry(folder: Path) -> Registry:
    """Return the registry of a coordinator's folder.

    Raises:
        UsageError: it is absent, others may read it, or it is of another format.
    """
    body = read(folder / REGISTRY, secret=True)
    try:
        found = msgspec.json.decode(body, type=known(Registry))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = Registry(format=0)
    if found.format != _FORMAT:
        raise UsageError(f"Expected a registry of format {_FORMAT} in {folder}; restore {REGISTRY} or update confide")
    return found


def save_registry(folder: Path, registry: Registry) -> None:
    """Replace the registry of a folder that is locked."""
    write_secret(folder / REGISTRY, msgspec.json.format(msgspec.json.encode(registry), indent=1))


@dataclass(frozen=True, slots=True, repr=False)
class Issuer:
    """What issues: the authority, the ones before it that are still trusted, and their endorsements of it; DER."""

    authority: Authority
    predecessors: tuple[bytes, ...] = ()
    endorsements: tuple[bytes, ...] = ()

    @property
    def trusted(self) -> tuple[bytes, ...]:
        """Return the authorities whose certificates are let in, the current one first."""
        return (self.authority.certificate, *self.predecessors)

    def save(self, folder: Path) -> None:
        """Write everything as one file, so that a change of authority is one rename."""
        certificates = (*self.trusted, *self.endorsements)
        write_secret(folder / ISSUER, self.authority.key.pem() + to_pem(certificates))

    @staticmethod
    def load(folder: Path) -> Issuer:
        """Return the issuer of a coordinator's folder.

        Raises:
            UsageError: it is absent, others may read it, or it is malformed.
        """
        body = read(folder / ISSUER, secret=True)
        first, *others = from_pem(body, str(folder / ISSUER))
        key = TlsKey.from_pem(body)
        if not key.belongs_to(first):
            raise UsageError(f"Expected key and certificate of one authority in {folder / ISSUER}; restore it")
        predecessors = tuple(der for der in others if self_signed(der))
        return Issuer(Authority(key, first), predecessors, tuple(der for der in others if der not in predecessors))


@dataclass(frozen=True, slots=True)
class Standing:
    """A member as people see it; public.

    Args:
        identity: Ed25519 public key, 32 bytes.
        expires: when its newest certificate does.
        fingerprint: hex SHA-256 of that certificate.
        revoked: since when; None if it is not.
    """

    name: str
    role: str
    identity: bytes
    expires: datetime
    fingerprint: str
    revoked: datetime | None

    @staticmethod
    def of(entry: Entry) -> Standing:
        """Return how a member stands."""
        newest = read_member(entry.certificates[-1])
        identity = bytes.fromhex(entry.identity)
        return Standing(entry.name, entry.role, identity, newest.expires, newest.fingerprint, entry.revoked)


def check_free(registry: Registry, name: str, identity: str) -> None:
    """Check that somebody may become `name` with `identity`.

    Raises:
        ProtocolError: the name is taken, or the identity has been seen before.
    """
    if any(one.revoked is None and one.name.lower() == name.lower() for one in registry.members):
        raise ProtocolError(f"Expected a name that nobody has, {name} is a member; the coordinator may revoke it first")
    if any(one.identity == identity for one in registry.members):
        raise ProtocolError(
            "Expected an identity that was never a member's here; join into a new folder, so that a new one is made"
        )
