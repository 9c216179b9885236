"""How much memory a piece of work takes at its peak, beyond what the process had before, where the system tells."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(slots=True)
class Peak:
    """The peak of a piece of work, once it is done.

    Args:
        bytes: None where the system does not tell.
    """

    bytes: int | None = None

    def figures(self) -> dict[str, float]:
        """Return it as a figure, or nothing."""
        return {} if self.bytes is None else {"peak_memory_bytes": float(self.bytes)}


@contextmanager
def peak_memory() -> Generator[Peak]:
    """Measure the `with` block; memory that the process had let go of before and takes again is not counted."""
    found = Peak()
    try:
        _RESET.write_text("5")  # Linux: the peak becomes what is resident now
        before = _resident("VmRSS")
    except OSError:
        before = None
    yield found
    after = _resident("VmHWM")
    if before is not None and after is not None:
        found.bytes = max(0, after - before)


def _resident(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    numbers = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(numbers[0]) if numbers else None
