"""Authorities of the tests' own in the place of AMD and AWS, for what no public vector shows: lists, Turin, our claims.

The reports and documents are put together byte by byte here, without a line of the verifiers'.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Sequence

import cbor2
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, Hash
from cryptography.hazmat.primitives.serialization import Encoding

from confide.tee import known

DAY = datetime.timedelta(days=1)
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
NOW = START.timestamp() + 10 * 86400
PSS = padding.PSS(padding.MGF1(SHA384()), 48)
CHIP = bytes(range(1, 65))
TCB = {"boot_loader": 10, "tee": 1, "snp": 0x1B, "microcode": 0xD9, "fmc": 2}
EXTENSIONS = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}


def sha256(certificate: x509.Certificate) -> str:
    state = Hash(SHA256())
    state.update(certificate.public_bytes(Encoding.DER))
    return state.finalize().hex()


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def pem(*all_: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in all_)


def certificate(
    name: str, key, issuer: x509.Certificate | None, signer, *, authority: bool, days: float = 365,
    extensions: Sequence[tuple[str, bytes]] = (), serial: int | None = None,
) -> x509.Certificate:  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(issuer.subject if issuer else named(name))
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(START + days * DAY)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
    )
    for oid, body in extensions:
        value = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{oid}"), body)
        builder = builder.add_extension(value, critical=False)
    return builder.sign(signer, SHA384(), rsa_padding=PSS if isinstance(signer, rsa.RSAPrivateKey) else None)


class Amd:
    """AMD's root of one product, who signs for it, and the lists that it signs."""

    def __init__(self, product: str) -> None:
        self.product, name = product, product.capitalize()
        self.root_key, self.signer_key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        self.root = certificate(f"ARK-{name}", self.root_key, None, self.root_key, authority=True)
        self.vcek_signer = certificate(f"SEV-{name}", self.signer_key, self.root, self.root_key, authority=True)
        self.vlek_signer = certificate(f"SEV-VLEK-{name}", self.signer_key, self.root, self.root_key, authority=True)

    def known(self) -> known.Known:
        """Return what is known with this root in the place of AMD's."""
        shipped = known.load()
        roots = msgspec.structs.replace(shipped.roots, snp={**shipped.roots.snp, self.product: sha256(self.root)})
        return msgspec.structs.replace(shipped, roots=roots)

    def crl(self, *serials: int, start: float = 9, days: float = 5, key=None) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.root.subject)
            .last_update(START + start * DAY)
            .next_update(START + (start + days) * DAY)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(START).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(key or self.root_key, SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)

    def tcb(self, parts: dict[str, int]) -> bytes:
        places = {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7}
        if self.product == "turin":
            places = {"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7}
        body = bytearray(8)
        for name, place in places.items():
            body[place] = parts[name]
        return bytes(body)


class Chip:
    """A chip (or a cloud, by its VLEK) that signs reports."""

    def __init__(
        self, amd: Amd, *, vlek: bool = False, tcb: dict[str, int] = TCB, chip: bytes = CHIP, days: float = 365,
        name: str | None = None,
    ) -> None:  # fmt: skip
        self.amd, self.vlek = amd, vlek
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.chip = chip[:8] if amd.product == "turin" else chip
        wanted = [part for part in EXTENSIONS if amd.product == "turin" or part != "fmc"]
        numbers = [(EXTENSIONS[p], b"\2\1" + bytes([tcb[p]]) if tcb[p] < 128 else b"\2\2\0" + bytes([tcb[p]]))
                   for p in wanted]  # fmt: skip
        cloud = b"CN=cloud.example"
        said = [("2", b"\x16" + bytes([len(amd.product)]) + amd.product.capitalize().encode()), *numbers,
                ("5", b"\x16" + bytes([len(cloud)]) + cloud) if vlek else ("4", self.chip)]  # fmt: skip
        signer = amd.vlek_signer if vlek else amd.vcek_signer
        kind = name or ("SEV-VLEK" if vlek else "SEV-VCEK")
        self.certificate = certificate(kind, self.key, signer, amd.signer_key, authority=False, days=days,
                                       extensions=said)  # fmt: skip

    def report(
        self, report_data: bytes, *, version: int = 3, policy: int = 0x30000, vmpl: int = 0,
        host_data: bytes = bytes(32),
        reported: dict[str, int] = TCB, launch: dict[str, int] = TCB, measurement: bytes = bytes.fromhex("ab" * 48),
        cpuid: tuple[int, int] | None = None, chip: bytes | None = None, platform: int = 0x24, key=None,
        id_key: bytes = bytes(48), author_key: bytes = bytes(48), guest_svn: int = 1, algorithm: int = 1,
    ) -> bytes:  # fmt: skip
        body = bytearray(1184)
        struct.pack_into("<IIQ", body, 0, version, guest_svn, policy)
        struct.pack_into("<II", body, 0x30, vmpl, algorithm)
        struct.pack_into("<Q", body, 0x40, platform)
        struct.pack_into("<I", body, 0x48, 4 if self.vlek else 0)
        body[0x50:0x90] = report_data
        body[0x90:0xC0] = measurement
        body[0xC0:0xE0] = host_data
        body[0xE0:0x110], body[0x110:0x140] = id_key, author_key
        body[0x180:0x188] = self.amd.tcb(reported)
        body[0x188:0x18A] = bytes(
            cpuid or {"milan": (0x19, 1), "genoa": (0x19, 0x11), "turin": (0x1A, 2)}[self.amd.product]
        )
        shown = (bytes(64) if self.vlek else self.chip.ljust(64, b"\0")) if chip is None else chip
        body[0x1A0:0x1E0] = shown
        body[0x1F0:0x1F8] = self.amd.tcb(launch)
        r, s = utils.decode_dss_signature((key or self.key).sign(bytes(body[:0x2A0]), ec.ECDSA(SHA384())))
        body[0x2A0:0x2E8], body[0x2E8:0x330] = r.to_bytes(72, "little"), s.to_bytes(72, "little")
        return bytes(body)

    def endorsements(self, crl: bytes | None = None) -> dict[str, bytes]:
        signer = self.amd.vlek_signer if self.vlek else self.amd.vcek_signer
        return {
            "vlek.der" if self.vlek else "vcek.der": der(self.certificate),
            "chain.pem": pem(signer, self.amd.root),
            "crl.der": self.amd.crl() if crl is None else crl,
        }


class Aws:
    """AWS's root, an authority below it, and documents of one enclave."""

    def __init__(self) -> None:
        self.root_key, self.middle_key, self.key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
        self.root = certificate("aws.nitro-enclaves", self.root_key, None, self.root_key, authority=True)
        self.middle = certificate("zone", self.middle_key, self.root, self.root_key, authority=True)
        self.leaf = certificate("enclave", self.key, self.middle, self.middle_key, authority=False, days=11)

    def known(self) -> known.Known:
        shipped = known.load()
        return msgspec.structs.replace(shipped, roots=msgspec.structs.replace(shipped.roots, nitro=sha256(self.root)))

    def document(self, user_data: bytes, *, algorithm: int = -35, key=None, tag: bool = False, **changes) -> bytes:
        payload = {
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef", "digest": "SHA384", "timestamp": int(NOW * 1000),
            "pcrs": {i: bytes.fromhex("ab" * 48) if i in (0, 1, 2, 8) else bytes(48) for i in range(16)},
            "certificate": der(self.leaf), "cabundle": [der(self.root), der(self.middle)],
            "public_key": None, "user_data": user_data, "nonce": None, **changes,
        }  # fmt: skip
        protected, inner = cbor2.dumps({1: algorithm}), cbor2.dumps(payload)
        # Sig_structure of RFC 9052, written out: four parts, "Signature1", the header, no external data, the payload.
        covered = b"\x84\x6aSignature1" + _octets(protected) + b"\x40" + _octets(inner)
        r, s = utils.decode_dss_signature((key or self.key).sign(covered, ec.ECDSA(SHA384())))
        parts = [protected, {}, inner, r.to_bytes(48, "big") + s.to_bytes(48, "big")]
        return cbor2.dumps(cbor2.CBORTag(18, parts) if tag else parts)


def _octets(body: bytes) -> bytes:
    """Write a CBOR byte string."""
    if len(body) < 24:
        return bytes([0x40 + len(body)]) + body
    if len(body) < 256:
        return bytes([0x58, len(body)]) + body
    return b"\x59" + len(body).to_bytes(2, "big") + body
