"""A federation for tests of the network: its authority, certificates of every kind, a host and members on loopback."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.sync.client import connect

from confide.net.link import Event, Joined, Link
from confide.net.stream import Host, Join

#: Nothing here takes longer, unless it hangs.
PATIENCE_SECONDS = 30.0


def host_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Return what the coordinator listens with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # nobody resumes: every connection shows its certificate
    return _loaded(context, certificate, key, authority)


def join_context(certificate: Path | None, key: Path | None, authority: Path) -> ssl.SSLContext:
    """Return what a member connects with; without certificate and key it can only enrol."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, key, authority)


def _loaded(context: ssl.SSLContext, certificate: Path | None, key: Path | None, authority: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=authority)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


class Authority:
    """Issues certificates into a folder.

    Args:
        folder: where everything lies.
        name: of the authority; two in one folder need two names.
    """

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder, self.name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        built = (
            x509.CertificateBuilder()
            .subject_name(self._subject)
            .issuer_name(self._subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=30))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(built.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        role: str = "node",
        *,
        days: tuple[float, float] = (-1, 1),
        file: str = "",
        hosts: tuple[str, ...] | None = None,
    ) -> tuple[Path, Path]:
        """Return the files of a certificate and its key, valid from and until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if role:
            subject.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role))
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"confide:identity:{'00' * 32}")]
        for host in hosts or (("127.0.0.1",) if role == "coordinator" and hosts is None else ()):
            names.append(x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host))
        built = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        stem = file or f"{self.name}-{name}-{role}"
        certificate, secret = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, secret

    def host_context(self, **issue: object) -> ssl.SSLContext:
        """Return what a coordinator of this authority listens with."""
        return host_context(*self.issue("server", "coordinator", **issue), self.path)

    def join_context(self, name: str, role: str = "node", **issue: object) -> ssl.SSLContext:
        """Return what a member of this authority connects with."""
        return join_context(*self.issue(name, role, **issue), self.path)

    def stranger_context(self) -> ssl.SSLContext:
        """Return what somebody without a certificate connects with."""
        return join_context(None, None, self.path)


def ask(url: str, context: ssl.SSLContext, body: bytes) -> bytes:
    """Send the one message of somebody without a certificate, by another implementation, and return the answer."""
    with connect(url, ssl=context, proxy=None, max_size=1 << 20, close_timeout=5) as connection:
        connection.send(body)
        answer = connection.recv(PATIENCE_SECONDS)
    assert isinstance(answer, bytes)
    return answer


class Federation:
    """An authority, a host, and members that are closed with it.

    Args:
        folder: for certificates.
        host: more arguments of `Host`; everybody with a certificate is admitted unless `admit` says otherwise.
    """

    def __init__(self, folder: Path, **host: object) -> None:
        self.authority = Authority(folder)
        arguments = {"admit": lambda peer: None, **host}
        self.host = Host("127.0.0.1", 0, self.authority.host_context(), **arguments)
        self.url = f"wss://127.0.0.1:{self.host.port}"
        self.links: list[Link] = [self.host]

    def join(self, name: str, role: str = "node", *, url: str = "", **join: object) -> Join:
        """Return a member's link, at once."""
        context = join.pop("context", None) or self.authority.join_context(name, role)
        link = Join(url or self.url, context, **{"first_seconds": 0.02, "longest_seconds": 0.2, **join})
        self.links.append(link)
        return link

    def joined(self, name: str, role: str = "node", **join: object) -> Join:
        """Return a member's link after both sides have heard that it is there."""
        link = self.join(name, role, **join)
        assert wait_for(link, Joined) == Joined("server", "coordinator")
        assert wait_for(self.host, lambda event: event == Joined(name, role))
        return link

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *exc: object) -> None:
        for link in reversed(self.links):
            link.close()


def wait_for(link: Link, wanted: type[Event] | Callable[[Event], object]) -> Event:
    """Return the first event of a kind, or for which `wanted` is true; what comes before it is dropped."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    seen: list[Event] = []
    while (left := deadline - time.monotonic()) > 0:
        event = link.receive(left)
        if event is None:
            break
        if isinstance(event, wanted) if isinstance(wanted, type) else wanted(event):
            return event
        seen.append(event)
    raise AssertionError(f"Waited in vain; what came was {seen}")


def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
