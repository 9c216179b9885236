"""Workers that cannot be started, hang while they start or come back different: tried again, told of, never at work."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

import confide.serve
import confide.serve.pool
from confide.errors import UsageError
from confide.net.http import InProcess
from confide.serve.limits import Limits
from confide.serve.pool import create_pooled_app
from confide.serve.process import Worker
from confide.serve.served import Model
from confide.serve.server import Server
from confide.serve.source import Source
from serve.toy import toy_model


def named(argument: bytes) -> list[Model]:
    """Make a model with the name that stands in a file; hang while there is none."""
    path = Path(argument.decode())
    while not path.exists():
        time.sleep(0.05)
    return [toy_model(path.read_text())]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(confide.serve, "BACKENDS", {**confide.serve.BACKENDS, "toy": "serve.toy:Toy"})
    monkeypatch.setattr(confide.serve.pool, "_LONGEST_PAUSE_SECONDS", 0.2)


@contextmanager
def pooled(folder: Path, **limits) -> Generator[tuple[Server, httpx2.Client, io.StringIO, Path]]:
    """Yield an application over one worker, a client, its log, and the file that names the model."""
    name, log = folder / "name", io.StringIO()
    name.write_text("first")
    source = Source("serve.test_replacement:named", str(name).encode())
    app = create_pooled_app(source, store=folder / "keys.db", limits=Limits(**{"workers": 1, **limits}), log=log)
    try:
        with httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1") as http:
            yield app, http, log, name
    finally:
        app.close()


def failures(log: io.StringIO) -> list[str]:
    """Return what the log says about workers that were not replaced."""
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line["failure"] for line in lines if line["code"] == "worker_not_replaced"]


def kill(app: Server) -> None:
    (worker,) = app._done._alive
    os.kill(worker.process.pid, signal.SIGKILL)
    wait_for(lambda: worker not in app._done._alive)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ready(http: httpx2.Client) -> tuple[int, bool]:
    told = http.get("/v2/models/first/ready").json()["ready"]
    return http.get("/v2/health/ready").status_code, told


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def failing(where: str, monkeypatch, number: int) -> list[int]:
    """Let a call of the system fail with an error as often as wanted, and return a list that grows with each try."""
    tries: list[int] = []
    owner, name = {"socketpair": ("socket", "socketpair"), "process": ("subprocess", "Popen")}[where]
    original = getattr(getattr(confide.serve.process, owner), name)

    def call(*arguments, **named):
        tries.append(1)
        if len(tries) <= 3:
            raise OSError(number, os.strerror(number))
        return original(*arguments, **named)

    monkeypatch.setattr(f"confide.serve.process.{owner}.{name}", call)
    return tries


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["socketpair", "process"])
def test_what_the_system_refuses_is_an_error_of_ours_and_leaves_nothing_open(where, error, monkeypatch):
    failing(where, monkeypatch, error)
    before = open_files()
    with pytest.raises(UsageError, match=f"Expected room for a worker process, got {os.strerror(error)}"):
        Worker()
    assert open_files() == before


def test_a_worker_that_the_system_refuses_is_tried_again(tmp_path, monkeypatch):
    with pooled(tmp_path) as (app, http, log, _):
        assert ready(http) == (200, True)
        tries = failing("process", monkeypatch, errno.EAGAIN)
        kill(app)
        assert ready(http) == (503, False)
        wait_for(lambda: app._done.figures().alive == 1)
        assert len(tries) == 4
        assert ready(http) == (200, True)
        assert app._done.figures().restarts == 1
        assert len(failures(log)) == 3
        assert failures(log)[0].startswith(f"Expected room for a worker process, got {os.strerror(errno.EAGAIN)};")


def test_a_bug_in_the_start_does_not_end_who_keeps_the_worker(tmp_path, monkeypatch):
    with pooled(tmp_path) as (app, _, log, _):
        prepare, tries = Worker.prepare, []

        def broken(self, start, *, seconds):
            tries.append(self.process)
            if len(tries) <= 2:
                raise RuntimeError("the secret is 42")
            prepare(self, start, seconds=seconds)

        monkeypatch.setattr(Worker, "prepare", broken)
        kill(app)
        wait_for(lambda: app._done.figures().alive == 1)
        assert [process.poll() for process in tries[:2]] == [-signal.SIGKILL] * 2
        assert len(failures(log)) == 2
        assert failures(log)[0].startswith("RuntimeError at broken:")
        assert "42" not in log.getvalue()


@pytest.mark.slow
def test_a_worker_that_hangs_at_its_start_is_ended_and_tried_again(tmp_path):
    with pooled(tmp_path, start_seconds=6) as (app, http, log, name):
        name.rename(tmp_path / "away")
        kill(app)
        wait_for(lambda: app._done._starting)
        (hanging,) = app._done._starting
        assert app._done.figures().alive == 0  # not before it is ready
        assert ready(http) == (503, False)
        wait_for(lambda: hanging not in app._done._starting)
        assert hanging.process.poll() == -signal.SIGKILL
        assert "nothing within start_seconds=6" in failures(log)[0]
        (tmp_path / "away").rename(name)
        wait_for(lambda: app._done.figures().alive == 1)
        assert ready(http) == (200, True)


@pytest.mark.slow
def test_a_first_worker_that_hangs_is_told(tmp_path):
    source = Source("serve.test_replacement:named", str(tmp_path / "absent").encode())
    with pytest.raises(UsageError, match="nothing within start_seconds=2"):
        create_pooled_app(source, store=tmp_path / "keys.db", limits=Limits(workers=1, start_seconds=2))


@pytest.mark.slow
def test_a_server_that_stops_ends_a_worker_that_hangs_at_its_start(tmp_path):
    with pooled(tmp_path) as (app, _, _, name):
        name.unlink()
        kill(app)
        wait_for(lambda: app._done._starting)
        (hanging,) = app._done._starting
        app.close()
        assert hanging.process.poll() == -signal.SIGKILL
        wait_for(lambda: not app._done._keepers[0].is_alive())


@pytest.mark.slow
def test_other_models_than_at_the_start_are_refused_loudly(tmp_path):
    with pooled(tmp_path) as (app, http, log, name):
        before = open_files()
        name.write_text("second")
        kill(app)
        wait_for(lambda: len(failures(log)) >= 2)
        assert failures(log)[0].startswith("Expected the models that are served already, got others")
        assert app._done.figures().alive == 0
        assert ready(http) == (503, False)
        name.write_text("first")
        wait_for(lambda: app._done.figures().alive == 1)
        assert ready(http) == (200, True)
        assert open_files() == before  # nothing is left of those that were refused
