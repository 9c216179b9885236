"""What a piece of work takes, where the system tells: peak memory, processor time, bytes that are kept."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from confide.wire import Store

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PROCESSES = Path("/proc")


@dataclass(slots=True)
class Peak:
    """The peak of a piece of work, once it is done.

    Args:
        bytes: None where the system does not tell.
    """

    bytes: int | None = None

    def figures(self) -> dict[str, float]:
        """Return it as a figure, or nothing where it is too small to be seen."""
        return {} if not self.bytes else {"peak_memory_bytes": float(self.bytes)}


@contextmanager
def peak_memory() -> Generator[Peak]:
    """Measure the `with` block; memory that Python keeps of earlier work and uses again is not counted."""
    found = Peak()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc gives back what earlier work has freed
    try:
        _RESET.write_text("5")  # Linux: the peak becomes what is resident now
        before = _resident("VmRSS")
    except OSError:
        before = None
    yield found
    after = _resident("VmHWM")
    if before is not None and after is not None:
        found.bytes = max(0, after - before)


def kept_bytes(store: Store) -> int:
    """Return how much a role keeps in its store, names and values; a database adds its pages to that."""
    return sum(len(key.encode()) + len(store.get(key) or b"") for key in store.keys())  # noqa: SIM118 (no dictionary)


def process_seconds(process: int | None = None) -> float | None:
    """Return the processor time of a process and of those that it started, this one's if None; None if nobody tells."""
    total = 0.0
    try:
        for one in _family(process):
            fields = (_PROCESSES / str(one) / "stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    return total


def process_peak_bytes(process: int | None = None) -> float | None:
    """Return the peak memory of a process and of those that it started, added up; None if nobody tells."""
    peaks = [_resident("VmHWM", _PROCESSES / str(one) / "status") for one in _family(process)]
    found = [peak for peak in peaks if peak is not None]
    return float(sum(found)) if found else None


def _family(process: int | None) -> Iterator[int]:
    """Yield a process and its children."""
    process = os.getpid() if process is None else process
    yield process
    with suppress(OSError):
        for task in (_PROCESSES / str(process) / "task").iterdir():
            yield from map(int, (task / "children").read_text().split())


def _resident(name: str, status: Path = _STATUS) -> int | None:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    numbers = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(numbers[0]) if numbers else None
