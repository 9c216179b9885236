"""What runs a choice: the job file that `confide train` reads, and the command line of `confide serve`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confide.compare.scenario import Scenario
from confide.errors import JobError
from confide.train.keys import toml_value

#: The epsilon of a plan whose scenario names none, and needs noise.
USUAL_EPSILON = 1.0

_PARTNERS: Mapping[str, str] = {"dealer": "broker", "helper": "partner", "third": "third"}


def job_table(scenario: Scenario, choice: str) -> dict[str, Any]:
    """Return the job that trains under a choice, as the tables of its file.

    Args:
        choice: an aggregator or "mpc", with "+dp" behind it for noise; "pooled" and "local" add in the clear.

    Raises:
        JobError: this kind of model is not trained by a job file.
    """
    model = _model(scenario)
    aggregate, _, noise = choice.partition("+")
    train: dict[str, Any] = {"aggregate": {"pooled": "plain", "local": "plain"}.get(aggregate, aggregate)}
    table: dict[str, Any] = {
        "job": {"name": scenario.scenario.name},
        "data": {"schema": "schema.toml", "tables": _tables(scenario.holders.parties)},
        "model": model,
        "train": train,
    }
    if model.get("kind") != "trees":
        train["rounds"] = scenario.needs.rounds
    else:
        table["trees"] = {"count": scenario.model.trees * scenario.model.outputs, "depth": scenario.model.depth}
    if scenario.needs.liars:
        train |= {"rule": "trimmed-mean", "liars": scenario.needs.liars}
    elif aggregate == "groups":
        train |= {"rule": "mean", "liars": 0}
    if aggregate == "mpc":
        # as shares unless noise is inside the opened model
        table["shares"] = {"servers": ["operator", "partner"], "dealer": "broker"}
        table["shares"] |= {} if noise else {"folder": "shares"}
    if noise:
        epsilon = scenario.needs.epsilon or USUAL_EPSILON
        table["privacy"] = {"epsilon": epsilon, "colluding": 1, "expected_records": scenario.holders.records}
    if not (aggregate == "mpc" and not noise):
        table["output"] = {"model": "model.confide", "ledger": "ledger.jsonl", "signing_key": "signing.pem"}
    return table


def _model(scenario: Scenario) -> dict[str, Any]:
    if not trains_from_a_job(scenario):
        raise JobError(
            "Expected a model that a job file trains: logistic, mlp with one hidden layer of squares, or trees; bring "
            "any other network from torch (docs/torch.md)"
        )
    model = scenario.model
    return {"kind": "mlp", "hidden": model.hidden[0]} if model.kind == "mlp" else {"kind": model.kind}


def trains_from_a_job(scenario: Scenario) -> bool:
    """Return whether a job file trains this kind of model; others come from torch, under the same aggregators."""
    model = scenario.model
    squares = model.kind == "mlp" and len(model.hidden) == 1 and model.activation == "square"
    return squares or model.kind in ("logistic", "trees")


def _tables(parties: int) -> dict[str, str]:
    return {f"party-{number}": f"party-{number}.csv" for number in range(1, parties + 1)}


def job_text(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables of a job as TOML."""
    lines: list[str] = []
    for name, section in table.items():
        lines.append(f"[{name}]")
        for key, value in section.items():
            if isinstance(value, dict):
                inner = ", ".join(f"{one} = {toml_value(each)}" for one, each in value.items())  # type: ignore[misc]
                lines.append(f"{key} = {{ {inner} }}")
            else:
                lines.append(f"{key} = {toml_value(value)}")
        lines.append("")
    return "\n".join(lines)


def serve_line(choice: str, roles: tuple[str, ...], *, shares: bool = False) -> str:
    """Return the command line that serves a model under a choice.

    Args:
        choice: of `compare.techniques.INFERENCE`.
        roles: of its backend.
        shares: the model is a folder of shares.
    """
    backend = "he" if choice == "he-open" else choice
    words = ["confide serve", "shares" if shares else "model.confide", "--backend", backend]
    if choice == "he-open":
        words.append("--open-model")
    partners = [role for role in roles if role in _PARTNERS]
    if partners:
        words += ["--federation", "federation"]
        for role in partners:
            words += [f"--{role}", _PARTNERS[role]]
    elif choice == "tee":
        words += ["--attester", "configfs-tsm"]
    else:
        words += ["--api-keys", "api-keys.toml"]
    return " ".join(words)
