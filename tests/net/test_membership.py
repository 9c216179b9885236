"""A member's folder: answers that are not for it are refused, and a process killed anywhere leaves it usable."""

import subprocess
import sys
from datetime import timedelta

import msgspec
import pytest

from confide.crypto.keys import SigningKey
from confide.errors import ProtocolError, UsageError
from confide.net import founding, membership
from confide.net.certificates import from_pem
from confide.net.enrolment import Granted, read_answer
from confide.net.folders import AUTHORITY, MEMBER, PENDING, TLS, identity_seed
from confide.wire import encode
from net.federations import Houses


@pytest.fixture
def houses(tmp_path):
    return Houses(tmp_path)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_says_whose_it_is(houses):
    invitation = houses.invited("north", "helper")
    folder = houses.root / "north"
    member = membership.join(folder, invitation, houses.registrar.answer)
    said = membership.membership(folder)
    assert (said.federation, said.coordinator, said.name, said.role) == (
        *("three", "wss://127.0.0.1:8443"),
        *("north", "helper"),
    )
    assert said.coordinator_identity == SigningKey(identity_seed(houses.coordinator)).public.hex()
    assert membership.own(folder) == member
    assert member.identity == SigningKey(identity_seed(folder)).public
    assert membership.trusted(folder) == membership.trusted(houses.coordinator)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {"tls.pem": 0o600, "identity.pem": 0o600, "authority.pem": 0o644, "member.toml": 0o644}


def test_no_two_members_share_a_secret(houses):
    one, other = (contents(houses.member(name)) for name in ("north", "south"))
    for name in ("tls.pem", "identity.pem"):
        assert one[name] != other[name]


def test_nothing_secret_leaves(houses):
    """Neither request holds the TLS key, the identity or the invitation's secret."""
    folder, sent = houses.root / "north", []
    invitation = houses.invited("north")

    def ask(body):
        sent.append(body)
        return houses.registrar.answer(body)

    membership.join(folder, invitation, ask)
    membership.renew(folder, ask)
    secrets = [identity_seed(folder), invitation.secret]
    assert len(sent) == 2
    assert not any(secret in body for secret in secrets for body in sent)


def test_the_same_request_until_it_is_answered(houses):
    folder, invitation = houses.root / "north", houses.invited("north")
    body = membership.begin_join(folder, invitation)
    assert membership.begin_join(folder, invitation) == body
    other = houses.invited("north")
    assert membership.begin_join(folder, other) != body  # a new invitation begins afresh, with a new identity
    with pytest.raises(UsageError, match="run confide federation join again"):
        membership.membership(folder)
    membership.join(folder, other, houses.registrar.answer)
    body = membership.begin_renewal(folder)
    assert membership.begin_renewal(folder) == body
    later = houses.clock() + timedelta(days=16)
    assert membership.begin_renewal(folder, now=lambda: later) != body


def test_join_spares_what_is_there(houses):
    north = houses.member("north")
    before = contents(north)
    with pytest.raises(UsageError, match="is that of north"):
        membership.begin_join(north, houses.invited("south"))
    with pytest.raises(UsageError, match="is there already"):
        membership.begin_join(houses.coordinator, houses.invited("south"))
    assert contents(north) == before


def test_an_expired_invitation_makes_no_folder(houses):
    invitation = houses.invited("north", valid_hours=1)
    houses.clock.ahead = timedelta(hours=2)
    with pytest.raises(UsageError, match="has expired; ask the coordinator"):
        membership.begin_join(houses.root / "north", invitation, now=houses.clock)
    assert not (houses.root / "north").exists()


def answers_for_others(houses, request):
    """Answers that the coordinator never gave to this request, each with what should be said about it."""
    granted = read_answer(houses.registrar.answer(request))
    strange = Houses(houses.root / "strange")
    other = read_answer(strange.registrar.answer(membership.begin_join(strange.root / "x", strange.invited("north"))))
    south = from_pem((houses.member("south") / TLS).read_bytes(), "")[0]
    yield encode(msgspec.structs.replace(granted, certificate=south)), "for other keys"
    yield encode(msgspec.structs.replace(granted, certificate=granted.authorities[0])), "name, role and identity"
    yield encode(msgspec.structs.replace(granted, authorities=())), "known authority endorsed"
    yield encode(msgspec.structs.replace(granted, authorities=other.authorities)), "known authority endorsed"
    yield (
        encode(msgspec.structs.replace(granted, authorities=(*granted.authorities, *other.authorities))),
        "known authority endorsed",
    )
    yield encode(other), "for other keys"
    yield b"", "well-formed answer"


def test_answers_that_are_not_for_it_change_nothing(houses):
    (houses.root / "strange").mkdir()
    folder = houses.root / "north"
    request = membership.begin_join(folder, houses.invited("north"))
    before = contents(folder)
    for answer, said in answers_for_others(houses, request):
        with pytest.raises(ProtocolError, match=said):
            membership.complete(folder, answer)
        assert contents(folder) == before
    membership.complete(folder, houses.registrar.answer(request))


def test_a_certificate_for_another_name_or_role_is_refused(houses):
    """A coordinator that lies about what was agreed is noticed."""
    from confide.net.registry import Issuer

    folder = houses.root / "north"
    request = membership.begin_join(folder, houses.invited("north"))
    granted = read_answer(houses.registrar.answer(request))
    from cryptography import x509

    key = x509.load_der_x509_certificate(granted.certificate).public_key()
    authority = Issuer.load(houses.coordinator).authority
    pending = membership._pending(folder)
    identity = SigningKey(pending.identity_seed).public
    for name, role in (("north", "analyst"), ("south", "node")):
        lie = authority.issue(
            name, role, identity=identity, key=key, rng=membership.SystemRandomness(), now=houses.clock()
        )
        with pytest.raises(ProtocolError, match="Expected a certificate for north as node"):
            membership.complete(folder, encode(Granted(lie, granted.authorities, ())))
    strange = founding.Authority.create("three", membership.SystemRandomness(), now=houses.clock())
    lie = strange.issue(
        "north", "node", identity=identity, key=key, rng=membership.SystemRandomness(), now=houses.clock()
    )
    with pytest.raises(ProtocolError, match="by the federation's authority"):
        membership.complete(folder, encode(Granted(lie, granted.authorities, ())))


