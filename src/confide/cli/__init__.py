"""The command line: parse, call, print. Every error that a user can mend is one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from confide.cli import budget, console, data, federation, keys, ledger, proxies
from confide.cli.advise import advise
from confide.cli.attest import attest
from confide.cli.audit import audit
from confide.cli.broker import broker
from confide.cli.compare import compare
from confide.cli.console import one_line, progress_bars, warnings_as_lines
from confide.cli.coordinator import coordinator, submit
from confide.cli.fit import fit_polynomial
from confide.cli.importing import import_model
from confide.cli.joint import dealer, helper
from confide.cli.label import label
from confide.cli.node import node_app
from confide.cli.peers import DATA_HOME, peers_app
from confide.cli.plan import plan
from confide.cli.predict import predict
from confide.cli.seal import describe_sealed, seal
from confide.cli.serving import serve
from confide.cli.shares import Asked, describe_shares, train_on_shares, train_over_machines
from confide.cli.split import split
from confide.errors import Aborted, ConfideError, MissingExtra, UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train on data that nobody may see, serve on inputs that nobody may see, and measure the choice.",
    epilog="Start with: confide demo. Each command has a page in docs/.",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Options of the program itself."""
    if version:
        console.out.print(f"confide {metadata.version('confide')}")
        raise typer.Exit
    context.meta[proxies.ENVIRONMENT] = proxies.Surroundings(
        https_proxy=os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"),
        no_proxy=os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "",
    )
    context.meta[DATA_HOME] = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())


def demo(
    out: Annotated[Path, typer.Option(help="The HTML report.")] = Path("confide-demo.html"),
    seeds: Annotated[int, typer.Option(min=1, help="Splits over which the training figures are repeated.")] = 10,
    queries: Annotated[int, typer.Option(min=2, help="Predictions timed for each technique.")] = 50,
    quick: Annotated[bool, typer.Option("--quick", help="2 splits, 10 queries: not figures to quote.")] = False,
) -> None:
    """Run the whole life of one model on this machine and write a report.

    Four hospitals train one diagnostic model together, then a server serves it to a patient who does not trust it.
    Every technique is measured, with its guarantee beside each figure.

        confide demo --out report.html
    """
    from confide.compare.demo import run
    from confide.compare.report import techniques

    tasks: dict[str, TaskID] = {}
    with progress_bars() as bars:

        def progress(stage: str, done: int, steps: int, what: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=steps)
            bars.update(tasks[stage], completed=done, total=steps, description=f"{stage}: {what}"[:64])

        found = run(out, seeds=2 if quick else seeds, queries=10 if quick else queries, progress=progress)
    for records in (found.training, found.inference):
        _print_records(records)
    for question, advice in found.advice.items():
        chosen = techniques(advice.task)[advice.choice].title if advice.choice else "nothing that was measured"
        console.out.print(f"\n{question}\n  -> {chosen}")
        for reason in advice.reasons:
            console.out.print(f"     {reason}")
    console.out.print(f"\nwrote {found.report}")


def _print_records(records: Sequence[Any]) -> None:
    """Print figures, then what each technique promises; whichever are more, techniques or figures, go down the page."""
    from confide.compare.report import cell, columns, title

    shown = [column for column in columns(records[0].task) if any(column[1] in record.figures for record in records)]
    cells = [[cell(record, name, factor, places) for _, name, factor, places in shown] for record in records]
    names, heads = [record.choice for record in records], [column[0] for column in shown]
    if len(names) < len(heads):
        names, heads, cells = heads, names, [list(row) for row in zip(*cells, strict=True)]
    table = Table("", *heads, title=f"{records[0].task}: {records[0].setting}")
    for name, row in zip(names, cells, strict=True):
        table.add_row(name, *row)
    Console(markup=False, highlight=False).print(table)
    for record in records:
        guarantee = record.guarantee
        against = "" if not guarantee.claims else f", against a {guarantee.adversary.value} adversary"
        console.out.print(f"{record.choice} ({title(record)}){against}")
        for sentence in guarantee.sentences():
            console.out.print(f"  {sentence}")
        console.out.print(f"  leaks: {guarantee.leaks}")


