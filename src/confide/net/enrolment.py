"""How somebody becomes a member: the invitation that travels to people, and the messages that travel over the wire.

    1  coordinator   invite: draws a one-time key pair, keeps the public half with name, role and expiry, and gives the
                     secret half, its address and its authority to the person invited (`Invitation`)
    2  member        draws an identity and a TLS key; sends a request for a certificate, signed under the one-time key
                     (was invited) and under the identity (holds it); the request shows no secret, it may go by mail
    3  coordinator   checks both signatures, issues; the same request again gets the same certificate, no other does
    4  member        checks that the certificate is for its keys, its name, and by the authority of its invitation

A renewal is signed under the identity and names the certificate it replaces, so it needs no invitation, and not even a
certificate that is still valid. The bodies travel in messages tagged `ENROL_TAG` and `RENEW_TAG`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import msgspec

from confide.crypto.keys import KEY_BYTES, SIGNATURE_BYTES, SigningKey, label, verify
from confide.errors import ProtocolError, UsageError
from confide.net.certificates import COORDINATOR, INVITED_ROLES, check_name, day, fingerprint, to_pem
from confide.net.exchange import Envelope
from confide.net.folders import read_toml, toml
from confide.structs import known
from confide.wire import Message, encode

ENROL_TAG, RENEW_TAG = "federation/enrol", "federation/renew"
#: The session of messages that belong to no run.
NO_SESSION = ""
LARGEST_BODY_BYTES = 1 << 15
#: How long a request for a renewal may take to the coordinator; it also bounds how wrong the clocks may be.
RENEWAL_KEPT = timedelta(days=30)

_ENROLMENT, _RENEWAL = "confide enrolment v1", "confide renewal v1"
_DIGEST_BYTES = 32


# --- what travels over the wire ---------------------------------------------------------------------------------------


class Enrolment(msgspec.Struct, frozen=True, tag="enrol", forbid_unknown_fields=True):
    """A request for the first certificate.

    Args:
        invitation: public half of the one-time key, 32 bytes.
        csr: PKCS #10 of the TLS key, DER.
        identity: Ed25519 public key, 32 bytes.
        by_invitation, by_identity: signatures of the statement under both keys.

    **Leaks**: nothing secret; whoever reads it learns that somebody was invited, and the name in `csr`.
    """

    invitation: bytes
    csr: bytes
    identity: bytes
    by_invitation: bytes
    by_identity: bytes


class Renewal(msgspec.Struct, frozen=True, tag="renew", forbid_unknown_fields=True):
    """A request for the next certificate of the same identity.

    Args:
        name: the member's.
        csr: PKCS #10 of the new TLS key, DER.
        replaces: SHA-256 of the certificate that the member holds, 32 bytes.
        made: when, UTC, by the member's clock.
        by_identity: signature of the statement.

    **Leaks**: nothing secret.
    """

    name: str
    csr: bytes
    replaces: bytes
    made: datetime
    by_identity: bytes


class Granted(msgspec.Struct, frozen=True, tag="granted", forbid_unknown_fields=True):
    """The answer: a certificate, the authorities to trust from now on, and who endorsed them; all DER, all public."""

    certificate: bytes
    authorities: tuple[bytes, ...]
    endorsements: tuple[bytes, ...]


class Refused(msgspec.Struct, frozen=True, tag="refused", forbid_unknown_fields=True):
    """The answer that says no; `reason` is one line for people."""

    reason: str


def read_asked(body: bytes) -> Enrolment | Renewal:
    """Return the request in a body from anybody.

    Raises:
        ProtocolError: too large or malformed.
    """
    if len(body) > LARGEST_BODY_BYTES:
        raise ProtocolError(f"Expected a request of at most {LARGEST_BODY_BYTES} bytes, got {len(body)}")
    try:
        asked = msgspec.msgpack.decode(body, type=known(Enrolment | Renewal))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("Expected a well-formed request for a certificate") from None
    if isinstance(asked, Enrolment):
        sizes = (asked.invitation, KEY_BYTES), (asked.identity, KEY_BYTES), (asked.by_invitation, SIGNATURE_BYTES)
    else:
        sizes = ((asked.replaces, _DIGEST_BYTES),)
        if asked.made.tzinfo is None:
            raise ProtocolError("Expected a well-formed request for a certificate")
    if any(len(value) != size for value, size in (*sizes, (asked.by_identity, SIGNATURE_BYTES))):
        raise ProtocolError("Expected a well-formed request for a certificate")
    return asked


def read_answer(body: bytes) -> Granted:
    """Return what the coordinator granted.

    Raises:
        ProtocolError: malformed, or refused, with the coordinator's reason as far as it is plain text.
    """
    try:
        if len(body) > LARGEST_BODY_BYTES:
            raise ValueError
        answer = msgspec.msgpack.decode(body, type=known(Granted | Refused))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        raise ProtocolError("Expected a well-formed answer of the coordinator") from None
    if isinstance(answer, Refused):
        reason = "".join(letter for letter in answer.reason[:400] if letter.isprintable())
        raise ProtocolError(f"The coordinator refused: {reason}")
    return answer


def enrolment(name: str, role: str, csr: bytes, identity: SigningKey, invitation: SigningKey) -> bytes:
    """Return the body of a request for the first certificate."""
    statement = label(_ENROLMENT, invitation.public, name, role, csr, identity.public)
    signed = invitation.sign(label("invitation", statement)), identity.sign(label("identity", statement))
    return encode(Enrolment(invitation.public, csr, identity.public, *signed))


def check_enrolment(asked: Enrolment, name: str, role: str) -> None:
    """Check that an enrolment was made with its invitation for `name` and `role`, by the holder of its identity.

    Raises:
        ProtocolError: as said.
    """
    statement = label(_ENROLMENT, asked.invitation, name, role, asked.csr, asked.identity)
    try:
        verify(asked.invitation, label("invitation", statement), asked.by_invitation)
    except ProtocolError:
        raise ProtocolError(
            "Expected a request made with an unchanged invitation; name, role or secret differ from what was issued"
        ) from None
    try:
        verify(asked.identity, label("identity", statement), asked.by_identity)
    except ProtocolError:
        raise ProtocolError("Expected a request signed by the identity that it shows") from None


def renewal(name: str, csr: bytes, replaces: bytes, identity: SigningKey, *, made: datetime) -> bytes:
    """Return the body of a request for the next certificate; see `Renewal`."""
    statement = label(_RENEWAL, name, csr, replaces, made.isoformat())
    return encode(Renewal(name, csr, replaces, made, identity.sign(statement)))


def check_renewal(asked: Renewal, identity: bytes) -> None:
    """Check that the holder of `identity` asks.

    Raises:
        ProtocolError: it does not.
    """
    try:
        statement = label(_RENEWAL, asked.name, asked.csr, asked.replaces, asked.made.isoformat())
        verify(identity, statement, asked.by_identity)
    except ProtocolError:
        raise ProtocolError("Expected a renewal signed by the member's identity") from None


def over(send: Callable[[Envelope], None], receive: Callable[[], Envelope], *, me: str) -> Callable[[bytes], bytes]:
    """Return a function that carries a request over a connected link and returns the answer's body.

    Args:
        send, receive: of a connection to the coordinator on which nothing else runs.
        me: the source that the messages name.
    """

    def ask(body: bytes) -> bytes:
        send(Envelope(NO_SESSION, Message(me, COORDINATOR, tag_of(body), body)))
        return receive().message.body

    return ask


def tag_of(body: bytes) -> str:
    """Return the tag under which a request's body travels."""
    return ENROL_TAG if isinstance(read_asked(body), Enrolment) else RENEW_TAG


