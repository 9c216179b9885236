"""What a client accepts: which code, on whose hardware, how new. Strict: what is not named is refused.

One table for each kind of hardware; hardware without a table is refused. There is no word for "any": a list that is
empty, or a measurement of zeros (which debugging gives), is an error here.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from confide.errors import UsageError
from confide.structs import known

MAX_POLICY_BYTES = 1 << 20

#: What Intel's verification may say of a platform's level; "Revoked" is none that a policy could accept.
Status = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]
Product = Literal["milan", "genoa", "turin"]
Rtmr = Literal["rtmr0", "rtmr1", "rtmr2", "rtmr3"]
#: What the firmware of a platform may have to say of itself (PLATFORM_INFO of the SEV-SNP ABI).
PlatformFeature = Literal["smt-off", "ecc", "rapl-off", "ciphertext-hiding", "alias-check"]


class SimulatedRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is accepted of simulated evidence: hex SHA-384, one at least."""

    measurements: tuple[str, ...]

    def __post_init__(self) -> None:
        _hex("measurements", self.measurements, 48, zero=True)


class IntelRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is accepted of an Intel platform.

    Args:
        statuses: of the platform's level and of the quoting enclave.
        advisories: those that may be open, such as "INTEL-SA-00615"; every other one is refused, whatever the status.
        min_tcb_evaluation: the least number of Intel's evaluation of levels that the collateral may be of.
        dynamic_platform_allowed: of several packages, to which more may be added.
        cached_keys_allowed: keys of the platform are kept by Intel's registration service.
        smt_allowed: threads share a core; Intel says so only of platforms of several packages.
        instances: hex, the platforms that are pinned: PPID or platform instance id; () pins none.
    """

    statuses: tuple[Status, ...] = ("UpToDate",)
    advisories: tuple[str, ...] = ()
    min_tcb_evaluation: int = 0
    dynamic_platform_allowed: bool = False
    cached_keys_allowed: bool = False
    smt_allowed: bool = False
    instances: tuple[str, ...] = ()

    def _check_platform(self) -> None:
        if not self.statuses:
            raise ValueError("statuses=[] accepts nothing; leave it out for UpToDate")
        for advisory in self.advisories:
            if not re.fullmatch(r"INTEL-SA-\d{5}", advisory):
                raise ValueError(f"Expected advisories={advisory!r} of the form INTEL-SA-00000")
        _hex("instances", self.instances, 16, required=False)
        _not_negative(min_tcb_evaluation=self.min_tcb_evaluation)


class SgxRules(IntelRules, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is accepted of an SGX enclave: exact code, or a signer's product of at least some version.

    Args:
        mrenclave: hex SHA-256 of the code.
        mrsigner: hex SHA-256 of the key that signed it, with `isv_prod_id` and `min_isv_svn`, and without `mrenclave`.
    """

    mrenclave: tuple[str, ...] = ()
    mrsigner: tuple[str, ...] = ()
    isv_prod_id: int | None = None
    min_isv_svn: int | None = None

    def __post_init__(self) -> None:
        self._check_platform()
        signer = [bool(self.mrsigner), self.isv_prod_id is not None, self.min_isv_svn is not None]
        if bool(self.mrenclave) == any(signer) or any(signer) != all(signer):
            raise ValueError("[sgx] takes mrenclave, or mrsigner with isv_prod_id and min_isv_svn")
        _hex("mrenclave", self.mrenclave, 32, required=False)
        _hex("mrsigner", self.mrsigner, 32, required=False)
        _not_negative(isv_prod_id=self.isv_prod_id or 0, min_isv_svn=self.min_isv_svn or 0)


