"""Invitations as text, requests as bytes: what comes back, and that every change is noticed."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.keys import SigningKey
from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError, UsageError
from confide.net.authority import Authority
from confide.net.certificates import TlsKey, fingerprint
from confide.net.enrolment import (
    ENROL_TAG,
    LARGEST_BODY_BYTES,
    RENEW_TAG,
    Enrolment,
    Granted,
    Invitation,
    Refused,
    Renewal,
    armour,
    check_enrolment,
    check_renewal,
    enrolment,
    over,
    read_answer,
    read_asked,
    renewal,
    split_url,
    spoken,
    tag_of,
    unarmour,
)
from confide.net.exchange import Envelope
from confide.wire import Message, encode

RNG = SeededRandomness("enrolment")
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
AUTHORITY = Authority.create("Drei Häuser", RNG, now=NOW)
INVITATION = Invitation(
    "Drei Häuser",
    "wss://train.example.org:8443",
    "north",
    "node",
    NOW + timedelta(hours=72),
    (AUTHORITY.certificate,),
    bytes(range(32)),
    RNG.bytes(32),
)
IDENTITY = SigningKey(RNG.bytes(32))
CSR = TlsKey.draw(RNG).request("north")
ASKED = enrolment("north", "node", CSR, IDENTITY, INVITATION.key)
AGAIN = renewal("north", CSR, bytes(32), IDENTITY, made=NOW)


def test_an_invitation_comes_back_from_its_text():
    text = INVITATION.text()
    assert Invitation.parse(text) == INVITATION
    assert Invitation.parse(text.replace("\n", "\r\n")) == INVITATION
    assert INVITATION.fingerprint == fingerprint(AUTHORITY.certificate)
    assert spoken(INVITATION.fingerprint) in text
    assert INVITATION.secret.hex() not in repr(INVITATION)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("wss://", "ws://"),
        ('role = "node"', 'role = "coordinator"'),
        ('name = "north"', 'name = "../north"'),
        ("secret = ", "secret_ = "),
        ('secret = "', 'secret = "0'),
        ('identity = "', 'identity = "x'),
        ('authority = ["', 'authority = ["AAAA'),
        ('authority = ["', 'authority = []\n_ = ["'),
        ("+00:00", ""),
        ("federation = ", "more = 1\nfederation = "),
    ],
)
def test_an_invitation_that_is_damaged_is_refused(old, new):
    text = INVITATION.text()
    assert old in text
    with pytest.raises(UsageError) as caught:
        Invitation.parse(text.replace(old, new))
    assert INVITATION.secret.hex()[:16] not in str(caught.value)


@given(st.integers(0, 2000))
def test_an_invitation_that_is_cut_off_is_refused(length):
    text = INVITATION.text()
    with pytest.raises(UsageError):
        Invitation.parse(text[: min(length, len(text) - 2)])


@pytest.mark.parametrize(
    "url",
    ["", "wss://", "wss://a", "https://a:1", "wss://a:1/x", "wss://a:1?x", "wss://u@a:1", "wss://a:x", "wss://a:99999"],
)
def test_an_address_is_a_host_and_a_port(url):
    assert split_url(url) is None
    assert split_url("wss://[::1]:8443") == ("::1", 8443)
    assert split_url("wss://a.b:1") == ("a.b", 1)


def test_a_request_proves_invitation_and_identity():
    asked = read_asked(ASKED)
    assert isinstance(asked, Enrolment)
    check_enrolment(asked, "north", "node")
    assert tag_of(ASKED) == ENROL_TAG
    assert INVITATION.secret not in ASKED  # it may go by mail


@pytest.mark.parametrize(("name", "role"), [("south", "node"), ("north", "analyst"), ("northn", "ode")])
def test_a_request_is_for_one_name_and_role(name, role):
    with pytest.raises(ProtocolError, match="unchanged invitation"):
        check_enrolment(read_asked(ASKED), name, role)


def test_a_request_cannot_be_put_together_from_two():
    """Every field of another valid request, put into this one, is noticed."""
    stranger = SigningKey(RNG.bytes(32))
    other = read_asked(enrolment("north", "node", TlsKey.draw(RNG).request("north"), stranger, SigningKey(bytes(32))))
    asked = read_asked(ASKED)
    for field in Enrolment.__struct_fields__:
        mixed = msgspec.structs.replace(asked, **{field: getattr(other, field)})
        with pytest.raises(ProtocolError):
            check_enrolment(mixed, "north", "node")


def test_the_two_signatures_are_not_exchangeable():
    """Whoever holds the identity only cannot use its signature as the invitation's."""
    key = SigningKey(RNG.bytes(32))
    both = read_asked(enrolment("north", "node", CSR, key, key))
    with pytest.raises(ProtocolError):
        check_enrolment(msgspec.structs.replace(both, by_invitation=both.by_identity), "north", "node")


