"""What members of a federation show of themselves: TLS keys, requests for a certificate, and who somebody is by one.

    coordinator    CN "server", OU "coordinator", the hosts under which it is reached; server authentication only
    member         CN its name, OU its role; client authentication only, so that no member can play the coordinator
    one that       the same, and the hosts under which it is reached; client and server authentication. Whoever dials it
     listens       checks its name and its role, so it cannot play the coordinator either: a dealer, a helper, a third

Both carry the public half of their long-lived Ed25519 identity as subjectAltName URI `confide:identity:<64 hex>`: TLS
keys change, identities stay. Keys are on P-256 because every TLS stack, browser and inspecting proxy takes it, while
some refuse Ed25519. Nothing here does I/O or reads a clock: `now` is an argument.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError

#: The coordinator's name in every cohort.
COORDINATOR = "server"
#: Roles that somebody can be invited to.
INVITED_ROLES = ("node", "helper", "analyst", "client", "dealer", "third")
#: Roles of which other members may dial the holder; its certificate names hosts.
LISTENING_ROLES = ("helper", "dealer", "third")
ROLES = ("coordinator", *INVITED_ROLES)
MEMBER_DAYS = 90
#: Certificates begin this much before they are made: clocks of members may be late by as much.
BACKDATED = timedelta(days=1)
LARGEST_REQUEST_BYTES = 4096

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: The URI under which certificates carry an identity, before its 64 hex digits.
IDENTITY_URI = "confide:identity:"
#: The order of P-256 (FIPS 186-5, SP 800-186 section 3.2.1.3).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def check_name(name: str) -> str:
    """Return `name` if it can name a member.

    Raises:
        UsageError: it cannot.
    """
    if not _NAME.fullmatch(name) or name.lower() == COORDINATOR:
        raise UsageError(
            f"Expected a name of at most 64 letters, digits, '-', '_' and '.' that begins with a letter or digit, and "
            f"is not {COORDINATOR!r}; got {name[:80]!r}"
        )
    return name


class TlsKey:
    """The secret half of a P-256 pair, for one certificate.

    Args:
        key: as `draw` and `from_pem` make it.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = key.public_key()

    @staticmethod
    def draw(rng: Randomness) -> TlsKey:
        """Return a new key."""
        return TlsKey(ec.derive_private_key(1 + rng.below(_ORDER - 1), ec.SECP256R1()))

    @staticmethod
    def from_pem(body: bytes) -> TlsKey:
        """Return the first private key in `body`.

        Raises:
            UsageError: there is none, or it is no P-256 key without a password.
        """
        try:
            key = load_pem_private_key(body, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise UsageError("Expected a P-256 private key without password, as PEM; restore the file from a backup")
        return TlsKey(key)

    def pem(self) -> bytes:
        """Return the secret as PKCS #8, for a file that its owner alone may read."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def belongs_to(self, der: bytes) -> bool:
        """Return whether the certificate `der` is for this key."""
        return x509.load_der_x509_certificate(der).public_key() == self.public

    def request(self, name: str) -> bytes:
        """Return a certificate signing request (PKCS #10, DER) for `name`; OpenSSL draws the signature's nonce."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self._key, SHA256())
        return signed.public_bytes(Encoding.DER)

    def sign(self, builder: x509.CertificateBuilder) -> bytes:
        """Return the certificate that `builder` describes, DER."""
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.DER)

    def sign_list(self, builder: x509.CertificateRevocationListBuilder) -> bytes:
        """Return the revocation list that `builder` describes, PEM."""
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def __repr__(self) -> str:
        return "TlsKey(secret)"


def read_request(der: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Return the key in a signing request, of which nothing else is taken over.

    Raises:
        ProtocolError: malformed, not for `name`, not P-256, or not signed with the key it shows.
    """
    if len(der) > LARGEST_REQUEST_BYTES:
        raise ProtocolError(f"Expected a certificate request of at most {LARGEST_REQUEST_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(der)
        signed, public, subject = request.is_signature_valid, request.public_key(), request.subject
    except Exception:  # whatever the parser thinks of a stranger's bytes
        raise ProtocolError("Expected a well-formed certificate request") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ProtocolError("Expected a certificate request with a P-256 key")
    if not signed:
        raise ProtocolError("Expected a certificate request signed with the key that it shows")
    if [str(part.value) for part in subject] != [name]:
        raise ProtocolError("Expected a certificate request for the name that was invited")
    return public


@dataclass(frozen=True, slots=True)
class Member:
    """Whom a certificate is for; public.

    Args:
        identity: Ed25519 public key, 32 bytes.
        fingerprint: hex SHA-256 of the certificate.
        begins, expires: UTC.
    """

    name: str
    role: str
    identity: bytes
    serial: int
    fingerprint: str
    begins: datetime
    expires: datetime

    def check_dates(self, now: datetime) -> None:
        """Say so if the certificate is not valid at `now`.

        Raises:
            UsageError: as said, with what to do.
        """
        if now > self.expires:
            raise UsageError(
                f"Expected a valid certificate, that of {self.name} expired on {day(self.expires)}; run confide "
                f"federation renew, or mend this machine's clock if it is not {day(now)}"
            )
        if now < self.begins:
            raise UsageError(
                f"Expected a valid certificate, that of {self.name} is not yet valid, before {day(self.begins)}; check "
                f"this machine's clock, which says {day(now)}"
            )

    def renewal_due(self, now: datetime) -> bool:
        """Return whether less than a third of the certificate's time is left."""
        return self.expires - now < (self.expires - self.begins) / 3


def day(when: datetime) -> str:
    """Return a time as people read it, in UTC: "2027-01-31 12:00 UTC"."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def fingerprint(der: bytes) -> str:
    """Return hex SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` shows it with colons."""
    return hashlib.sha256(der).hexdigest()


def read_member(der: bytes) -> Member:
    """Return whom a certificate is for. Who issued it is not checked here.

    Raises:
        ProtocolError: not a certificate of a member or a coordinator.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = {part.oid: str(part.value) for part in certificate.subject}
        name, role = subject[NameOID.COMMON_NAME], subject[NameOID.ORGANIZATIONAL_UNIT_NAME]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        (identity,) = [uri.removeprefix(IDENTITY_URI) for uri in uris if uri.startswith(IDENTITY_URI)]
        public = bytes.fromhex(identity) if re.fullmatch("[0-9a-f]{64}", identity) else b""
    except Exception:  # whatever the parser thinks of a stranger's bytes
        raise ProtocolError("Expected a certificate with name, role and identity of a member") from None
    known = role in ROLES and _NAME.fullmatch(name) and (name == COORDINATOR) == (role == "coordinator")
    if not known or not public:
        raise ProtocolError("Expected a certificate with name, role and identity of a member")
    begins, expires = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Member(name, role, public, certificate.serial_number, fingerprint(der), begins, expires)


def to_pem(certificates: Iterable[bytes]) -> bytes:
    """Return certificates (DER) as PEM, one after the other."""
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in certificates)


def from_pem(body: bytes, where: str) -> tuple[bytes, ...]:
    """Return the certificates in a PEM file, DER, in order.

    Raises:
        UsageError: there is none, or one is malformed.
    """
    try:
        return tuple(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(body))
    except ValueError:
        raise UsageError(f"Expected certificates, as PEM, in {where}; restore the file from a backup") from None
