"""MNIST, many images at once: the whole test set in questions of N/2 images, over HTTP on loopback; of bench/he.py.

Every number of an image is a slot of a ciphertext of its own, so a question is large and costs the same however few
images it holds; figures are those of full questions, divided by their images. The accuracy is that of all 10,000.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
from he_cases import Case
from he_ours import LIMITS, client_of, peak_memory, server

from confide.he import Homomorphic
from confide.wire import MemoryStore

#: A question of 4,096 images is about 250 MB.
LARGE = replace(LIMITS, query_bytes=(256 << 20) + 4096, buffered_bytes=2 << 30)


@dataclass
class Many:
    """What full questions took, in milliseconds and bytes for each image; the last two are of all images."""

    rows: int = 0
    server: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    query_bytes: float = 0.0
    reply_bytes: float = 0.0
    keys_bytes: int = 0
    memory_bytes: int = 0
    error: float = 0.0
    accuracy: float = 0.0
    plain_accuracy: float = 0.0

    def figures(self) -> list[tuple[str, float, str]]:
        """Return name, value and unit of each figure; times are medians."""
        return [
            ("server ms/image", median(self.server), "ms"),
            ("end to end ms/image", median(self.whole), "ms"),
            ("client ms/image", median(self.client), "ms"),
            ("query kB/image", self.query_bytes / 1e3, ""),
            ("reply kB/image", self.reply_bytes / 1e3, ""),
            ("images of a question", self.rows, ""),
            ("keys kB", self.keys_bytes / 1e3, ""),
            ("server memory MB", self.memory_bytes / 1e6, ""),
            ("accuracy encrypted", self.accuracy, "%"),
            ("accuracy plain", self.plain_accuracy, "%"),
            ("points between them", abs(self.accuracy - self.plain_accuracy), ""),
        ]


def measure(case: Case) -> Many:
    """Ask for every row of a case, as many at once as a question holds."""
    assert case.graph is not None
    assert isinstance(case.backend, Homomorphic)
    found, x = Many(rows=case.backend.plan(case.graph).slots), case.rows.x
    outputs = np.empty((len(x), case.graph.outputs))
    with server(case, limits=LARGE) as (url, pid), client_of(case, url, MemoryStore()) as client:
        found.keys_bytes = client.setup().bytes_sent("client")
        for start in range(0, len(x), found.rows):
            part = x[start : start + found.rows]
            begin = time.perf_counter()
            transcript = client.ask(part)
            taken = time.perf_counter() - begin
            outputs[start : start + len(part)] = transcript.output("client")
            if len(part) < found.rows:
                continue
            each = 1e3 / len(part)
            found.whole.append(each * taken)
            found.server.append(each * transcript.seconds("server"))
            found.client.append(each * transcript.seconds("client"))
            found.query_bytes = transcript.bytes_sent("client") / len(part)
            found.reply_bytes = transcript.bytes_sent("server") / len(part)
        found.memory_bytes = peak_memory(pid)
    expected = case.graph.apply(x)
    found.error = float(np.abs(outputs - expected).max())
    known = case.rows.labels >= 0
    found.accuracy, found.plain_accuracy = (
        100 * float((one.argmax(axis=1) == case.rows.labels)[known].mean()) for one in (outputs, expected)
    )
    return found