class TdxRules(IntelRules, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is accepted of a TDX guest.

    Args:
        mrtd: hex SHA-384 of what the guest was built of: its firmware, not its kernel.
        rtmr0, rtmr1, rtmr2, rtmr3: hex, of what was loaded after that; one that is left out must be zero.
        accept_any_rtmr: registers that are not looked at; code that only they measure is then anybody's.
        mr_config_id, mr_owner, mr_owner_config: hex; what is left out must be zero.
        mr_seam: hex, the TDX modules; () takes those that Intel's collateral knows.
    """

    mrtd: tuple[str, ...]
    rtmr0: tuple[str, ...] = ()
    rtmr1: tuple[str, ...] = ()
    rtmr2: tuple[str, ...] = ()
    rtmr3: tuple[str, ...] = ()
    accept_any_rtmr: tuple[Rtmr, ...] = ()
    mr_config_id: tuple[str, ...] = ()
    mr_owner: tuple[str, ...] = ()
    mr_owner_config: tuple[str, ...] = ()
    mr_seam: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_platform()
        _hex("mrtd", self.mrtd, 48)
        for name in ("rtmr0", "rtmr1", "rtmr2", "rtmr3"):
            _hex(name, getattr(self, name), 48, required=False, zero=True)
            if name in self.accept_any_rtmr and getattr(self, name):
                raise ValueError(f"{name} is named, and accept_any_rtmr would not look at it; take one of the two")
        for name in ("mr_config_id", "mr_owner", "mr_owner_config", "mr_seam"):
            _hex(name, getattr(self, name), 48, required=False, zero=True)


class TcbFloor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least security versions of a SEV-SNP platform, one at least; `fmc` is Turin's, None names no version."""

    boot_loader: int | None = None
    tee: int | None = None
    snp: int | None = None
    microcode: int | None = None
    fmc: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.parts().items():
            if not 0 <= value <= 255:
                raise ValueError(f"Expected {name}={value} from 0 to 255")
        if not self.parts():
            raise ValueError(f"Expected one of {', '.join(self.__struct_fields__)}; a table without any accepts all")

    def parts(self) -> dict[str, int]:
        """Return the parts that are named."""
        found = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in found.items() if value is not None}


class SnpRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is accepted of a SEV-SNP guest.

    Args:
        measurement: hex SHA-384 of what the guest was launched with.
        host_data: hex, 32 bytes that the host gave at launch; () asks for zeros.
        id_key_digest, author_key_digest: hex SHA-384 of the keys that signed the launch; () does not ask.
        products: generations of processors.
        accept_broken_milan: True takes Milan too, whose root key can be extracted by the host's software alone, so
            that it can forge all of this.
        tcb_floor: least versions by product; of each part the greater of this and what confide ships holds. Turin has
            none shipped, so that a policy must name its own.
        accept_older_tcb: True lets the parts that `tcb_floor` names be less than what confide ships.
        max_vmpl: the highest number of a privilege level, where 0 is the most privileged.
        min_guest_svn: least version that the guest's signer gave it.
        platform: what the firmware must say of the platform: "smt-off", "ecc", "rapl-off", "ciphertext-hiding",
            "alias-check".
        instances: hex chip ids that are pinned, 64 bytes each (Turin: 8 and 56 zeros); () pins none.
    """

    measurement: tuple[str, ...]
    host_data: tuple[str, ...] = ()
    id_key_digest: tuple[str, ...] = ()
    author_key_digest: tuple[str, ...] = ()
    products: tuple[Product, ...] = ("genoa", "turin")
    accept_broken_milan: bool = False
    tcb_floor: dict[Product, TcbFloor] = {}
    accept_older_tcb: bool = False
    max_vmpl: int = 0
    min_guest_svn: int = 0
    platform: tuple[PlatformFeature, ...] = ()
    instances: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _hex("measurement", self.measurement, 48)
        _hex("host_data", self.host_data, 32, required=False, zero=True)
        _hex("id_key_digest", self.id_key_digest, 48, required=False)
        _hex("author_key_digest", self.author_key_digest, 48, required=False)
        _hex("instances", self.instances, 64, required=False)
        _not_negative(min_guest_svn=self.min_guest_svn)
        if not self.products:
            raise ValueError("products=[] accepts nothing; leave it out for genoa and turin")
        if ("milan" in self.products) != self.accept_broken_milan:
            raise ValueError(
                'products=["milan"] and accept_broken_milan=true go together: software of the host can extract the '
                "root key of a Milan processor and forge evidence of any guest"
            )
        if self.accept_older_tcb and not self.tcb_floor:
            raise ValueError("accept_older_tcb=true needs tcb_floor, which names the least versions that are accepted")
        if not 0 <= self.max_vmpl <= 3:
            raise ValueError(f"Expected max_vmpl={self.max_vmpl} from 0 to 3")


class NitroRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is accepted of an AWS Nitro enclave.

    Args:
        pcr0, pcr1, pcr2: hex SHA-384 of the image, its kernel, its application.
        pcr8: hex SHA-384 of the certificate that signed the image; () does not ask.
        instances: module ids that are pinned; () pins none. They change when an enclave starts again.
    """

    pcr0: tuple[str, ...]
    pcr1: tuple[str, ...]
    pcr2: tuple[str, ...]
    pcr8: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("pcr0", "pcr1", "pcr2"):
            _hex(name, getattr(self, name), 48)
        _hex("pcr8", self.pcr8, 48, required=False)


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client accepts.

    Args:
        model_sha256: hex, the models (`Claims.model_sha256`) that may answer; () leaves that to a pinned signer.
        max_age_seconds: of evidence made before anybody asked, and of an attestation that a client keeps.
        sgx, tdx, snp, nitro: rules for that hardware; None refuses it.
        simulated: rules for simulated evidence; None refuses it. So does a caller that does not allow it by option.
    """

    model_sha256: tuple[str, ...] = ()
    max_age_seconds: int = 3600
    sgx: SgxRules | None = None
    tdx: TdxRules | None = None
    snp: SnpRules | None = None
    nitro: NitroRules | None = None
    simulated: SimulatedRules | None = None

    def __post_init__(self) -> None:
        if self.max_age_seconds <= 0:
            raise ValueError(f"Expected max_age_seconds={self.max_age_seconds} above zero")

    @property
    def digest(self) -> str:
        """Return hex SHA-256 of everything in it: what was accepted under one policy is not under another."""
        return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(self), order="deterministic")).hexdigest()


def read_policy(path: str | Path) -> Policy:
    """Return the policy in a TOML file. Raises UsageError, which names the field, if it is none."""
    try:
        with Path(path).open("rb") as file:
            body = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"Expected an attestation policy in {path}; {error}") from None
    return parse_policy(body, str(path))


def parse_policy(body: bytes, source: str) -> Policy:
    """Return the policy in the TOML `body` that came from `source`. Raises UsageError if it is none."""
    try:
        if len(body) > MAX_POLICY_BYTES:
            raise ValueError(f"it has more than {MAX_POLICY_BYTES} bytes")
        policy: Policy = msgspec.convert(tomllib.loads(body.decode()), type=known(Policy), strict=True)
        _hex("model_sha256", policy.model_sha256, 32, required=False)
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise UsageError(f"Expected an attestation policy in {source}; {error}") from None
    return policy


def _hex(name: str, values: Iterable[str], length: int, *, required: bool = True, zero: bool = False) -> None:
    """Raise ValueError unless `values` are `length` bytes each in lower hex, one at least, none of them zero."""
    listed = list(values)
    if required and not listed:
        raise ValueError(f"Expected {name} to name at least one value")
    for value in listed:
        if not re.fullmatch(rf"[0-9a-f]{{{2 * length}}}", value):
            raise ValueError(f"Expected {name}={value[:140]!r} as {length} bytes in lower hex")
        if not zero and not value.strip("0"):
            raise ValueError(f"Expected {name} that is not zero: that is what debugging and absent fields show")


def _not_negative(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"Expected {name}={value} of at least 0")
