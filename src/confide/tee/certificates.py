"""Certificates and revocation lists of the vendors: read once, in one place, and checked at a time that is given.

AMD gives every chip's certificate the serial number 0, which X.509 does not allow. `cryptography` reads such
certificates and warns; that one warning is silenced here and nowhere else.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from confide.errors import ProtocolError

MAX_CERTIFICATE_BYTES = 1 << 14
MAX_CRL_BYTES = 1 << 18
#: Filters of warnings belong to the process: one thread at a time changes them.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def _serial_zero() -> Generator[None]:
    """Silence the one warning that `cryptography` gives of a serial number 0."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        text = "Parsed a serial number which wasn't positive"
        warnings.filterwarnings("ignore", message=text, category=CryptographyDeprecationWarning)
        yield


def serial_number(certificate: x509.Certificate) -> int:
    """Return its serial number, 0 for the certificates of AMD's chips."""
    with _serial_zero():
        return certificate.serial_number


def read_certificate(der: bytes, name: str) -> x509.Certificate:
    """Return the certificate in `der`. Raises ProtocolError, with `name`, for anything else."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ProtocolError(f"Expected {name} of at most {MAX_CERTIFICATE_BYTES} bytes")
    try:
        with _serial_zero():
            return x509.load_der_x509_certificate(der)
    except Exception:  # the library raises several kinds for bytes that are no certificate
        raise ProtocolError(f"Expected a certificate in {name}, in DER") from None


def read_chain(pem: bytes, name: str, count: int) -> list[x509.Certificate]:
    """Return the `count` certificates in `pem`. Raises ProtocolError, with `name`, for anything else."""
    if len(pem) > 2 * count * MAX_CERTIFICATE_BYTES:
        raise ProtocolError(f"Expected {name} of at most {2 * count * MAX_CERTIFICATE_BYTES} bytes")
    try:
        with _serial_zero():
            chain = x509.load_pem_x509_certificates(pem)
    except Exception:
        raise ProtocolError(f"Expected {count} certificates in {name}, in PEM") from None
    if len(chain) != count:
        raise ProtocolError(f"Expected {count} certificates in {name}, in PEM")
    return chain


def read_crl(der: bytes, name: str) -> x509.CertificateRevocationList:
    """Return the revocation list in `der`. Raises ProtocolError, with `name`, for anything else."""
    if len(der) > MAX_CRL_BYTES:
        raise ProtocolError(f"Expected {name} of at most {MAX_CRL_BYTES} bytes")
    try:
        return x509.load_der_x509_crl(der)
    except Exception:
        raise ProtocolError(f"Expected a revocation list in {name}, in DER") from None


def fingerprint(certificate: x509.Certificate) -> str:
    """Return hex SHA-256 of its DER."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether `issuer` signed `certificate` under its name."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # another signature, name, algorithm or key than there should be: it did not
        return False
    return True


def may_sign(certificate: x509.Certificate) -> bool:
    """Return whether it is one of an authority."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except Exception:  # absent, repeated, or malformed: each one is no authority
        return False


def moment(now: float) -> datetime:
    """Return seconds since the epoch as a time."""
    return datetime.fromtimestamp(now, UTC)


def outside(certificates: Sequence[x509.Certificate], now: float) -> str:
    """Return in words which certificate is not valid at `now`; "" if all are."""
    at = moment(now)
    for one in certificates:
        if not one.not_valid_before_utc <= at <= one.not_valid_after_utc:
            return f"{common_name(one)} is valid from {one.not_valid_before_utc} to {one.not_valid_after_utc}"
    return ""


def common_name(certificate: x509.Certificate) -> str:
    """Return the common name of whose it is; "" where it has none that can be read."""
    try:
        found = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(found[0].value) if found else ""
    except Exception:  # names are read only here, and a malformed one raises several kinds
        return ""


def revoked(
    crl: x509.CertificateRevocationList, issuer: x509.Certificate, serials: Sequence[int], now: float
) -> str:  # fmt: skip
    """Return in words why a revocation list of `issuer` does not clear `serials` at `now`; "" if it does."""
    try:
        key = issuer.public_key()
        if crl.issuer != issuer.subject or not crl.is_signature_valid(key):  # pyright: ignore[reportArgumentType]
            return f"it is not signed by {common_name(issuer)}"
        if crl.next_update_utc is None or not crl.last_update_utc <= moment(now) <= crl.next_update_utc:
            return f"it is of {crl.last_update_utc} to {crl.next_update_utc}"
        for serial in serials:
            if crl.get_revoked_certificate_by_serial_number(serial) is not None:
                return f"serial number {serial} is revoked"
    except Exception:  # a key of another kind, or an extension that the library cannot read
        return "it cannot be read"
    return ""


def printable(error: object) -> str:
    """Return the first line of a library's error, in print and of bounded length."""
    line = str(error).partition("\n")[0][:200]
    return "".join(one if one.isprintable() else "?" for one in line)
