"""What the pages of techniques say that the code knows: guarantees, costs, what is asked of people.

A page has it between two comments, so that it reads well wherever Markdown is shown:

    <!-- generated: guarantee -->
    ...
    <!-- end of generated -->

`python -m sitebuild --facts` writes it anew, and a build fails where a page says something else than the code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from confide.compare.candidates import Candidate, backends_for, training_candidates
from confide.compare.cells import inference_choices, training_choices
from confide.compare.costs import Models, kind_of, load
from confide.compare.links import LINKS
from confide.compare.people import Asks, asks
from confide.compare.quantities import shown
from confide.compare.scenario import Scenario, WantedModelSection
from confide.compare.techniques import INFERENCE, TRAINING, Technique
from confide.guarantee import Adversary, Guarantee
from confide.he import Outsourced
from confide.serve import load_backend

_BLOCK = re.compile(r"<!-- generated: ([a-z-]+) -->\n.*?<!-- end of generated -->", re.DOTALL)
_HOLDERS = 4

#: A technique of the API alone: no command serves it, so no comparison has it.
_API_ONLY = {
    "he-outsourced": Technique(
        "Homomorphic encryption, outsourced",
        "encrypted at the server, in the clear at its owner",
        "an owner rents a server that may learn neither rows nor weights",
        "Microsoft SEAL",
        "1 owner, 1 server",
    )
}
#: Models whose predictions the pages show, as costs.json names them; what it lacks is left out.
_SHOWN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("logistic, 30 features", {"kind": "logistic", "features": 30, "outputs": 1}),
    ("logistic, 784 features, 10 classes", {"kind": "logistic", "features": 784, "outputs": 10}),
    ("dense 784-128-10, squares", {"kind": "mlp", "features": 784, "hidden": [128], "activation": "square"}),
    ("dense 784-128-10, ReLU", {"kind": "mlp", "features": 784, "hidden": [128], "activation": "relu"}),
    ("convolution 28 x 28, squares", {"kind": "cnn", "features": 784, "hidden": [100], "activation": "square"}),
    ("convolution 28 x 28, ReLU", {"kind": "cnn", "features": 784, "hidden": [100], "activation": "relu"}),
    ("50 trees of depth 3, 30 features", {"kind": "trees", "features": 30, "trees": 50, "depth": 3}),
)
_SUMS = ((4, 31), (4, 30_000), (30, 31), (30, 30_000))
_ADVERSARIES = {
    Adversary.NONE: "none",
    Adversary.SEMI_HONEST: "semi-honest: follows the protocol, studies what it sees",
    Adversary.MALICIOUS: "malicious: may send anything",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A technique and what the code says of it.

    Args:
        task, choice: as in `compare`.
        technique: its row of the strategic table.
        guarantee: with 4 parties for a training, for every kind of model for predictions.
        roles: who takes part beside who holds records or asks.
        asked: of people; None where no command runs it.
    """

    task: str
    choice: str
    technique: Technique
    guarantee: Guarantee
    roles: tuple[str, ...]
    asked: Asks | None

    @property
    def page(self) -> str:
        """Return the name of its page in docs/techniques."""
        return f"{self.task}-{self.choice.replace('+', '-')}.md"


@cache
def every() -> tuple[Fact, ...]:
    """Return all techniques, of training first, in the order of the strategic table."""
    trainings = {one.choice: one for one in training_candidates(Scenario())}
    open_models = {one.choice: one for one in backends_for(WantedModelSection())}
    made = [_training(choice, trainings[choice]) for choice in training_choices()]
    made += [_inference(choice, open_models) for choice in inference_choices()]
    inner = Outsourced()
    made.append(Fact("inference", inner.name, _API_ONLY[inner.name], inner.guarantee, ("server",), None))
    return tuple(made)


