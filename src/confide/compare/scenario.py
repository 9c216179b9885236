"""What a team needs before it chooses a technique: one TOML file, or the answers to the same questions.

    [scenario]  what for, and the notes that belong to it
    [holders]   who has the records, the model and the queries
    [hide]      what whom must not learn
    [trust]     whom the team is ready to trust
    [needs]     quality, time, noise
    [network]   the link between the organisations
    [model]     its kind and size
    [expected]  what its author expects the answer to be

Every key has its default and its meaning here; `docs/advise.md` lists them and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from confide.compare.links import LINKS, Link
from confide.errors import UsageError
from confide.structs import known
from confide.train.keys import Range, faults, load_tables, sections_of, table_faults
from confide.train.sections import Section

_WHAT = "scenario file"


class PurposeSection(Section, frozen=True, kw_only=True):
    """[scenario]: what the advice is for.

    Args:
        name: what it is called.
        phases: which of the two are asked about.
        regulation: notes in free text; they are printed with the advice and decide nothing.
    """

    name: str = "scenario"
    phases: tuple[Literal["training", "inference"], ...] = ("training", "inference")
    regulation: str = ""


class HoldersSection(Section, frozen=True, kw_only=True):
    """[holders]: who has what.

    Args:
        parties: organisations or devices that hold records.
        records: how many there are in all.
        pooling: whether the records may lawfully be brought to one place.
        model: who has the trained model: a "server" that others ask, "shares" over several servers after a training on
            shares, or the "client" itself.
    """

    parties: int = 4
    records: int = 1000
    pooling: bool = False
    model: Literal["server", "shares", "client"] = "server"


Machine = Literal["server", "outsiders"]
Member = Literal["server", "parties", "outsiders"]


class HideSection(Section, frozen=True, kw_only=True):
    """[hide]: who must not learn what. "server" stands for every machine that helps: also a dealer or a second server.

    Args:
        updates: of training: what one party contributes to a round.
        records: of training: whether somebody's record took part, as far as what is released tells; "parties" are the
            other organisations.
        model: of training: the model that is made.
        query, prediction: of inference.
        weights: of inference: the model that is asked.
    """

    updates: tuple[Member, ...] = ()
    records: tuple[Member, ...] = ()
    model: tuple[Machine, ...] = ()
    query: tuple[Machine, ...] = ()
    prediction: tuple[Machine, ...] = ()
    weights: tuple[Literal["server", "client", "outsiders"], ...] = ()


class TrustSection(Section, frozen=True, kw_only=True):
    """[trust]: what may be trusted, and what is at hand.

    Args:
        operator: whoever runs the server may see everything: a contract binds it.
        servers: organisations that can run a server and pool with no other; the operator's own counts.
        dealer: a further organisation can deal random numbers, and pools with nobody.
        hardware: the vendor of a chip, and whoever can open the machine.
        enclaves: a confidential machine is at hand.
        parties: most of those that hold records do not pool with the server.
        adversary: "curious" follows the protocol and studies what it sees; "malicious" sends what it likes.
    """

    operator: bool = False
    servers: int = 1
    dealer: bool = False
    hardware: bool = False
    enclaves: bool = False
    parties: bool = True
    adversary: Literal["curious", "malicious"] = "curious"


class NeedsSection(Section, frozen=True, kw_only=True):
    """[needs]: what the answer must reach.

    Args:
        latency_seconds: the most that one prediction may take; 0 asks for none.
        training_seconds: the most that a training may take; 0 asks for none.
        lost_points: the most points of accuracy that privacy may cost, against pooled records.
        epsilon: differential privacy of the released model; 0 asks for none.
        post_quantum: what is recorded today must stay closed to a quantum computer.
        liars: parties that may send what they like to spoil the model.
        rounds: of training.
    """

    latency_seconds: float = 0.0
    training_seconds: float = 0.0
    lost_points: float = 3.0
    epsilon: float = 0.0
    post_quantum: bool = False
    liars: int = 0
    rounds: int = 30


class NetworkSection(Section, frozen=True, kw_only=True):
    """[network]: the link; `delay_seconds` (one way) and `bits_per_second` replace what `kind` stands for."""

    kind: Literal["loopback", "lan", "wan", "mobile"] = "lan"
    delay_seconds: float | None = None
    bits_per_second: float | None = None

    @property
    def link(self) -> Link:
        """Return it with its numbers."""
        usual = LINKS[self.kind]
        delay = usual.delay_seconds if self.delay_seconds is None else self.delay_seconds
        rate = usual.bits_per_second if self.bits_per_second is None else self.bits_per_second
        return Link(name=self.kind, delay_seconds=delay, bits_per_second=rate)

    @property
    def usual(self) -> bool:
        """Return whether the numbers are those of `kind`."""
        return self.link == LINKS[self.kind]


class WantedModelSection(Section, frozen=True, kw_only=True):
    """[model]: its kind and size.

    Args:
        kind: "logistic", "mlp", "cnn" (one convolution, one hidden layer) or "trees"; "network" is any other, which
            `confide advise --model` brings.
        features: numbers of a row; of a cnn the pixels of a square image.
        outputs: of the last layer; 1 for two classes.
        hidden: units of each hidden layer.
        activation: between layers.
        channels: of the convolution.
        trees, depth: of trees.
    """

    kind: Literal["logistic", "mlp", "cnn", "trees", "network"] = "logistic"
    features: int = 30
    outputs: int = 1
    hidden: tuple[int, ...] = (16,)
    activation: Literal["square", "relu"] = "square"
    channels: int = 5
    trees: int = 50
    depth: int = 3


class ExpectedSection(Section, frozen=True, kw_only=True):
    """[expected]: what whoever wrote the file expects; the advice says where it differs.

    Args:
        training, inference: a choice, or "nothing" or "not measured"; empty expects nothing in particular.
        reason: why.
    """

    training: str = ""
    inference: str = ""
    reason: str = ""


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scenario as it was understood; one table for each field."""

    scenario: PurposeSection = PurposeSection()
    holders: HoldersSection = HoldersSection()
    hide: HideSection = HideSection()
    trust: TrustSection = TrustSection()
    needs: NeedsSection = NeedsSection()
    network: NetworkSection = NetworkSection()
    model: WantedModelSection = WantedModelSection()
    expected: ExpectedSection = ExpectedSection()


