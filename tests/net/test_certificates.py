"""What members show, as OpenSSL's own program reads it, and everything that is refused."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError, UsageError
from confide.net.authority import Authority
from confide.net.certificates import TlsKey, check_name, fingerprint, from_pem, read_member, read_request, to_pem
from net.federations import openssl

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
IDENTITY = bytes(range(32))
RNG = SeededRandomness("certificates")
AUTHORITY = Authority.create("three", RNG, now=NOW)


def issued(name="north", role="node", **options):
    return AUTHORITY.issue(name, role, identity=IDENTITY, key=TlsKey.draw(RNG).public, rng=RNG, now=NOW, **options)


def test_a_certificate_says_who_somebody_is():
    der = issued()
    member = read_member(der)
    assert (member.name, member.role, member.identity) == ("north", "node", IDENTITY)
    assert member.begins == NOW - timedelta(days=1)
    assert member.expires == NOW + timedelta(days=90)
    assert member.fingerprint == fingerprint(der)


def test_openssl_reads_the_same(tmp_path):
    path = tmp_path / "c.pem"
    path.write_bytes(to_pem([issued(), AUTHORITY.certificate]))
    text = openssl("x509", "-in", path, "-noout", "-text", "-fingerprint", "-sha256").stdout
    member = read_member(from_pem(path.read_bytes(), "c.pem")[0])
    assert "Subject: CN = north, OU = node" in text
    assert f"URI:confide:identity:{IDENTITY.hex()}" in text
    assert "TLS Web Client Authentication" in text
    assert "TLS Web Server Authentication" not in text
    assert "CA:FALSE" in text
    assert "DNS:" not in text
    assert member.fingerprint.upper() in text.replace(":", "")
    assert "Not Before: Nov 25 12:00:00 2026 GMT" in text
    assert "Not After : Feb 24 12:00:00 2027 GMT" in text


@pytest.mark.parametrize("name", ["a", "north", "St-Mary_2.b", "9", "x" * 64])
def test_names_that_can_be(name):
    assert check_name(name) == name
    assert read_member(issued(name)).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "_x", "a b", "a/b", "a\n", "ä", "x" * 65, "server", "Server"])
def test_names_that_cannot_be(name):
    with pytest.raises(UsageError, match="Expected a name"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "role"),
    [("north", "coordinator"), ("server", "node"), ("north", "boss"), ("a b", "node")],
)
def test_a_certificate_that_is_nobodys_is_refused(name, role):
    with pytest.raises(ProtocolError, match="name, role and identity"):
        read_member(issued(name, role))


def test_an_authority_is_no_member():
    with pytest.raises(ProtocolError, match="name, role and identity"):
        read_member(AUTHORITY.certificate)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_refused(body):
    with pytest.raises(ProtocolError):
        read_member(body)
    with pytest.raises(ProtocolError):
        read_request(body, "north")


@given(st.integers(0, 8 * 300), st.integers(1, 255))
def test_a_changed_request_is_refused(position, change):
    """Any changed byte gives ProtocolError; the unchanged request passes."""
    der = bytearray(REQUEST)
    read_request(bytes(der), "north")
    der[position % len(der)] ^= change
    with pytest.raises(ProtocolError):
        read_request(bytes(der), "north")


REQUEST = TlsKey.draw(RNG).request("north")


def request_with(key, name):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, part) for part in name])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (ec.generate_private_key(ec.SECP256R1()), ["south"]),
        (ec.generate_private_key(ec.SECP256R1()), ["north", "south"]),
        (ec.generate_private_key(ec.SECP256R1()), []),
        (ec.generate_private_key(ec.SECP384R1()), ["north"]),
        (ed25519.Ed25519PrivateKey.generate(), ["north"]),
    ],
    ids=["other name", "two names", "no name", "P-384", "Ed25519"],
)
def test_requests_that_are_not_what_we_make_are_refused(key, name):
    with pytest.raises(ProtocolError):
        read_request(request_with(key, name), "north")


def test_a_request_is_what_openssl_accepts(tmp_path):
    path = tmp_path / "r.der"
    path.write_bytes(REQUEST)
    done = openssl("req", "-inform", "DER", "-in", path, "-verify", "-noout", "-subject")
    assert "verify OK" in done.stderr + done.stdout
    assert "CN = north" in done.stdout


def test_nothing_of_a_request_but_its_key_is_taken_over():
    """A request that asks for more (a server's host name, an authority) gets a plain member's certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("train.example.org")]), critical=False)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    public = read_request(greedy, "north")
    der = AUTHORITY.issue("north", "node", identity=IDENTITY, key=public, rng=RNG, now=NOW)
    extensions = x509.load_der_x509_certificate(der).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)


def test_dates_are_explained():
    member = read_member(issued())
    member.check_dates(NOW)
    member.check_dates(NOW - timedelta(days=1))
    member.check_dates(NOW + timedelta(days=90))
    with pytest.raises(UsageError, match="expired on 2027-02-24 12:00 UTC; run confide federation renew"):
        member.check_dates(NOW + timedelta(days=90, seconds=1))
    with pytest.raises(UsageError, match="not yet valid, before 2026-11-25 12:00 UTC; check this machine's clock"):
        member.check_dates(NOW - timedelta(days=1, seconds=1))


def test_a_renewal_is_due_in_the_last_third():
    member = read_member(issued())
    assert not member.renewal_due(NOW + timedelta(days=59))
    assert member.renewal_due(NOW + timedelta(days=60))


def test_keys_show_nothing_and_come_back_from_pem():
    key = TlsKey.draw(RNG)
    assert repr(key) == "TlsKey(secret)"
    assert TlsKey.from_pem(key.pem()).public == key.public
    for body in (b"", b"-----BEGIN PRIVATE KEY-----", to_pem([AUTHORITY.certificate])):
        with pytest.raises(UsageError, match="P-256 private key"):
            TlsKey.from_pem(body)


def test_the_same_seed_draws_the_same_key():
    """All that is secret comes from the randomness that is passed in."""
    one, other = (TlsKey.draw(SeededRandomness(seed)).public for seed in ("a", "b"))
    assert one == TlsKey.draw(SeededRandomness("a")).public
    assert one != other
