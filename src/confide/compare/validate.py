"""How far a modelled cost is off: the same predictions through a real server behind a shaped link."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confide.compare.hosted import hosted
from confide.compare.inference import Sitting, backend_of
from confide.compare.links import Link
from confide.crypto.keys import SigningKey
from confide.crypto.random import SystemRandomness
from confide.guarantee import imported_label
from confide.model.artifact import Artifact
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess
from confide.net.relay import Relay
from confide.serve.client import Client

Matrix = NDArray[np.float64]


def validated(graph: Graph, preprocess: Preprocess, choice: str, x: Matrix, link: Link) -> dict[str, float]:
    """Return "measured_seconds" and "modelled_seconds", medians over the rows but the first.

    Args:
        graph: the model that is served.
        preprocess: whose features it takes.
        choice: a backend that answers over HTTP.
        x: at least 2 rows.
        link: whose delay and rate the relay has.

    Raises:
        ServiceError: the server did not start.
    """
    sitting, modelled = Sitting(backend_of(choice, x), graph), list[float]()
    sitting.setup()
    for row in x:
        modelled.append(link.seconds(sitting.predict(row[None, :])))
    measured: list[float] = []
    with tempfile.TemporaryDirectory(prefix="confide-compare-") as folder, ExitStack() as stack:
        model = Path(folder) / "model.confide"
        Artifact(graph, preprocess, imported_label()).save(model, SigningKey(SystemRandomness().bytes(32)))
        url = stack.enter_context(hosted(model, (choice,)))
        port = int(url.rstrip("/").rpartition(":")[2])
        shaped = Relay("127.0.0.1", port, delay_seconds=link.delay_seconds, bits_per_second=link.bits_per_second)
        with shaped as relay, Client(f"http://127.0.0.1:{relay.port}", backend=choice) as client:
            client.setup()
            for row in x:
                begin = time.perf_counter()
                client.ask(row[None, :])
                measured.append(time.perf_counter() - begin)
    return {
        "measured_seconds": float(np.median(measured[1:])),
        "modelled_seconds": float(np.median(modelled[1:])),
    }
