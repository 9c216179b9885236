"""Handshakes over loopback with Python's ssl: who gets through, who does not, and what each is told."""

import os
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import timedelta

import pytest

from confide.crypto.keys import SigningKey
from confide.errors import ProtocolError, UsageError
from confide.net import founding, membership
from confide.net.certificates import Member
from confide.net.contexts import (
    anonymous_context,
    check_coordinator,
    client_context,
    explain,
    peer_of,
    server_context,
)
from confide.net.folders import AUTHORITY, TLS, identity_seed
from confide.net.registrar import Registrar
from net.federations import Clock, Houses


@dataclass
class Met:
    """What each side saw: the peer as the coordinator knows it, or the error that ended it."""

    server: Member | None | Exception = None
    client: Member | None | Exception = None
    version: str | None = None


def meet(server, client, *, host="127.0.0.1"):
    """Let two contexts meet over a socket; the server then says "hi", since refusals of TLS 1.3 come with a read."""
    met = Met()

    def serve(listener):
        try:
            plain, _ = listener.accept()
            with plain, server.wrap_socket(plain, server_side=True) as connection:
                met.server = peer_of(connection)
                connection.sendall(b"hi")
        except (OSError, ProtocolError) as error:
            met.server = error

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=20) as plain,
                client.wrap_socket(plain, server_hostname=host) as connection,
            ):
                met.version = connection.version()
                met.client = peer_of(connection)
                if connection.recv(2) != b"hi":
                    raise ssl.SSLError("cut")
        except (OSError, ProtocolError) as error:
            met.client = error
        thread.join()
    return met


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    houses = Houses(tmp_path_factory.mktemp("contexts"))
    houses.member("north")
    return houses


@pytest.fixture
def north(houses):
    return houses.root / "north"


def told(met, side):
    error = getattr(met, side)
    assert isinstance(error, ssl.SSLError), met
    return explain(error, now=founding.utc_now())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_both_sides_know_each_other(houses, north, host):
    met = meet(server_context(houses.coordinator).context, client_context(north), host=host)
    assert met.version == "TLSv1.3"
    assert met.server == membership.own(north)
    assert met.client == membership.own(houses.coordinator)
    houses.registrar.admit(met.server)


def test_without_a_certificate_one_is_nobody(houses):
    context = anonymous_context(membership.trusted(houses.coordinator))
    met = meet(server_context(houses.coordinator).context, context)
    assert met.server is None
    assert met.client.role == "coordinator"


def issued(houses, name, ahead):
    """A member whose certificate was made by a coordinator whose clock is `ahead`."""
    clock = Clock()
    clock.ahead = ahead
    folder = houses.root / f"{name}-{ahead.total_seconds():.0f}"
    invitation = Registrar(houses.coordinator, now=clock).invite(name)
    membership.join(folder, invitation, Registrar(houses.coordinator, now=clock).answer, now=clock)
    return folder, clock


def test_an_expired_certificate_is_refused_and_both_sides_say_so(tmp_path):
    clock = Clock()
    clock.ahead = timedelta(days=-100)
    houses = Houses(tmp_path, clock=clock)
    north = houses.member("north")
    with pytest.raises(UsageError, match="that of server expired on"):
        server_context(houses.coordinator)
    founding.refresh(houses.coordinator)  # by a clock that is right
    with pytest.raises(UsageError, match="that of north expired on .*; run confide federation renew"):
        client_context(north)
    met = meet(server_context(houses.coordinator).context, client_context(north, now=clock))
    assert "certificate expired; run confide federation renew" in told(met, "client")
    assert "certificate has expired; its owner renews it" in told(met, "server")
    membership.renew(north, Registrar(houses.coordinator).answer)
    assert meet(server_context(houses.coordinator).context, client_context(north)).server == membership.own(north)


def test_a_certificate_that_is_not_yet_valid_is_refused(houses):
    folder, clock = issued(houses, "early", timedelta(days=3))
    with pytest.raises(UsageError, match="that of early is not yet valid, before .*; check this machine's clock"):
        client_context(folder)
    met = meet(server_context(houses.coordinator).context, client_context(folder, now=clock))
    assert "not yet valid; check this machine's clock" in told(met, "server")
    assert "does not accept this certificate" in told(met, "client")


@pytest.mark.parametrize("hours", [23, -1, -24])
def test_a_clock_wrong_by_a_day_does_not_matter(houses, hours):
    """Whoever's clock it is: certificates made by it meet ones made by a clock that is right."""
    folder, clock = issued(houses, f"day{abs(hours)}-{hours > 0}".lower(), timedelta(hours=hours))
    met = meet(server_context(houses.coordinator).context, client_context(folder, now=clock))
    assert isinstance(met.server, Member), met
    assert isinstance(met.client, Member), met


def test_a_coordinator_whose_certificate_has_expired_is_refused(tmp_path):
    clock = Clock()
    clock.ahead = timedelta(days=-100)
    houses = Houses(tmp_path, clock=clock)
    met = meet(
        server_context(houses.coordinator, now=clock).context, anonymous_context(membership.trusted(houses.coordinator))
    )
    assert "The peer's certificate has expired" in told(met, "client")


def test_another_federation_is_refused_by_either_side(houses, north, tmp_path):
    other = Houses(tmp_path)
    stranger = other.member("north")
    met = meet(server_context(houses.coordinator).context, client_context(stranger))
    assert "not by this federation's authority" in told(met, "client")  # it does not even show its certificate
    context = client_context(stranger)
    context.load_verify_locations(houses.coordinator / AUTHORITY)
    met = meet(server_context(houses.coordinator).context, context)
    assert "not by this federation's authority" in told(met, "server")
    assert "does not accept this certificate: of another federation" in told(met, "client")


