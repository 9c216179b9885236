"""Evidence of TDX and SEV-SNP guests, through the kernel's `configfs-tsm`.

One quote is one entry of its own: make a folder, write the 64 bytes, read the answer, remove the folder.

    inblob       what to sign                      provider    tdx_guest or sev_guest
    outblob      the quote or report               generation  how often the entry was written to
    auxblob      AMD's table of certificates       privlevel   VMPL, where there are such levels

`generation` is how interference shows: 0 in a fresh entry, and our own number of writes when we read. Another number
is somebody else who writes to our entry, and then no evidence leaves.

Paper: Linux Documentation/ABI/testing/configfs-tsm-report; behaviour of drivers/virt/coco/guest/report.c. An error of
writing `inblob` is lost when the file is closed, so a lost write shows as a generation that is too small.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

from confide.errors import UsageError
from confide.tee.cert_table import endorsements_in
from confide.tee.devices import Devices, SystemDevices
from confide.tee.evidence import REPORT_DATA_BYTES, Provider, Quoted
from confide.tee.quotes import SNP_VMPL_AT, report_data_in

ROOT = "/sys/kernel/config/tsm/report"

_PROVIDERS: Mapping[str, Provider] = {"tdx_guest": Provider.TDX, "sev_guest": Provider.SNP}
#: Of one blob; the kernel's own bound was 32 KiB, later more.
_BLOB_BYTES = 1 << 17
_WORD_BYTES = 4096
_NAMES_TRIED = 64
#: Between tries while the hardware or its host is busy; together 6.3 s.
_PAUSES_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_BUSY = (errno.EBUSY, errno.EAGAIN)
_HIGHEST_LEVEL = 3

_Result = TypeVar("_Result")

_WHY: Mapping[int, str] = {
    errno.EACCES: "only root may ask; run as root, or give this user the folder (chown, after each boot)",
    errno.EPERM: "this process may not ask; a container needs /sys/kernel/config/tsm mounted for writing",
    errno.EROFS: "it is mounted for reading only; a container needs it mounted for writing",
    errno.ENXIO: "no driver is there; load it: modprobe tdx_guest, or modprobe sev-guest",
    errno.ENOENT: "the kernel has no such file; it must be Linux 6.7 or newer",
    errno.EFBIG: "the answer is larger than the kernel or confide takes; update the guest's kernel and the host",
    errno.EINVAL: "the kernel refuses what was written; is the privilege level one that this guest may use?",
    errno.ETIMEDOUT: "the host's quoting service does not answer; the host's operator must start it",
    errno.EIO: "the host's quoting service failed; the host's operator must look at it",
    errno.EBUSY: "the hardware stayed busy; the host limits how often it signs, so ask again later",
    errno.EAGAIN: "the host limits how often its hardware signs; ask again later",
}


class ConfigfsTsm:
    """Evidence of a TDX or SEV-SNP guest. See `confide.tee.attest.Attester`. Safe for threads.

    Args:
        root: the folder of entries; another one in tests.
        privilege_level: VMPL that the report shall be of, 0 to 3, on SEV-SNP; None leaves the kernel's choice.
        devices: the special files.
        pause: waits for seconds while the hardware is busy.

    Raises:
        UsageError: this is no such guest, or this process may not ask.
    """

    name = "configfs-tsm"

    def __init__(
        self,
        root: str = ROOT,
        *,
        privilege_level: int | None = None,
        devices: Devices | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if privilege_level is not None and not 0 <= privilege_level <= _HIGHEST_LEVEL:
            raise UsageError(f"Expected privilege_level={privilege_level} from 0 to {_HIGHEST_LEVEL}")
        self._root = root
        self._level = privilege_level
        self._devices: Devices = SystemDevices() if devices is None else devices
        self._pause = pause
        self._numbers = itertools.count()
        if not self._devices.exists(root):
            raise UsageError(
                f"Expected attester='configfs-tsm' to find {root}; it is there in a TDX or SEV-SNP guest with Linux "
                "6.7 or newer, once configfs is mounted (mount -t configfs none /sys/kernel/config) and the driver is "
                "loaded (modprobe tdx_guest, or modprobe sev-guest)"
            )
        self._provider = self._tried(self._probe)
        if privilege_level is not None and self._provider is not Provider.SNP:
            raise UsageError(f"Expected privilege_level on SEV-SNP only, this is {self._provider.value}; leave it out")

    @property
    def provider(self) -> Provider:
        """Return whose hardware signs."""
        return self._provider

    def quote(self, report_data: bytes) -> Quoted:
        """Return evidence about `report_data`, 64 bytes, and the certificates that the host gave with it.

        Raises:
            UsageError: the hardware or the kernel refuses, or somebody else writes to our entry.
        """
        assert len(report_data) == REPORT_DATA_BYTES
        return self._tried(lambda: self._quote(report_data))

    def _tried(self, work: Callable[[], _Result]) -> _Result:
        """Return what `work` returns; repeat it while the hardware is busy, explain other errors."""
        for pause in (*_PAUSES_SECONDS, None):
            try:
                return work()
            except OSError as error:
                if error.errno in _BUSY and pause is not None:
                    self._pause(pause)
                    continue
                why = _WHY.get(error.errno or 0, error.strerror or str(error))
                raise UsageError(f"Expected evidence from {error.filename or self._root}; {why}") from None
        raise AssertionError

    def _probe(self) -> Provider:
        with self._entry() as entry:
            return self._named(entry)

    def _named(self, entry: str) -> Provider:
        name = self._word(entry, "provider")
        if name not in _PROVIDERS:
            known = " or ".join(_PROVIDERS)
            raise UsageError(f"Expected a provider {known} in {self._root}, got {name!r}; confide cannot use it")
        return _PROVIDERS[name]

    def _quote(self, report_data: bytes) -> Quoted:
        with self._entry() as entry:
            self._expect(entry, 0)
            self._devices.write(f"{entry}/inblob", report_data)
            writes = 1
            if self._level is not None:
                self._devices.write(f"{entry}/privlevel", str(self._level).encode())
                writes = 2
            self._expect(entry, writes)
            provider = self._named(entry)
            evidence = self._devices.read(f"{entry}/outblob", _BLOB_BYTES)
            table = self._optional(entry, "auxblob")
            manifest = self._optional(entry, "manifestblob")
            self._expect(entry, writes)
        if provider is not self._provider or report_data_in(provider, evidence) != report_data:
            raise UsageError(f"Expected evidence about our own data from {entry}; somebody interferes, look who")
        if self._level is not None and evidence[SNP_VMPL_AT : SNP_VMPL_AT + 4] != self._level.to_bytes(4, "little"):
            raise UsageError(f"Expected a report of privilege_level={self._level}; the kernel gave another")
        endorsements = endorsements_in(table) if provider is Provider.SNP else {}
        return Quoted(evidence, endorsements | ({"manifest.bin": manifest} if manifest else {}))

    @contextmanager
    def _entry(self) -> Generator[str]:
        """Make an entry of our own, and remove it whatever happens."""
        for number in itertools.islice(self._numbers, _NAMES_TRIED):
            entry = f"{self._root}/confide-{os.getpid()}-{number}"
            try:
                self._devices.make_folder(entry)
                break
            except FileExistsError:  # of a process that ended early, or that counts its own numbers elsewhere
                continue
        else:
            raise UsageError(f"Expected room for an entry in {self._root}; remove those that nobody uses (rmdir)")
        try:
            yield entry
        finally:
            with suppress(OSError):  # the evidence is as good with an entry left behind
                self._devices.remove_folder(entry)

    def _expect(self, entry: str, writes: int) -> None:
        found = self._word(entry, "generation")
        if found != str(writes):
            raise UsageError(
                f"Expected generation={writes} in {entry}, got {found!r}; a write was lost or somebody else writes "
                "there, so this evidence is not used: look who"
            )

    def _word(self, entry: str, name: str) -> str:
        return self._devices.read(f"{entry}/{name}", _WORD_BYTES).decode("ascii", "replace").strip()

    def _optional(self, entry: str, name: str) -> bytes:
        try:
            return self._devices.read(f"{entry}/{name}", _BLOB_BYTES)
        except FileNotFoundError:  # this hardware has none
            return b""
