"""Intel's quotes and collateral through dcap-qvl, whose types and errors end here.

dcap-qvl checks what Intel's rules ask: the chain to Intel's root, which is in the library, revocation lists, signatures
and dates of collateral, identity of the quoting enclave and of the TDX module, the quote's signature, the platform's
level. It returns a status and judges none; that is `confide.tee.intel`'s.
"""

from __future__ import annotations

from typing import Any

import msgspec

from confide.errors import MissingExtra, ProtocolError
from confide.structs import known
from confide.tee.certificates import printable

Octets = tuple[int, ...]


class QuoteRefused(Exception):
    """What dcap-qvl found wrong, in its words."""


class _Level(msgspec.Struct, frozen=True, rename="camel"):
    tcb_status: str


class _Tcb(msgspec.Struct, frozen=True):
    status: str
    advisory_ids: tuple[str, ...]
    eval_data_number: int


class _Pck(msgspec.Struct, frozen=True):
    ppid: Octets
    fmspc: Octets
    sgx_type: int
    dynamic_platform: str
    cached_keys: str
    smt_enabled: str
    platform_instance_id: Octets | None = None


class _Platform(msgspec.Struct, frozen=True):
    tcb_level: _Level
    pck: _Pck
    root_key_id: Octets

    @property
    def root(self) -> str:
        """Return hex SHA-384 of the public point of the authority that it leads to."""
        return bytes(self.root_key_id).hex()


class _Enclave(msgspec.Struct, frozen=True):
    tcb_level: _Level


class Verified(msgspec.Struct, frozen=True):
    """What a quote says of its platform, once everything that dcap-qvl checks holds.

    Args:
        tcb: status of the whole, the advisories that are open, the number of Intel's evaluation.
        platform: status of the processor alone, and what its certificate says.
        qe: status of the quoting enclave.
    """

    tcb: _Tcb
    platform: _Platform
    qe: _Enclave


def verify_quote(quote: bytes, collateral: bytes, now: float, root_der: bytes | None = None) -> Verified:
    """Return what `quote` says of its platform at `now`, in seconds since the epoch.

    Args:
        quote: SGX or TDX, of version 3 to 5.
        collateral: JSON, as dcap-qvl writes it.
        root_der: an authority in place of Intel's, for tests.

    Raises:
        QuoteRefused: anything that does not hold.
        ProtocolError: collateral that cannot be read.
        MissingExtra: dcap-qvl is not installed.
    """
    try:
        import dcap_qvl
    except ImportError:
        raise MissingExtra("dcap-qvl", "tee") from None
    library: Any = dcap_qvl
    try:
        stapled = library.QuoteCollateralV3.from_json(collateral.decode())
    except Exception as error:
        raise ProtocolError(f"Expected collateral.json as dcap-qvl writes it; {printable(error)}") from None
    seconds = int(now)
    try:
        verifier = library.QuoteVerifier(root_der)
        claims = verifier.verify_with_policy(quote, stapled, seconds, library.QuotePolicy.claims_only(seconds))
        return msgspec.json.decode(claims.to_json(), type=known(Verified))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in Rust is no Exception; whatever it is, the quote does not hold
        raise QuoteRefused(printable(error)) from None
