"""Evidence of SGX enclaves, through the files that Gramine shows inside: `/dev/attestation`.

    attestation_type    "dcap", "epid" or "none"; only the first is evidence that clients can check today
    user_report_data    what to sign, 64 bytes
    quote               reading makes the processor and its quoting enclave sign

The files belong to the process, so one quote at a time.

Paper: Gramine, Documentation/attestation.rst, low-level interface.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from confide.errors import UsageError
from confide.tee.devices import Devices, SystemDevices
from confide.tee.evidence import REPORT_DATA_BYTES, Provider, Quoted
from confide.tee.quotes import report_data_in

ROOT = "/dev/attestation"

_WORD_BYTES = 4096
_QUOTE_BYTES = 1 << 15

_REFUSED: Mapping[str, str] = {
    "none": "nothing is signed: this is gramine-direct, which protects nothing, or the manifest lacks "
    'sgx.remote_attestation = "dcap"; run it with gramine-sgx',
    "epid": "Intel has ended the service behind it, so no client can check it; set sgx.remote_attestation = "
    '"dcap" in the manifest',
}


class Gramine:
    """Evidence of an SGX enclave under Gramine. See `confide.tee.attest.Attester`. Safe for threads.

    Args:
        root: the folder of files; another one in tests.
        devices: the special files.

    Raises:
        UsageError: this does not run in such an enclave.
    """

    name = "gramine"
    provider = Provider.SGX

    def __init__(self, root: str = ROOT, *, devices: Devices | None = None) -> None:
        self._root = root
        self._devices: Devices = SystemDevices() if devices is None else devices
        self._alone = threading.Lock()
        if not self._devices.exists(f"{root}/attestation_type"):
            raise UsageError(
                f"Expected attester='gramine' to find {root}/attestation_type; it is there inside an SGX enclave that "
                "gramine-sgx runs (deploy/gramine)"
            )
        kind = self._read("attestation_type", _WORD_BYTES).decode("ascii", "replace").strip("\0 \r\n\t")
        if kind != "dcap":
            why = _REFUSED.get(kind, "confide does not know it")
            raise UsageError(f"Expected attestation_type='dcap' in {root}, got {kind!r}; {why}")

    def quote(self, report_data: bytes) -> Quoted:
        """Return evidence about `report_data`, 64 bytes.

        Raises:
            UsageError: Gramine or the host's quoting service refuses.
        """
        assert len(report_data) == REPORT_DATA_BYTES
        with self._alone:
            try:
                self._devices.write(f"{self._root}/user_report_data", report_data)
            except OSError as error:
                raise self._failed(error, "user_report_data") from None
            evidence = self._read("quote", _QUOTE_BYTES)
        if report_data_in(Provider.SGX, evidence) != report_data:
            raise UsageError(f"Expected a quote about our own data from {self._root}; something else writes there")
        return Quoted(evidence, {})

    def _read(self, name: str, limit_bytes: int) -> bytes:
        try:
            return self._devices.read(f"{self._root}/{name}", limit_bytes)
        except OSError as error:
            raise self._failed(error, name) from None

    def _failed(self, error: OSError, name: str) -> UsageError:
        return UsageError(
            f"Expected an answer of {self._root}/{name}, got {error.strerror or error}; on the host the quoting "
            "service (aesmd with the DCAP plug-in) must run and have its certificate"
        )
