"""The peers: which there are, at which versions, on what each is measured, and what it promises there, in our words.

A peer is one environment. What is measured of it are its variants, each one row of a comparison under the name
"peer:...". Guarantees are of the setting that is measured; what a framework promises elsewhere is not claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confide.compare.peers import promises
from confide.compare.techniques import Technique
from confide.errors import UsageError, nearest
from confide.guarantee import Guarantee

PREFIX = "peer:"
#: Where nothing else is said: releases of Python that a peer is run on.
_RECENT = ("3.11", "3.12", "3.13")


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing that is measured of a peer.

    Args:
        choice: its name in a comparison, "peer:..." .
        task: "training" or "inference".
        title: what a table calls it, the version included.
        settings: what its script is told, JSON types.
        guarantee: texts in it may hold {epsilon} and {delta}, of the job.
        state: of the model, as in `Technique`.
        use_case: in a few words.
        layers: kinds of layers that it runs, for predictions; a last sigmoid is left out.
        private: needs the job's [privacy].
        one_place: all records lie at one holder.
        models: kinds of models that it trains.
        how: the setting, in words, behind the job's.
    """

    choice: str
    task: str
    title: str
    settings: Mapping[str, Any]
    guarantee: Guarantee
    state: str
    use_case: str
    layers: tuple[str, ...] = ()
    private: bool = False
    one_place: bool = False
    models: tuple[str, ...] = ("logistic", "mlp")
    how: str = ""

    @property
    def technique(self) -> Technique:
        """Return the row of a table that no measurement gives."""
        needs = "processes of one machine, as measured"
        return Technique(f"{self.title} (peer)", self.state, self.use_case, f"{self.title}, no part of confide", needs)


@dataclass(frozen=True, slots=True)
class Peer:
    """One framework of others.

    Args:
        name: of the environment.
        title: its own name.
        version: that the pins hold.
        purpose: what it is, in one line.
        runner: the script that runs in its environment.
        variants: what is measured of it.
        pythons: releases of Python that its environment can be made of, the best first.
        with_dependencies: packages of the pins that bring what their build for this machine needs.
        disk: what it takes, about.
        refused: why nothing of it can be measured here; "" where it can.
    """

    name: str
    title: str
    version: str
    purpose: str
    runner: str
    variants: tuple[Variant, ...]
    pythons: tuple[str, ...] = _RECENT
    with_dependencies: tuple[str, ...] = ()
    disk: str = ""
    refused: str = ""


_EVERY_ROUND = "in the clear at the server after every round"
_AT_CURATOR = "in the clear at the curator"
_AT_SERVER = "in the clear at the server"
_SUMS_OF_ROUNDS = "one process drives server and clients by the framework's own messages, no network"


def _tenseal(choice: str, title: str, how: str, *, smallest: bool) -> Variant:
    return Variant(
        choice=choice, task="inference", title=title, settings={"smallest": smallest}, guarantee=promises.TENSEAL,
        state=_AT_SERVER, use_case="encrypted vectors in Python, small dense models", layers=("Linear", "Square"),
        how=f"{how}; serialised on both sides, no network",
    )  # fmt: skip


_CONCRETE = Variant(
    choice="peer:concrete-ml", task="inference", title="Concrete ML 1.9.0", settings={}, guarantee=promises.CONCRETE,
    state=_AT_SERVER + ", quantised", use_case="exact integers under TFHE; trees and quantised networks",
    layers=("Linear", "Square", "Relu"),
    how="quantised by training rows, its client and server, serialised on both sides, no network",
)  # fmt: skip
_ORION = Variant(
    choice="peer:orion", task="inference", title="Orion 1.0.2", settings={}, guarantee=promises.ORION,
    state=_AT_SERVER, use_case="deep networks under CKKS", layers=("Linear", "Square"),
    how="CKKS through Lattigo; its client and server are one process, nothing is serialised",
)  # fmt: skip
_SPU_HOW = "a process for each party, plaintext links on loopback, 64-bit ring with 18 bits of fraction"
_SPU_LAYERS = ("Linear", "Square", "Relu")


def _spu(name: str, protocol: str, guarantee: Guarantee, use_case: str) -> Variant:
    return Variant(
        choice=f"peer:spu-{name}", task="inference", title=f"SPU 0.9.5 {protocol}", settings={"protocol": protocol},
        guarantee=guarantee, state="secret-shared over its parties", use_case=use_case, layers=_SPU_LAYERS,
        how=_SPU_HOW,
    )  # fmt: skip


_FEDERATED: Mapping[str, Any] = {"batch": 32, "learning_rate": 0.5}


def _federated(choice: str, title: str, settings: Mapping[str, Any], guarantee: Guarantee, use_case: str) -> Variant:
    return Variant(
        choice=choice, task="training", title=title, settings={**_FEDERATED, **settings}, guarantee=guarantee,
        state=_EVERY_ROUND, use_case=use_case,
        how=f"federated averaging, one local pass a round in batches of 32 at rate 0.5; {_SUMS_OF_ROUNDS}",
    )  # fmt: skip