def test_the_host_must_be_the_certificates(houses, north):
    met = meet(server_context(houses.coordinator).context, client_context(north), host="example.org")
    assert "other addresses than the one dialled" in told(met, "client")


def raw_server(certificate, authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def test_a_member_cannot_play_the_coordinator(houses, north):
    met = meet(raw_server(north / TLS, houses.coordinator / AUTHORITY), client_context(north))
    assert "a member cannot play the coordinator" in told(met, "client")


def test_the_coordinators_certificate_is_no_members(houses):
    context = anonymous_context(membership.trusted(houses.coordinator))
    context.load_cert_chain(houses.coordinator / TLS)
    met = meet(server_context(houses.coordinator).context, context)
    assert "for another role" in told(met, "server")


def test_a_coordinator_with_another_identity_is_noticed(houses):
    """Whoever has the authority's key can make a server that TLS accepts; its identity is another."""

    class Shown:
        def getpeercert(self, binary_form):
            return membership.own_certificate(houses.coordinator)

    identity = SigningKey(identity_seed(houses.coordinator)).public
    assert check_coordinator(Shown(), identity).name == "server"
    with pytest.raises(ProtocolError, match="Expected the coordinator of the invitation"):
        check_coordinator(Shown(), bytes(32))


def test_a_revoked_member_is_not_admitted(tmp_path):
    houses = Houses(tmp_path)
    north = houses.member("north")
    houses.registrar.revoke("north")
    met = meet(server_context(houses.coordinator).context, client_context(north))
    with pytest.raises(ProtocolError, match="north was revoked"):
        houses.registrar.admit(met.server)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_2:DeprecationWarning")
def test_tls_1_2_is_refused_by_either_side(houses, north):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(houses.coordinator / AUTHORITY)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    met = meet(server_context(houses.coordinator).context, old)
    assert "Expected a peer that speaks TLS 1.3" in told(met, "client")
    assert "Expected a peer that speaks TLS 1.3" in told(met, "server")
    server = raw_server(houses.coordinator / TLS, houses.coordinator / AUTHORITY)
    assert isinstance(meet(server, old).client, Member)  # the control: these two would meet
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    met = meet(server, client_context(north))
    assert "Expected a peer that speaks TLS 1.3" in told(met, "client")


def test_sessions_are_not_resumed(houses, north):
    """No ticket is given, so that every connection shows a certificate that is valid and not revoked then."""
    server, client = server_context(houses.coordinator).context, client_context(north)
    assert server.num_tickets == 0

    def serve(listener):
        plain, _ = listener.accept()
        with plain, server.wrap_socket(plain, server_side=True) as connection:
            connection.sendall(b"hi")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with (
            socket.create_connection(listener.getsockname(), timeout=20) as plain,
            client.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.recv(2)
            assert not connection.session.has_ticket
        thread.join()


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_a_running_coordinator_takes_its_new_certificate(tmp_path):
    houses = Houses(tmp_path)
    north = houses.member("north")
    server = server_context(houses.coordinator)
    context = server.context
    before = meet(context, client_context(north)).client
    assert not server.reload()
    founding.refresh(houses.coordinator, force=True)
    assert server.reload()
    assert not server.reload()
    after = meet(context, client_context(north)).client
    assert after == membership.own(houses.coordinator)
    assert after.fingerprint != before.fingerprint
    founding.refresh(houses.coordinator, force=True)  # and without being told
    assert meet(context, client_context(north)).client == membership.own(houses.coordinator)


def test_the_authority_changes_under_a_running_coordinator(tmp_path):
    """One listening context through the whole change: members before, between and after get through."""
    houses = Houses(tmp_path)
    north, south = houses.member("north"), houses.member("south")
    context = server_context(houses.coordinator).context
    old = client_context(south)  # of a process that began before

    def through(client):
        met = meet(context, client)
        assert isinstance(met.server, Member), met
        assert isinstance(met.client, Member), met
        houses.registrar.admit(met.server)

    through(client_context(north))
    founding.rotate(houses.coordinator)
    for client in (client_context(north), client_context(south), old):
        through(client)
    membership.renew(north, houses.registrar.answer)
    for client in (client_context(north), client_context(south), old):
        through(client)
    membership.renew(south, houses.registrar.answer)
    founding.retire(houses.coordinator)
    for client in (client_context(north), client_context(south)):
        through(client)
    met = meet(context, old)  # shows a certificate by the old authority
    assert "not by this federation's authority" in told(met, "server")


def test_what_does_not_work_is_not_taken_up(tmp_path):
    houses = Houses(tmp_path)
    north = houses.member("north")
    server = server_context(houses.coordinator)
    good = (houses.coordinator / TLS).read_bytes()
    other = (north / TLS).read_bytes()
    mixed = other.partition(b"-----BEGIN CERT")[0] + b"-----BEGIN CERT" + good.partition(b"-----BEGIN CERT")[2]
    for body in (b"", mixed):
        (houses.coordinator / TLS).write_bytes(body)
        with pytest.raises(UsageError, match="restore"):
            server.reload()
        assert isinstance(meet(server.context, client_context(north)).client, Member)
    (houses.coordinator / TLS).write_bytes(good)
    os.chmod(houses.coordinator / TLS, 0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        server_context(houses.coordinator)


def test_every_explanation_is_one_line_for_people():
    cut = ssl.SSLError(1, "x")
    assert explain(cut, now=founding.utc_now()) == "The TLS connection failed: it was cut"
    unknown = ssl.SSLCertVerificationError(1, "x")
    unknown.verify_code = 7
    assert re.fullmatch(r".*\(OpenSSL's verification code 7\)", explain(unknown, now=founding.utc_now()))