# --- what travels to people -------------------------------------------------------------------------------------------


class _InvitationText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    federation: str
    coordinator: str
    name: str
    role: str
    expires: datetime
    authority: list[str]
    identity: str
    secret: str


class Invitation(msgspec.Struct, frozen=True):
    """What the person invited gets, over a channel that both trust; secret until it was used.

    Args:
        federation: its name, for people.
        coordinator: "wss://host:port".
        name, role: what the invited will be.
        expires: UTC.
        authorities: DER, the current one first.
        identity: the coordinator's Ed25519 public key, 32 bytes: ledgers are signed under it.
        secret: seed of the one-time key, 32 bytes.
    """

    federation: str
    coordinator: str
    name: str
    role: str
    expires: datetime
    authorities: tuple[bytes, ...]
    identity: bytes
    secret: bytes

    @property
    def key(self) -> SigningKey:
        """Return the one-time key."""
        return SigningKey(self.secret)

    @property
    def fingerprint(self) -> str:
        """Return hex SHA-256 of the current authority, for people to compare by telephone."""
        return fingerprint(self.authorities[0])

    def text(self) -> str:
        """Return the invitation as a file that a person can read and mail."""
        heading = (
            f"An invitation to the federation {self.federation!r}, for one organisation, once, until "
            f"{day(self.expires)}.\nIt is a password: pass it on over a channel that you trust, and delete it after.\n"
            f"The authority's fingerprint, to compare by telephone:\n{spoken(self.fingerprint)}"
        )
        fields = {
            "federation": self.federation,
            "coordinator": self.coordinator,
            "name": self.name,
            "role": self.role,
            "expires": self.expires.isoformat(timespec="seconds"),
            "authority": [base64.b64encode(der).decode() for der in self.authorities],
            "identity": self.identity.hex(),
            "secret": self.secret.hex(),
        }
        return toml(fields, heading=heading).decode()

    @staticmethod
    def parse(text: str, where: str = "the invitation") -> Invitation:
        """Return the invitation in a text.

        Raises:
            UsageError: it is none, or incomplete; no text shows its secret.
        """
        found = read_toml(text.encode(), _InvitationText, where)
        try:
            authorities = tuple(base64.b64decode(one, validate=True) for one in found.authority)
            whole = [re.fullmatch("[0-9a-f]{64}", value) for value in (found.identity, found.secret)]
            to_pem(authorities)  # refuses what is no certificate
        except ValueError:
            authorities, whole = (), []
        url = split_url(found.coordinator)
        if not authorities or not whole or not all(whole) or url is None or found.role not in INVITED_ROLES:
            raise UsageError(f"Expected {where} as the coordinator wrote it; get it again, whole")
        if found.expires.tzinfo is None:
            raise UsageError(f"Expected {where} to expire at a time with its zone; get it again, whole")
        return Invitation(
            found.federation,
            found.coordinator,
            check_name(found.name),
            found.role,
            found.expires,
            authorities,
            bytes.fromhex(found.identity),
            bytes.fromhex(found.secret),
        )

    def __repr__(self) -> str:
        return f"Invitation({self.name!r}, {self.role!r}, secret)"