def _training(choice: str, found: Candidate) -> Fact:
    row = TRAINING.get(choice) or Technique(choice, "", "", "confide", "")
    asked = asks("training", choice, found.guarantee, holders=_HOLDERS)
    return Fact("training", choice, row, found.guarantee, found.roles, asked)


def _inference(choice: str, found: Mapping[str, Candidate]) -> Fact:
    row = INFERENCE.get(choice) or Technique(choice, "", "", "confide", "")
    if choice in found and choice not in ("he-open",):
        backend = load_backend(choice)
        guarantee, roles = backend.guarantee, tuple(role for role in backend.roles if role != "client")
    else:
        guarantee, roles = found[choice].guarantee, found[choice].roles
    return Fact("inference", choice, row, guarantee, roles, asks("inference", choice, guarantee, holders=1))


# --- blocks -----------------------------------------------------------------------------------------------------------


def facts_block(fact: Fact) -> str:
    """Return what a technique is, as a table."""
    guarantee, technique = fact.guarantee, fact.technique
    bits = "" if guarantee.security_bits is None else f", at least {guarantee.security_bits} bits"
    rows = (
        ("name in jobs and reports", f"`{fact.choice}` ({fact.task})"),
        ("cryptography", guarantee.primary + bits),
        ("state of the model", technique.state),
        ("take it for", technique.use_case),
        ("framework", technique.framework),
        ("it needs", technique.needs),
        ("post-quantum", _quantum(guarantee)),
    )
    return _table(("", ""), rows)


def guarantee_block(fact: Fact) -> str:
    """Return the sentences of a guarantee as the code prints them."""
    guarantee = fact.guarantee
    lines = [f"* {_cell(sentence)}" for sentence in guarantee.sentences()]
    checked = "Results are verified." if guarantee.verified_result else "Results are not verified."
    bits = [] if guarantee.security_bits is None else [f"at least {guarantee.security_bits} bits"]
    rests = f"Adversary: {_ADVERSARIES[guarantee.adversary]}. It rests on: {', '.join([str(guarantee.trust), *bits])}. {checked}"
    paper = f"\n\nSource: {guarantee.paper}." if guarantee.paper else ""
    return "\n".join(lines) + f"\n\n{rests}\n\n**Leaks.** {guarantee.leaks}{paper}"


def cost_block(fact: Fact) -> str:
    """Return what was measured of a technique, and what is modelled from it."""
    models = _models()
    shown_rows = _sums(fact, models) if fact.task == "training" else _predictions(fact, models)
    if not shown_rows:
        return "Not among the measurements of `bench/costs.py`. `confide compare` measures it on a job of your own."
    unit = "one sum of updates" if fact.task == "training" else "one row"
    head = (unit, "work", "sent", *LINKS, "set-up")
    errors = [
        100 * error
        for (task, choice, _), fitted in models.fitted.items()
        if (task, choice) == (fact.task, fact.choice)
        for error in fitted.errors.values()
    ]
    off = (
        f" For other sizes `confide advise` interpolates: {max(errors):.0f} % off at most in the median of held-out sizes."
        if errors
        else ""
    )
    words = (
        f"\n\n*Work*, *sent* and *set-up*: measured, {models.date}, {models.machine}, confide {models.version}, all roles in one "
        "process, on the longest path; what can be made ahead is made ahead. Over links: modelled from that, bytes over the "
        f"rate and trips times the delay ({_links()}).{off} Made by `bench/costs.py`."
    )
    noise = " The sums are those without noise; drawing it is not in them." if fact.choice.endswith("+dp") else ""
    simulated = (
        " An enclave here is simulated: this is the cost of protocol and channel alone." if fact.choice == "tee" else ""
    )
    return _table(head, shown_rows) + words + noise + simulated


