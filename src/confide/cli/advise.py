"""`confide advise`: which technique to take, for training and for inference, and what would change that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from confide.cli import console
from confide.cli.plan import opened
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.compare.recommend import Answer
    from confide.compare.scenario import Scenario
    from confide.model.graph import Graph
_NOBODY = "nobody"
_SHOWN_LAYERS = 12
_MODEL_FILE = "serve model.confide"


def advise(
    scenario: Annotated[
        Path | None, typer.Argument(metavar="SCENARIO.toml", help="What is needed; without it the terminal asks.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Your model, a .confide or ONNX file, in place of the one that [model] says."
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="compare.json", help="Rank by what `confide compare` measured on the same model."),
    ] = None,
    job: Annotated[
        Path | None, typer.Option(metavar="JOB.toml", help="Write the job file of the training there; not over a file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, for programs.")] = False,
) -> None:
    """Say which technique to take for training and for inference, why, and what would change the answer.

    Techniques are filtered by what they promise, then ranked by measured cost, or by a cost model where nothing was
    measured. No data is read and nothing is run.

        confide advise scenario.toml --results compare.json

        confide advise scenario.toml --model model.confide
    """
    from confide.compare.costs import load
    from confide.compare.recommend import recommend
    from confide.compare.result import load_result

    graph = None if model is None else opened(model, None)[0]
    wanted = _scenario(scenario, described=graph is None)
    models = load()
    records = ()
    if results is not None:
        records = load_result(results).records
    answers = recommend(wanted, models, records, graph=graph)
    if model is not None and model.suffix != ".onnx":
        answers = tuple(replace(one, runs=one.runs.replace(_MODEL_FILE, f"serve {model}")) for one in answers)
    if job is not None:
        _write_job(job, answers)
    if as_json:
        told = {
            "scenario": wanted.scenario.name,
            "models": {"machine": models.machine, "date": models.date},
            "answers": [_told(answer) for answer in answers],
        }
        console.out.print(msgspec.json.format(msgspec.json.encode(told)).decode())
        return
    if graph is not None:
        console.out.print(console.plain(f"model: {_model_words(graph)}"))
    for line in _page(wanted, answers):
        console.out.print(console.plain(line))
    if any("modelled" in line for answer in answers for line in _page(wanted, [answer])):
        console.out.print(
            f"modelled: fitted to measurements of {models.date} on {models.machine}; --results takes yours"
        )


def _model_words(graph: Graph) -> str:
    """Return a model's size and layers."""
    kinds = ", ".join(type(layer).__name__ for layer in graph.layers[:_SHOWN_LAYERS])
    more = len(graph.layers) - _SHOWN_LAYERS
    kinds += f" and {more} more" if more > 0 else ""
    return f"{graph.features} features, {graph.outputs} outputs, {graph.parameters:,} parameters; {kinds}"


def _write_job(path: Path, answers: tuple[Answer, ...]) -> None:
    text = next((answer.runs for answer in answers if answer.task == "training"), "")
    if not text:
        raise UsageError("Expected no --job: nothing is trained by a job file here; leave the option out")
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"Expected no file at {path}; name another, or move it away") from None


def _told(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON types."""
    from confide.compare.pricing import Price

    def price(one: Price | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return {"seconds": one.seconds, "source": one.source, "error_share": one.error}

    second = answer.runner_up
    return {
        "task": answer.task,
        "status": answer.status,
        "choice": answer.choice,
        "price": price(answer.price),
        "guarantee": answer.candidate.guarantee.lines(),
        "reasons": answer.reasons,
        "runner_up": None if second is None else {"choice": second[0], "price": price(second[1])},
        "fitting": answer.fitting,
        "refused": answer.refused,
        "changes": [{"if": one.what, "choice": one.choice, "price": price(one.price)} for one in answer.changes],
        "runs": answer.runs,
        "plans": answer.plans,
    }


def _page(wanted: Scenario, answers: tuple[Answer, ...] | list[Answer]) -> Iterator[str]:
    from confide.compare.recommend import title

    for answer in answers:
        chosen = title(answer.task, answer.choice) if answer.choice else ""
        price = "" if answer.choice is None else f", {answer.price or 'its cost was not measured'}"
        yield f"{answer.task}: {answer.status}{f': {chosen} ({answer.choice})' if chosen else ''}{price}"
        yield from (f"  {reason}" for reason in answer.reasons)
        expected = getattr(wanted.expected, answer.task)
        if expected and expected != answer.said:
            yield f"  the file expects {expected}"
        if answer.choice:
            yield f"  {answer.candidate.guarantee.summary()}"
        if answer.runner_up:
            name, cost = answer.runner_up
            yield f"  runner-up: {title(answer.task, name)} ({name}), {cost or 'not measured'}"
        yield from (f"  plan of {name}: {text}" for name, text in answer.plans.items())
        if answer.changes:
            yield "  what would change it:"
        for change in answer.changes:
            cost = change.price or "not measured"
            yield f"    if {change.what}: {title(answer.task, change.choice)} ({change.choice}), {cost}"
        if answer.refused:
            yield "  not taken:"
        yield from (f"    {', '.join(names)}: {why}" for why, names in _by_reason(answer.refused).items())
        if answer.runs:
            yield "  runs with:"
            yield from (f"    {line}".rstrip() for line in answer.runs.splitlines())
    if wanted.scenario.regulation:
        yield f"noted, and decides nothing: {wanted.scenario.regulation}"


def _by_reason(refused: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the techniques that lack the same, by what they lack: with noise or without is mostly one line."""
    found: dict[str, list[str]] = {}
    for name, lacks in refused.items():
        found.setdefault("; ".join(lacks), []).append(name)
    return found


# --- asking -----------------------------------------------------------------------------------------------------------


def _scenario(path: Path | None, *, described: bool) -> Scenario:
    from confide.compare.scenario import load, parse

    if path is not None:
        return load(path)
    if not sys.stdin.isatty():
        raise UsageError("Expected SCENARIO.toml, or a terminal to ask at; docs/advise.md lists its keys")
    return parse(asked(typer.prompt, typer.confirm, described=described))


def asked(prompt: Callable[..., Any], confirm: Callable[..., bool], *, described: bool = True) -> dict[str, Any]:
    """Return the tables of a scenario from answers.

    Args:
        prompt: asks for a value: (text, default=, type=).
        confirm: asks for yes or no: (text, default=).
        described: False leaves out the questions about the model, which is there.
    """
    from confide.compare.scenario import questions

    table: dict[str, Any] = {}
    for one in questions():
        if one.section == "model" and not described:
            continue
        value: Any = one.default
        if isinstance(value, bool):
            value = confirm(one.text, default=value)
        elif isinstance(one.default, tuple):
            words: str = prompt(one.text, default=" ".join(one.default) or _NOBODY, type=str)
            value = [word for word in words.replace(",", " ").split() if word != _NOBODY]
        else:
            value = prompt(one.text, default=value, type=type(value))
        table.setdefault(one.section, {})[one.key] = value
    return table
