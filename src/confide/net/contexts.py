"""TLS 1.3 between members and the coordinator, both ways authenticated by the federation's own authority.

The coordinator takes connections without a certificate, which may enrol and nothing else, and refuses every certificate
that does not hold. A certificate says who somebody was when it was issued; who may be connected now says
`Registrar.admit`.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from confide.errors import ConfideError, ProtocolError, UsageError
from confide.net.certificates import Member, day, read_member, to_pem
from confide.net.folders import AUTHORITY, TLS, read, stamp
from confide.net.founding import Clock, utc_now
from confide.net.membership import membership, own, trusted

#: X509_V_ERR_... of OpenSSL (x509_vfy.h).
_NOT_YET_VALID, _EXPIRED, _WRONG_PURPOSE, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, 26, 62, 64
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
#: Alerts that a peer sends about the certificate shown to it, as OpenSSL names them here.
_REFUSED_EXPIRED = "SSLV3_ALERT_CERTIFICATE_EXPIRED"
_REFUSED = (
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "TLSV1_ALERT_UNKNOWN_CA",
)
_OLD_VERSION = ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_VERSION_NUMBER")


class ServerTls:
    """The coordinator's side.

    Args:
        folder: a coordinator's.

    Raises:
        UsageError: the folder is not whole, or its certificate is not valid now.
    """

    def __init__(self, folder: Path, *, now: Clock = utc_now) -> None:
        self._folder, self._now = folder, now
        self._files = (folder / TLS, folder / AUTHORITY)
        self._stamp = stamp(*self._files)
        self._current = self._load()
        #: For `asyncio.start_server` and its like: it stays, each handshake takes the files as they are then.
        self.context = self._load()
        self.context.sni_callback = self._choose  # is called for every handshake, with or without a name

    def reload(self) -> bool:
        """Take the files if they were replaced; connections that are open stay as they are.

        Returns:
            Whether they were.

        Raises:
            UsageError: what is there now does not work; the certificate before it stays in use.
        """
        found = stamp(*self._files)
        if found == self._stamp:
            return False
        self._stamp = found  # what does not work is tried once, not in every handshake
        self._current = self._load()
        return True

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        with suppress(ConfideError):
            self.reload()
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        own(self._folder).check_dates(self._now())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load_chain(context, self._folder)
        _trust(context, trusted(self._folder))
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0  # a session that is resumed would skip the check of the certificate
        return context


def server_context(folder: Path, *, now: Clock = utc_now) -> ServerTls:
    """Return the coordinator's side; see `ServerTls`."""
    return ServerTls(folder, now=now)


def client_context(folder: Path, *, now: Clock = utc_now) -> ssl.SSLContext:
    """Return a member's side, for one connection or several until the certificate is renewed.

    It shows the member's certificate, and accepts a coordinator under this federation's authorities alone, at the
    address that is dialled; check `check_coordinator` after the handshake.

    Raises:
        UsageError: the folder is not a member's, or its certificate is not valid now.
    """
    membership(folder)
    own(folder).check_dates(now())
    context = anonymous_context(trusted(folder))
    _load_chain(context, folder)
    return context


def anonymous_context(authorities: Sequence[bytes]) -> ssl.SSLContext:
    """Return the side of somebody without a certificate, who may enrol or renew.

    Args:
        authorities: DER; those of an invitation, or `membership.trusted`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # asks for a certificate and checks the host's name
    _trust(context, authorities)
    return context


def peer_of(connection: ssl.SSLObject | ssl.SSLSocket) -> Member | None:
    """Return who is at the other end of a connection after its handshake, or None without a certificate.

    Raises:
        ProtocolError: the certificate is by the authority, but names no member.
    """
    der = connection.getpeercert(binary_form=True)
    return None if der is None else read_member(der)


def check_coordinator(connection: ssl.SSLObject | ssl.SSLSocket, identity: bytes) -> Member:
    """Return the coordinator at the other end.

    Args:
        identity: its Ed25519 public key, 32 bytes, as the invitation named it.

    Raises:
        ProtocolError: it is not the coordinator, or one with another identity.
    """
    peer = peer_of(connection)
    if peer is None or peer.role != "coordinator" or peer.identity != identity:
        raise ProtocolError("Expected the coordinator of the invitation; ask by telephone whether it was made anew")
    return peer


def explain(error: ssl.SSLError, *, now: datetime) -> str:
    """Return one line about a handshake that failed, with what to do; for either side.

    A peer's refusal arrives, under TLS 1.3, at the first read after the handshake.
    """
    clock = f"this machine's clock says {day(now)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _about_peer(error.verify_code, clock)
    reason = getattr(error, "reason", None) or ""  # absent where Python itself raised
    if reason == _REFUSED_EXPIRED:
        return (
            f"The peer says that this certificate expired; run confide federation renew, or check the clocks: {clock}"
        )
    if reason in _REFUSED:
        return (
            "The peer does not accept this certificate: of another federation, or its clock is behind; compare the "
            f"authority's fingerprint and the clocks: {clock}"
        )
    if reason in _OLD_VERSION:
        return (
            "Expected a peer that speaks TLS 1.3; check that the address is a coordinator's, and no old proxy between"
        )
    return f"The TLS connection failed: {reason or 'it was cut'}"


def _about_peer(code: int, clock: str) -> str:
    if code == _EXPIRED:
        return f"The peer's certificate has expired; its owner renews it, or this clock is ahead: {clock}"
    if code == _NOT_YET_VALID:
        return f"The peer's certificate is not yet valid; check this machine's clock: {clock}"
    if code in (_WRONG_HOST, _WRONG_ADDRESS):
        return "The coordinator's certificate is for other addresses than the one dialled; dial that of the invitation"
    if code == _WRONG_PURPOSE:
        return "The peer shows a certificate for another role: a member cannot play the coordinator, nor the reverse"
    if code in _UNKNOWN_ISSUER:
        return (
            "The peer's certificate is not by this federation's authority: another server answers at this address, or "
            "a proxy that opens TLS"
        )
    return f"The peer's certificate does not hold (OpenSSL's verification code {code})"


def _trust(context: ssl.SSLContext, authorities: Sequence[bytes]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=to_pem(authorities).decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT


def _load_chain(context: ssl.SSLContext, folder: Path) -> None:
    read(folder / TLS, secret=True)
    try:
        context.load_cert_chain(folder / TLS, password=lambda: b"")  # never asks on a terminal
    except (OSError, ssl.SSLError):
        raise UsageError(f"Expected a key and its certificates in {folder / TLS}; restore it from a backup") from None