def people_block(fact: Fact) -> str:
    """Return what a technique asks of people."""
    asked = fact.asked
    if asked is None:
        return "No command runs it: what it asks is the code of the two programs that you write."
    counted = Counter(asked.steps)
    steps = "\n".join(f"    {step}" + (f"    # {count} times" if count > 1 else "") for step, count in counted.items())
    rows = [
        (
            "organisations, at least",
            f"{asked.organisations}"
            + (f", of which {_HOLDERS} hold records" if fact.task == "training" else ", one of which asks"),
        ),
        ("roles beside them", ", ".join(asked.roles) or "none"),
        ("must not pool what they see", ", ".join(asked.apart) or "nobody in particular"),
        ("machines", str(asked.machines)),
        ("open ports", f"{asked.open_ports}: {asked.why_ports}"),
        ("keys to keep safe", "; ".join(asked.keys)),
        ("lines that a user writes", str(asked.lines)),
        ("post-quantum", _quantum(fact.guarantee)),
    ]
    return _table(("", ""), rows) + f"\n\nFrom an empty machine:\n\n{steps}"


def table_block(task: str) -> str:
    """Return the techniques of a task beside each other, linked to their pages."""
    rows = []
    for fact in every():
        if fact.task == task:
            bits = fact.guarantee.security_bits
            rows.append((
                f"[{fact.technique.title}]({fact.page})",
                fact.technique.use_case,
                _who(fact.guarantee),
                str(fact.guarantee.trust) + ("" if bits is None else f", {bits} bits"),
                "yes" if _is_quantum(fact.guarantee) else "no",
                _reference(fact),
                "" if fact.asked is None else str(fact.asked.organisations),
            ))  # fmt: skip
    what = "one sum, 4 parties, 31 numbers, LAN" if task == "training" else "one row, 30 features, LAN"
    return _table(
        ("technique", "take it for", "hidden from the server", "rests on", "post-quantum", what, "organisations"), rows
    )


def guarantees_block() -> str:
    """Return who does not learn what under every technique."""
    rows = []
    for fact in every():
        learns = "<br>".join(_hidden(fact.guarantee)) or "nothing is hidden"
        strength = _ADVERSARIES[fact.guarantee.adversary].partition(":")[0]
        quantum = "yes" if _is_quantum(fact.guarantee) else "no"
        name = f"[{fact.task} `{fact.choice}`](docs/techniques/{fact.page})"
        rows.append((name, learns, strength, str(fact.guarantee.trust), quantum))
    return _table(
        ("technique", "what is hidden from whom, if who is honest", "adversary", "rests on", "post-quantum"), rows
    )


def _who(guarantee: Guarantee) -> str:
    hidden = sorted({claim.asset for claim in guarantee.claims if claim.hidden_from == "server"})
    return ", ".join(hidden) or "nothing"


def _hidden(guarantee: Guarantee) -> list[str]:
    """Return the claims, those about one watcher under one condition as one line."""
    kept: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for claim in sorted(guarantee.claims, key=str):
        kept.setdefault((claim.hidden_from, claim.if_honest), []).append(claim.asset)
    return [
        f"{', '.join(assets)} from {who}" + (f" (if honest: {', '.join(honest)})" if honest else "")
        for (who, honest), assets in sorted(kept.items())
    ]


def _is_quantum(guarantee: Guarantee) -> bool:
    return bool(guarantee.claims) and guarantee.post_quantum


def _quantum(guarantee: Guarantee) -> str:
    if not guarantee.claims:
        return "nothing is claimed, so there is nothing to break"
    return "yes: no known quantum algorithm breaks the claims" if guarantee.post_quantum else "no"


def _reference(fact: Fact) -> str:
    wanted = (4, 31) if fact.task == "training" else None
    for row in _models().rows:
        same = (row["task"], row["choice"]) == (fact.task, fact.choice)
        if same and wanted and (row.get("parties"), row.get("length")) == wanted:
            return shown("x_seconds", row["seconds"]["lan"])
        if same and not wanted and _is(row, _SHOWN[0][1]):
            return shown("x_seconds", row["seconds"]["lan"])
    return "not measured"