#: (section, key): lowest, highest, lowest excluded, highest excluded
_RANGES: Mapping[tuple[str, str], Range] = {
    ("holders", "parties"): (1, 1000, False, False),
    ("holders", "records"): (1, 10**12, False, False),
    ("trust", "servers"): (1, 100, False, False),
    ("needs", "latency_seconds"): (0, 1e6, False, False),
    ("needs", "training_seconds"): (0, 1e9, False, False),
    ("needs", "lost_points"): (0, 100, False, False),
    ("needs", "epsilon"): (0, 1000, False, False),
    ("needs", "liars"): (0, 1000, False, False),
    ("needs", "rounds"): (1, 100_000, False, False),
    ("network", "delay_seconds"): (0, 100, False, False),
    ("network", "bits_per_second"): (1, 1e13, False, False),
    ("model", "features"): (1, 4096, False, False),
    ("model", "outputs"): (1, 1000, False, False),
    ("model", "channels"): (1, 64, False, False),
    ("model", "trees"): (1, 1000, False, False),
    ("model", "depth"): (1, 8, False, False),
}

_LARGEST_LAYER, _MOST_LAYERS = 4096, 8


def load(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        UsageError: the file is absent or is no TOML; or as in `parse`.
    """
    return parse(load_tables(path, _WHAT, UsageError))


def parse(table: dict[str, Any]) -> Scenario:
    """Return the scenario that `table` describes.

    Raises:
        UsageError: with every unknown key, wrong type and value out of range, one in a line.
    """
    if problems := list(_problems(table)):
        raise UsageError("\n".join(problems))
    try:
        made = msgspec.convert(table, known(Scenario))
    except msgspec.ValidationError as error:
        raise UsageError(f"Expected a well-formed {_WHAT}; {error}") from None
    return made


def _problems(table: dict[str, Any]) -> Iterator[str]:
    sections = sections_of(Scenario)
    yield from table_faults(table, sections, "a scenario")
    for name, kind in sections.items():
        section = table.get(name, {})
        if isinstance(section, dict):
            yield from faults(name, kind, cast("dict[str, Any]", section), _RANGES, _WHAT)
    model = table.get("model", {})
    hidden = cast("dict[str, Any]", model).get("hidden", [16]) if isinstance(model, dict) else [16]
    if isinstance(hidden, list | tuple) and not _are_layers(cast("Sequence[object]", hidden)):
        yield (
            f"Expected model.hidden of 1 to {_MOST_LAYERS} layers of 1 to {_LARGEST_LAYER} units; change it in the "
            f"{_WHAT}"
        )


def _are_layers(sizes: Sequence[object]) -> bool:
    return 1 <= len(sizes) <= _MOST_LAYERS and all(
        isinstance(size, int) and 1 <= size <= _LARGEST_LAYER for size in sizes
    )


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """One key, as a person is asked for it.

    Args:
        section, key: of the file.
        text: the question.
        default: the answer to nothing; of a list of words a tuple.
    """

    section: str
    key: str
    text: str
    default: str | int | float | tuple[str, ...]


_MEMBERS = "(server parties outsiders, or nobody)"
_MACHINES = "(server outsiders, or nobody)"
_ASKED = "(server client outsiders, or nobody)"


def questions() -> tuple[Question, ...]:
    """Return what the terminal asks, in order; what it leaves out keeps its default."""
    return (
        Question("holders", "parties", "How many organisations or devices hold records?", 4),
        Question("holders", "records", "How many records have they in all?", 1000),
        Question("holders", "pooling", "May the records lawfully be brought to one place?", False),
        Question("hide", "updates", f"Who must not see one party's update? {_MEMBERS}", ("server",)),
        Question("hide", "records", f"From whom must the model hide who took part? {_MEMBERS}", ()),
        Question("hide", "model", f"Who must not see the trained model? {_MACHINES}", ()),
        Question("needs", "epsilon", "Differential privacy: which epsilon? 0 for none", 0.0),
        Question("needs", "liars", "How many parties may lie to spoil the model?", 0),
        Question("holders", "model", "Who will have the model that is asked? (server, shares, client)", "server"),
        Question("hide", "query", f"Who must not see a query? {_MACHINES}", ("server",)),
        Question("hide", "prediction", f"Who must not see a prediction? {_MACHINES}", ("server",)),
        Question("hide", "weights", f"Who must not learn the weights? {_ASKED}", ("client",)),
        Question("needs", "latency_seconds", "The most seconds that a prediction may take? 0 for any", 0.0),
        Question("trust", "operator", "May whoever runs the server see everything?", False),
        Question("trust", "adversary", "The server is curious (follows the protocol) or malicious?", "curious"),
        Question("trust", "servers", "How many organisations can run a server and pool with no other?", 1),
        Question("trust", "dealer", "Can one more deal random numbers, and pool with nobody?", False),
        Question("trust", "hardware", "Is the vendor of a chip trusted, and whoever can open the machine?", False),
        Question("trust", "enclaves", "Is a confidential machine at hand?", False),
        Question("needs", "post_quantum", "Must what is recorded today stay closed to a quantum computer?", False),
        Question("network", "kind", "The network between them? (loopback, lan, wan, mobile)", "lan"),
        Question("model", "kind", "The kind of model? (logistic, mlp, cnn, trees)", "logistic"),
        Question("model", "features", "How many features has a row?", 30),
        Question("model", "activation", "Activations between layers? (square, relu)", "square"),
        Question("scenario", "regulation", "Notes on regulation?", ""),
    )  # fmt: skip
