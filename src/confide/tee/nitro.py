"""Evidence of AWS Nitro enclaves: a document that the hypervisor signs, with its certificates inside.

The code's 64 bytes of report data are its `user_data`. Its fields `public_key` and `nonce` are not used: a key of ours
is longer than the 1024 bytes that there are, and both are in the claims, which `user_data` binds.

Paper: AWS, "Nitro Enclaves attestation process" (aws-nitro-enclaves-nsm-api, docs/attestation_process.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA384

from confide.errors import ProtocolError
from confide.tee import certificates, known
from confide.tee.checks import Asked, Checks, Facts
from confide.tee.cose import Signed, read_sign1
from confide.tee.evidence import Bundle

_ES384 = -35
_MAX_AUTHORITIES = 8
#: The hypervisor's clock may be ahead of ours by this much.
_AHEAD_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Document:
    """What a document says; see the AWS text for the bounds of its fields."""

    module_id: str
    digest: str
    timestamp_seconds: float
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    user_data: bytes

    @staticmethod
    def read(payload: Mapping[str, object]) -> Document:
        """Return what is in a payload. Raises ProtocolError for fields that are absent or of another form."""
        module, digest, stamp = payload.get("module_id"), payload.get("digest"), payload.get("timestamp")
        pcrs, leaf, bundle = payload.get("pcrs"), payload.get("certificate"), payload.get("cabundle")
        data = payload.get("user_data")
        if not isinstance(module, str) or not re.fullmatch(r"[\x21-\x7e]{1,200}", module):
            raise ProtocolError("Expected a Nitro document with a module_id")
        if not isinstance(digest, str) or not isinstance(stamp, int) or not 0 < stamp < 1 << 52:
            raise ProtocolError("Expected a Nitro document with a digest and a timestamp")
        registers = cast("dict[object, object]", pcrs) if isinstance(pcrs, dict) else {}
        found = {key: value for key, value in registers.items() if isinstance(key, int) and isinstance(value, bytes)}
        if not found or len(found) != len(registers) or not all(0 <= key < 32 for key in found):
            raise ProtocolError("Expected a Nitro document with registers 0 to 31")
        chain = cast("list[object]", bundle) if isinstance(bundle, list) else []
        authorities = tuple(one for one in chain if isinstance(one, bytes))
        if not isinstance(leaf, bytes) or not authorities or len(authorities) != len(chain):
            raise ProtocolError("Expected a Nitro document with a certificate and its cabundle")
        if len(authorities) > _MAX_AUTHORITIES:
            raise ProtocolError(f"Expected a Nitro document with at most {_MAX_AUTHORITIES} authorities")
        if data is not None and not isinstance(data, bytes):
            raise ProtocolError("Expected a Nitro document whose user_data are bytes")
        return Document(module, digest, stamp / 1000, found, leaf, authorities, data or b"")


def verify_nitro(bundle: Bundle, asked: Asked, checks: Checks) -> Facts:
    """Make every check of a Nitro document, from its form to what the policy names."""
    rules = asked.policy.nitro
    checks.add("provider", rules is not None, "AWS Nitro" if rules else "the policy has no table [nitro]", stop=True)
    assert rules is not None
    with checks.reading("form"):
        signed = read_sign1(bundle.evidence)
        document = Document.read(signed.payload)
    checks.add("form", True, "a COSE_Sign1 document")
    leaf = _check_chain(document, asked.now, checks)
    _check_signature(signed, leaf, checks)
    checks.add("digest", document.digest == "SHA384", f"digest={document.digest[:20]!r}")
    age = asked.now - document.timestamp_seconds
    timely = -_AHEAD_SECONDS <= age <= asked.policy.max_age_seconds
    checks.add("timestamp", timely, f"{age:.0f} s old, of at most {asked.policy.max_age_seconds}")
    registers = [(0, rules.pcr0), (1, rules.pcr1), (2, rules.pcr2), *([(8, rules.pcr8)] if rules.pcr8 else [])]
    debug = not document.pcrs.get(0, b"").strip(b"\0")
    checks.add("debug", not debug, "PCR0 is zero: the enclave is open to its host for debugging" if debug else "off")
    for number, allowed in registers:
        found = document.pcrs.get(number)
        checks.named("measurement" if number == 0 else f"pcr{number}", found.hex() if found else "none", allowed)
    checks.pin(rules.instances, [document.module_id])
    return Facts(document.user_data, document.module_id)


def _check_chain(document: Document, now: float, checks: Checks) -> x509.Certificate:
    """Check that AWS's root leads to the certificate of the document, and that all are in date."""
    with checks.reading("certificates"):
        authorities = [certificates.read_certificate(one, "cabundle") for one in document.cabundle]
        leaf = certificates.read_certificate(document.certificate, "certificate")
    pinned = certificates.fingerprint(authorities[0]) == known.load().roots.nitro
    checks.add("root", pinned, "AWS Nitro root G1" if pinned else "none that is pinned", stop=True)
    whole = [*authorities, leaf]
    linked = all(certificates.issued(whole[i + 1], whole[i]) for i in range(len(authorities)))
    linked = linked and all(map(certificates.may_sign, authorities)) and not certificates.may_sign(leaf)
    checks.add("chain", linked, f"{len(whole)} certificates" if linked else "the root does not lead to the document's "
               "certificate", stop=True)  # fmt: skip
    late = certificates.outside(whole, now)
    checks.add("certificate dates", not late, late or "in date")
    return leaf


def _check_signature(signed: Signed, leaf: x509.Certificate, checks: Checks) -> None:
    """Check ES384 over the document."""
    key = leaf.public_key()
    right = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
    right = right and signed.algorithm == _ES384 and len(signed.signature) == 96
    checks.add("signature algorithm", right, "ES384 expected", stop=True)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(signed.signature[i : i + 48], "big") for i in (0, 48))
    try:
        key.verify(utils.encode_dss_signature(r, s), signed.covered, ec.ECDSA(SHA384()))
        good = True
    except (InvalidSignature, ValueError):
        good = False
    checks.add("signature", good, "of the document" if good else "the document was not signed so", stop=True)
