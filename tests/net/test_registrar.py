"""Who gets a certificate, who is let in, and that two processes at once change nothing about it."""

import subprocess
import sys
from datetime import timedelta

import pytest

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.errors import ProtocolError, UsageError
from confide.net import membership
from confide.net.certificates import TlsKey, read_member
from confide.net.enrolment import enrolment, read_answer, renewal
from confide.net.folders import ISSUER, REGISTRY, REVOKED, TLS, identity_seed
from confide.net.registrar import Registrar
from confide.net.registry import load_registry
from net.federations import Houses, openssl


@pytest.fixture
def houses(tmp_path):
    return Houses(tmp_path)


def request(invitation, **changed):
    """A request of somebody who did not use our folders."""
    identity = SigningKey(changed.get("seed", bytes(range(32))))
    name, role = changed.get("name", invitation.name), changed.get("role", invitation.role)
    csr = changed.get("csr") or TlsKey.draw(membership.SystemRandomness()).request(name)
    return enrolment(name, role, csr, identity, changed.get("key", invitation.key))


def certificate_in(answer):
    return read_member(read_answer(answer).certificate)


def test_an_invitation_makes_a_member(houses):
    invitation = houses.invited("north", "analyst")
    member = certificate_in(houses.registrar.answer(request(invitation)))
    assert (member.name, member.role) == ("north", "analyst")
    assert member.identity == SigningKey(bytes(range(32))).public
    houses.registrar.admit(member)
    assert houses.registrar.invitations() == ()


def test_the_secret_is_not_kept(houses):
    invitation = houses.invited("north")
    for path in houses.coordinator.iterdir():
        body = path.read_bytes()
        assert invitation.secret not in body
        assert invitation.secret.hex().encode() not in body


def test_an_invitation_is_used_once(houses):
    """The same request gets the same certificate however often it comes; any other is refused."""
    invitation = houses.invited("north")
    first = request(invitation)
    answer = houses.registrar.answer(first)
    assert houses.registrar.answer(first) == answer
    for other in (request(invitation), request(invitation, seed=bytes(32))):
        with pytest.raises(ProtocolError, match="this one was used"):
            houses.registrar.answer(other)
    assert len(houses.registrar.members()) == 1


def test_a_used_invitation_says_nothing_after_the_revocation(houses):
    invitation = houses.invited("north")
    first = request(invitation)
    houses.registrar.answer(first)
    houses.registrar.revoke("north")
    with pytest.raises(ProtocolError, match="this one was used"):
        houses.registrar.answer(first)


def test_an_invitation_expires(houses):
    invitation = houses.invited("north", valid_hours=1)
    houses.clock.ahead = timedelta(hours=1, seconds=2)
    with pytest.raises(ProtocolError, match="this one expired on"):
        houses.registrar.answer(request(invitation))
    assert houses.registrar.invitations() == ()
    assert houses.registrar.members() == ()


def test_a_lost_answer_is_given_after_the_invitation_expired(houses):
    invitation = houses.invited("north", valid_hours=1)
    first = request(invitation)
    answer = houses.registrar.answer(first)
    houses.clock.ahead = timedelta(days=10)
    assert houses.registrar.answer(first) == answer


@pytest.mark.parametrize("changed", [{"name": "south"}, {"role": "helper"}, {"key": SigningKey(bytes(32))}], ids=str)
def test_a_request_for_something_else_is_refused_and_uses_nothing_up(houses, changed):
    invitation = houses.invited("north")
    with pytest.raises(ProtocolError):
        houses.registrar.answer(request(invitation, **changed))
    houses.registrar.answer(request(invitation))


def test_a_csr_for_another_name_is_refused(houses):
    invitation = houses.invited("north")
    csr = TlsKey.draw(membership.SystemRandomness()).request("south")
    with pytest.raises(ProtocolError, match="for the name that was invited"):
        houses.registrar.answer(request(invitation, csr=csr))


def test_a_new_invitation_replaces_an_open_one(houses):
    first, second = houses.invited("north"), houses.invited("north")
    with pytest.raises(ProtocolError, match="withdrawn or replaced"):
        houses.registrar.answer(request(first))
    houses.registrar.answer(request(second))


def test_names_and_identities_are_unique(houses):
    one, other = houses.invited("north"), houses.invited("south")
    houses.registrar.answer(request(one))
    with pytest.raises(ProtocolError, match="identity that was never"):
        houses.registrar.answer(request(other))
    for name in ("north", "NORTH"):
        with pytest.raises(UsageError, match="north is a member"):
            houses.invited(name)


def test_two_invitations_for_one_name_make_one_member(houses):
    """Names that differ in case alone: the second to come is refused."""
    one, other = houses.invited("north"), houses.invited("North")
    houses.registrar.answer(request(one))
    with pytest.raises(ProtocolError, match="is a member"):
        houses.registrar.answer(request(other, seed=bytes(32)))


@pytest.mark.parametrize(
    "wrong", [{"name": "server"}, {"name": "a b"}, {"role": "coordinator"}, {"valid_hours": 0}, {"valid_hours": 1e6}]
)
def test_what_cannot_be_invited(houses, wrong):
    with pytest.raises(UsageError):
        houses.registrar.invite(**({"name": "north"} | wrong))
    assert load_registry(houses.coordinator).invitations == ()


