"""What a client accepts: which code, on whose hardware, how new. Strict: what is not named is refused."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import msgspec

from confide.errors import UsageError
from confide.structs import known


class SimulatedRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is accepted of simulated evidence: hex measurements."""

    measurements: tuple[str, ...]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client accepts.

    Args:
        model_sha256: hex, the models (`Claims.model_sha256`) that may answer; () leaves that to a pinned signer.
        max_age_seconds: of evidence made before anybody asked, and of an attestation that a client keeps.
        simulated: rules for simulated evidence; None refuses it. So does a caller that does not allow it by option.
    """

    model_sha256: tuple[str, ...] = ()
    max_age_seconds: int = 3600
    simulated: SimulatedRules | None = None

    @property
    def digest(self) -> str:
        """Return hex SHA-256 of everything in it: what was accepted under one policy is not under another."""
        return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(self), order="deterministic")).hexdigest()


def read_policy(path: str | Path) -> Policy:
    """Return the policy in a TOML file. Raises UsageError, which names the field, if it is none."""
    try:
        return msgspec.convert(tomllib.loads(Path(path).read_text("utf-8")), type=known(Policy), strict=True)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"Expected an attestation policy in {path}; {error}") from None
