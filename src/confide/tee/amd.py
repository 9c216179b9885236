"""Evidence of AMD SEV-SNP: a report of 1184 bytes, signed by the chip's key (VCEK) or the cloud's (VLEK).

Paper: AMD 56860 (SEV-SNP firmware ABI, table 23: the report), AMD 57230 (VCEK certificates and their extensions).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA384

from confide.errors import ProtocolError
from confide.tee import certificates, known
from confide.tee.checks import Asked, Checks, Facts
from confide.tee.evidence import Bundle, Provider
from confide.tee.policy import PlatformFeature, Product, SnpRules

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0

_EXTENSION = "1.3.6.1.4.1.3704.1."
#: The bytes of a version number of the platform, and the extension of the certificate that says the same.
_TCB: Mapping[str, tuple[int, str]] = MappingProxyType(
    {"boot_loader": (0, "3.1"), "tee": (1, "3.2"), "snp": (6, "3.3"), "microcode": (7, "3.8")}
)
_TCB_TURIN: Mapping[str, tuple[int, str]] = MappingProxyType(
    {"fmc": (0, "3.9"), "boot_loader": (1, "3.1"), "tee": (2, "3.2"), "snp": (3, "3.3"), "microcode": (7, "3.8")}
)
#: Bits of PLATFORM_INFO: where they stand, and what they must be.
_FEATURES: Mapping[PlatformFeature, tuple[int, bool]] = MappingProxyType(
    {"smt-off": (0, False), "ecc": (2, True), "rapl-off": (3, True), "ciphertext-hiding": (4, True),
     "alias-check": (5, True)}
)  # fmt: skip
_DEBUG, _MIGRATE = 1 << 19, 1 << 18


@dataclass(frozen=True, slots=True)
class Report:
    """The fields of a report that are looked at; see table 23 of the ABI."""

    version: int
    guest_svn: int
    policy: int
    vmpl: int
    signature_algorithm: int
    platform_info: int
    key_info: int
    report_data: bytes
    measurement: str
    host_data: str
    id_key_digest: str
    author_key_digest: str
    reported_tcb: bytes
    cpuid: tuple[int, int]
    chip_id: bytes
    launch_tcb: bytes
    signed: bytes
    r: int
    s: int

    @staticmethod
    def read(body: bytes) -> Report:
        """Return what is in `body`. Raises ProtocolError for a form that is none we know."""
        if len(body) != REPORT_BYTES:
            raise ProtocolError(f"Expected a SEV-SNP report of {REPORT_BYTES} bytes, not {len(body)}")
        version, guest_svn, policy = struct.unpack_from("<IIQ", body)
        if not 2 <= version <= 5:
            raise ProtocolError(f"Expected a SEV-SNP report of version 2 to 5, not {version}")
        vmpl, algorithm = struct.unpack_from("<II", body, 0x30)
        platform_info, key_info = struct.unpack_from("<QI", body, 0x40)
        return Report(
            version=version, guest_svn=guest_svn, policy=policy, vmpl=vmpl, signature_algorithm=algorithm,
            platform_info=platform_info, key_info=key_info, report_data=body[0x50:0x90],
            measurement=body[0x90:0xC0].hex(), host_data=body[0xC0:0xE0].hex(), id_key_digest=body[0xE0:0x110].hex(),
            author_key_digest=body[0x110:0x140].hex(), reported_tcb=body[0x180:0x188],
            cpuid=(body[0x188], body[0x189]) if version >= 3 else (0, 0), chip_id=body[0x1A0:0x1E0],
            launch_tcb=body[0x1F0:0x1F8], signed=body[:SIGNED_BYTES],
            r=int.from_bytes(body[0x2A0:0x2E8], "little"), s=int.from_bytes(body[0x2E8:0x330], "little"),
        )  # fmt: skip

    @property
    def key(self) -> str:
        """Return which key signed: "vcek", "vlek", or "" for none that we know."""
        return {0: "vcek", 1: "vlek"}.get((self.key_info >> 2) & 7, "")

    @property
    def product(self) -> Product | None:
        """Return the generation of its processor, where a report says so (version 3 and later)."""
        family, model = self.cpuid
        if family == 0x19 and model <= 0x0F:
            return "milan"
        if family == 0x19 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
            return "genoa"  # Bergamo and Siena have its root
        if family == 0x1A and model <= 0x1F:
            return "turin"
        return None


def tcb(value: bytes, product: Product) -> dict[str, int]:
    """Return the named parts of the 8 bytes of a platform's version."""
    parts = _TCB_TURIN if product == "turin" else _TCB
    return {name: value[place] for name, (place, _) in parts.items()}


