"""The coordinator's side of enrolment: invites, issues, renews, revokes, and says who may come in.

Everything lies in one folder (`confide.net.founding` makes it). Two processes may work on it at once: `confide
federation invite` and `revoke` run beside a coordinator, which notices. What is granted is written before the answer
leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
from cryptography import x509

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ConfideError, ProtocolError, UsageError, nearest
from confide.net.authority import issued_by
from confide.net.certificates import (
    INVITED_ROLES,
    LISTENING_ROLES,
    Member,
    check_name,
    day,
    fingerprint,
    read_member,
    read_request,
)
from confide.net.enrolment import (
    RENEWAL_KEPT,
    Enrolment,
    Granted,
    Invitation,
    Refused,
    Renewal,
    check_enrolment,
    check_renewal,
    read_asked,
)
from confide.net.folders import REGISTRY, identity_seed, locked, stamp
from confide.net.founding import Clock, check_host, publish, read_settings, utc_now
from confide.net.registry import (
    Entry,
    Issuer,
    Open,
    Registry,
    Standing,
    check_free,
    load_registry,
    save_registry,
)
from confide.wire import encode

INVITED_HOURS = 72.0
_LONGEST_HOURS = 24.0 * 90


class Registrar:
    """The coordinator's folder at work.

    Args:
        folder: made by `confide.net.founding.found`.
        rng: draws keys and serial numbers.
        now: the clock.

    Raises:
        UsageError: the folder is none.

    **Guarantees**: an invitation gives one certificate, to the request that used it first, however often and from how
    many processes it is asked; nobody enters under a name that is taken or with an identity that was revoked; only
    certificates in the registry are let in; what is answered is on disk.
    **Leaks**: to strangers, that an invitation they hold is open, used or expired; to members, nothing about others.
    """

    def __init__(self, folder: Path, *, rng: Randomness | None = None, now: Clock = utc_now) -> None:
        self.folder = folder
        self._rng = rng or SystemRandomness()
        self._now = now
        self._stamp = stamp(folder / REGISTRY)
        self._registry = load_registry(folder)
        self.settings = read_settings(folder)

    # --- who is in ----------------------------------------------------------------------------------------------------

    def registry(self) -> Registry:
        """Return the registry as it is now, read again if another process replaced it."""
        current = stamp(self.folder / REGISTRY)
        if current != self._stamp:
            self._registry, self._stamp = load_registry(self.folder), current
        return self._registry

    def admit(self, member: Member) -> None:
        """Check that a peer with this certificate may be connected; cheap, to be asked again while it is.

        Raises:
            ProtocolError: revoked, replaced, unknown or expired.
        """
        registry = self.registry()
        entry = next((one for one in registry.members if one.identity == member.identity.hex()), None)
        if entry is not None and entry.revoked is not None:
            raise ProtocolError(f"Expected a member, {entry.name} was revoked on {day(entry.revoked)}")
        if (
            entry is None
            or not entry.holds(member.fingerprint)
            or (entry.name, entry.role) != (member.name, member.role)
        ):
            raise ProtocolError(f"Expected a certificate that this coordinator knows from {member.name}; renew it")
        if self._now() > member.expires:
            raise ProtocolError(
                f"Expected a valid certificate, that of {member.name} expired on {day(member.expires)}; run: confide "
                "federation renew"
            )

    def refusal(self, certificate: bytes) -> str | None:
        """Return why a peer with this certificate (DER) may not be connected, in one line, or None if it may."""
        try:
            self.admit(read_member(certificate))
        except ProtocolError as error:
            return str(error)
        return None

    def revoked(self) -> tuple[bytes, ...]:
        """Return the identities of the members that were revoked, in the order of their bytes."""
        return tuple(sorted(bytes.fromhex(one.identity) for one in self.registry().members if one.revoked is not None))

    def members(self) -> tuple[Standing, ...]:
        """Return everybody who is or was a member, by name."""
        return tuple(sorted(map(Standing.of, self.registry().members), key=lambda one: (one.name, one.expires)))

    def invitations(self) -> tuple[Open, ...]:
        """Return the invitations that somebody can still use."""
        return tuple(one for one in self.registry().invitations if not one.request and one.expires > self._now())

    def roster(self, roles: Sequence[str] = ("node",)) -> tuple[tuple[str, bytes], ...]:
        """Return name and identity of the members in `roles` that are not revoked, by name: for `Roster(...)`."""
        live = [one for one in self.members() if one.revoked is None and one.role in roles]
        return tuple((one.name, one.identity) for one in live)

    # --- what the operator does ---------------------------------------------------------------------------------------

    def invite(
        self, name: str, role: str = "node", *, valid_hours: float = INVITED_HOURS, hosts: Sequence[str] = ()
    ) -> Invitation:
        """Return a new invitation; one that is open for the same name stops working.

        Args:
            name, role: whom it makes a member, and as what.
            valid_hours: how long it can be used.
            hosts: DNS names and IP addresses under which other members dial it, for a role that listens.

        Raises:
            UsageError: the name cannot be or is taken, there is no such role, the time is not sensible, or a role that
                does not listen has hosts.
        """
        check_name(name)
        if role not in INVITED_ROLES:
            known = ", ".join(INVITED_ROLES)
            raise UsageError(f"Expected role={role!r} to be one of {known}{nearest(role, INVITED_ROLES)}")
        if not 0 < valid_hours <= _LONGEST_HOURS:
            raise UsageError(f"Expected valid_hours={valid_hours:g} above 0 and at most {_LONGEST_HOURS:g}")
        if hosts and role not in LISTENING_ROLES:
            raise UsageError(f"Expected hosts for a {', a '.join(LISTENING_ROLES)} alone; a {role} is not dialled")
        for host in hosts:
            check_host(host)
        secret, now = self._rng.bytes(32), self._now()
        expires = (now + timedelta(hours=valid_hours)).replace(microsecond=0)
        with locked(self.folder):
            registry = load_registry(self.folder)
            for one in registry.members:
                if one.revoked is None and one.name.lower() == name.lower():
                    raise UsageError(f"Expected a name that nobody has, {one.name} is a member; revoke it first")
            issuer = Issuer.load(self.folder)
            invitation = Invitation(
                self.settings.name,
                self.settings.coordinator,
                name,
                role,
                expires,
                issuer.trusted,
                SigningKey(identity_seed(self.folder)).public,
                secret,
            )
            opened = Open(invitation.key.public.hex(), name, role, expires, hosts=tuple(dict.fromkeys(hosts)))
            save_registry(self.folder, registry.without_open_invitations(name).with_invitation(opened, now=now))
        return invitation

    def revoke(self, name: str) -> Standing | None:
        """Let nothing of a member in any more, for ever, and close its invitations; its name may be invited again.

        Returns:
            How it stands; None if it was invited only.

        Raises:
            UsageError: nobody of that name is a member or invited.
        """
        with locked(self.folder):
            registry = load_registry(self.folder)
            entry, invited = registry.live(name), [one for one in registry.invitations if not one.request]
            if entry is None and all(one.name != name for one in invited):
                known = [one.name for one in (*registry.members, *invited)]
                raise UsageError(f"Expected a member or somebody invited, {name!r} is neither{nearest(name, known)}")
            if entry is not None:
                entry = msgspec.structs.replace(entry, revoked=self._now())
                registry = registry.with_member(entry)
            registry = registry.without_open_invitations(name)
            save_registry(self.folder, registry)
            publish(self.folder, Issuer.load(self.folder), registry, now=self._now())
        return None if entry is None else Standing.of(entry)

    # --- what members ask ---------------------------------------------------------------------------------------------

    def answer(self, body: bytes) -> bytes:
        """Return the body that answers an enrolment or a renewal, from anybody, over any connection.

        Raises:
            ProtocolError: refused; the text is for whoever asked.
        """
        try:
            return self.grant(body)
        except ProtocolError:
            raise
        except (ConfideError, OSError):  # a full disk, a lost key: the operator's business
            raise ProtocolError("The coordinator cannot issue certificates now; tell its operator") from None

    def grant(self, body: bytes) -> bytes:
        """Return as `answer` does, for the operator, who is told what is wrong here.

        Raises:
            ProtocolError: refused.
            UsageError: the folder is not whole, or the clock is wrong.
            OSError: the disk is full, or the like; nothing is granted.
        """
        asked = read_asked(body)
        with locked(self.folder):
            before, issuer = load_registry(self.folder), Issuer.load(self.folder)
            if isinstance(asked, Enrolment):
                after, certificate = self._enrol(asked, hashlib.sha256(body).hexdigest(), before, issuer)
            else:
                after, certificate = self._renew(asked, before, issuer)
            if after != before:
                save_registry(self.folder, after)
        return encode(Granted(certificate, issuer.trusted, issuer.endorsements))

    def reply(self, body: bytes) -> bytes:
        """Return as `answer` does, or a body that refuses and says why."""
        try:
            return self.answer(body)
        except ProtocolError as error:
            return encode(Refused(str(error)))

    def _enrol(self, asked: Enrolment, digest: str, registry: Registry, issuer: Issuer) -> tuple[Registry, bytes]:
        now, key = self._now(), asked.invitation.hex()
        invitation = next((one for one in registry.invitations if one.key == key), None)
        if invitation is None:
            raise ProtocolError("Expected an open invitation; this one was withdrawn or replaced, ask for a new one")
        check_enrolment(asked, invitation.name, invitation.role)
        if invitation.request:
            return registry, _given_again(registry, invitation, digest)
        if now > invitation.expires:
            raise ProtocolError(f"Expected an open invitation, this one expired on {day(invitation.expires)}")
        public = read_request(asked.csr, invitation.name)
        identity = asked.identity.hex()
        check_free(registry, invitation.name, identity)
        hosts = invitation.hosts
        certificate = issuer.authority.issue(
            invitation.name, invitation.role, identity=asked.identity, key=public, rng=self._rng, now=now, hosts=hosts
        )
        used = msgspec.structs.replace(invitation, request=digest, certificate=fingerprint(certificate))
        entry = Entry(invitation.name, invitation.role, identity, (certificate,), hosts=hosts)
        return registry.with_member(entry).with_invitation(used, now=now), certificate

    def _renew(self, asked: Renewal, registry: Registry, issuer: Issuer) -> tuple[Registry, bytes]:
        replaces = asked.replaces.hex()
        entry = next((one for one in registry.members if one.name == asked.name and one.holds(replaces)), None)
        if entry is None:
            raise ProtocolError("Expected the renewal of a certificate that this coordinator issued")
        check_renewal(asked, bytes.fromhex(entry.identity))
        if entry.revoked is not None:
            raise ProtocolError(f"Expected a member, {entry.name} was revoked on {day(entry.revoked)}")
        public, now = read_request(asked.csr, entry.name), self._now()
        if abs(now - asked.made) > RENEWAL_KEPT:  # nobody can bring an old request again
            raise ProtocolError(
                f"Expected a renewal that was asked for within {RENEWAL_KEPT.days} days of {day(now)}, not on "
                f"{day(asked.made)}; check both machines' clocks, then run confide federation renew"
            )
        for der in entry.certificates:
            same = x509.load_der_x509_certificate(der).public_key() == public
            if same and issued_by(der, issuer.authority.certificate) and not read_member(der).renewal_due(now):
                return registry, der  # the answer to the same request was lost
        certificate = issuer.authority.issue(
            entry.name,
            entry.role,
            identity=bytes.fromhex(entry.identity),
            key=public,
            rng=self._rng,
            now=now,
            hosts=entry.hosts,
        )
        return registry.with_member(entry.renewed(certificate, replaces)), certificate


def _given_again(registry: Registry, invitation: Open, digest: str) -> bytes:
    """Return the certificate that an invitation gave, to the request that used it."""
    entry = registry.live(invitation.name)
    given = [der for der in entry.certificates if fingerprint(der) == invitation.certificate] if entry else []
    if invitation.request != digest or not given:
        raise ProtocolError(
            "Expected an open invitation, this one was used; if not by you, tell the coordinator at once to revoke "
            f"{invitation.name}"
        )
    return given[0]
