"""An environment of its own for each peer: made from pinned versions, whole or not at all, and removed.

FOLDER/NAME/.venv is the environment. Its stamp is written last, after the peer was imported in it, and taken away
first: an environment without a stamp, which a killed installer leaves, is not there. FOLDER/NAME/.failed.json says why
the last attempt failed, so that a comparison can show it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from confide.compare.peers.catalogue import Peer
from confide.compare.peers.process import end, printable
from confide.errors import UsageError
from confide.model.artifact import write_whole
from confide.structs import known

PINS = Path(__file__).parent / "pins"
RUNNERS = Path(__file__).parent / "runners"

_LAST_LINES = 4
_MOST_BYTES = 1 << 16
_CHECK_SECONDS = 300.0
#: Lines of pip that say which package it is at.
_PACKAGE = re.compile(r"^\s*(?:Collecting|Processing|Downloading|Building|Installing collected packages:?)\b")

Progress = Callable[[str], None]
_Kind = TypeVar("_Kind", "Stamp", "Failure")


class Stamp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in a whole environment.

    Args:
        peer, version: as the peer itself gave them once it was there.
        pins_sha256: of the list that it was made from.
        python: of the environment.
    """

    peer: str
    version: str
    pins_sha256: str
    python: str


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an installation failed.

    Args:
        reason: the installer's last lines.
        pins_sha256: of the list that was tried.
    """

    reason: str
    pins_sha256: str


@dataclass(frozen=True, slots=True)
class Environment:
    """Where one peer is, or would be.

    Args:
        peer: which.
        folder: of all peers.
        lists: of the lists of versions.
        scripts: of the scripts that run in environments.
    """

    peer: Peer
    folder: Path
    lists: Path = PINS
    scripts: Path = RUNNERS

    @property
    def root(self) -> Path:
        """Return the folder of this peer."""
        return self.folder / self.peer.name.replace("-", "_")

    @property
    def home(self) -> Path:
        """Return the virtual environment."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """Return its interpreter."""
        return self.home / "bin" / "python"

    @property
    def runner(self) -> Path:
        """Return the script that runs in it."""
        return self.scripts / self.peer.runner

    @property
    def pins(self) -> Path:
        """Return the list of packages and versions that it is made of."""
        return self.lists / f"{self.peer.name}.txt"

    def pins_hash(self) -> str:
        """Return hex SHA-256 of that list, remarks left out."""
        return hashlib.sha256("\n".join(pinned(self.pins)).encode()).hexdigest()

    def stamp(self) -> Stamp | None:
        """Return the stamp; None where there is no whole environment of today's pins."""
        found = _read(self.home / "stamp.json", Stamp)
        if found is None or (found.peer, found.version) != (self.peer.name, self.peer.version):
            return None
        return found if found.pins_sha256 == self.pins_hash() and os.access(self.python, os.X_OK) else None

    def absent(self) -> str | None:
        """Return why the peer cannot be asked, with what to do; None if it can."""
        if self.stamp() is not None:
            return None
        install = f"`confide peers install {self.peer.name}`"
        if (failed := _read(self._failed, Failure)) is not None and failed.pins_sha256 == self.pins_hash():
            return f"it could not be installed: {printable(failed.reason)}; {install} tries again"
        if (self.home / "stamp.json").exists():
            return f"its environment was made from other versions; {install} makes it anew"
        if self.home.exists():
            return f"its environment is half made; {install} makes it anew"
        return f"not installed; {install} makes its environment"

    def packages(self) -> int:
        """Return how many packages it is made of."""
        return len(pinned(self.pins))

    def size_bytes(self) -> int:
        """Return what it takes on disk, 0 where it is not."""
        if not self.home.exists():
            return 0
        found, seen = 0, set[tuple[int, int]]()
        for place, _, files in os.walk(self.home):
            for name in files:
                with contextlib.suppress(OSError):
                    state = os.lstat(Path(place, name))
                    if (state.st_dev, state.st_ino) not in seen:
                        seen.add((state.st_dev, state.st_ino))
                        found += state.st_blocks * 512
        return found

    @property
    def _failed(self) -> Path:
        return self.root / ".failed.json"

    @property
    def _ours(self) -> Path:
        """Return the mark of an environment that is made here, whole or not."""
        return self.root / ".made-by-confide"

    # --- made and removed ---------------------------------------------------------------------------------------------

    def install(self, *, progress: Progress, index: str | None = None, again: bool = False) -> Stamp:
        """Make the environment, unless it is there; an attempt that fails is remembered.

        Args:
            progress: is told what is under way.
            index: one more place of packages, a URL.
            again: make it anew even if it is there.

        Raises:
            UsageError: it cannot be made or the peer cannot be imported; with the installer's last lines.
        """
        with self._alone() as held:
            if not again and (found := self.stamp()) is not None:
                return found
            self._clear()
            self._failed.unlink(missing_ok=True)
            self._ours.touch()
            try:
                return self._made(progress, index, held)
            except UsageError as error:
                failure = Failure(reason=str(error), pins_sha256=self.pins_hash())
                write_whole(self._failed, msgspec.json.encode(failure), mode=0o644)
                self._clear()
                raise

    def remove(self) -> bool:
        """Take the environment away, and what is remembered of failures; return whether there was anything."""
        if not self.home.exists() and not self._failed.exists():
            return False
        with self._alone():
            self._clear()
            self._failed.unlink(missing_ok=True)
            self._ours.unlink(missing_ok=True)
        (self.root / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of somebody else's lies there
            self.root.rmdir()
        return True

    @contextlib.contextmanager
    def _alone(self) -> Generator[int]:
        """Hold the peer's folder for this process, and those that are given the file that is yielded."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise UsageError(f"Expected a folder that can be written at {self.root}; {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    f"Expected nobody else to install or remove {self.peer.name} in {self.root}; wait until it is done"
                ) from None
            yield lock.fileno()

    def _clear(self) -> None:
        """Take away what an installation made. Raises UsageError at an environment that somebody else made."""
        if self.home.exists() and not self._ours.is_file():
            raise UsageError(f"Expected no environment but one of `confide peers install` at {self.home}; move it away")
        (self.home / "stamp.json").unlink(missing_ok=True)
        shutil.rmtree(self.home, ignore_errors=True)
        if self.home.exists():
            raise UsageError(f"Expected a folder that can be removed at {self.home}; remove it by hand")

    def _made(self, progress: Progress, index: str | None, held: int) -> Stamp:
        begin = interpreter(self.peer.pythons)
        progress(f"an environment of {begin.name}")
        _ran([str(begin), "-m", "venv", str(self.home)], progress, held)
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-color"]
        pip += ["--progress-bar", "off", *(["--extra-index-url", index] if index else [])]
        named = {re.split(r"[=<>\[]", line)[0].lower(): line for line in pinned(self.pins)}
        if whole := [named[one] for one in self.peer.with_dependencies]:
            _ran([*pip, "--constraint", str(self.pins), *whole], progress, held)
        if named:
            _ran([*pip, "--no-deps", "--requirement", str(self.pins)], progress, held)
        progress("checking that it can be imported")
        version = self._version(held)
        stamp = Stamp(peer=self.peer.name, version=version, pins_sha256=self.pins_hash(), python=_python_of(self.home))
        write_whole(self.home / "stamp.json", msgspec.json.encode(stamp), mode=0o644)
        return stamp

    def _version(self, held: int) -> str:
        """Return the version that the peer gives once it is imported. Raises UsageError if the pins say another."""
        command = [str(self.python), "-E", "-s", "-B", str(self.runner), "--version"]
        found = _ran(command, lambda _: None, held)[-1]
        if found != self.peer.version:
            raise UsageError(f"Expected {self.peer.title} {self.peer.version}, got {printable(found)}")
        return found


def pinned(pins: Path) -> list[str]:
    """Return the lines of a list of versions that name a package."""
    lines = (line.strip() for line in pins.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def interpreter(pythons: Sequence[str]) -> Path:
    """Return an interpreter of one of some releases: this one if it is, else one of the path.

    Raises:
        UsageError: there is none.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" in pythons:
        return Path(sys.executable)
    for release in pythons:
        if found := shutil.which(f"python{release}"):
            return Path(found)
    raise UsageError(f"Expected Python {' or '.join(pythons)} on this machine, which this peer needs; install it")


def _python_of(home: Path) -> str:
    lines = (home / "pyvenv.cfg").read_text().splitlines()
    return next((line.partition("=")[2].strip() for line in lines if line.startswith("version")), "")


def _read(path: Path, kind: type[_Kind]) -> _Kind | None:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        return msgspec.json.decode(path.read_bytes(), type=known(kind))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _ran(command: list[str], progress: Progress, held: int) -> list[str]:
    """Run a step of an installation; return its lines.

    Args:
        command: to run.
        progress: is told of packages.
        held: the file of the lock: a step that outlives a killed installer still keeps others out of its folder.

    Raises:
        UsageError: it failed; with its last lines.
    """
    lines = list[str]()
    process = subprocess.Popen(  # noqa: S603 (an interpreter and pip, from lists of ours)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(held,),
    )
    try:
        for line in _lines(process):
            lines = [*lines[-200:], line]
            if _PACKAGE.match(line):
                progress(line[:100])
        code = process.wait(_CHECK_SECONDS)
    finally:
        end(process)
    if code:
        errors = [line for line in lines if line.lower().startswith(("error", "fatal"))] or lines
        raise UsageError("; ".join(errors[-_LAST_LINES:]) or f"the installer ended with {code}")
    return lines or [""]


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if text := printable(line.decode(errors="replace").strip(), most=400):
            yield text