def verify_snp(bundle: Bundle, asked: Asked, checks: Checks) -> Facts:
    """Make every check of a SEV-SNP report, from its form to what the policy names."""
    rules = asked.policy.snp
    checks.add("provider", rules is not None, "AMD SEV-SNP" if rules else "the policy has no table [snp]", stop=True)
    assert rules is not None
    with checks.reading("form"):
        report = Report.read(bundle.evidence)
    checks.add("form", bool(report.key), f"a report of version {report.version}, signed by {report.key}", stop=True)
    leaf, signer, root = _chain(bundle, report, checks)
    product = _product(report, leaf, root, rules, checks)
    _check_chain(report, leaf, signer, root, product, asked.now, checks)
    _check_crl(bundle, leaf, signer, root, asked.now, checks)
    _check_signature(report, leaf, checks)
    _check_platform(report, leaf, product, rules, checks)
    _check_guest(report, rules, checks)
    instance = report.chip_id.hex() if report.key == "vcek" else ""
    why_none = "signed by a VLEK, which all chips of one cloud have: it names no machine"
    checks.pin(rules.instances, [instance], why_none=why_none)
    return Facts(report.report_data, instance)


def _chain(
    bundle: Bundle, report: Report, checks: Checks
) -> tuple[x509.Certificate, x509.Certificate, x509.Certificate]:
    """Return the certificates of the chip, of who signed it, and of AMD's root, as they were stapled."""
    name = f"{report.key}.der"
    missing = [wanted for wanted in (name, "chain.pem") if wanted not in bundle.endorsements]
    checks.add("certificates", not missing, "there is no " + " and no ".join(missing) + " among the endorsements"
               if missing else f"{name} and chain.pem", stop=True)  # fmt: skip
    with checks.reading("certificates"):
        leaf = certificates.read_certificate(bundle.endorsements[name], name)
        signer, root = certificates.read_chain(bundle.endorsements["chain.pem"], "chain.pem", 2)
        return leaf, signer, root


def _product(
    report: Report, leaf: x509.Certificate, root: x509.Certificate, rules: SnpRules, checks: Checks
) -> Product:  # fmt: skip
    pinned: dict[str, Product] = {pin: product for product, pin in known.load().roots.snp.items()}
    product = pinned.get(certificates.fingerprint(root))
    checks.add("root", product is not None, f"AMD's of {product}" if product else "none that is pinned", stop=True)
    assert product is not None
    said = _text(leaf, "2").partition("-")[0].lower()
    same = said == product and report.product in ({None, product} if report.version < 3 else {product})
    checks.add("product", same, product if same else f"the root is of {product}, the certificate of {said}, "
               f"the report of {report.product or 'no known'}", stop=True)  # fmt: skip
    if product in rules.products:
        broken = [one.name for one in known.breaks(Provider.SNP, product) if one.forges_evidence]
        checks.add("accepted product", True, f"{product}; evidence can be forged by: {', '.join(broken)}")
    elif product == "milan":
        checks.add("accepted product", False, "milan: software of its host can extract the root key and forge any "
                   "report (arXiv 2605.12990); a policy that takes it nevertheless says so")  # fmt: skip
    else:
        checks.add("accepted product", False, f"{product}, which the policy does not name")
    return product