# --- revocation -------------------------------------------------------------------------------------------------------


def test_a_revoked_member_is_out_for_ever(houses):
    """Its certificate, its renewal, its identity under another name: nothing is let in; the name itself is free."""
    north = houses.member("north")
    member, seed = membership.own(north), identity_seed(north)
    houses.registrar.admit(member)
    assert houses.registrar.revoke("north").revoked is not None
    with pytest.raises(ProtocolError, match="north was revoked on"):
        houses.registrar.admit(member)
    with pytest.raises(ProtocolError, match="north was revoked on"):
        membership.renew(north, houses.registrar.answer)
    with pytest.raises(ProtocolError, match="identity that was never"):
        houses.registrar.answer(request(houses.invited("east"), seed=seed))
    fresh = certificate_in(houses.registrar.answer(request(houses.invited("north"))))
    houses.registrar.admit(fresh)
    with pytest.raises(ProtocolError, match="revoked"):
        houses.registrar.admit(member)
    done = openssl(
        *("verify", "-crl_check", "-CRLfile", houses.coordinator / REVOKED),
        *("-CAfile", houses.coordinator / "authority.pem", north / TLS),
    )
    assert "certificate revoked" in done.stderr


def test_an_invitation_is_withdrawn(houses):
    invitation = houses.invited("north")
    assert houses.registrar.revoke("north") is None
    with pytest.raises(ProtocolError, match="withdrawn"):
        houses.registrar.answer(request(invitation))
    with pytest.raises(UsageError, match='"north" is neither|neither'):
        houses.registrar.revoke("north")


def test_a_wrong_name_is_not_revoked(houses):
    houses.member("north")
    with pytest.raises(UsageError, match='did you mean "north"'):
        houses.registrar.revoke("nort")


def test_another_process_is_noticed(houses):
    """A coordinator that runs hears of a revocation that another process made, at its next question."""
    member = membership.own(houses.member("north"))
    houses.registrar.admit(member)
    Registrar(houses.coordinator).revoke("north")
    with pytest.raises(ProtocolError, match="revoked"):
        houses.registrar.admit(member)


def test_a_certificate_of_a_stolen_authority_key_is_not_let_in(houses):
    """TLS would accept it; the registry does not know it."""
    from confide.net.registry import Issuer

    north = houses.member("north")
    own = membership.own(north)
    key = TlsKey.draw(membership.SystemRandomness())
    forged = Issuer.load(houses.coordinator).authority.issue(
        "north", "node", identity=own.identity, key=key.public, rng=membership.SystemRandomness(), now=houses.clock()
    )
    with pytest.raises(ProtocolError, match="this coordinator knows"):
        houses.registrar.admit(read_member(forged))
    houses.registrar.admit(own)


def test_a_refusal_is_a_line_or_nothing(houses):
    certificate = membership.own_certificate(houses.member("north"))
    assert houses.registrar.refusal(certificate) is None
    houses.registrar.revoke("north")
    assert "north was revoked" in houses.registrar.refusal(certificate)
    assert "name, role and identity" in houses.registrar.refusal(b"none")


def test_an_expired_member_is_not_let_in(houses):
    member = membership.own(houses.member("north"))
    houses.clock.ahead = timedelta(days=91)
    with pytest.raises(ProtocolError, match="expired on .*; run: confide federation renew"):
        houses.registrar.admit(member)


# --- renewal ----------------------------------------------------------------------------------------------------------


def test_a_renewal_keeps_the_identity_and_lets_both_certificates_in(houses):
    north = houses.member("north")
    old = membership.own(north)
    new = membership.renew(north, houses.registrar.answer)
    assert (new.name, new.role, new.identity) == (old.name, old.role, old.identity)
    assert new.fingerprint != old.fingerprint
    for member in (old, new):  # the connection that is open goes on
        houses.registrar.admit(member)


def test_an_expired_certificate_is_renewed(houses):
    north = houses.member("north")
    houses.clock.ahead = timedelta(days=400)
    member = membership.renew(north, houses.registrar.answer, now=houses.clock)
    houses.registrar.admit(member)


def test_an_old_request_cannot_be_brought_again(houses):
    """Who recorded a renewal gets the same certificate for a month, then nothing; the member's own stays let in."""
    north = houses.member("north")
    body = membership.begin_renewal(north, now=houses.clock)
    answer = houses.registrar.answer(body)
    membership.complete(north, answer, now=houses.clock)
    assert houses.registrar.answer(body) == answer
    assert len(load_registry(houses.coordinator).members[0].certificates) == 2
    houses.clock.ahead = timedelta(days=31)
    with pytest.raises(ProtocolError, match="within 30 days"):
        houses.registrar.answer(body)


def test_a_clock_that_is_far_off_is_told(houses):
    north = houses.member("north")
    with pytest.raises(ProtocolError, match="check both machines' clocks"):
        membership.renew(north, houses.registrar.answer, now=lambda: houses.clock() + timedelta(days=40))
    membership.renew(north, houses.registrar.answer)  # mended


