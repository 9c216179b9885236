"""A whole comparison: every technique that fits four hospitals, measured, and the size of its report.

    python bench/compare.py [--job examples/hospitals.toml] [--seeds N] [--json FILE]

`confide compare` runs in a process of its own on an empty folder, so nothing comes from a cache; then again, where all
of it does. Beside them stands how far costs over links are off, as the comparison measures it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import Figure, at_most, command_line, machine, show, write

from confide.compare.result import read_result

JOB = Path(__file__).parents[1] / "examples" / "hospitals.toml"
SECONDS, REPORT_MB = 600.0, 3.0


def seconds_of(command: list[str]) -> float:
    """Return how long a command takes."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measured(job: Path, seeds: int | None) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name:
        folder = Path(name)
        options = [] if seeds is None else ["--seeds", str(seeds)]
        command = [sys.executable, "-m", "confide", "compare", str(job), "--out", name, *options]
        first, again = seconds_of(command), seconds_of(command)
        result = read_result((folder / "compare.json").read_bytes())
        largest = max(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    techniques = len(result.records)
    return [
        Figure(
            f"compare {job.name}, {techniques} techniques", first, "s", bar=SECONDS, met=at_most(first, SECONDS),
            note=f"{len(result.unfit)} do not fit",
        ),
        Figure("the same again, all of it finished", again, "s"),
        Figure("its largest file", largest, "MB", bar=REPORT_MB, met=at_most(largest, REPORT_MB)),
        *(
            Figure(
                f"modelled over measured, {check.choice} over {check.link}",
                check.modelled_seconds / check.measured_seconds, "ratio", note=check.sentence(),
            )
            for check in result.link_check
        ),
    ]  # fmt: skip


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--job", type=Path, default=JOB)
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    print(machine())
    figures = measured(options.job, options.seeds)
    show(figures)
    write(figures, options.json)


if __name__ == "__main__":
    main()
