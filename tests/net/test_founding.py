"""A federation's making, and the change of its authority while members go on."""

import os
from datetime import timedelta

import pytest

from confide.errors import UsageError
from confide.net import founding, membership
from confide.net.authority import issued_by
from confide.net.certificates import from_pem, read_member
from confide.net.folders import AUTHORITY, ISSUER, REVOKED, TLS
from net.federations import Clock, Houses, openssl


@pytest.fixture
def houses(tmp_path):
    return Houses(tmp_path)


def trusted(folder):
    return from_pem((folder / AUTHORITY).read_bytes(), "")


def own(folder):
    return from_pem((folder / TLS).read_bytes(), "")[0]


def test_secrets_are_their_owners(houses):
    modes = {path.name: path.stat().st_mode & 0o777 for path in houses.coordinator.iterdir()}
    secret = {"tls.pem", "identity.pem", "issuer.pem", "registry.json", ".lock"}
    assert {name for name, mode in modes.items() if mode == 0o600} == secret
    assert set(modes) - secret == {"authority.pem", "federation.toml", "revoked.pem"}
    for name in set(modes) - secret:
        assert b"PRIVATE" not in (houses.coordinator / name).read_bytes()


def test_the_coordinators_certificate_is_for_its_hosts(houses):
    certificate, authority = houses.coordinator / TLS, houses.coordinator / AUTHORITY
    for check in (("-verify_ip", "127.0.0.1"), ("-verify_hostname", "localhost")):
        done = openssl("verify", "-x509_strict", "-CAfile", authority, "-purpose", "sslserver", *check, certificate)
        assert done.returncode == 0, done.stderr
    assert openssl("verify", "-CAfile", authority, "-verify_hostname", "other", certificate).returncode
    assert openssl("crl", "-in", houses.coordinator / REVOKED, "-CAfile", authority, "-noout").returncode == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": "host"},
        {"address": "host:0x1"},
        {"address": "a b:1"},
        {"also": ["-a"]},
        {"also": ["ä"]},
        {"name": ""},
        {"name": "a\nb"},
        {"name": "x" * 65},
    ],
    ids=str,
)
def test_what_cannot_be_founded_leaves_nothing(tmp_path, wrong):
    with pytest.raises(UsageError):
        founding.found(tmp_path / "f", **({"name": "three", "address": "a.b:1"} | wrong))
    assert os.listdir(tmp_path) == []


def test_a_federation_is_not_founded_over_another(houses):
    before = (houses.coordinator / ISSUER).read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        founding.found(houses.coordinator, name="three", address="a.b:1")
    assert (houses.coordinator / ISSUER).read_bytes() == before


def test_the_own_certificate_is_renewed_when_it_is_due(houses):
    folder, clock = houses.coordinator, houses.clock
    before = read_member(own(folder))
    assert not founding.refresh(folder, now=clock)
    clock.ahead = timedelta(days=59)
    assert not founding.refresh(folder, now=clock)
    clock.ahead = timedelta(days=61)
    assert founding.refresh(folder, now=clock)
    after = read_member(own(folder))
    assert after.identity == before.identity
    assert after.expires > before.expires + timedelta(days=60)
    assert not founding.refresh(folder, now=clock)


def test_new_hosts_are_taken_up(houses):
    path = houses.coordinator / "federation.toml"
    path.write_text(path.read_text().replace('"localhost"', '"train.example.org"'))
    assert founding.refresh(houses.coordinator, force=True)
    certificate, authority = houses.coordinator / TLS, houses.coordinator / AUTHORITY
    done = openssl("verify", "-CAfile", authority, "-verify_hostname", "train.example.org", certificate)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("host", ["::1", "10.0.0.7", "localhost", "a-b.example.org"])
def test_hosts_that_can_be(tmp_path, host):
    founding.found(tmp_path / "f", name="three", address="a.b:1", also=[host])
    check = "-verify_ip" if host[0] in ":1" else "-verify_hostname"
    done = openssl("verify", "-CAfile", tmp_path / "f" / AUTHORITY, check, host, tmp_path / "f" / TLS)
    assert done.returncode == 0, done.stderr


def test_derived_files_come_back(houses):
    for name in (AUTHORITY, REVOKED):
        before = (houses.coordinator / name).read_bytes()
        (houses.coordinator / name).unlink()
        founding.refresh(houses.coordinator)
        assert (houses.coordinator / name).exists()
        assert name == REVOKED or (houses.coordinator / name).read_bytes() == before


def test_the_authority_changes_while_members_go_on(houses):
    """Before, between and after, everybody's chain holds, by OpenSSL; the old authority goes when all have renewed."""
    north = houses.member("north")
    (old,) = trusted(houses.coordinator)
    with pytest.raises(UsageError, match="rotate first"):
        founding.retire(houses.coordinator)
    founding.rotate(houses.coordinator)
    new, still = trusted(houses.coordinator)
    assert still == old
    with pytest.raises(UsageError, match="rotate --finish"):
        founding.rotate(houses.coordinator)

    def holds(certificate, authority, *options):
        files = ["-CAfile", authority / AUTHORITY, "-untrusted", certificate / TLS]
        return openssl("verify", "-x509_strict", *files, *options, certificate / TLS).returncode == 0

    assert issued_by(own(houses.coordinator), new)
    assert holds(houses.coordinator, north, "-purpose", "sslserver")  # the member knows the old authority alone
    assert holds(north, houses.coordinator, "-purpose", "sslclient")  # and shows a certificate by it
    houses.registrar.admit(membership.own(north))
    with pytest.raises(UsageError, match="not yet: north"):
        founding.retire(houses.coordinator)

    south = houses.member("south")  # invited in between
    assert trusted(south) == (new, old)
    membership.renew(north, houses.registrar.answer)
    assert trusted(north) == (new, old)
    founding.retire(houses.coordinator)
    assert trusted(houses.coordinator) == (new,)
    for folder in (north, south):
        assert holds(folder, houses.coordinator, "-purpose", "sslclient")
        assert holds(houses.coordinator, folder, "-purpose", "sslserver")
        houses.registrar.admit(membership.own(folder))
        membership.renew(folder, houses.registrar.answer)
        assert trusted(folder) == (new,)


def test_the_authority_changes_twice(houses):
    north = houses.member("north")
    for _ in range(2):
        founding.rotate(houses.coordinator)
        membership.renew(north, houses.registrar.answer)
        founding.retire(houses.coordinator)
    houses.registrar.admit(membership.own(north))


def test_a_revoked_member_does_not_hold_up_the_change(houses):
    houses.member("north")
    founding.rotate(houses.coordinator)
    houses.registrar.revoke("north")
    founding.retire(houses.coordinator)


def test_a_folder_that_was_damaged_is_refused(tmp_path):
    houses = Houses(tmp_path, clock=Clock())
    other = Houses(tmp_path / "other") if (tmp_path / "other").mkdir() is None else None
    issuer = houses.coordinator / ISSUER
    key = issuer.read_bytes().partition(b"-----BEGIN CERT")[0]
    issuer.write_bytes(key + (other.coordinator / ISSUER).read_bytes().partition(b"-----END PRIVATE KEY-----\n")[2])
    with pytest.raises(UsageError, match="key and certificate of one authority"):
        founding.refresh(houses.coordinator)
    issuer.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        founding.refresh(houses.coordinator)