def _check_chain(
    report: Report, leaf: x509.Certificate, signer: x509.Certificate, root: x509.Certificate, product: Product,
    now: float, checks: Checks,
) -> None:  # fmt: skip
    """Check that AMD's root leads to the key, and that every certificate is in date."""
    between = f"SEV-{product.capitalize()}" if report.key == "vcek" else f"SEV-VLEK-{product.capitalize()}"
    name, kind = certificates.common_name(signer), certificates.common_name(leaf)
    names = name == between and kind == f"SEV-{report.key.upper()}"
    chained = certificates.issued(signer, root) and certificates.issued(leaf, signer) and certificates.may_sign(signer)
    checks.add("chain", names and chained, f"{kind}, {name}, ARK-{product.capitalize()}" if names and chained else
               "the root does not lead to the certificate of the key", stop=True)  # fmt: skip
    late = certificates.outside([leaf, signer, root], now)
    checks.add("certificate dates", not late, late or "in date")


def _check_crl(
    bundle: Bundle, leaf: x509.Certificate, signer: x509.Certificate, root: x509.Certificate, now: float,
    checks: Checks,
) -> None:  # fmt: skip
    """Check AMD's revocation list, which its root signs; a chip's serial number 0 stands for nobody in it."""
    if "crl.der" not in bundle.endorsements:
        checks.add("revocation", False, "there is no crl.der among the endorsements")
        return
    try:
        crl = certificates.read_crl(bundle.endorsements["crl.der"], "crl.der")
    except ProtocolError as error:
        checks.add("revocation", False, str(error))
        return
    serials = [number for one in (leaf, signer, root) if (number := certificates.serial_number(one))]
    why = certificates.revoked(crl, root, serials, now)
    checks.add("revocation", not why, f"crl.der: {why}" if why else f"none; the list is of {crl.last_update_utc}")


def _check_signature(report: Report, leaf: x509.Certificate, checks: Checks) -> None:
    """Check the ECDSA signature over the first 0x2A0 bytes."""
    key = leaf.public_key()
    right = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
    checks.add("signature algorithm", right and report.signature_algorithm == 1, "ECDSA P-384 with SHA-384 expected",
               stop=True)  # fmt: skip
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(utils.encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(SHA384()))
        good = True
    except (InvalidSignature, ValueError):
        good = False
    checks.add("signature", good, f"of the {report.key} over the report" if good else "the report was not signed so",
               stop=True)  # fmt: skip


def _check_platform(
    report: Report, leaf: x509.Certificate, product: Product, rules: SnpRules, checks: Checks
) -> None:  # fmt: skip
    """Check the machine: that the certificate is of this chip at this version, that it is new enough, its features."""
    found, parts = tcb(report.reported_tcb, product), _TCB_TURIN if product == "turin" else _TCB
    certified = {name: _integer(leaf, extension) for name, (_, extension) in parts.items()}
    checks.add("certified version", found == certified, _words(found) if found == certified else
               f"the report says {_words(found)}, the certificate {_words(certified)}")  # fmt: skip
    if report.key == "vcek":
        length = 8 if product == "turin" else 64
        same = _value(leaf, "4") == report.chip_id[:length] and not report.chip_id[length:].strip(b"\0")
        same = same and bool(report.chip_id.strip(b"\0"))
        checks.add("chip", same, report.chip_id[:length].hex() if same else "the certificate is of another chip")
    else:
        cloud = _text(leaf, "5")
        same = bool(cloud) and not report.chip_id.strip(b"\0")
        checks.add("chip", same, f"of the cloud {cloud}, which names none" if same else "not as a VLEK's report has it")
    _check_floor(report, product, rules, checks)
    missing = [
        one for one in rules.platform if bool(report.platform_info >> _FEATURES[one][0] & 1) != _FEATURES[one][1]
    ]
    detail = ", ".join(one for one, (bit, on) in _FEATURES.items() if bool(report.platform_info >> bit & 1) == on)
    checks.add("platform", not missing, f"without {', '.join(missing)}" if missing else detail or "no features")