def train(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job; docs/train.md lists every key.")],
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="On shares over several machines: this organisation's folder in the federation."
        ),
    ] = None,
    table: Annotated[Path | None, typer.Option("--data", help="With --identity: this owner's table.")] = None,
    policy: Annotated[Path | None, typer.Option(help="With --identity: an owner's limits; docs/policy.md.")] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS:PORT", help="With --identity: where a server listens, if not at its own port."),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="wss://HOST:PORT", help="With --identity: where the first server is.")
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="With --identity, at the first server: go on from no earlier run.")
    ] = False,
    stage_seconds: Annotated[
        float, typer.Option(min=1, help="With --identity: longest silence in a run before it is given up.")
    ] = 600.0,
    gather_hours: Annotated[
        float, typer.Option(min=0, help="With --identity: how long to wait until everybody is there.")
    ] = 24.0,
) -> None:
    """Train one model over several parties' tables, as a job file says.

    Prints the job as it was understood, shows the rounds, and writes the signed model and the ledger of [output].

        confide train examples/breast_cancer.toml

    With aggregate = "mpc" and data.nodes every organisation runs it with the same job, on its own machine:

        confide train job.toml --identity identity --data north.csv
    """
    from confide.train import Output, describe, load, load_data, start_hash
    from confide.train import train as rounds_of
    from confide.train.evaluate import alerts_in_words, in_words
    from confide.train.output import importance_text
    from confide.train.reasons import doubts, reasons

    job = load(job_file)
    if identity is not None:
        asked = Asked(identity, table, policy, listen, coordinator, anew, stage_seconds, 3600.0 * gather_hours)
        train_over_machines(job, asked)
        return
    if any((table, policy, listen, coordinator, anew)):
        raise UsageError("Expected --identity FOLDER with those options: this organisation's folder in a federation")
    output = Output(job)
    if job.train.aggregate == "mpc":
        train_on_shares(job, output)
        return
    data = load_data(job, ledger=output.ledger)
    if output.ledger.spent is not None:
        console.err.print(
            f"warning: earlier runs in this ledger spent epsilon={output.ledger.spent:.3g} together; on the same "
            "records this run adds to it"
        )
    rounds = rounds_of(job, data, ledger=output.ledger)
    console.out.print(describe(job))
    for reason in reasons(job):
        console.out.print(reason)
    for doubt in doubts(job, [len(silo.y) for silo in data.silos]):
        console.err.print(f"warning: {doubt}")
    console.out.print(
        f"starting model: {start_hash(data)} (parties compare it, or put it into their jobs as train.start_hash)"
    )
    last = None
    with progress_bars() as bars:
        task = bars.add_task("rounds", total=job.train.rounds)
        for last in rounds:
            missing = f", missing: {', '.join(sorted(last.missing))}" if last.missing else ""
            bars.update(task, completed=last.number, description=f"rounds ({len(last.members)} parties{missing})")
    if last is None:
        raise UsageError("Expected at least one round; every release of the privacy plan went to rounds that failed")
    if job.data.evaluate == "federated":
        _evaluate_together(job, data, last, output)
    artifact = output.save(data, last)
    if job.data.evaluate == "none":
        said = in_words(last.model, data.test.x, data.test.y)
        console.out.print(f"{said}; computed on the test records in the clear, outside any privacy budget")
        for silo in data.held if last.model.outputs == 1 and data.test.y.ndim == 1 else ():
            if alerts := alerts_in_words(last.model, silo.x, silo.y):
                console.out.print(f"  {silo.name}: {len(silo.y)} records{alerts}")
    if ranked := importance_text(last.importance, 10):
        console.out.print(f"importance of columns: {ranked}")
    console.out.print(artifact.label.sentence())
    for path in output.written:
        console.out.print(f"wrote {path}")
    if artifact.signer:
        console.out.print(f"signed by {artifact.signer}")


def _evaluate_together(job: Any, data: Any, last: Any, output: Any) -> None:
    """Print the figures of one more sum; a sum that fails leaves the model as it is."""
    from confide.train.federated_evaluation import evaluate
    from confide.train.parts import aggregator_of

    try:
        found = evaluate(
            job,
            last.model,
            data.held,
            aggregator=aggregator_of(job, of_updates=False),
            spent=last.epsilon,
            ledger=output.ledger,
        )
    except Aborted as error:
        console.err.print(f"warning: no evaluation: {one_line(str(error))}")
        return
    for line in found.sentences():
        console.out.print(line)