def test_many_renewals_forget_the_oldest_but_not_the_one_in_use(houses):
    north = houses.member("north")
    first = membership.own(north)
    seed, rng = identity_seed(north), membership.SystemRandomness()
    for _ in range(6):  # a member whose disk forgets each answer
        csr = TlsKey.draw(rng).request("north")
        body = renewal("north", csr, bytes.fromhex(first.fingerprint), SigningKey(seed), made=houses.clock())
        houses.registrar.admit(certificate_in(houses.registrar.answer(body)))
    assert len(load_registry(houses.coordinator).members[0].certificates) == 4
    houses.registrar.admit(first)


def test_a_renewal_by_somebody_else_is_refused(houses):
    north, south = houses.member("north"), houses.member("south")
    rng = membership.SystemRandomness()
    held = bytes.fromhex(membership.own(north).fingerprint)
    csr = TlsKey.draw(rng).request("north")
    for seed in (identity_seed(south), bytes(32)):
        with pytest.raises(ProtocolError, match="signed by the member's identity"):
            houses.registrar.answer(renewal("north", csr, held, SigningKey(seed), made=houses.clock()))
    body = renewal("north", csr, bytes(32), SigningKey(identity_seed(north)), made=houses.clock())
    with pytest.raises(ProtocolError, match="that this coordinator issued"):
        houses.registrar.answer(body)


# --- what others build on ---------------------------------------------------------------------------------------------


def test_the_roster_is_that_of_the_nodes(houses):
    for name, role in (
        ("south", "node"),
        ("north", "node"),
        ("keeper", "helper"),
        ("ana", "analyst"),
        ("gone", "node"),
    ):
        houses.member(name, role)
    houses.registrar.revoke("gone")
    roster = Roster(houses.registrar.roster())
    assert list(roster.keys()) == ["north", "south"]
    for name in ("north", "south"):
        assert roster.keys()[name] == SigningKey(identity_seed(houses.root / name)).public
    assert [name for name, _ in houses.registrar.roster(("node", "helper"))] == ["keeper", "north", "south"]


def test_a_reply_says_no_in_a_body(houses):
    invitation = houses.invited("north")
    houses.registrar.revoke("north")
    with pytest.raises(ProtocolError, match="The coordinator refused: .* withdrawn"):
        read_answer(houses.registrar.reply(request(invitation)))


def test_the_operators_troubles_are_not_told_to_strangers(houses, monkeypatch):
    """A full disk or a lost key: nothing is granted, the text names neither, and later the same request works."""
    invitation = houses.invited("north")
    body, registry = request(invitation), (houses.coordinator / REGISTRY).read_bytes()

    def full(path, body, **_):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("confide.net.folders.write_whole", full)
        with pytest.raises(ProtocolError, match=r"^The coordinator cannot issue certificates now; tell its operator$"):
            houses.registrar.answer(body)
    assert (houses.coordinator / REGISTRY).read_bytes() == registry
    (houses.coordinator / ISSUER).rename(houses.coordinator / "elsewhere")
    with pytest.raises(ProtocolError, match="cannot issue"):
        houses.registrar.answer(body)
    (houses.coordinator / "elsewhere").rename(houses.coordinator / ISSUER)
    houses.registrar.answer(body)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"format": 2}', b"\xff"])
def test_a_registry_that_is_none_is_refused(houses, body):
    (houses.coordinator / REGISTRY).write_bytes(body)
    if body == b"{}":  # everything has a default: an empty registry
        assert load_registry(houses.coordinator).members == ()
        return
    with pytest.raises(UsageError, match="registry of format 1"):
        load_registry(houses.coordinator)


def test_processes_take_turns(houses):
    """Eight processes: six invite, two bring different requests for one invitation. Nothing is lost, one wins."""
    wanted = houses.invited("wanted")
    (houses.root / "a").write_bytes(request(wanted, seed=bytes([1] * 32)))
    (houses.root / "b").write_bytes(request(wanted, seed=bytes([2] * 32)))
    script = """
import sys
from pathlib import Path
from confide.errors import ProtocolError
from confide.net.registrar import Registrar
folder, what = Path(sys.argv[1]), sys.argv[2]
registrar = Registrar(folder / "coordinator")
sys.stdin.read(1)  # all start together
if what.startswith("invite"):
    for number in range(10):
        registrar.invite(f"{what}-{number}")
else:
    try:
        registrar.answer((folder / what).read_bytes())
        sys.exit(10)
    except ProtocolError:
        sys.exit(11)
"""
    jobs = [f"invite{number}" for number in range(6)] + ["a", "b"]
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(houses.root), job], stdin=subprocess.PIPE) for job in jobs
    ]
    for process in running:
        process.stdin.write(b".")
        process.stdin.close()
    codes = [process.wait() for process in running]
    assert codes[:6] == [0] * 6
    assert sorted(codes[6:]) == [10, 11]
    names = {one.name for one in houses.registrar.invitations()}
    assert names == {f"invite{process}-{number}" for process in range(6) for number in range(10)}
    assert [one.name for one in houses.registrar.members()] == ["wanted"]
