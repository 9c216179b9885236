"""Where a server's models come from, as bytes that every worker process can make the same models of."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Literal

import msgspec

from confide.errors import UsageError
from confide.he import Homomorphic
from confide.ideal import Backend
from confide.model.artifact import Artifact, decode, decode_statement
from confide.mpc.ranges import Ranges
from confide.serve import load_backend
from confide.serve.served import Model
from confide.serve.staple import endorsing
from confide.structs import known
from confide.tee.attest import load_attester
from confide.tee.backend import Enclaved

Goal = Literal["latency", "throughput"]
Engine = Literal["auto", "native", "seal"]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that makes models, and what it makes them of; comes from this machine alone, never from a client.

    Args:
        maker: "module:function"; the function takes `argument` and returns the models.
        argument: bytes.
    """

    maker: str
    argument: bytes

    def __repr__(self) -> str:
        return f"Source({self.maker!r})"  # and not the model

    def models(self) -> list[Model]:
        """Return the models."""
        module, _, function = self.maker.partition(":")
        return getattr(import_module(module), function)(self.argument)


class _ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    body: bytes
    signer: bytes
    backends: tuple[str, ...]
    open_model: bool
    goal: Goal
    engine: Engine
    threads: int
    ranges: Ranges | None
    attester: str
    endorsements: dict[str, bytes]
    fetch: bool


def model_file(
    name: str,
    body: bytes,
    *,
    signer: bytes,
    backends: tuple[str, ...],
    open_model: bool = False,
    goal: Goal = "latency",
    engine: Engine = "auto",
    threads: int = 1,
    ranges: Ranges | None = None,
    attester: str = "",
    endorsements: Mapping[str, bytes] = MappingProxyType({}),
    fetch: bool = False,
) -> Source:
    """Return the source of one model from a model file.

    Args:
        name: of the model in the service.
        body: the file, which `confide.model.artifact.decode` has accepted.
        signer: the public key that signed it.
        backends: names, the default first.
        open_model: True serves it under `he` without model protection.
        goal: of `he`: "throughput" answers networks in batches.
        engine: of `he`: who executes networks and trees.
        threads: of `he`: that one answer may take.
        ranges: of `mpc-*`: how large values become before each layer.
        attester: of `tee`: who signs its evidence (`confide.tee.attest`); its models belong into one process.
        endorsements: of `tee`: shown with its evidence.
        fetch: of `tee`: ask the vendor for those that are missing.
    """
    made = _ModelFile(
        name=name,
        body=body,
        signer=signer,
        backends=backends,
        open_model=open_model,
        goal=goal,
        engine=engine,
        threads=threads,
        ranges=ranges,
        attester=attester,
        endorsements=dict(endorsements),
        fetch=fetch,
    )
    return Source("confide.serve.source:from_model_file", msgspec.msgpack.encode(made))


def from_model_file(argument: bytes) -> list[Model]:
    """Return the model of `model_file`."""
    made: _ModelFile = msgspec.msgpack.decode(argument, type=known(_ModelFile))
    artifact = decode(made.body, trust=made.signer)
    return [
        Model(
            name=made.name,
            graph=artifact.graph,
            label=artifact.label,
            backends=tuple(_backend(name, made, artifact) for name in made.backends),
            preprocess=artifact.preprocess.encode(),
            link=artifact.link,
            statement=artifact.statement,
        )
    ]


def _backend(name: str, made: _ModelFile, artifact: Artifact) -> Backend:
    if made.open_model and name != "he":
        raise UsageError(f"Expected --open-model with --backend he alone, got --backend {name}; leave one of them out")
    if made.attester and "tee" not in made.backends:
        raise UsageError("Expected --attester with --backend tee alone; leave it out")
    if name == "tee":
        return _enclaved(made, artifact)
    if name != "he":
        return load_backend(name, ranges=made.ranges)
    return Homomorphic(protect_model=not made.open_model, goal=made.goal, engine=made.engine, threads=made.threads)


def _enclaved(made: _ModelFile, artifact: Artifact) -> Enclaved:
    if not made.attester:
        raise UsageError(
            "Expected --attester with --backend tee: configfs-tsm, gramine or nitro; or simulated, for a trial that "
            "protects nothing"
        )
    statement = decode_statement(artifact.statement, trust=made.signer)
    attester = load_attester(made.attester)
    return Enclaved(
        attester=attester,
        model_sha256=statement.graph_sha256.hex(),
        endorse=endorsing(attester, given=made.endorsements, fetch=made.fetch),
    )
