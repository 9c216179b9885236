"""An attester without hardware, for trials and tests: anybody can forge what it signs, and it says so everywhere.

Its signing key is a constant of this file, so its evidence shows nothing at all. It has the fields of real evidence, so
that everything around it (policies, wrong measurements, debug, old evidence) runs as it would.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import msgspec

from confide.crypto.keys import SigningKey, verify
from confide.errors import ProtocolError
from confide.structs import known
from confide.tee.evidence import Provider, Quoted

#: Whoever reads this has the key: SHA-256 of this text is its seed.
AUTHORITY = "INSECURE SIMULATED TEE - NO PROTECTION"

WARNING = "INSECURE SIMULATION: no hardware protects anything here; whoever runs the server sees everything"


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What simulated hardware would sign.

    Args:
        authority: `AUTHORITY`.
        measurement: hex SHA-384; `measure_code()` unless a test says otherwise.
        debug: as on real hardware, where it lets the host read everything.
        report_data: hex, 64 bytes.
        signature: hex, over the rest.
    """

    authority: str = AUTHORITY
    measurement: str
    debug: bool = False
    report_data: str
    signature: str = ""

    def signed(self) -> bytes:
        """Return the bytes that are signed."""
        unsigned = msgspec.structs.replace(self, signature="")
        return msgspec.json.encode(unsigned, order="deterministic")


def _key() -> SigningKey:
    return SigningKey(hashlib.sha256(AUTHORITY.encode()).digest())


@cache
def measure_code() -> str:
    """Return hex SHA-384 of confide's installed source files, by name: what simulated hardware measures."""
    root = Path(__file__).parent.parent
    state = hashlib.sha384()
    for path in sorted(root.rglob("*.py")):
        body = path.read_bytes()
        state.update(f"{path.relative_to(root)}\0{len(body)}\0".encode() + body)
    return state.hexdigest()


class Simulated:
    """Makes simulated evidence. See `confide.tee.attest.Attester`."""

    name = "simulated"
    provider = Provider.SIMULATED

    def __init__(self, measurement: str | None = None, *, debug: bool = False) -> None:
        self._measurement = measure_code() if measurement is None else measurement
        self._debug = debug

    def quote(self, report_data: bytes) -> Quoted:
        """Return signed evidence about `report_data`, 64 bytes."""
        report = Report(measurement=self._measurement, debug=self._debug, report_data=report_data.hex())
        signed = msgspec.structs.replace(report, signature=_key().sign(report.signed()).hex())
        return Quoted(msgspec.json.encode(signed), {})


def read(evidence: bytes) -> Report:
    """Return what simulated evidence says. Raises ProtocolError unless it is signed by the key that everybody has."""
    try:
        report: Report = msgspec.json.decode(evidence, type=known(Report))
        signature = bytes.fromhex(report.signature)
        bytes.fromhex(report.measurement)
        bytes.fromhex(report.report_data)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError):
        raise ProtocolError("Expected simulated evidence") from None
    if report.authority != AUTHORITY:
        raise ProtocolError("Expected simulated evidence")
    verify(_key().public, report.signed(), signature)
    return report
