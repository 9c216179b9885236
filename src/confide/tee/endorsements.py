"""What a server staples beside its evidence, so that a client needs no vendor's network.

    Intel (SGX, TDX)   collateral.json: JSON of a QuoteCollateralV3
    AMD SEV-SNP        vcek.der or vlek.der, chain.pem (ASK or ASVK, then ARK), crl.der
    Nitro              none: the document carries its chain

Nothing here opens a connection, and nothing is believed: `wanted` says which URLs hold what is missing for this
evidence, `net.endorsements` fetches them, `assemble` makes the files of the answers, `valid_until` says for how long.

Paper: Intel PCS API version 4; AMD VCEK certificate and KDS interface specification (57230).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import msgspec
from cryptography import x509

from confide.errors import ProtocolError, UsageError
from confide.tee.cert_table import to_der
from confide.tee.evidence import Provider, Quoted

COLLATERAL = "collateral.json"

#: Everything that may be stapled, by name.
NAMES = (COLLATERAL, "vcek.der", "vlek.der", "chain.pem", "crl.der", "manifest.bin")

#: Of all of it: a bundle takes 1 MiB in base64, with the evidence.
MOST_BYTES = 1 << 19

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
#: DER of the object 1.2.840.113741.1.13.1.4 (FMSPC), then an octet string of 6 bytes.
_FMSPC = bytes.fromhex("060a2a864886f84d010d01040406")


class Answer(Protocol):
    """What a URL answered."""

    @property
    def body(self) -> bytes:
        """Return the body."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers, their names in lower case."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the vendors' answers come from; caches speak the same language.

    Args:
        amd: a KDS.
        intel: a PCS or PCCS, without /sgx/certification/v4.
        intel_root_crl: the list of Intel's root; a PCCS has it at .../sgx/certification/v4/rootcacrl.
    """

    amd: str = "https://kdsintf.amd.com"
    intel: str = "https://api.trustedservices.intel.com"
    intel_root_crl: str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"


def endorsed(quoted: Quoted, *, given: Mapping[str, bytes]) -> Quoted:
    """Return `quoted` with `given` added; what is given stands before what the host gave with the evidence.

    Raises:
        UsageError: a name that no verifier knows, or more than fits into a bundle.
    """
    if unknown := sorted(set(given) - set(NAMES)):
        raise UsageError(f"Expected endorsements of these names: {', '.join(NAMES)}; got {', '.join(unknown)}")
    together = {**quoted.endorsements, **given}
    if sum(map(len, together.values())) > MOST_BYTES:
        raise UsageError(f"Expected endorsements of at most {MOST_BYTES} bytes together; leave out what is not needed")
    return Quoted(quoted.evidence, together)


def read_endorsements(folder: str | Path) -> dict[str, bytes]:
    """Return the endorsements that lie in `folder`, a file for each name of `NAMES`; hidden files are passed over.

    Raises:
        UsageError: there is none, one has another name, or they are too large.
    """
    found: dict[str, bytes] = {}
    try:
        for path in sorted(Path(folder).iterdir()):
            if path.name.startswith("."):
                continue
            if path.name not in NAMES:
                raise UsageError(f"Expected only {', '.join(NAMES)} in {folder}, got {path.name}")
            if path.stat().st_size > MOST_BYTES:
                raise UsageError(f"Expected {path} of at most {MOST_BYTES} bytes")
            found[path.name] = path.read_bytes()
    except OSError as error:
        raise UsageError(f"Expected a folder of endorsements; {error}") from None
    if not found:
        raise UsageError(f"Expected endorsements in {folder}: one or more of {', '.join(NAMES)}")
    return found


def wanted(provider: Provider, quoted: Quoted, *, sources: Sources | None = None) -> dict[str, str]:
    """Return the URLs that are to be fetched for `quoted`, by what `assemble` calls them; {} if nothing is missing.

    Raises:
        UsageError: the evidence does not say enough to know them.
    """
    sources = sources or Sources()
    if provider in (Provider.SGX, Provider.TDX):
        return {} if COLLATERAL in quoted.endorsements else _intel_urls(provider, quoted.evidence, sources)
    if provider is Provider.SNP:
        return _amd_urls(quoted, sources)
    return {}


def assemble(provider: Provider, answers: Mapping[str, Answer]) -> dict[str, bytes]:
    """Return the endorsements in the `answers` to the URLs of `wanted`.

    Raises:
        ProtocolError: an answer is not what such a URL answers; the text names it.
    """
    if not answers:
        return {}
    if provider in (Provider.SGX, Provider.TDX):
        return {COLLATERAL: _collateral(answers)}
    return {name: _checked(name, answer.body) for name, answer in answers.items()}


def valid_until(endorsements: Mapping[str, bytes]) -> float | None:
    """Return when the first of `endorsements` ends by its own `nextUpdate`, in seconds since the epoch; None if never.

    Raises:
        ProtocolError: one is malformed.
    """
    ends: list[float] = []
    try:
        if COLLATERAL in endorsements:
            collateral = json.loads(endorsements[COLLATERAL])
            for name in ("tcb_info", "qe_identity"):
                ends.append(datetime.fromisoformat(json.loads(collateral[name])["nextUpdate"]).timestamp())
            for name in ("root_ca_crl", "pck_crl"):
                ends.append(_list_end(bytes.fromhex(collateral[name])))
        if "crl.der" in endorsements:
            ends.append(_list_end(endorsements["crl.der"]))
    except Exception:  # of JSON, of dates and of x509, which raises more than ValueError
        raise ProtocolError("Expected endorsements that say until when they hold") from None
    return min(ends, default=None)


def _list_end(crl: bytes) -> float:
    end = x509.load_der_x509_crl(crl).next_update_utc
    if end is None:
        raise ValueError
    return end.timestamp()


# --- Intel ------------------------------------------------------------------------------------------------------------


def _intel_urls(provider: Provider, quote: bytes, sources: Sources) -> dict[str, str]:
    fmspc, authority = _platform(quote)
    base = sources.intel.rstrip("/")
    kind = provider.value
    return {
        "tcb": f"{base}/{kind}/certification/v4/tcb?fmspc={fmspc}",
        "qe_identity": f"{base}/{kind}/certification/v4/qe/identity",
        "pck_crl": f"{base}/sgx/certification/v4/pckcrl?ca={authority}&encoding=der",
        "root_ca_crl": sources.intel_root_crl,
    }


def _platform(quote: bytes) -> tuple[str, str]:
    """Return the FMSPC, in hex, and the authority of the certificate that a quote carries."""
    found = _PEM.search(quote)
    try:
        if found is None:
            raise ValueError
        leaf = x509.load_pem_x509_certificate(found[0])
        extension = leaf.extensions.get_extension_for_oid(_SGX_EXTENSION).value
        if not isinstance(extension, x509.UnrecognizedExtension):
            raise ValueError
        _, mark, rest = extension.value.partition(_FMSPC)
        if not mark or len(rest) < 6:
            raise ValueError
        issuer = leaf.issuer.rfc4514_string()
    except Exception:  # x509 raises several kinds for what is malformed, some of them only when a field is read
        raise UsageError(
            "Expected a quote that carries its platform's certificate; the host's quoting service must get one"
        ) from None
    return rest[:6].hex().upper(), "platform" if "Platform CA" in issuer else "processor"


class _TcbInfo(msgspec.Struct, frozen=True):
    signature: str
    tcbInfo: msgspec.Raw


class _Identity(msgspec.Struct, frozen=True):
    signature: str
    enclaveIdentity: msgspec.Raw


def _collateral(answers: Mapping[str, Answer]) -> bytes:
    """Return the JSON of a QuoteCollateralV3; what Intel signed stays byte for byte as it came."""
    try:
        tcb = msgspec.json.decode(answers["tcb"].body, type=_TcbInfo)
        identity = msgspec.json.decode(answers["qe_identity"].body, type=_Identity)
        fields = {
            "pck_crl_issuer_chain": _chain(answers["pck_crl"], "sgx-pck-crl-issuer-chain"),
            "root_ca_crl": _checked("root_ca_crl", answers["root_ca_crl"].body).hex(),
            "pck_crl": _checked("pck_crl", answers["pck_crl"].body).hex(),
            "tcb_info_issuer_chain": _chain(answers["tcb"], "tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
            "tcb_info": bytes(tcb.tcbInfo).decode(),
            "tcb_info_signature": bytes.fromhex(tcb.signature).hex(),
            "qe_identity_issuer_chain": _chain(answers["qe_identity"], "sgx-enclave-identity-issuer-chain"),
            "qe_identity": bytes(identity.enclaveIdentity).decode(),
            "qe_identity_signature": bytes.fromhex(identity.signature).hex(),
        }
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError):
        raise ProtocolError("Expected collateral of Intel's; is the source a PCS or PCCS of version 4?") from None
    return json.dumps(fields, indent=1).encode()


def _chain(answer: Answer, *names: str) -> str:
    for name in names:
        if chain := unquote(answer.headers.get(name, "")):
            if not chain.startswith("-----BEGIN CERTIFICATE-----"):
                break
            return chain
    raise ProtocolError(f"Expected a chain of certificates in the header {names[0]}; a proxy may have cut it")


def _checked(name: str, body: bytes) -> bytes:
    """Return `body` if it can be what `name` says: a list, a certificate, a chain; a PCCS writes lists in hex."""
    try:
        if name == "chain.pem":
            if len(_PEM.findall(body)) != 2:
                raise ValueError
            return body
        if name in ("vcek.der", "vlek.der"):
            return to_der(body)
        der = body if body[:1] == b"\x30" and not _is_hex(body) else bytes.fromhex(body.decode("ascii").strip('"\r\n '))
        x509.load_der_x509_crl(der)
    except (ValueError, UsageError, x509.InvalidVersion):
        raise ProtocolError(f"Expected {name} from the vendor, got something else") from None
    return der


def _is_hex(body: bytes) -> bool:
    return re.fullmatch(rb"[0-9A-Fa-f\s]+", body) is not None


# --- AMD --------------------------------------------------------------------------------------------------------------


def _amd_urls(quoted: Quoted, sources: Sources) -> dict[str, str]:
    report = quoted.evidence
    product = _product(quoted)
    leased = int.from_bytes(report[0x48:0x4C], "little") >> 2 & 7 == 1  # signed by a VLEK
    base = f"{sources.amd.rstrip('/')}/{'vlek' if leased else 'vcek'}/v1/{product}"
    urls = {"chain.pem": f"{base}/cert_chain", "crl.der": f"{base}/crl"}
    if not leased:
        urls["vcek.der"] = f"{base}/{_chip(report, product)}?{_levels(report, product)}"
    elif "vlek.der" not in quoted.endorsements:
        raise UsageError(
            "Expected a VLEK certificate from the host with this report; AMD gives it to the cloud provider only, so "
            "get vlek.der from there and name its folder: --endorsements DIR"
        )
    return {name: url for name, url in urls.items() if name not in quoted.endorsements}


def _product(quoted: Quoted) -> str:
    """Return what AMD's service calls the processor: from the report (version 3 and later), or from a certificate."""
    report = quoted.evidence
    if int.from_bytes(report[:4], "little") >= 3:
        family, model = report[0x188], report[0x189]
        name = {(0x19, 0): "Milan", (0x19, 1): "Genoa", (0x19, 0xA): "Genoa", (0x1A, 0): "Turin", (0x1A, 1): "Turin"}
        if (family, model >> 4) in name:
            return name[family, model >> 4]
    else:
        leaf = quoted.endorsements.get("vcek.der", b"") + quoted.endorsements.get("vlek.der", b"")
        if found := re.search(rb"(Milan|Genoa|Turin)(?:-[A-Z][0-9])?", leaf):
            return found[1].decode()
    raise UsageError(
        "Expected a report that says which processor signed it; put vcek.der, chain.pem and crl.der into a folder and "
        "name it: --endorsements DIR"
    )


def _chip(report: bytes, product: str) -> str:
    chip = report[0x1A0:0x1E0]
    if not any(chip):
        raise UsageError("Expected a chip_id in the report, the host masks it; its operator must clear MASK_CHIP_ID")
    return (chip[:8] if product == "Turin" else chip).hex()


#: Which byte of `reported_tcb` is which security patch level.
_MILAN = (("blSPL", 0), ("teeSPL", 1), ("snpSPL", 6), ("ucodeSPL", 7))
_TURIN = (("fmcSPL", 0), ("blSPL", 1), ("teeSPL", 2), ("snpSPL", 3), ("ucodeSPL", 7))


def _levels(report: bytes, product: str) -> str:
    places = _TURIN if product == "Turin" else _MILAN
    return "&".join(f"{name}={report[0x180 + at]:02d}" for name, at in places)
