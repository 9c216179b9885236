"""A result of a comparison, made by hand: every kind of record, and names that try to be more than names."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from confide.compare.links import LINKS
from confide.compare.people import Asks
from confide.compare.prices import PUBLISHED
from confide.compare.record import Record, Spread
from confide.compare.result import Curve, Result
from confide.compare.writing import write_all
from confide.guarantee import Adversary, Claim, Guarantee, Trust

#: Markup, a formula of a spreadsheet, a table's line, a formula of TeX, a link.
HOSTILE = '=<script>window.stolen=1</script>"|`$x_{$ [a](https://evil.example/)\n</style><img src=x onerror=stolen=2>'


def spread(value, share=0.1):
    return Spread(value, value * (1 - share), value * (1 + share), value)


def guarantee(claims=(), *, primary="none", trust=Trust.OPERATOR, bits=None, quantum=False, leaks="its size"):
    return Guarantee(
        claims=frozenset(claims),
        adversary=Adversary.SEMI_HONEST if claims else Adversary.NONE,
        trust=trust,
        security_bits=bits,
        post_quantum=quantum,
        verified_result=False,
        leaks=leaks,
        primary=primary,
        paper="a paper",
    )


QUERY = Claim("query", "server")
SPLIT = Claim("query", "server", ("dealer",))
UPDATE = Claim("update", "server")

HELD = {
    "plain": guarantee(),
    "he": guarantee([QUERY], primary="BFV, N=4096 (SEAL)", trust=Trust.CRYPTOGRAPHY, bits=128, quantum=True),
    "paillier": guarantee([QUERY], primary="Paillier, n=3072 bits", trust=Trust.CRYPTOGRAPHY, bits=128),
    "mpc-dealer": guarantee(
        [SPLIT], primary="additive shares mod 2^64", trust=Trust.NON_COLLUSION, bits=100, quantum=True
    ),
    "tee": guarantee(),
    HOSTILE: guarantee([Claim(HOSTILE, HOSTILE)], primary=HOSTILE, trust=Trust.HARDWARE, bits=64, leaks=HOSTILE),
}
SECONDS = {"plain": 0.001, "he": 0.02, "paillier": 0.8, "mpc-dealer": 0.004, "tee": 0.0015, HOSTILE: 0.5}


#: Of the sweep over model sizes.
SIZED = {
    "latency_wan_seconds": (0.1, 0.3),
    "latency_seconds": (0.01, 0.2),
    "query_total_bytes": (1000.0, 9000.0),
    "money_dollars": (0.0001, 0.002),
}


def inference(choice):
    seconds = SECONDS[choice]
    figures = {
        "latency_seconds": spread(seconds),
        "latency_lan_seconds": spread(seconds + 0.001),
        "latency_wan_seconds": spread(seconds + 0.04),
        "upload_bytes": spread(258.0 if choice == "plain" else 2580.0, 0.0),
        "money_dollars": spread(seconds / 100),
        "agreement_share": spread(1.0, 0.0),
        "requests_per_second_rate": spread(1 / seconds),
        "load_p95_seconds": spread(3 * seconds, 0.0),
        "load_p99_seconds": spread(4 * seconds, 0.0),
        "cpu_server_seconds": spread(seconds / 2),
        "cpu_of_server_seconds": spread(seconds / 2),
        "cpu_of_client_seconds": spread(seconds / 4),
        "disk_of_server_bytes": spread(5000.0, 0.0),
        "disk_of_client_bytes": spread(300.0, 0.0),
        "peak_memory_of_server_bytes": spread(200e6, 0.0),
        "peak_memory_bytes": spread(3e6, 0.0),
    }
    return Record("inference", choice, f"a model of {HOSTILE}", figures, HELD[choice], "a machine", "1", 7)


def training(choice, held, **figures):
    known = {
        "accuracy_share": spread(0.9, 0.01),
        "rounds_count": spread(3.0, 0.0),
        "upload_bytes": spread(3000.0, 0.0),
        "train_seconds": spread(1.5),
        "train_lan_seconds": spread(2.5),
        "train_wan_seconds": spread(6.5),
        "money_dollars": spread(0.00001234),
    }
    made = known | {name: spread(value, 0.0) for name, value in figures.items()}
    return Record("training", choice, f"parties {HOSTILE}", made, held, "a machine", "1", 5)


def curve(kind, choice, x, y, *, y_name="accuracy_share", task="training"):
    names = {"rounds": "rounds_count", "epsilon": "epsilon_total", "size": "parameters_count"}
    points = tuple(spread(value, 0.02) for value in y)
    return Curve(kind=kind, task=task, choice=choice, x_name=names[kind], y_name=y_name, x=tuple(x), y=points)


def asks(record):
    return Asks(
        task=record.task,
        choice=record.choice,
        roles=("server",),
        organisations=2,
        apart=(),
        machines=1,
        open_ports=1,
        keys=(HOSTILE,),
        steps=("pip install it", "run it", "run it"),
        lines=3,
        post_quantum=record.guarantee.post_quantum,
        why_ports="it is dialled",
    )


def result(**changes):
    masked = guarantee([UPDATE], primary="X25519", trust=Trust.CRYPTOGRAPHY, bits=128)
    noisy = guarantee([UPDATE, Claim("record", "outsiders")], primary="X25519", trust=Trust.CRYPTOGRAPHY, bits=128)
    records = (
        training("plain", guarantee()),
        training("masked", masked, upload_bytes=9000.0),
        training("masked+dp", noisy, upload_bytes=9100.0, accuracy_share=0.85, epsilon_total=1.0),
        *(inference(choice) for choice in HELD),
    )
    curves = (
        curve("rounds", "plain", (1, 2, 3), (0.5, 0.8, 0.9)),
        curve("rounds", "masked", (1, 2, 3), (0.5, 0.8, 0.9)),
        curve("epsilon", "masked+dp", (0.5, 1.0, 8.0), (0.7, 0.85, 0.9)),
        *(
            curve("size", choice, (281, 4097), y, y_name=figure, task="inference")
            for choice in ("he", "mpc-dealer", HOSTILE)
            for figure, y in SIZED.items()
        ),
    )
    made = {
        "name": HOSTILE,
        "job": f"[job]\n# ``` {HOSTILE}\n",
        "records": records,
        "curves": curves,
        "unfit": {"training/groups": f"4 parties are too few in {HOSTILE}", "size/paillier": "adds and scales only"},
        "people": tuple(asks(record) for record in records),
        "machine": "a machine",
        "commit": "confide-of-today",
        "data_kind": "public",
        "private": False,
        "links": tuple(LINKS[name] for name in ("lan", "wan")),
        "link_check": (),
        "prices": PUBLISHED,
        "seconds": 12.0,
    }
    return Result(**(made | changes))


@cache
def report():
    """Return the folder of `result()`'s report: drawn once in a test process, since drawing takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="confide-report-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_all(result(), folder)
    return folder
