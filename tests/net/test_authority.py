"""Who issues, judged by OpenSSL's `verify` and by attacks on the change of authority."""

from datetime import UTC, datetime, timedelta

import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError, UsageError
from confide.net.authority import Authority, check_authorities, issued_by, self_signed
from confide.net.certificates import TlsKey, read_member, to_pem
from net.federations import openssl

RNG = SeededRandomness("authority")


def now():
    return datetime.now(UTC)


def certificate(authority, name="north", role="node", **options):
    key = TlsKey.draw(RNG).public
    return authority.issue(name, role, identity=bytes(32), key=key, rng=RNG, now=now(), **options)


@pytest.fixture
def old():
    return Authority.create("three", RNG, now=now())


def verdict(tmp_path, der, trusted, *options, beside=()):
    """What OpenSSL says of a certificate, strictly."""
    (tmp_path / "c.pem").write_bytes(to_pem([der]))
    (tmp_path / "ca.pem").write_bytes(to_pem(trusted))
    (tmp_path / "beside.pem").write_bytes(to_pem(beside))
    files = ["-CAfile", tmp_path / "ca.pem", *(["-untrusted", tmp_path / "beside.pem"] if beside else [])]
    done = openssl("verify", "-x509_strict", *files, *options, tmp_path / "c.pem")
    return "" if done.returncode == 0 else done.stderr


def test_members_are_clients_and_the_coordinator_is_a_server(tmp_path, old):
    member, server = (
        certificate(old),
        certificate(old, "server", "coordinator", hosts=["train.example.org", "10.0.0.7"]),
    )
    trusted = [old.certificate]
    assert not verdict(tmp_path, member, trusted, "-purpose", "sslclient")
    assert "purpose" in verdict(tmp_path, member, trusted, "-purpose", "sslserver")
    server_use = ("-purpose", "sslserver", "-verify_hostname", "train.example.org")
    assert not verdict(tmp_path, server, trusted, *server_use)
    assert not verdict(tmp_path, server, trusted, "-verify_ip", "10.0.0.7")
    assert verdict(tmp_path, server, trusted, "-verify_hostname", "other.example.org")
    assert "purpose" in verdict(tmp_path, server, trusted, "-purpose", "sslclient")


def test_another_authority_of_the_same_name_is_another(tmp_path, old):
    twin = Authority.create("three", RNG, now=now())
    assert verdict(tmp_path, certificate(twin), [old.certificate])
    assert issued_by(certificate(twin), twin.certificate)
    assert not issued_by(certificate(twin), old.certificate)


def test_a_member_cannot_issue(tmp_path, old):
    """A certificate signed with a member's key does not pass, though its chain ends at the authority."""
    key = TlsKey.draw(RNG)
    member = old.issue("north", "node", identity=bytes(32), key=key.public, rng=RNG, now=now())
    forged = certificate(Authority(key, member), "server", "coordinator", hosts=["localhost"])
    assert verdict(tmp_path, forged, [old.certificate], beside=[member])


def test_who_knows_the_old_authority_accepts_the_successor(tmp_path, old):
    new = Authority.create("three", RNG, now=now())
    endorsement = old.endorse(new, RNG, now=now())
    later = certificate(new, "server", "coordinator", hosts=["localhost"])
    assert verdict(tmp_path, later, [old.certificate])  # without the endorsement it does not pass
    assert not verdict(tmp_path, later, [old.certificate], beside=[endorsement])
    assert not verdict(tmp_path, later, [new.certificate, old.certificate], beside=[endorsement])
    assert not verdict(tmp_path, later, [new.certificate], beside=[endorsement])
    assert self_signed(new.certificate)
    assert not self_signed(endorsement)


def test_an_endorsed_successor_cannot_be_followed_twice(tmp_path, old):
    """A path of two endorsements is refused: who missed two changes of authority is invited anew."""
    second, third = (Authority.create("three", RNG, now=now()) for _ in range(2))
    beside = [old.endorse(second, RNG, now=now()), second.endorse(third, RNG, now=now())]
    assert verdict(tmp_path, certificate(third), [old.certificate], beside=beside)


def test_a_list_of_authorities_grows_by_endorsement_only(old):
    new, stranger = (Authority.create("three", RNG, now=now()) for _ in range(2))
    endorsement = old.endorse(new, RNG, now=now())
    trusted = [old.certificate]
    check_authorities(trusted, trusted, [])
    check_authorities(trusted, [new.certificate, old.certificate], [endorsement])
    check_authorities(trusted, [new.certificate], [endorsement])
    refused = [
        ([], []),
        ([new.certificate], []),
        ([stranger.certificate, old.certificate], [endorsement]),
        ([stranger.certificate], [stranger.endorse(stranger, RNG, now=now())]),
        ([endorsement], [endorsement]),
        ([certificate(old)], []),
        ([b"none"], []),
    ]
    for offered, endorsements in refused:
        with pytest.raises(ProtocolError):
            check_authorities(trusted, offered, endorsements)


def test_a_key_under_the_name_of_the_successor_is_not_endorsed(old):
    """An endorsement is for name and key together: neither alone lets a stranger in."""
    new = Authority.create("three", RNG, now=now())
    imposter = Authority.create("other", RNG, now=now())
    with pytest.raises(ProtocolError):
        check_authorities([old.certificate], [imposter.certificate], [old.endorse(new, RNG, now=now())])


def test_a_revocation_list_is_what_openssl_checks(tmp_path, old):
    gone, stays = certificate(old), certificate(old, "south")
    serials = [read_member(gone).serial]
    body = old.revocation_list(serials, now=now())
    (tmp_path / "crl.pem").write_bytes(body)
    checked = ("-crl_check", "-CRLfile", tmp_path / "crl.pem")
    assert "certificate revoked" in verdict(tmp_path, gone, [old.certificate], *checked)
    assert not verdict(tmp_path, stays, [old.certificate], *checked)
    assert old.wrote_list(body, serials)
    assert not old.wrote_list(body, [])
    assert not old.wrote_list(b"", serials)
    assert not Authority.create("three", RNG, now=now()).wrote_list(body, serials)


def test_nothing_outlives_the_authority():
    begin = now()
    short = Authority.create("three", RNG, now=begin, days=30)
    key = TlsKey.draw(RNG).public
    der = short.issue("north", "node", identity=bytes(32), key=key, rng=RNG, now=begin)
    assert read_member(der).expires <= begin + timedelta(days=30)
    for wrong in (begin + timedelta(days=31), begin - timedelta(days=2)):
        with pytest.raises(UsageError, match="Expected an authority that is valid"):
            short.issue("north", "node", identity=bytes(32), key=key, rng=RNG, now=wrong)