_PYSYFT = Variant(
    choice="peer:pysyft", task="training", title="PySyft 0.9.5",
    settings={**_FEDERATED, "learning_rate": 0.1}, guarantee=promises.PYSYFT,
    state="in the clear at the analyst, each party's as well", use_case="analysts whose code owners read first",
    how="one approved request at each party, which trains for as many passes as the job has rounds, in batches of 32 "
    "at rate 0.1; the mean of their models; data sites in one process",
)  # fmt: skip
_DIFFPRIVLIB = Variant(
    choice="peer:diffprivlib", task="training", title="Diffprivlib 0.6.6", settings={},
    guarantee=promises.DIFFPRIVLIB, state=_AT_CURATOR, use_case="one holder who publishes a model", private=True,
    one_place=True, models=("logistic",),
    how="all records in one place; objective perturbation at the job's epsilon, delta 0",
)  # fmt: skip
_OPACUS = Variant(
    choice="peer:opacus", task="training", title="Opacus 1.6.0",
    settings={"batch": 64, "learning_rate": 0.5, "clip_norm": 1.0},
    guarantee=promises.OPACUS, state=_AT_CURATOR, use_case="one holder who publishes a network", private=True,
    one_place=True,
    how="all records in one place; DP-SGD, batches of 64 on average at rate 0.5, clip norm 1, as many passes as the "
    "job has rounds, noise for the job's epsilon and delta",
)  # fmt: skip

PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "tff", "TensorFlow Federated", "0.87.0", "federated averaging", "run_tff.py",
            (
                _federated(
                    "peer:tff", "TensorFlow Federated 0.87.0", {}, promises.PLAIN_SUM, "research on federated averaging"
                ),
            ),
            pythons=("3.11",), disk="2 GB",
        ),
        Peer(
            "flower", "Flower", "1.42.0", "federated averaging, plain and under SecAgg+", "run_flower.py",
            (
                _federated(
                    "peer:flower", "Flower 1.42.0", {"secagg": False}, promises.PLAIN_SUM,
                    "federations of many kinds of clients",
                ),
                _federated(
                    "peer:flower-secagg", "Flower 1.42.0 SecAgg+", {"secagg": True}, promises.FLOWER_SECAGG,
                    "the same, updates hidden from the server",
                ),
            ),
            disk="0.3 GB",
        ),
        Peer("pysyft", "PySyft", "0.9.5", "code that owners approve, run at their data sites", "run_pysyft.py",
             (_PYSYFT,), pythons=("3.11", "3.12"), disk="1.3 GB"),
        Peer("opacus", "Opacus", "1.6.0", "DP-SGD on pooled records", "run_opacus.py", (_OPACUS,),
             with_dependencies=("torch",), disk="1 GB and more"),
        Peer("diffprivlib", "Diffprivlib", "0.6.6", "private logistic regression on pooled records",
             "run_diffprivlib.py", (_DIFFPRIVLIB,), pythons=("3.11", "3.12"), disk="0.3 GB"),
        Peer("tenseal", "TenSEAL", "0.3.18", "CKKS on encrypted vectors", "run_tenseal.py",
             (
                 _tenseal("peer:tenseal", "TenSEAL 0.3.18", "CKKS, scale of 40 bits", smallest=False),
                 _tenseal("peer:tenseal-small", "TenSEAL 0.3.18, smallest ring", "CKKS, N = 4096", smallest=True),
             ),
             pythons=("3.11", "3.12"), disk="0.1 GB"),
        Peer("concrete-ml", "Concrete ML", "1.9.0", "TFHE on quantised models", "run_concrete.py", (_CONCRETE,),
             pythons=("3.11",), disk="6 GB"),
        Peer("orion", "Orion", "1.0.2", "CKKS for networks", "run_orion.py", (_ORION,), pythons=("3.11", "3.12"),
             with_dependencies=("torch",), disk="1.3 GB and more"),
        Peer(
            "spu", "SPU", "0.9.5", "secret sharing among two or three parties", "run_spu.py",
            (
                _spu("aby3", "ABY3", promises.SPU_ABY3, "three servers of different owners"),
                _spu("semi2k", "SEMI2K", promises.SPU_SEMI2K, "for comparison alone: its first party deals"),
                _spu("cheetah", "CHEETAH", promises.SPU_CHEETAH, "two parties and no dealer"),
            ),
            pythons=("3.11",), disk="1 GB",
        ),
    )
}  # fmt: skip


def variants() -> dict[str, tuple[Peer, Variant]]:
    """Return what is measured of all peers, by its name in a comparison."""
    return {variant.choice: (peer, variant) for peer in PEERS.values() for variant in peer.variants}


def technique(choice: str) -> Technique | None:
    """Return what a table says of a peer; None for what is no peer's."""
    found = variants().get(choice)
    return found[1].technique if found else None


def named(names: tuple[str, ...]) -> tuple[Peer, ...]:
    """Return peers by name.

    Raises:
        UsageError: there is none of that name.
    """
    for name in names:
        if name not in PEERS:
            raise UsageError(
                f"Expected the name of a peer, got {name!r}{nearest(name, PEERS)}; there are {', '.join(PEERS)}"
            )
    return tuple(PEERS[name] for name in dict.fromkeys(names))
