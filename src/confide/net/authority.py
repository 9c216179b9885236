"""The authority of a federation: it issues what members show, and one day endorses its successor.

EC P-256, ten years; it may certify one authority below itself, which is its successor. When it is replaced, the
successor's key gets a second certificate, under the old authority (an endorsement). The coordinator shows it beside its
own certificate, so members that know the old authority alone can follow, and learn the new one when they renew.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.net.certificates import BACKDATED, IDENTITY_URI, MEMBER_DAYS, TlsKey, day

AUTHORITY_DAYS = 3650


class Authority:
    """Who issues: a key and its own certificate.

    Args:
        key: the secret, in the coordinator's folder or wherever `confide federation sign` runs.
        certificate: DER, signed with that key.
    """

    def __init__(self, key: TlsKey, certificate: bytes) -> None:
        self.key, self.certificate = key, certificate
        self._parsed = x509.load_der_x509_certificate(certificate)

    @staticmethod
    def create(federation: str, rng: Randomness, *, now: datetime, days: int = AUTHORITY_DAYS) -> Authority:
        """Return a new authority; `federation` is the name that people see."""
        key = TlsKey.draw(rng)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, federation),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "authority"),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, rng.bytes(8).hex()),  # successors have names of their own
            ]
        )
        builder = _builder(subject, subject, key.public, rng, now, now + timedelta(days=days))
        return Authority(key, key.sign(_as_authority(builder, key.public, key.public, below=1)))

    def issue(
        self,
        name: str,
        role: str,
        *,
        identity: bytes,
        key: ec.EllipticCurvePublicKey,
        rng: Randomness,
        now: datetime,
        hosts: Sequence[str] = (),
        days: int = MEMBER_DAYS,
    ) -> bytes:
        """Return a certificate, DER.

        Args:
            name, role: whom it is for; what the request says of itself is not taken over.
            identity: Ed25519 public key, 32 bytes.
            key: the holder's P-256 key.
            rng: draws the serial number.
            now: begins `BACKDATED` before it, ends `days` after it, never after the authority itself.
            hosts: DNS names and IP addresses under which the holder is dialled; a member with some may listen.

        Raises:
            UsageError: the authority has expired, or its own time has not begun.
        """
        if not self._parsed.not_valid_before_utc <= now < self._parsed.not_valid_after_utc:
            raise UsageError(
                f"Expected an authority that is valid on {day(now)}, this one is from "
                f"{day(self._parsed.not_valid_before_utc)} to {day(self._parsed.not_valid_after_utc)}; check this "
                "machine's clock, or found the federation anew"
            )
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, name),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            ]
        )
        end = min(now + timedelta(days=days), self._parsed.not_valid_after_utc)
        usage = [] if role == "coordinator" else [ExtendedKeyUsageOID.CLIENT_AUTH]
        usage += [ExtendedKeyUsageOID.SERVER_AUTH] if role == "coordinator" or hosts else []
        names = [x509.UniformResourceIdentifier(IDENTITY_URI + identity.hex()), *map(_host, hosts)]
        builder = (
            _builder(subject, self._parsed.subject, key, rng, now, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public), critical=False)
        )
        return self.key.sign(builder)

    def endorse(self, successor: Authority, rng: Randomness, *, now: datetime) -> bytes:
        """Return a certificate of the successor's key under this authority (DER).

        Members that know this authority alone accept what the successor issues, beside it.
        """
        key, end = successor.key.public, self._parsed.not_valid_after_utc
        subject = x509.load_der_x509_certificate(successor.certificate).subject
        builder = _builder(subject, self._parsed.subject, key, rng, now, end)
        return self.key.sign(_as_authority(builder, key, self.key.public, below=0))

    def revocation_list(self, serials: Iterable[int], *, now: datetime) -> bytes:
        """Return a revocation list (PEM) for software other than confide, good until the authority ends."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._parsed.subject)
            .last_update(now)
            .next_update(self._parsed.not_valid_after_utc)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public), critical=False)
            .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        return self.key.sign_list(builder)

    def wrote_list(self, pem: bytes, serials: Iterable[int]) -> bool:
        """Return whether `pem` is a revocation list of this authority with exactly these serial numbers."""
        try:
            found = x509.load_pem_x509_crl(pem)
        except ValueError:
            return False
        return found.is_signature_valid(self.key.public) and {one.serial_number for one in found} == set(serials)


def self_signed(der: bytes) -> bool:
    """Return whether an authority's certificate is its own, not an endorsement by another."""
    certificate = x509.load_der_x509_certificate(der)
    return certificate.issuer == certificate.subject


def issued_by(der: bytes, authority: bytes) -> bool:
    """Return whether `authority` (DER) signed the certificate `der`."""
    try:
        x509.load_der_x509_certificate(der).verify_directly_issued_by(x509.load_der_x509_certificate(authority))
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def check_authorities(trusted: Sequence[bytes], offered: Sequence[bytes], endorsements: Sequence[bytes]) -> None:
    """Check a new list of authorities before it replaces the trusted one.

    Args:
        trusted: DER, what is trusted today.
        offered: DER, what somebody says to trust from now on.
        endorsements: DER, authorities' certificates of their successors.

    Raises:
        ProtocolError: an offered one is neither trusted today nor endorsed by one that is.
    """
    try:
        endorsed = {_key(der) for der in endorsements if any(issued_by(der, old) for old in trusted)}
        strange = [der for der in offered if der not in trusted and _key(der) not in endorsed]
        own = all(issued_by(der, der) and _certifies(der) for der in offered)
    except ValueError:
        raise ProtocolError("Expected well-formed authorities") from None
    if strange or not offered or not own:
        raise ProtocolError(
            "Expected authorities that this federation's known authority endorsed; ask the coordinator by telephone "
            "whether the authority was replaced, then for a new invitation"
        )


def _key(der: bytes) -> tuple[bytes, bytes]:
    """Return what makes two certificates those of one authority: its name and key."""
    certificate = x509.load_der_x509_certificate(der)
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certificate.subject.public_bytes(), public


def _certifies(der: bytes) -> bool:
    extensions = x509.load_der_x509_certificate(der).extensions
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    rng: Randomness,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(1 + rng.below(1 << 127))
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _as_authority(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, issuer: ec.EllipticCurvePublicKey, *, below: int
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=below), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
