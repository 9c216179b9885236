"""TLS 1.3 between members of a federation, without I/O: one side of a connection, and who the peer is.

The federation has its own authority, and no other is trusted. Certificates carry a name (CN) and a role (OU); the host
asks every connection for one, and lets one without only enrol.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from cryptography import x509
from cryptography.x509.oid import NameOID

from confide.errors import ConfideError, ProtocolError
from confide.net.certificates import ROLES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RECORD_BYTES = 1 << 14

#: What OpenSSL calls a failed handshake, and what it means to the people at either end.
_MEANING: Mapping[str, str] = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other side asks for a certificate of this federation",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the other side says that this certificate has expired, or is not valid yet",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the other side says that this certificate was revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the other side does not accept this certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the other side does not accept this certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the other side does not accept this kind of certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the other side does not know the authority that issued this certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "the other side does not accept this certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other side asks for TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
}


class TlsRefused(ConfideError):
    """A handshake that failed, or a record that is no TLS.

    Args:
        text: why, in one line.
        certificate: True if it is about a certificate, which trying again cannot mend.
    """

    def __init__(self, text: str, *, certificate: bool) -> None:
        super().__init__(text)
        self.certificate = certificate


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as its certificate says; public.

    Args:
        name, role: CN and OU.
        serial: the certificate's number.
        certificate: the certificate itself, DER.
    """

    name: str
    role: str
    serial: int
    certificate: bytes

    def __repr__(self) -> str:
        return f"Peer({self.name!r}, {self.role!r}, {self.serial:x})"


def read_peer(der: bytes) -> Peer:
    """Return whom a certificate, which the handshake has verified, is for.

    Raises:
        ProtocolError: it has not exactly one name and one role that a federation knows.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject
        (name,) = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        (role,) = subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    except Exception:  # whatever the parser thinks of a stranger's bytes
        raise ProtocolError("Expected a certificate with one name and one role") from None
    if not _NAME.fullmatch(str(name.value)) or role.value not in ROLES:
        raise ProtocolError("Expected a certificate with a name and a role of a federation")
    return Peer(str(name.value), str(role.value), certificate.serial_number, der)


class Tls:
    """One side of one connection: encrypted bytes in and out, plain bytes out and in.

    Args:
        context: of this side.
        host: None at the side that listens; else the name or address that the other's certificate must have.
    """

    def __init__(self, context: ssl.SSLContext, *, host: str | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=host is None, server_hostname=host or None
        )
        self.open = False
        self.ended = False

    def begin(self) -> None:
        """Write what this side says first; the side that listens says nothing.

        Raises:
            TlsRefused: the handshake failed.
        """
        self._step()

    def put(self, data: memoryview | bytes) -> None:
        """Take what came from the network.

        Raises:
            TlsRefused: the handshake failed.
        """
        self._incoming.write(data)
        if not self.open:
            self._step()

    def take(self) -> bytes:
        """Return the next plain bytes, at most one record's; b"" if there are none yet, or no more (`ended`).

        Raises:
            TlsRefused: a record that is no TLS, or the other side has refused this one.
        """
        if not self.open or not (self._incoming.pending or self._tls.pending()):
            return b""  # an exception that says so costs more than to look
        try:
            data = self._tls.read(_RECORD_BYTES)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            raise _refused(error) from None
        self.ended = not data
        return data

    def write(self, data: bytes) -> None:
        """Encrypt `data`; `outgoing` returns what must leave."""
        self._tls.write(data)

    def close(self) -> None:
        """Say that nothing more will be written."""
        if self.open:
            with suppress(ssl.SSLError):  # the other side has not said so yet, or nobody is there
                self._tls.unwrap()

    def outgoing(self) -> bytes:
        """Return what must be sent to the network now."""
        return self._outgoing.read()

    def certificate(self) -> bytes | None:
        """Return the other side's verified certificate (DER), or None if it showed none."""
        return self._tls.getpeercert(binary_form=True)

    def _step(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise _refused(error) from None
        self.open = True


def _refused(error: ssl.SSLError) -> TlsRefused:
    if isinstance(error, ssl.SSLCertVerificationError):
        # Names the check that failed ("certificate has expired"), never a value of the certificate but a host's name.
        return TlsRefused(f"its certificate is refused: {error.verify_message.rstrip('.')}", certificate=True)
    reason = cast(Any, error).reason or "TLS"
    text = _MEANING.get(reason, f"TLS failed: {reason.lower().replace('_', ' ')}")
    return TlsRefused(text, certificate="certificate" in text or "authority" in text)
