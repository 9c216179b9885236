"""A hidden folder beside the one that it becomes: whole or not at all, and none is left of a process that was killed.

Who fills `.NAME.xxxxxxxx` holds a lock on it, which ends with the process. What nobody holds was left by one that was
killed: shares, keys or certificates that nobody will use, cleared away when the next folder of that name begins.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path


def begin(place: Path) -> tuple[Path, int]:
    """Make a folder that will become `place`, for its owner alone, and hold it.

    Returns:
        The folder, and a descriptor that holds it: close it when the folder was renamed or removed.

    Raises:
        OSError: as the system says.
    """
    clear(place)
    while True:
        begun = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.absolute().parent))  # 0700
        held = _held(begun)
        if held is not None:
            return begun, held


def clear(place: Path) -> None:
    """Remove what killed processes left of folders that were to become `place`; what cannot be removed stays."""
    known = re.compile(rf"\.{re.escape(place.name)}\.[a-z0-9_]{{8}}")
    try:
        beside = [one for one in place.absolute().parent.iterdir() if known.fullmatch(one.name)]
    except OSError:
        return
    for one in beside:
        if one.is_symlink() or not one.is_dir() or one.stat().st_uid != os.geteuid():
            continue
        held = _held(one)
        if held is not None:
            shutil.rmtree(one, ignore_errors=True)
            os.close(held)


def _held(folder: Path) -> int | None:
    """Return a descriptor that holds a folder, None if somebody else does or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
