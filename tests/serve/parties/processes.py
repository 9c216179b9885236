"""The organisations of a mode as processes of `confide`, over TLS on 127.0.0.1. No test lives here."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from confide.crypto.keys import SigningKey
from confide.model.artifact import Artifact
from serve.parties.federation import founded
from serve.toy import GRAPH, LABEL, PREPROCESS

RUN = Path(__file__).with_name("run.py")
VERBS: Mapping[str, str] = {"dealer": "dealer", "helper": "helper", "third": "helper"}


class Process:
    """One command; `url` is where it said that it listens."""

    def __init__(self, *arguments: object, log: Path, dies: str = "") -> None:
        self.log, self.url = log, ""
        command = [sys.executable, str(RUN), *map(str, arguments)]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | {"STANDIN_DIES": dies},
            )

    def listening(self, seconds: float = 60.0) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            end = time.monotonic() + seconds
            while time.monotonic() < end and waiting.select(end - time.monotonic()):
                line = self.process.stdout.readline().decode()
                if found := re.match(r"listening on (\S+)", line):
                    self.url = found[1]
                    return self.url
                if not line:
                    break
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Organisations:
    """A server and its partners as processes, each of which can be killed and started again."""

    def __init__(self, folder: Path, backend: str, partners: Mapping[str, str], clients=("clinic",)) -> None:
        self.folder, self.backend, self.partners = folder, backend, partners
        members = {**dict.fromkeys(clients, "client"), **{name: role for role, name in partners.items()}}
        self.home = founded(folder, members)
        self.model = folder / "model.confide"
        if not self.model.exists():
            Artifact(GRAPH, PREPROCESS, LABEL).save(self.model, SigningKey(bytes(range(32))))
        self.running: dict[str, Process] = {}
        self.url, self.port = "", 0

    def start_server(self, *more: object, dies: str = "") -> None:
        options = [item for role, name in self.partners.items() for item in (f"--{role}", name)]
        self.running["server"] = Process(
            "serve", self.model, "--backend", self.backend, "--federation", self.home, *options,
            "--host", "127.0.0.1", "--port", self.port, "--store", self.folder / "server.db",
            "--insecure-colocated-dealer", *more, log=self.folder / "server.log", dies=dies,
        )  # fmt: skip
        self.url = self.running["server"].listening()
        self.port = int(self.url.rpartition(":")[2])

    def start_partner(self, role: str, *more: object, dies: str = "") -> None:
        name = self.partners[role]
        self.running[role] = Process(
            VERBS[role], self.folder / name, "--listen", "127.0.0.1:0", "--coordinator", self.url,
            "--insecure-colocated-dealer", *more, log=self.folder / f"{name}.log", dies=dies,
        )  # fmt: skip
        self.running[role].listening()

    def restart(self, role: str, *, dies: str = "") -> None:
        self.running[role].kill()
        if role == "server":
            self.start_server(dies=dies)
        else:
            self.start_partner(role, dies=dies)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def organisations(folder: Path, backend: str, partners: Mapping[str, str], **more) -> Iterator[Organisations]:
    found = Organisations(folder, backend, partners, **more)
    try:
        found.start_server()
        for role in partners:
            found.start_partner(role)
        yield found
    finally:
        for process in found.running.values():
            process.kill()
