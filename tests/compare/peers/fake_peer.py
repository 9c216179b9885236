"""A peer that is nobody's: a real virtual environment with nothing in it, and a script of a few lines."""

from __future__ import annotations

from pathlib import Path

from confide.compare.peers.catalogue import Peer, Variant
from confide.compare.peers.environment import Environment
from confide.guarantee import nothing_hidden

#: `--version`, or an answer that the task's "mode" spoils. Needs no package.
SCRIPT = """
import json, os, pathlib, subprocess, sys, time
if sys.argv[1:] == ["--version"]:
    pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
    time.sleep(SLEEP)
    print("1.0")
    sys.exit()
folder = pathlib.Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
mode, rows, outputs = task["mode"], task["rows"], task["outputs"]
answer = {"version": "1.0"}
if task["task"] == "training":
    answer |= {"predictions": [[0.9] * outputs] * rows, "rounds": 0, "train_seconds": 0.0}
else:
    answer |= {"of": "logits", "outputs": [[0.5] * outputs] * rows, "seconds": [1e-6] * rows}
if mode == "nan":
    answer["predictions"] = [[float("nan")] * outputs] * rows
if mode == "fails":
    sys.exit("no such luck")
(folder / "answer.json").write_text(json.dumps(answer))
"""


def variant(name: str, task: str, mode: str = "", **more) -> Variant:
    return Variant(
        choice=f"peer:{name}", task=task, title=f"Fake {name}", settings={"mode": mode},
        guarantee=nothing_hidden("everything"), state="nowhere", use_case="tests", layers=("Linear",), **more,
    )  # fmt: skip


def fake(
    folder: Path, *variants: Variant, pins: str = "# nothing\n", sleep: float = 0.0, version: str = "1.0", **more
) -> Environment:
    """Return where a fake peer would be, its list and script written beside."""
    own = folder / "own"
    own.mkdir(parents=True, exist_ok=True)
    (own / "fake.txt").write_text(pins)
    (own / "run_fake.py").write_text(SCRIPT.replace("SLEEP", repr(sleep)))
    peer = Peer("fake", "Fake", version, "tests", "run_fake.py", variants, **more)
    return Environment(peer, folder / "peers", lists=own, scripts=own)
