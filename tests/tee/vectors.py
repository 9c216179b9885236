"""Public evidence of real hardware: read in place, its sums checked, with the time at which it was good."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import pytest

from confide.tee.evidence import Bundle, Claims, Provider
from confide.tee.policy import Policy
from confide.tee.verify import Verdict, verify

FOLDER = Path(__file__).parents[2] / ".." / "shared" / "vectors" / "tee"

SGX_NOW, TDX_NOW, OUTDATED_NOW, LATER = 1750416971, 1750414563, 1772323200, 1795000000
NITRO_NOW, NITRO_DEBUG_NOW, NITRO_DEBUG_2_NOW = 1665651482, 1665582606, 1695049410
MEASURED = "ab" * 48
NONCE = bytes(range(32))

CLAIMS = Claims(
    purpose="predict", public_key="00", model_sha256="cd" * 32, code_version="0", not_before=0, not_after=1 << 33,
    nonce=NONCE.hex(),
)  # fmt: skip


@cache
def sums() -> dict[str, str]:
    path = FOLDER / "SHA256SUMS"
    if not path.exists():
        pytest.skip("the public attestation vectors are not here: ../shared/vectors/tee")
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
    return {name.removeprefix("./"): digest for digest, name in lines}


@cache
def vector(name: str) -> bytes:
    expected = sums()[name]
    body = (FOLDER / name).read_bytes()
    assert hashlib.sha256(body).hexdigest() == expected, f"{name} is not the file that was agreed on"
    return body


def checked(
    provider: Provider, evidence: bytes, endorsements: dict[str, bytes], policy: Policy, now: float
) -> Verdict:  # fmt: skip
    """Return the verdict on evidence whose report data are those of somebody else's code."""
    bundle = Bundle(provider=provider, evidence=evidence, endorsements=endorsements, claims=CLAIMS.encode())
    return verify(bundle, policy, now=now, nonce=NONCE)


def failed(verdict: Verdict) -> list[str]:
    """Return the names of the checks that do not hold."""
    return [check.name for check in verdict.checks if not check.holds]


def flipped(body: bytes, place: int, bit: int = 0) -> bytes:
    return body[:place] + bytes([body[place] ^ 1 << bit]) + body[place + 1 :]
