"""Whose model a server says it serves: the owner's signature in a kit, checked by the client.

A model file begins with its statement: label, classes, link, metadata, and the hashes of the preprocessing and of the
graph, all under the owner's signature. A server shows it in the kit.

**Guarantees**: with a pinned signer, label, preprocessing, columns, classes and link are those of one model that its
holder signed; a server can neither change them nor exchange them between two models.

**What it does not cover**: the server can run other weights under a right statement: results are not verified. The
backend's parameters and the size limits are the server's own; the client checks them by itself. Of several models with
the same signer any can be shown; pin the `fingerprint` for one.

**Leaks**: the hash and the size of the weights. It shows nothing of parameters that cannot be guessed, and confirms a
guess of all of them.
"""

from __future__ import annotations

import hashlib

from confide.errors import IntegrityError, ModelError
from confide.guarantee import PrivacyLabel
from confide.model.artifact import Statement, decode_statement
from confide.serve.protocol import ClientKit

#: A statement as it has been checked against a kit.
Signed = Statement

_WHERE = "the statement in the server's kit"


def checked(kit: ClientKit, signer: bytes | None) -> Signed | None:
    """Return what the model's owner signed of a kit; None if the server shows no signature and none is asked for.

    Args:
        kit: from anybody.
        signer: the Ed25519 public key that must have signed; None takes any.

    Raises:
        IntegrityError: no signature, another signer, or the kit says something else than was signed.
    """
    if not kit.statement:
        if signer is not None:
            raise IntegrityError("Expected a kit with the signature of the pinned signer; this server shows none")
        return None
    try:
        found = decode_statement(kit.statement, trust=signer, where=_WHERE)
    except ModelError as error:
        raise IntegrityError(str(error)) from None
    if signer is not None and found.classes is None:
        raise IntegrityError("Expected a signature that covers the classes; the owner can sign the model again")
    differing = differences(found, kit.label, kit.preprocess, classes=kit.classes, outputs=kit.outputs, link=kit.link)
    if differing:
        raise IntegrityError(f"Expected the {', '.join(differing)} that the model's owner signed; the server's differ")
    return found


def differences(
    statement: Statement, label: PrivacyLabel, preprocess: bytes, *, classes: tuple[str, ...], outputs: int, link: str
) -> list[str]:
    """Return the names of what differs from a statement; what a file of an earlier format does not state is passed."""
    facts = {
        "label": statement.label == label,
        "preprocessing": hashlib.sha256(preprocess).digest() == statement.preprocess_sha256,
        "classes": statement.classes in (None, classes),
        "outputs": statement.outputs in (None, outputs),
        "link": statement.link in (None, link),
    }
    return [name for name, same in facts.items() if not same]