def _check_floor(report: Report, product: Product, rules: SnpRules, checks: Checks) -> None:
    """Check the version that signed, and that at which the guest was launched."""
    floor = _floor(product, rules)
    if not floor:
        checks.add("version floor", False, f"none is known for {product}; name one in [snp.tcb_floor.{product}]")
        return
    for name, value in (("version floor", report.reported_tcb), ("version at launch", report.launch_tcb)):
        found = tcb(value, product)
        low = [part for part, have in found.items() if have < floor.get(part, 0)]
        checks.add(name, not low, _words(found) if not low else f"{_words(found)}, below {_words(floor)}")


def _floor(product: Product, rules: SnpRules) -> dict[str, int]:
    """Return the least versions by part: of what is shipped and what the policy names the greater; {} for none."""
    shipped, named = known.load().snp_floor.get(product), rules.tcb_floor.get(product)
    least = shipped.parts() if shipped else {}
    for part, value in named.parts().items() if named else ():
        least[part] = value if rules.accept_older_tcb else max(value, least.get(part, 0))
    return least


def _check_guest(report: Report, rules: SnpRules, checks: Checks) -> None:
    """Check the guest: closed to its host, and made of what the policy names."""
    debug, moves = bool(report.policy & _DEBUG), bool(report.policy & _MIGRATE)
    checks.add("debug", not debug, "the guest is open to its host for debugging" if debug else "off")
    checks.add("migration", not moves, "an agent may move the guest to other machines" if moves else "off")
    checks.add("privilege level", report.vmpl <= rules.max_vmpl, f"vmpl={report.vmpl}, of at most {rules.max_vmpl}")
    checks.named("measurement", report.measurement, rules.measurement)
    checks.named("host data", report.host_data, rules.host_data or (64 * "0",))
    if rules.id_key_digest:
        checks.named("id key", report.id_key_digest, rules.id_key_digest)
    if rules.author_key_digest:
        checks.named("author key", report.author_key_digest, rules.author_key_digest)
    if rules.min_guest_svn:
        checks.add("guest version", report.guest_svn >= rules.min_guest_svn, f"guest_svn={report.guest_svn}, "
                   f"of at least {rules.min_guest_svn}")  # fmt: skip


def _words(parts: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parts.items())


def _value(certificate: x509.Certificate, extension: str) -> bytes:
    """Return the bytes of one of AMD's extensions; b"" if it is not there."""
    try:
        oid = x509.ObjectIdentifier(_EXTENSION + extension)
        found = certificate.extensions.get_extension_for_oid(oid).value
    except Exception:  # absent, repeated, or in a certificate whose extensions cannot be read
        return b""
    return found.value if isinstance(found, x509.UnrecognizedExtension) else b""


def _integer(certificate: x509.Certificate, extension: str) -> int | None:
    """Return a DER INTEGER from 0 to 255 in an extension; None for anything else."""
    body = _value(certificate, extension)
    if len(body) == 3 and body[:2] == b"\x02\x01" and body[2] < 128:
        return body[2]
    if len(body) == 4 and body[:3] == b"\x02\x02\x00" and body[3] >= 128:
        return body[3]
    return None


def _text(certificate: x509.Certificate, extension: str) -> str:
    """Return a DER IA5String of less than 128 bytes in an extension; "" for anything else."""
    body = _value(certificate, extension)
    if len(body) < 2 or body[0] != 0x16 or body[1] != len(body) - 2 or body[1] > 127:
        return ""
    text = body[2:].decode("latin-1")
    return text if text.isascii() and text.isprintable() else ""
