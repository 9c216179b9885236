"""A policy drafted from evidence: it accepts what is there now, and says that this proves nothing.

Trust on first use: whoever answered the first question decided what is trusted. The draft is for comparing with a build
of one's own, not in place of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from confide.errors import ProtocolError, UsageError
from confide.tee import simulated
from confide.tee.amd import Report, tcb
from confide.tee.cose import read_sign1
from confide.tee.evidence import Bundle, Provider
from confide.tee.intel import Quote
from confide.tee.nitro import Document
from confide.tee.policy import parse_policy

_HEAD = """\
# An attestation policy for confide, drafted from evidence that a server showed: TRUST ON FIRST USE.
# Nothing here was checked. It accepts the code that ran there then, whoever wrote it. Before you send anything:
#   1. build the code yourself, or take its published measurements, and compare them with the values below;
#   2. run `confide attest URL --policy THIS_FILE` and read every check;
#   3. take out what you do not need. Every key is in docs/attestation.md.

# Models that may answer: SHA-256 of the graph, as the owner of the model publishes it.
model_sha256 = ["{model}"]

# How old evidence may be that was made before you asked, and how long a client keeps what it verified.
max_age_seconds = 3600
"""


def policy_text(bundle: Bundle) -> str:
    """Return a policy in TOML, with comments, that names what `bundle` shows; nothing of it is verified.

    Raises:
        UsageError: the evidence cannot be read, or shows what no policy may name, such as debugging.
    """
    try:
        claims = bundle.read_claims()
        if not claims.names_model:
            raise ProtocolError("Expected claims whose model_sha256 is 64 hex digits")
        lines = _DRAFTS[bundle.provider](bundle.evidence)
        text = _HEAD.format(model=claims.model_sha256) + "\n" + "\n".join(lines) + "\n"
        parse_policy(text.encode(), "the draft")
    except ProtocolError as error:
        raise UsageError(f"Expected evidence that a policy can be drafted from; {error}") from None
    return text


def _names(name: str, *values: str) -> str:
    return f"{name} = [{', '.join(_quoted(value) for value in values)}]"


def _quoted(value: str) -> str:
    """Return a TOML string of hex or of a name in ASCII without quotes; what else there is becomes "?"."""
    return (
        '"' + "".join(one if one.isascii() and one.isprintable() and one not in '"\\' else "?" for one in value) + '"'
    )


def _set(quote: Quote, places: Mapping[str, int]) -> list[str]:
    """Return the registers that are not zero: those must be named, the others are asked to be zero."""
    found = {name: quote.part(at, 48) for name, at in places.items()}
    return [_names(name, value) for name, value in found.items() if value.strip("0")]


def _sgx(evidence: bytes) -> list[str]:
    quote = Quote.read(evidence)
    product, version = int.from_bytes(quote.body[256:258], "little"), int.from_bytes(quote.body[258:260], "little")
    return [
        "[sgx]",
        "# SHA-256 of the enclave as it was built: gramine-sgx-sign prints it.",
        _names("mrenclave", quote.part(64, 32)),
        "# Instead of mrenclave: any code of this signer, of this product, from this version on.",
        f"# {_names('mrsigner', quote.part(128, 32))}",
        f"# isv_prod_id = {product}",
        f"# min_isv_svn = {version}",
        *_INTEL,
    ]


def _tdx(evidence: bytes) -> list[str]:
    quote = Quote.read(evidence)
    registers = {f"rtmr{i}": 328 + 48 * i for i in range(4)}
    return [
        "[tdx]",
        "# SHA-384 of what the guest was built of: its firmware.",
        _names("mrtd", quote.part(136, 48)),
        "# What was loaded after that: 0 its settings, 1 its kernel, 2 its command line and first file system, 3 what",
        "# programs add. A register that is not named must be zero.",
        *_set(quote, registers),
        *_set(quote, {"mr_config_id": 184, "mr_owner": 232, "mr_owner_config": 280}),
        *_INTEL,
    ]


_INTEL = (
    '# statuses = ["UpToDate"]          # levels of the platform that are accepted; others must be named',
    '# advisories = ["INTEL-SA-00615"]  # that may be open',
    "# dynamic_platform_allowed = true  # for machines of several packages, where a check says so",
    "# cached_keys_allowed = true",
    "# smt_allowed = true",
    '# instances = ["..."]  # pins machines: PPID or platform instance id, as `confide attest --json` prints it',
)


def _snp(evidence: bytes) -> list[str]:
    report = Report.read(evidence)
    product = report.product or "milan"
    rules = ["[snp]", "# SHA-384 of the guest as it was launched: sev-snp-measure computes it.",
             _names("measurement", report.measurement)]  # fmt: skip
    if report.host_data.strip("0"):
        rules.append(_names("host_data", report.host_data))
    for name, value in (("id_key_digest", report.id_key_digest), ("author_key_digest", report.author_key_digest)):
        if value.strip("0"):
            rules.append(_names(name, value))
    if product == "milan":
        rules += [
            _names("products", product),
            "# Software of a Milan host can extract the chip's root key and forge all of this (arXiv 2605.12990).",
            "# Without the next line the policy refuses it, and this file with it.",
            "accept_broken_milan = true",
        ]
    if report.vmpl:
        rules.append(f"max_vmpl = {report.vmpl}")
    return [
        *rules,
        '# platform = ["alias-check"]       # what the firmware must say of the machine',
        '# instances = ["..."]              # pins chips: the chip id, as `confide attest --json` prints it',
        *_floor(product, report.reported_tcb),
    ]


def _floor(product: str, reported: bytes) -> list[str]:
    """Return the table of least versions that Turin needs, since none is shipped for it."""
    if product != "turin":
        return []
    found = ", ".join(f"{name} = {value}" for name, value in tcb(reported, "turin").items())
    return ["# Least versions of the platform; what runs there now.", f"tcb_floor = {{ turin = {{ {found} }} }}"]


def _nitro(evidence: bytes) -> list[str]:
    pcrs = Document.read(read_sign1(evidence).payload).pcrs
    shown = {number: pcrs.get(number, b"").hex() for number in (0, 1, 2, 8)}
    return [
        "[nitro]",
        "# SHA-384 of the image, its kernel, its application: nitro-cli build-enclave prints them.",
        *(_names(f"pcr{number}", shown[number]) for number in (0, 1, 2)),
        *([_names("pcr8", shown[8])] if shown[8].strip("0") else []),
    ]


def _simulated(evidence: bytes) -> list[str]:
    report = simulated.read(evidence)
    return [f"# {simulated.WARNING}.", "[simulated]", _names("measurements", report.measurement)]


_DRAFTS: Mapping[Provider, Callable[[bytes], list[str]]] = {
    Provider.SGX: _sgx, Provider.TDX: _tdx, Provider.SNP: _snp, Provider.NITRO: _nitro, Provider.SIMULATED: _simulated,
}  # fmt: skip
