"""The peer of bench/mpc.py: SPU 0.9.5 in an environment of its own, on the same numbers, inputs and links."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpc_links import Link, meshed
from mpc_nets import Arrays

FOLDER = Path(__file__).parent / "peers" / "spu"
#: Parties of each protocol, and what must be said beside its figures.
TRUST = {
    "ABY3": (3, "three servers, honest majority, nothing prepared"),
    "SEMI2K": (2, "INSECURE: its first party deals the correlations, whose cost it hides"),
    "CHEETAH": (2, "two parties, no dealer; client's input, server's model"),
}


@dataclass(frozen=True)
class Spu:
    """What SPU took on one task over one link.

    Args:
        protocol: a name of TRUST.
        seconds, cpu_seconds: of each call after the first, on the wall at the first party, and of all processes.
        first_seconds: of the first call; in CHEETAH it prepares what later ones use.
        total_bytes, send_actions: of all parties in one later call, by SPU's own count, and what shares an input and
            opens an output.
        outputs: of every call, the first ones included; after a step the new weights in the order of their names.
    """

    protocol: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    first_seconds: float
    total_bytes: float
    send_actions: float
    outputs: tuple[np.ndarray, ...]

    @property
    def name(self) -> str:
        return f"SPU {self.protocol}" + (" (INSECURE)" if self.protocol == "SEMI2K" else "")


def installed() -> bool:
    """Return whether SPU's environment is there."""
    return (FOLDER / ".venv" / "bin" / "python").exists()


def measure(
    protocol: str,
    link: Link,
    *,
    task: str,
    arrays: Arrays,
    x: np.ndarray,
    layers: Sequence[Mapping[str, Any]] = (),
    repeats: int,
    rows: int = 1,
    seconds: float = 600.0,
) -> Spu | None:
    """Return SPU's figures, or None, saying why, where it fails or takes too long.

    Args:
        task: "infer", "logistic_step" or "mlp_step"; see bench/peers/spu/spu_peer.py.
        arrays: the model's numbers; for a step its operands.
        x: every call takes the next `rows` of them.
        repeats: calls after the first.
        seconds: after which it is given up.
    """
    with tempfile.TemporaryDirectory() as folder, meshed(link, TRUST[protocol][0]) as addresses:
        place = Path(folder) / "arrays.npz"
        np.savez(place, x=x, **arrays)
        job = {"protocol": protocol, "task": task, "layers": list(layers), "arrays": str(place), "rows": rows}
        job |= {"addresses": addresses, "warm": 1, "repeats": repeats, "counted": 2, "seconds": seconds}
        command = [str(FOLDER / ".venv" / "bin" / "python"), str(FOLDER / "spu_peer.py")]
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    if done.returncode:
        print(f"SPU {protocol}, {task}, {link.name}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    found = json.loads(done.stdout)
    return Spu(
        protocol,
        tuple(found["seconds"][1:]),
        tuple(found["cpu_seconds"][1:]),
        found["seconds"][0],
        found["bytes"],
        found["send_actions"],
        tuple(np.array(one) for one in found["outputs"]),
    )
