"""A federation of processes that predict together: folders with keys and certificates. No test lives here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from confide.net.founding import found
from confide.net.membership import join
from confide.net.registrar import Registrar

LISTENING = ("helper", "third", "dealer")


def founded(folder: Path, members: Mapping[str, str], *, address: str = "127.0.0.1:1") -> Path:
    """Found a federation below `folder` and let every member (role by name) join; return the coordinator's folder."""
    home = folder / "federation"
    found(home, name="trial", address=address)
    registrar = Registrar(home)
    for name, role in members.items():
        hosts = ("127.0.0.1",) if role in LISTENING else ()
        join(folder / name, registrar.invite(name, role, hosts=hosts), registrar.reply)
    return home
