"""Where evidence of each kind keeps what the attester needs of it. What is believed of evidence is for `verify`.

    kind        header   body at          report data
    SGX v3      48 B     48               body + 320
    TDX v4      48 B     48               body + 520
    TDX v5      48 B     54 (type, size)  body + 520
    SEV-SNP     none     0                80

Paper: Intel DCAP quoting library, quote formats 3, 4 and 5; AMD SEV-SNP firmware ABI (56860), ATTESTATION_REPORT.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from confide.errors import UsageError
from confide.tee.evidence import REPORT_DATA_BYTES, Provider

SNP_REPORT_BYTES = 1184
SNP_VMPL_AT = 0x30

_TDX_TYPE = 0x81
#: A TDX quote above this is written in another form (DICE, CBOR), by the kernel's documentation.
_TDX_QUOTE_BYTES = 8192


def report_data_in(provider: Provider, evidence: bytes) -> bytes:
    """Return the 64 bytes of report data in `evidence` of Intel's or AMD's.

    Raises:
        UsageError: the hardware answered in a form that is not known here.
    """
    begin = _BEGINS[provider](evidence)
    data = evidence[begin : begin + REPORT_DATA_BYTES]
    if len(data) != REPORT_DATA_BYTES:
        raise UsageError(f"Expected evidence of {provider.value} in a known form, got {len(evidence)} bytes")
    return data


def _sgx(evidence: bytes) -> int:
    version, kind = _head(evidence)
    if (version, kind) != (3, 0):
        raise UsageError(f"Expected an SGX quote of version 3, got version {version}, type {kind:#x}")
    return 48 + 320


def _tdx(evidence: bytes) -> int:
    version, kind = _head(evidence)
    if version not in (4, 5) or kind != _TDX_TYPE:
        larger = len(evidence) > _TDX_QUOTE_BYTES
        why = "it is a DICE token, which no verifier here reads" if larger else f"got version {version}, type {kind:#x}"
        raise UsageError(f"Expected a TDX quote of version 4 or 5; {why}")
    return (48 if version == 4 else 54) + 520


def _snp(evidence: bytes) -> int:
    if len(evidence) != SNP_REPORT_BYTES:
        raise UsageError(f"Expected an SEV-SNP report of {SNP_REPORT_BYTES} bytes, got {len(evidence)}")
    return 0x50


_BEGINS: Mapping[Provider, Callable[[bytes], int]] = {Provider.SGX: _sgx, Provider.TDX: _tdx, Provider.SNP: _snp}


def _head(evidence: bytes) -> tuple[int, int]:
    """Return the version of a quote and the type of its TEE."""
    if len(evidence) < 8:
        return 0, 0
    version, kind = struct.unpack_from("<HxxI", evidence)
    return version, kind
