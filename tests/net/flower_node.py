"""A node's own process: `python flower_node.py FOLDER NAME`. Ends when it is terminated."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from confide.net.flower import FlowerJoin
from net.parties import Member, key_of


def main(folder: Path, name: str) -> None:
    link = FlowerJoin(folder / f"{name}.sock", name, key_of(name), key_of("server").public)
    member, ended = Member(name), []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    while not ended:
        if event := link.receive(0.2):
            for envelope in member.handle(event):
                link.send("server", envelope)
    link.close()


main(Path(sys.argv[1]), sys.argv[2])