def test_a_wrong_clock_is_told_and_nothing_is_lost(houses):
    """A day late is within the margin; two days late is said, and works once the clock is right."""
    folder, invitation = houses.root / "north", houses.invited("north")
    request = membership.begin_join(folder, invitation)
    answer = houses.registrar.answer(request)
    late = houses.clock() - timedelta(days=2)
    with pytest.raises(UsageError, match="not yet valid, .* check this machine's clock, which says"):
        membership.complete(folder, answer, now=lambda: late)
    membership.complete(folder, answer, now=lambda: houses.clock() - timedelta(hours=23))


def test_nothing_pending_nothing_complete(houses):
    north = houses.member("north")
    with pytest.raises(UsageError, match="Expected a pending request"):
        membership.complete(north, b"")
    (north / PENDING).write_bytes(b"none")
    (north / PENDING).chmod(0o600)
    with pytest.raises(UsageError, match="remove that file"):
        membership.begin_renewal(north)


def test_damaged_folders_are_told(houses, tmp_path):
    north = houses.member("north")
    assert not membership.renewal_due(north)
    assert membership.renewal_due(north, now=lambda: houses.clock() + timedelta(days=61))
    (north / TLS).write_bytes((north / AUTHORITY).read_bytes())
    with pytest.raises(UsageError, match="certificate of confide"):
        membership.own(north)
    (north / TLS).write_bytes(b"")
    with pytest.raises(UsageError, match="Expected certificates"):
        membership.own(north)
    (north / MEMBER).write_text("name = 1")
    with pytest.raises(UsageError, match=r"Expected .*member.toml to hold federation, coordinator, name"):
        membership.membership(north)
    with pytest.raises(UsageError, match="confide federation init makes"):
        membership.membership(tmp_path / "absent")


#: Forks a child for each point at which something becomes durable, kills it there, and looks whether all can go on.
KILLED = """
import os, shutil, sys
from pathlib import Path
from confide.net import founding, membership
from confide.net.enrolment import Invitation
from confide.net.registrar import Registrar
from confide.net.contexts import client_context, server_context

root, what = Path(sys.argv[1]), sys.argv[2]
coordinator, north = root / "coordinator", root / "north"
invitation = Invitation.parse((root / "invitation").read_text()) if what != "found" else None

def found(): founding.found(coordinator, name="three", address="a.b:1")
def join(): membership.join(north, invitation, Registrar(coordinator).answer)
def renew(): membership.renew(north, Registrar(coordinator).answer)
def rotate(): founding.rotate(coordinator)
def retire(): founding.retire(coordinator)
def revoke(): Registrar(coordinator).revoke("north")
act = globals()[what]

def killed_at(point, after):
    child = os.fork()
    if child == 0:
        count = 0
        def guarded(real):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == point and not after: os._exit(9)
                real(*arguments, **options)
                if count == point and after: os._exit(9)
            return call
        for name in ("replace", "rename", "unlink"):
            setattr(os, name, guarded(getattr(os, name)))
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for after in (False, True):
    for point in range(1, 30):
        shutil.rmtree(root / "saved", ignore_errors=True)
        shutil.copytree(coordinator, root / "saved") if coordinator.exists() else None
        shutil.copytree(north, root / "saved-north", dirs_exist_ok=True) if north.exists() else None
        code = killed_at(point, after)
        print(what, "after" if after else "before", point, code)
        assert code in (0, 9), code
        if what == "found":
            if coordinator.exists(): server_context(coordinator)
            else: found()
        elif what in ("join", "renew"):
            Registrar(coordinator)
            act() if not (north / "member.toml").exists() or what == "renew" else None
            client_context(north)
            Registrar(coordinator).admit(membership.own(north))
            assert len(Registrar(coordinator).members()) == 1
        elif what in ("rotate", "retire"):
            founding.refresh(coordinator)
            server_context(coordinator)
            issuer = founding.Issuer.load(coordinator)
            assert membership.trusted(coordinator) == issuer.trusted
            assert founding.issued_by(membership.own_certificate(coordinator), issuer.trusted[0])
            Registrar(coordinator).admit(membership.own(north))
        else:
            one, = Registrar(coordinator).members()
            founding.refresh(coordinator)
            revoked = founding.Issuer.load(coordinator).authority.wrote_list(
                (coordinator / "revoked.pem").read_bytes(), [membership.own(north).serial] if one.revoked else [])
            assert revoked
        for folder, saved in ((coordinator, root / "saved"), (north, root / "saved-north")):
            shutil.rmtree(folder, ignore_errors=True)
            if saved.exists(): os.rename(saved, folder)
        if code == 0: break
    assert point > 1
"""


@pytest.mark.parametrize("what", ["found", "join", "renew", "rotate", "retire", "revoke"])
def test_a_process_killed_anywhere_leaves_nothing_half_done(tmp_path, what):
    if what != "found":
        houses = Houses(tmp_path)
        (tmp_path / "invitation").write_text(houses.invited("north").text())
        if what != "join":
            houses.member("north")
        if what == "retire":
            founding.rotate(houses.coordinator)
            membership.renew(tmp_path / "north", houses.registrar.answer)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), what], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{what} after 1 9" in done.stdout  # it was killed, and more than once
