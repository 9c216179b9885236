"""What each pair shares beyond X25519: a chain of secrets that starts from an ML-KEM-768 encapsulation.

Whoever records messages today can open what rests on X25519 alone with a quantum computer later. So at set-up the first
of each pair, in the cohort's order, encapsulates a secret to the second. It becomes the first link of a one-way chain
with one link per epoch, and the pair secret of an epoch comes from the X25519 secret and the link together: to get it,
both must be broken. The decapsulation key is forgotten when set-up ends and a link when its epoch does.

A ciphertext that somebody changed opens to a different secret without a complaint. So it travels with a confirmation,
which only the holders of both secrets of the pair can make: receivers need no signature, and who receives a wrong
one says whose it was.

Paper: FIPS 203; deriving from both secrets together, Giacon, Heuer and Poettering, PKC 2018.
"""

from __future__ import annotations

import hmac
from collections.abc import Generator, Mapping

import msgspec

from confide.crypto.keys import CIPHERTEXT_BYTES, KEY_BYTES, DecapsulationKey, derive, encapsulate, label
from confide.errors import Aborted, ProtocolError
from confide.ideal import Cohort
from confide.wire import Message, Step, decode, encode

ENCAPSULATE, FORWARD = "amortised/encapsulate", "amortised/forward"


class Encapsulated(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A secret on its way to one client: the ciphertext, and 32 bytes that show that its sender knows the secret."""

    ciphertext: bytes
    confirmation: bytes


class Encapsulations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All from one client by receiver, or all for one client by sender; in the cohort's order."""

    members: dict[str, Encapsulated]


def next_link(link: bytes) -> bytes:
    """Return the link of the epoch after that of `link`, 32 bytes; there is no way back."""
    return derive(link, label("confide amortised v1", "next link"))


def agree(
    me: str,
    cohort: Cohort,
    key: DecapsulationKey,
    peers: Mapping[str, bytes],
    agreed: Mapping[str, bytes],
    book_digest: bytes,
) -> Generator[Step, Mapping[str, Message], dict[str, bytes]]:
    """Return the first link with each other client of the cohort, after one exchange with the server.

    Args:
        me: one of the cohort's clients.
        cohort: in the order that says who encapsulates.
        key: of `me`, with its public half in the book.
        peers: the public ML-KEM keys in the book.
        agreed: the X25519 secrets of the first epoch.
        book_digest: of the book that everybody signed into.

    Raises:
        ProtocolError: a ciphertext is missing, or does not come from its sender unchanged; the text names it.
    """
    links: dict[str, bytes] = {}
    sent: dict[str, Encapsulated] = {}
    for peer in _after(cohort, me):
        ciphertext, secret = encapsulate(peers[peer])
        links[peer], confirmation = _opened(secret, agreed[peer], book_digest, me, peer, ciphertext)
        sent[peer] = Encapsulated(ciphertext, confirmation)
    hello = Message(me, cohort.server, ENCAPSULATE, encode(Encapsulations(sent)))
    received = yield Step(send=(hello,), await_tag=FORWARD, wait_for=(cohort.server,))
    for peer, one in _read(received[cohort.server].body, cohort, _before(cohort, me)).items():
        secret = key.decapsulate(one.ciphertext)
        links[peer], confirmation = _opened(secret, agreed[peer], book_digest, peer, me, one.ciphertext)
        if not hmac.compare_digest(confirmation, one.confirmation):
            raise ProtocolError(
                f"Expected an ML-KEM ciphertext that {peer} confirms; set up again, and if it stays so, ask whether "
                f"{peer} or the server is at fault"
            )
    return links


def forward(cohort: Cohort, send: tuple[Message, ...]) -> Generator[Step, Mapping[str, Message], tuple[Message, ...]]:
    """Send what the server has to send, collect everybody's ciphertexts and return the messages that pass them on.

    Raises:
        Aborted: a client sent no well-formed ciphertexts; the text names it.
    """
    received = yield Step(send=send, await_tag=ENCAPSULATE, wait_for=cohort.clients)
    found: dict[str, dict[str, Encapsulated]] = {name: {} for name in cohort.clients}
    for sender in cohort.clients:
        try:
            members = _read(received[sender].body, cohort, _after(cohort, sender))
        except ProtocolError as error:
            raise Aborted(f"{error}; set {sender} up again, it sent no such ciphertexts") from None
        for receiver, one in members.items():
            found[receiver][sender] = one
    return tuple(
        Message(cohort.server, name, FORWARD, encode(Encapsulations(members))) for name, members in found.items()
    )


def _after(cohort: Cohort, name: str) -> tuple[str, ...]:
    return cohort.clients[cohort.clients.index(name) + 1 :]


def _before(cohort: Cohort, name: str) -> tuple[str, ...]:
    return cohort.clients[: cohort.clients.index(name)]


def _read(body: bytes, cohort: Cohort, names: tuple[str, ...]) -> Mapping[str, Encapsulated]:
    limit = 64 + sum(len(name.encode()) + CIPHERTEXT_BYTES + KEY_BYTES + 32 for name in cohort.clients)
    members = decode(body, Encapsulations, max_bytes=limit).members
    sizes = {(len(one.ciphertext), len(one.confirmation)) for one in members.values()}
    if tuple(members) != names or not sizes <= {(CIPHERTEXT_BYTES, KEY_BYTES)}:
        raise ProtocolError("Expected one ML-KEM ciphertext for each pair, from the first of it to the second")
    return members


def _opened(
    secret: bytes, agreed: bytes, book_digest: bytes, sender: str, receiver: str, ciphertext: bytes
) -> tuple[bytes, bytes]:
    """Return the first link, which hangs on the ML-KEM secret alone, and the confirmation, which hangs on both."""
    terms = (book_digest, sender, receiver, ciphertext)
    link = derive(secret, label("confide amortised v1", "first link", *terms))
    return link, derive(agreed + secret, label("confide amortised v1", "confirmation", *terms))
