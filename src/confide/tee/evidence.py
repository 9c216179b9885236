"""What an enclave shows: claims, bound into evidence that the hardware signs, with what is needed to check it.

    claims      what the code inside says of itself: its public key, the model, until when, whose nonce
    evidence    what the hardware signed; its 64 bytes of report data are a hash of the claims
    endorsements  certificates, revocation lists and collateral of the vendor, stapled by the server
    bundle      all of it, as JSON that a person can read and a file can keep

Nothing here is believed; `confide.tee.verify` does that.

Paper: RFC 9334 (roles: attester, endorser, verifier, relying party). Claims are written by the rules of RFC 8785, which
for the few types used here are: sorted keys, no white space, ASCII.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Literal

import msgspec

from confide.errors import ProtocolError
from confide.structs import known

#: Of the report data: a hash for one purpose is none for another.
_CONTEXT = b"confide-attest-v1\0"

REPORT_DATA_BYTES = 64
NONCE_BYTES = 32
MAX_BUNDLE_BYTES = 1 << 20
MAX_CLAIMS_BYTES = 1 << 13

MEDIA_TYPE = "application/vnd.confide.attestation+json"
SIMULATED_MEDIA_TYPE = "application/vnd.confide.insecure-simulated-attestation+json"


class Provider(StrEnum):
    """Whose hardware signed the evidence."""

    SGX = "sgx"
    TDX = "tdx"
    SNP = "snp"
    NITRO = "nitro"
    SIMULATED = "insecure-simulated"  # nobody's: it protects nothing

    @property
    def hardware(self) -> bool:
        """Return whether there is hardware behind it."""
        return self is not Provider.SIMULATED

    @property
    def media_type(self) -> str:
        """Return how HTTP names a bundle of its evidence; a simulated one has another name."""
        return MEDIA_TYPE if self.hardware else SIMULATED_MEDIA_TYPE


Purpose = Literal["predict", "aggregate", "unseal"]


class Claims(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the code inside says of itself; true if the evidence is, and if the measured code tells the truth.

    Args:
        v: version of this form.
        purpose: what the key is for; a key of one purpose is refused for another.
        public_key: hex, of the key that messages are sealed to (`channel`).
        model_sha256: hex, of the model's graph as its owner signed it (`Statement.graph_sha256`); of a job or a sealed
            file for the other purposes.
        code_version: of confide; for people, since the measurement says it better.
        not_before, not_after: seconds since the epoch.
        nonce: hex of the 32 bytes that the asker chose; "" where the evidence was made before anybody asked.
    """

    v: Literal[1] = 1
    purpose: Purpose
    public_key: str
    model_sha256: str
    code_version: str
    not_before: int
    not_after: int
    nonce: str = ""

    @property
    def names_model(self) -> bool:
        """Return whether `model_sha256` is one: 64 digits of lower hex. It comes from the enclave, as all of this."""
        return re.fullmatch(r"[0-9a-f]{64}", self.model_sha256) is not None

    def encode(self) -> bytes:
        """Return the one way in which these claims are written."""
        return msgspec.json.encode(msgspec.to_builtins(self), order="deterministic")


def report_data(claims: bytes) -> bytes:
    """Return the 64 bytes that bind `claims`, as they were written, into evidence."""
    return hashlib.sha512(_CONTEXT + claims).digest()


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a verifier needs, besides a policy and the time.

    Args:
        provider: see `Provider`.
        evidence: a quote (SGX, TDX), a report of 1184 bytes (SNP), a COSE_Sign1 document (Nitro).
        endorsements: DER or JSON by name, as `confide.tee.verify` lists them for each provider.
        claims: as they were hashed.
    """

    provider: Provider
    evidence: bytes
    endorsements: dict[str, bytes]
    claims: bytes

    def encode(self) -> bytes:
        """Return it as JSON, bytes in base64."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @staticmethod
    def decode(body: bytes) -> Bundle:
        """Return the bundle in `body`. Raises ProtocolError on anything else."""
        if len(body) > MAX_BUNDLE_BYTES:
            raise ProtocolError(f"Expected attestation evidence of at most {MAX_BUNDLE_BYTES} bytes")
        try:
            return msgspec.json.decode(body, type=known(Bundle))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("Expected attestation evidence as confide writes it, in JSON") from None

    def read_claims(self) -> Claims:
        """Return the claims. Raises ProtocolError if they are not written in the one way there is."""
        try:
            if len(self.claims) > MAX_CLAIMS_BYTES:
                raise ProtocolError(f"Expected claims of at most {MAX_CLAIMS_BYTES} bytes")
            claims: Claims = msgspec.json.decode(self.claims, type=known(Claims))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("Expected the claims of an enclave, in JSON") from None
        if claims.encode() != self.claims:
            raise ProtocolError("Expected claims without spaces, their keys sorted, nothing twice")
        return claims


class Quoted(msgspec.Struct, frozen=True):
    """What an attester returns: what the hardware signed, and the endorsements that came with it."""

    evidence: bytes
    endorsements: dict[str, bytes]