def api_key(holder: Annotated[str, typer.Argument(help="Who gets it: letters, digits, '-', '_' and '.'.")]) -> None:
    """Make an API key: the key for its holder on standard error, the line for `serve --api-keys` on standard output.

    confide api-key clinic-7 >> api-keys.toml
    """
    from confide.crypto.random import SystemRandomness
    from confide.serve.access import ApiKeys, hash_api_key, new_api_key

    key = new_api_key(SystemRandomness())
    ApiKeys({holder: hash_api_key(key)})  # refuses a name that the server would refuse
    console.err.print(f"API key of {holder}, shown only now: {key}")
    console.out.print(f'"{holder}" = "{hash_api_key(key)}"')


def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.confide", help="A model file of `confide train` or `confide import`.")
    ],
    trust: Annotated[
        str | None, typer.Option(help="Key that must have signed the model: 64 hex digits, or a PEM file.")
    ] = None,
) -> None:
    """Show what a model file, a sealed one or a folder of shares says: label, signer, fingerprint. No weights.

    confide inspect model.confide --trust signing.pem.pub
    """
    from confide.model.artifact import decode_statement, load, read_public_key

    if model.is_dir():
        if trust is not None:
            raise UsageError("Expected no --trust with a folder of shares: nobody has signed it")
        describe_shares(model)
        return
    if describe_sealed(model, trust=trust):
        return
    with warnings_as_lines():
        artifact = load(model, trust=read_public_key(trust) if trust else None)
    console.out.print(artifact.label.sentence())
    console.out.print(f"layers: {', '.join(map(str, artifact.graph.layers))}")
    console.out.print(f"classes: {', '.join(artifact.graph.classes) or 'unnamed'}")
    console.out.print(f"columns: {', '.join(artifact.preprocess.columns)}")
    for name, value in msgspec.structs.asdict(artifact.label).items():
        if value is not None:
            console.out.print(f"{name}: {', '.join(artifact.label.parties) if name == 'parties' else value}")
    for name, value in {"created": artifact.created, **artifact.metadata}.items():
        console.out.print(f"{name}: {value}")
    console.out.print(f"signer: {artifact.signer}")
    stated = decode_statement(artifact.statement, trust=bytes.fromhex(artifact.signer))
    console.out.print(f"model_sha256: {stated.graph_sha256.hex()}")
    console.out.print(f"fingerprint: {artifact.fingerprint}")


# The order in which --help lists them: a model's life, then what stays beside it.
app.command()(demo)
app.command()(compare)
app.command()(advise)
app.command()(train)
app.command()(split)
app.command()(coordinator)
app.command()(submit)
app.command()(inspect)
app.command()(label)
app.command("import")(import_model)
app.command("fit-polynomial")(fit_polynomial)
app.command()(plan)
app.command()(serve)
app.command("api-key")(api_key)
app.command()(predict)
app.command()(audit)
app.command()(attest)
app.command()(seal)
app.command()(broker)
app.command()(dealer)
app.command()(helper)
app.add_typer(federation.app, name="federation")
app.add_typer(node_app, name="node")
app.add_typer(data.app, name="data")
app.add_typer(budget.app, name="budget")
app.add_typer(ledger.app, name="ledger")
app.add_typer(keys.app, name="keys")
app.add_typer(peers_app, name="peers")

_INTERRUPTED = 130

#: The smallest extra that brings a package; "all" for others.
_EXTRAS: Mapping[str, str] = {"websockets": "federate", "psycopg": "postgres", "torch": "torch"}


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; the process ends here with 0, 2 for what a user can mend, 130 for an interrupt."""
    try:
        app(arguments, prog_name="confide")
    except ConfideError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be written to
        _fail(f"{error.strerror or type(error).__name__}{f': {error.filename}' if error.filename else ''}")
    except ModuleNotFoundError as error:
        package = (error.name or "a dependency").partition(".")[0]
        _fail(str(MissingExtra(package, _EXTRAS.get(package, "all"))))
    except (KeyboardInterrupt, SystemExit) as ended:  # the parser makes the first into the second
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:
            raise
        console.err.print("interrupted")
        sys.exit(_INTERRUPTED)
    sys.exit(0)


def _fail(text: str) -> NoReturn:
    console.err.print(f"confide: {one_line(text)}")
    sys.exit(2)