@cache
def _models() -> Models:
    return load()


def _predictions(fact: Fact, models: Models) -> list[tuple[str, ...]]:
    own = [row for row in models.rows if kind_of(row)[:2] == (fact.task, fact.choice)]
    return [(name, *_figures(row)) for name, model in _SHOWN for row in own if _is(row, model)]


def _sums(fact: Fact, models: Models) -> list[tuple[str, ...]]:
    choice = fact.choice.partition("+")[0]
    own = {
        (row.get("parties"), row.get("length")): row
        for row in models.rows
        if row["choice"] == choice and row["task"] == "training"
    }
    return [(f"{n} parties, {d:,} numbers", *_figures(own[n, d])) for n, d in _SUMS if (n, d) in own]


def _is(row: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    return all(row["model"].get(key) == value for key, value in model.items())


def _figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    over = (shown("x_seconds", row["seconds"][name]) for name in LINKS)
    return (
        shown("x_seconds", row["compute_seconds"]),
        shown("x_bytes", row["bytes"]),
        *over,
        shown("x_seconds", row["setup_seconds"]),
    )


def _links() -> str:
    return "; ".join(link.words() for link in LINKS.values())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)])


# --- pages ------------------------------------------------------------------------------------------------------------

_BLOCKS: Mapping[str, Callable[[Fact], str]] = {
    "facts": facts_block,
    "guarantee": guarantee_block,
    "cost": cost_block,
    "people": people_block,
}
_TABLES: Mapping[str, Callable[[], str]] = {
    "training-table": lambda: table_block("training"),
    "inference-table": lambda: table_block("inference"),
    "guarantees-table": guarantees_block,
}


def refreshed(text: str, fact: Fact | None) -> str:
    """Return a page with its generated blocks as the code has them.

    Args:
        fact: the technique of the page; None for a page about all.
    """

    def made(match: re.Match[str]) -> str:
        name = match[1]
        if name in _TABLES:
            body = _TABLES[name]()
        elif fact and name in _BLOCKS:
            body = _BLOCKS[name](fact)
        else:
            raise ValueError(f"Expected one of {', '.join([*_BLOCKS, *_TABLES])} after generated:, got {name!r}")
        return f"<!-- generated: {name} -->\n\n{body}\n\n<!-- end of generated -->"

    return _BLOCK.sub(made, text)


def pages(root: Path) -> dict[Path, Fact | None]:
    """Return every page with generated blocks that must be there."""
    folder = root / "docs" / "techniques"
    return {folder / fact.page: fact for fact in every()} | {folder / "README.md": None, root / "SECURITY.md": None}


def faults(root: Path) -> list[str]:
    """Return what pages of techniques lack, or say otherwise than the code."""
    wrong: list[str] = []
    wanted = pages(root)
    for page, fact in wanted.items():
        name = page.relative_to(root)
        if not page.is_file():
            wrong.append(f"{name} is missing: every technique has its page")
            continue
        text = page.read_text()
        if refreshed(text, fact) != text:
            wrong.append(f"{name} says something else than the code: python -m sitebuild --facts, in docs/")
        if fact is not None:
            absent = [block for block in _BLOCKS if f"<!-- generated: {block} -->" not in text]
            wrong += [f"{name} lacks what is generated: {block}" for block in absent]
            wrong += [f"{name} lacks {what}" for what in ("```mermaid", "## When not to use it") if what not in text]
    extra = {page for page in (root / "docs" / "techniques").glob("*.md") if page not in wanted}
    return [*wrong, *(f"{page.relative_to(root)} is about no technique" for page in sorted(extra))]


def write(root: Path) -> list[Path]:
    """Write the generated blocks anew; return the pages that changed."""
    changed = []
    for page, fact in pages(root).items():
        if page.is_file() and (text := refreshed(page.read_text(), fact)) != page.read_text():
            page.write_text(text)
            changed.append(page)
    return changed