def test_a_renewal_proves_identity():
    asked = read_asked(AGAIN)
    assert isinstance(asked, Renewal)
    check_renewal(asked, IDENTITY.public)
    assert tag_of(AGAIN) == RENEW_TAG
    changed = {"name": "south", "csr": CSR + b"x", "replaces": bytes([1] * 32), "made": NOW + timedelta(seconds=1)}
    for field, value in changed.items():
        with pytest.raises(ProtocolError, match="signed by the member's identity"):
            check_renewal(msgspec.structs.replace(asked, **{field: value}), IDENTITY.public)
    with pytest.raises(ProtocolError):
        check_renewal(asked, SigningKey(bytes(32)).public)


@given(st.integers(0, 2000), st.integers(1, 255), st.sampled_from([ASKED, AGAIN]))
def test_a_request_with_any_byte_changed_is_refused(position, change, body):
    def check(body):
        asked = read_asked(body)
        if isinstance(asked, Enrolment):
            check_enrolment(asked, "north", "node")
        else:
            check_renewal(asked, IDENTITY.public)

    check(body)
    changed = bytearray(body)
    changed[position % len(body)] ^= change
    with pytest.raises(ProtocolError):
        check(bytes(changed))


@given(st.binary(max_size=300))
def test_bodies_that_are_no_request_and_no_answer_are_refused(body):
    with pytest.raises(ProtocolError):
        read_asked(body)
    with pytest.raises(ProtocolError):
        read_answer(body)


def test_large_bodies_are_not_parsed():
    with pytest.raises(ProtocolError, match="at most"):
        read_asked(bytes(LARGEST_BODY_BYTES + 1))
    with pytest.raises(ProtocolError):
        read_answer(encode(Granted(bytes(LARGEST_BODY_BYTES), (), ())))


def test_a_renewal_without_a_zone_is_refused():
    naive = msgspec.structs.replace(read_asked(AGAIN), made=NOW.replace(tzinfo=None))
    with pytest.raises(ProtocolError):
        read_asked(encode(naive))


def test_a_refusal_is_one_printable_line():
    with pytest.raises(ProtocolError, match="The coordinator refused: no way"):
        read_answer(encode(Refused("no\x1b[31m\n way".replace("[31m", ""))))
    granted = Granted(b"c", (b"a",), ())
    assert read_answer(encode(granted)) == granted


def test_a_request_travels_in_an_envelope_of_no_session():
    sent = []

    def receive():
        return Envelope("", Message("server", "north", ENROL_TAG, b"answer"))

    assert over(sent.append, receive, me="north")(ASKED) == b"answer"
    assert sent == [Envelope("", Message("north", "server", ENROL_TAG, ASKED))]


def test_armour_survives_a_mail():
    text = armour(ASKED, "REQUEST")
    mailed = b"Hello,\r\n> quoted\r\n" + text.replace(b"\n", b"\r\n") + b"\r\n-- \r\nNorth"
    assert unarmour(mailed, "REQUEST", "mail") == ASKED
    assert max(map(len, text.splitlines())) < 80
    for damaged in (b"", text[:100], text.replace(b"BEGIN", b"START"), text.replace(b"\nh", b"\n!", 1)):
        with pytest.raises(UsageError, match="Expected a whole CONFIDE REQUEST in mail"):
            unarmour(damaged, "REQUEST", "mail")
    with pytest.raises(UsageError):
        unarmour(text, "CERTIFICATE", "mail")
