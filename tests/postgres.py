"""A private PostgreSQL server for tests: real, from the system's packages, in a temporary folder, on a Unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "max_connections": "30",
    "max_wal_size": "128MB",
    "autovacuum": "off",  # so that what the store clears away is the store's doing
}


def programs() -> Path | None:
    """Return the folder of the newest server's programs, None if there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin/initdb"), key=lambda path: float(path.parts[4]))
    elsewhere = shutil.which("initdb")
    return debian[-1].parent if debian else Path(elsewhere).resolve().parent if elsewhere else None


class PostgresServer:
    """One server. It refuses to run as root, so root starts it as the packages' user "postgres"."""

    def __init__(self, bin_folder: Path) -> None:
        self._bin = bin_folder
        self.folder = Path(tempfile.mkdtemp(prefix="confide-postgres-"))
        self._identity: dict[str, object] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        initialise = ["initdb", "-D", "data", "-U", "confide", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        self._run(initialise)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql:///{database}?host={self.folder}&user=confide"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            [self._bin / command[0], *command[1:]],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            **self._identity,
        )
        assert done.returncode == 0, done.stderr

    def start(self, **settings: str) -> None:
        options = [f"-c{name}={value}" for name, value in {**_SETTINGS, **settings}.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", "data", "-k", str(self.folder), *options],
                cwd=self.folder,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._identity,
            )
        for _ in range(3000):
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            try:
                psycopg.connect(self.url()).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def stop(self, *, crash: bool = False) -> None:
        """Stop it; a crash ends every session at once and writes nothing more."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        self.stop(crash=True)
        shutil.rmtree(self.folder)

    def create(self, database: str) -> str:
        """Return the URL of a new, empty database."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
