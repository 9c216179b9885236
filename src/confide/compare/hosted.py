"""Server processes of `confide` for as long as a measurement lasts, on free ports of this machine.

Techniques that one server answers are served over HTTP; those of several organisations get a federation of their own,
with a process for each role and a folder with a certificate for each client.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from confide.compare.cells import VARIANTS
from confide.crypto.keys import SigningKey
from confide.crypto.random import SystemRandomness
from confide.errors import ServiceError
from confide.guarantee import imported_label
from confide.model.artifact import Artifact
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess
from confide.net.founding import found
from confide.net.membership import join
from confide.net.registrar import Registrar
from confide.serve import JOINT, load_backend

_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.02
_HERE = "127.0.0.1"

#: Which command runs a role of several organisations, beside the server.
_VERBS: Mapping[str, str] = {"dealer": "dealer", "helper": "helper", "third": "helper"}


@dataclass(frozen=True, slots=True)
class Hosts:
    """Who serves.

    Args:
        url: where clients ask.
        processes: the process of each serving role; a server's workers are its children.
        identities: a folder for each client, where clients are members of a federation.
    """

    url: str
    processes: Mapping[str, int] = field(default_factory=dict[str, int])
    identities: tuple[Path, ...] = ()


def artifact_bytes(graph: Graph, preprocess: Preprocess) -> bytes:
    """Return a model as the file that is served, signed with a key that is thrown away."""
    return Artifact(graph, preprocess, imported_label()).encode(SigningKey(SystemRandomness().bytes(32)))


@contextlib.contextmanager
def hosted(model: Path, backends: Sequence[str], *options: str) -> Generator[str]:
    """Serve `model` in a process of its own and give its URL; the process is stopped at the end.

    Args:
        model: a model file.
        backends: names, the default first.
        options: further options of `confide serve`.

    Raises:
        ServiceError: the server did not start; the text is its own last line.
    """
    named = [word for backend in backends for word in ("--backend", backend)]
    with _started("serve", str(model), "--port", "0", *options, *named) as (_, url):
        yield url


@contextlib.contextmanager
def serving(choice: str, model: Path, folder: Path, *, clients: int) -> Generator[Hosts]:
    """Serve a model by one technique, a process for each of its serving roles, as docs/serve.md and docs/mpc.md say.

    Args:
        choice: out of `cells.inference_choices`.
        model: a model file.
        folder: for certificates and stores; empty.
        clients: how many will ask.

    Raises:
        ServiceError: a process did not start; the text is its own last line.
    """
    backend = VARIANTS.get(choice, choice)
    if backend in JOINT:
        with _organised(backend, model, folder, clients) as hosts:
            yield hosts
        return
    options = {"he-open": ("--open-model",), "tee": ("--attester", "simulated")}.get(choice, ())
    kept = ("--store", str(folder / "server.db"))
    with _started("serve", str(model), "--port", "0", "--backend", backend, *kept, *options) as (process, url):
        yield Hosts(url, {"server": process})


@contextlib.contextmanager
def _organised(backend: str, model: Path, folder: Path, clients: int) -> Generator[Hosts]:
    """Run the organisations of a mode; they share this machine, which each has to be told to accept."""
    partners = [role for role in load_backend(backend).roles if role in _VERBS]
    home, names = folder / "federation", [f"client-{place}" for place in range(clients)]
    found(home, name="comparison", address=f"{_HERE}:1")
    registrar = Registrar(home)
    for name, role in {**dict.fromkeys(names, "client"), **{role: role for role in partners}}.items():
        hosts = (_HERE,) if role in _VERBS else ()
        join(folder / name, registrar.invite(name, role, hosts=hosts), registrar.reply)
    trial = "--insecure-colocated-dealer"
    named = [word for role in partners for word in (f"--{role}", role)]
    with contextlib.ExitStack() as stack:
        server, url = stack.enter_context(
            _started(
                "serve", str(model), "--backend", backend, "--federation", str(home), *named, "--host", _HERE,
                "--port", "0", "--store", str(folder / "server.db"), trial,
            )
        )  # fmt: skip
        processes = {"server": server}
        for role in partners:
            processes[role], _ = stack.enter_context(
                _started(
                    _VERBS[role], str(folder / role), "--listen", f"{_HERE}:0", "--coordinator", url, trial
                )
            )  # fmt: skip
        yield Hosts(url, processes, tuple(folder / name for name in names))


@contextlib.contextmanager
def _started(*arguments: str) -> Generator[tuple[int, str]]:
    """Run a command of `confide` that listens; give its process and URL, and stop it at the end."""
    with (
        tempfile.TemporaryFile() as said,  # a server writes a line for each request: nobody waits for a reader
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(  # noqa: S603 (this interpreter, our own program)
            [sys.executable, "-m", "confide", *arguments], stdin=subprocess.DEVNULL, stdout=said, stderr=complaints
        ) as process,
    ):
        try:
            yield process.pid, _url(process, said, complaints)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _url(process: subprocess.Popen[bytes], said: IO[bytes], complaints: IO[str]) -> str:
    """Return the URL that the server prints once it accepts connections."""
    while process.poll() is None:
        *lines, _ = os.pread(said.fileno(), 1 << 16, 0).decode(errors="replace").split("\n")  # the last is not whole
        for line in lines:
            word = line.split()[-1] if line.split() else ""
            if word.startswith(("http://", "https://", "wss://")):
                return word
        time.sleep(_LOOK_SECONDS)
    complaints.seek(0)
    lines = complaints.read().strip().splitlines()
    raise ServiceError(503, lines[-1] if lines else "the server ended before it listened")