def split_url(url: str) -> tuple[str, int] | None:
    """Return host and port of "wss://host:port", or None if it is not one."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme != "wss" or not host or not port or parts.path or parts.query or parts.username:
        return None
    return host, port


def spoken(hexadecimal: str) -> str:
    """Return a fingerprint in groups of four, to be read aloud."""
    return " ".join(hexadecimal[start : start + 4] for start in range(0, len(hexadecimal), 4))


# --- requests and answers as files ------------------------------------------------------------------------------------


def armour(body: bytes, what: str) -> bytes:
    """Return a body as text that survives a mail: base64 between two lines that name it ("REQUEST", "CERTIFICATE")."""
    lines = base64.encodebytes(body).decode()
    return f"-----BEGIN CONFIDE {what}-----\n{lines}-----END CONFIDE {what}-----\n".encode()


def unarmour(text: bytes, what: str, where: str) -> bytes:
    """Return the body that `armour` wrapped, whatever stands around it.

    Raises:
        UsageError: there is none.
    """
    found = re.search(rf"-----BEGIN CONFIDE {what}-----(.*?)-----END CONFIDE {what}-----".encode(), text, re.DOTALL)
    try:
        body = base64.b64decode(b"".join(found[1].split()), validate=True) if found else b""
    except ValueError:
        body = b""
    if not body:
        raise UsageError(f"Expected a whole CONFIDE {what} in {where}; get the file again")
    return body
