"""Verification of evidence that is kept: every check of a policy, offline, on public evidence at its time.

    python bench/attestation.py [--repeats 200] [--vectors FOLDER] [--json FILE]

The evidence is of real hardware and public: a quote of SGX, one of TDX, a report of SEV-SNP (EPYC Genoa), a document
of AWS Nitro; the folder's INDEX.md names the sources. Each is verified as a client does it: from the bytes of the
bundle, claims and policy included. The public evidence is of other code, so that one check, report data, does not hold,
and those after it are not made: comparisons of a few words. No revocation list of AMD is public for that date, so that
the SEV-SNP figure is without the list's signature; a line of its own has that, on a root of RSA-4096 made here.

Peers, in the same run: dcap-qvl alone for Intel, which checks less (no measurement, no debugging, no binding).
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from figures import Figure, at_most, command_line, machine, show, spread, write

from confide.tee import certificates, dcap
from confide.tee.cose import read_sign1
from confide.tee.evidence import Bundle, Claims, Provider
from confide.tee.intel import Quote
from confide.tee.nitro import Document
from confide.tee.policy import NitroRules, Policy, SgxRules, SnpRules, TdxRules
from confide.tee.verify import verify

BAR_MS = 5.0
NONCE = bytes(32)
CLAIMS = Claims(
    purpose="predict", public_key="00" * 1216, model_sha256="ab" * 32, code_version="0", not_before=0,
    not_after=1 << 33, nonce=NONCE.hex(),
)  # fmt: skip


def measure(work: Callable[[], object], repeats: int) -> list[float]:
    """Return the milliseconds of each of `repeats` calls, after a few that are not counted."""
    for _ in range(5):
        work()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return times


def cases(folder: Path) -> list[tuple[str, Bundle, Policy, float]]:
    """Return evidence, its policy and its time, each by name."""

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    def collateral(name: str) -> dict[str, bytes]:
        return {"collateral.json": read(f"intel_dcap_phala/{name}_collateral.json")}

    sgx, tdx = read("intel_dcap_phala/sgx_quote"), read("intel_dcap_phala/tdx_quote")
    snp = read("coco_trustee/az-snp-vtpm/genoa_snp_report_extracted.bin")
    nitro = read("aws_nitro_evervault/valid-attestation-doc-bytes")
    leaf = certificates.read_chain(read("coco_trustee/az-snp-vtpm/vcek-genoa.pem"), "vcek", 1)[0]
    guest, registers = Quote.read(tdx), Document.read(read_sign1(nitro).payload).pcrs
    rtmr = {f"rtmr{i}": (guest.part(328 + 48 * i, 48),) for i in range(3)}
    pcrs = {f"pcr{i}": (registers[i].hex(),) for i in range(3)}
    snp_with = {
        "vcek.der": leaf.public_bytes(Encoding.DER),
        "chain.pem": read("amd_snp_google/trust/ask_ark_genoa.pem"),
    }
    return [
        ("Intel SGX", bundle(Provider.SGX, sgx, collateral("sgx_quote")),
         Policy(sgx=SgxRules(mrenclave=(Quote.read(sgx).part(64, 32),), advisories=("INTEL-SA-00289", "INTEL-SA-00615"),
                             statuses=("UpToDate", "ConfigurationAndSWHardeningNeeded"))), 1750416971),
        ("Intel TDX", bundle(Provider.TDX, tdx, collateral("tdx_quote")),
         Policy(tdx=TdxRules(mrtd=(guest.part(136, 48),), dynamic_platform_allowed=True, cached_keys_allowed=True,
                             smt_allowed=True, **rtmr)), 1750414563),
        ("AMD SEV-SNP", bundle(Provider.SNP, snp, snp_with),
         Policy(snp=SnpRules(measurement=(snp[0x90:0xC0].hex(),))), 1750414563),
        ("AWS Nitro", bundle(Provider.NITRO, nitro, {}), Policy(nitro=NitroRules(**pcrs)), 1665651482),
    ]  # fmt: skip


def bundle(provider: Provider, evidence: bytes, endorsements: dict[str, bytes]) -> Bundle:
    return Bundle(provider=provider, evidence=evidence, endorsements=endorsements, claims=CLAIMS.encode())


def amd_list() -> tuple[bytes, x509.Certificate]:
    """Return a revocation list as AMD signs it (RSA-4096, PSS), and who signed it."""
    key = rsa.generate_private_key(65537, 4096)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ARK-Bench")])
    start = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)
    end, pss = start + datetime.timedelta(days=300), padding.PSS(padding.MGF1(SHA384()), 48)
    root = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1).public_key(key.public_key())
    root = root.not_valid_before(start).not_valid_after(end).sign(key, SHA384(), rsa_padding=pss)
    crl = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(start).next_update(end)
    return crl.sign(key, SHA384(), rsa_padding=pss).public_bytes(Encoding.DER), root


def dcap_alone(one: Bundle, now: float) -> Callable[[], object]:
    return lambda: dcap.verify_quote(one.evidence, one.endorsements["collateral.json"], now)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--vectors", type=Path, default=Path(__file__).parents[2] / "shared" / "vectors" / "tee")
    options = parser.parse_args()
    if not options.vectors.exists():
        parser.error(f"the public evidence is not in {options.vectors}")
    figures: list[Figure] = []
    for name, one, policy, now in cases(options.vectors):
        encoded = one.encode()
        verdict = verify(one, policy, now=now, nonce=NONCE)
        missing = {check.name for check in verdict.checks if not check.holds} - {"report data", "revocation"}
        assert not missing, (name, missing)
        times = measure(lambda: verify(Bundle.decode(encoded), policy, now=now, nonce=NONCE), options.repeats)  # noqa: B023
        peer = measure(dcap_alone(one, now), options.repeats) if "collateral.json" in one.endorsements else None
        median = statistics.median(times)
        figures.append(
            Figure(
                f"verify kept evidence, {name}", median, "ms", bar=BAR_MS, met=at_most(median, BAR_MS),
                peer="dcap-qvl alone" if peer else None, peer_value=statistics.median(peer) if peer else None,
                note=spread(times),
            )
        )  # fmt: skip
    crl, root = amd_list()
    times = measure(
        lambda: certificates.revoked(certificates.read_crl(crl, "crl"), root, [1, 2], 1750414563), options.repeats
    )
    figures.append(Figure("AMD's revocation list, beside that", statistics.median(times), "ms", note=spread(times)))
    print(f"verification of kept evidence, offline; {machine()}")
    show(figures)
    write(figures, options.json)


if __name__ == "__main__":
    main()
