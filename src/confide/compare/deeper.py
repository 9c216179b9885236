"""The three deeper tables: HE against MPC, fully against partially homomorphic, HE-based against MPC-based inference.

Which family a record belongs to follows from what its guarantee says carries it; every cell is a figure or a part of
the guarantee. A table without records on one side says so in its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from confide.compare.published import MARK, PUBLISHED
from confide.compare.quantities import NOT_MEASURED, median_of, number, of, shown, words
from confide.compare.record import Record
from confide.compare.result import Curve, Result
from confide.compare.tables import Entry, Table, described, name, of_task, over_links

#: What the cryptography of a guarantee is called, by a word in it, and whether it computes on ciphertexts.
SCHEMES: Mapping[str, str] = {
    "TFHE": "fully homomorphic, exact (TFHE)",
    "CKKS": "leveled homomorphic, approximate (CKKS)",
    "BFV": "leveled homomorphic, exact integers (BFV)",
    "BGV": "leveled homomorphic, exact integers (BGV)",
    "Paillier": "partially homomorphic: additions (Paillier)",
}

_BOTH: tuple[str, ...] = (
    "requests_per_second_rate", "load_p95_seconds", "load_p99_seconds",
    "upload_bytes", "download_bytes", "between_servers_bytes", "offline_bytes", "key_bytes", "depth_count",
    "cpu_client_seconds", "cpu_server_seconds", "error_largest", "peak_memory_bytes", "money_dollars",
)  # fmt: skip


def scheme(record: Record) -> str | None:
    """Return the kind of homomorphic encryption that carries a record, None if none does."""
    parts = re.findall(r"\w+", record.guarantee.primary)
    return next((kind for word, kind in SCHEMES.items() if word in parts), None)


def on_shares(record: Record) -> bool:
    """Return whether a record computes on secret shares: several parties, of which each has a share of every value."""
    return scheme(record) is None and bool(
        re.search(r"\b(additive|replicated) (shares|secret sharing)\b", record.guarantee.primary)
    )


def deeper(result: Result) -> tuple[Table, ...]:
    """Return the three tables."""
    return (
        *(he_against_mpc(result, task) for task in ("training", "inference")),
        fully_against_partially(result),
        inference_against(result),
    )


def _filled(rows: Mapping[str, Sequence[Entry]]) -> tuple[tuple[Entry, ...], ...]:
    """Return rows that say something: those in which some record has what is asked for."""
    return tuple((label, *cells) for label, cells in rows.items() if any(cell != NOT_MEASURED for cell in cells))


def _promised(records: Sequence[Record]) -> dict[str, Sequence[Entry]]:
    held = [record.guarantee for record in records]
    return {
        "primary cryptography": [one.primary for one in held],
        "security": [NOT_MEASURED if one.security_bits is None else f"{one.security_bits} bits" for one in held],
        "post-quantum": ["yes" if one.post_quantum else "no" for one in held],
        "holds against": [one.adversary.value for one in held],
        "rests on": [one.trust.value for one in held],
        "hidden, from whom": [tuple(one.sentences()) for one in held],
        "result can be checked": ["yes" if one.verified_result else "no" for one in held],
    }


def _asked(result: Result, records: Sequence[Record]) -> dict[str, Sequence[Entry]]:
    asks = {(one.task, one.choice): one for one in result.people}
    found = [asks.get((record.task, record.choice)) for record in records]
    return {
        "organisations": [NOT_MEASURED if one is None else str(one.organisations) for one in found],
        "machines": [NOT_MEASURED if one is None else str(one.machines) for one in found],
    }


def _figures(records: Sequence[Record], figures: Sequence[str]) -> dict[str, Sequence[Entry]]:
    return {words(figure): [of(record, figure) for record in records] for figure in figures}


def he_against_mpc(result: Result, task: str) -> Table:
    """Return homomorphic encryption beside computation on shares, for one phase."""
    records = of_task(result, task)
    homomorphic, shared = [r for r in records if scheme(r)], [r for r in records if on_shares(r)]
    sides = [*homomorphic, *shared]
    first = ("train_seconds", "setup_seconds") if task == "training" else ("setup_seconds", "latency_seconds")
    figures = (*first, *over_links(result, task), *_BOTH)
    text = "One machine computes on ciphertexts; or several, which must not pool what they see, on shares."
    if not homomorphic or not shared:
        text += f" Here {'no homomorphic technique' if not homomorphic else 'no technique on shares'} was measured."
    rows = {
        "family": ["homomorphic encryption"] * len(homomorphic) + ["multi-party computation"] * len(shared),
        **_promised(sides),
        **_asked(result, sides),
        **_figures(sides, figures),
    }
    return Table(f"HE against MPC: {task}", text, ("", *map(name, sides)), _filled(rows))


def fully_against_partially(result: Result) -> Table:
    """Return the homomorphic schemes beside each other, both phases; exact FHE is there even if nothing measured it."""
    sides = [record for record in result.records if scheme(record)]
    plain = next((r.figure("upload_bytes") for r in of_task(result, "inference") if r.choice == "plain"), None)
    rows = {
        "phase": [record.task for record in sides],
        "kind": [scheme(record) or "" for record in sides],
        **_promised(sides),
        "runs networks": [_networks(result, record) for record in sides],
        "bytes of a query, times plain": [
            f"{number((record.figure('upload_bytes') or 0.0) / plain)} times"
            if plain and record.task == "inference" and "upload_bytes" in record.figures
            else NOT_MEASURED
            for record in sides
        ],
        **_figures(sides, ("setup_seconds", "latency_seconds", "train_seconds", *_BOTH)),
    }
    exact = any((scheme(record) or "").startswith("fully") for record in sides)
    columns = ("", *map(name, sides), *(() if exact else ("Exact FHE (TFHE, through Concrete ML)",)))
    found = _filled(rows)
    if not exact:
        ask = "`confide peers install concrete-ml`, then `confide compare --peers`"
        first = f"{NOT_MEASURED}: {result.unfit.get('inference/peer:concrete-ml', ask)}"
        found = tuple((*row, first if place == 0 else NOT_MEASURED) for place, row in enumerate(found))
    text = (
        "CKKS and BFV are leveled here: without bootstrapping, for a depth that the parameters fix ahead. Paillier "
        "adds and scales by what the server knows, and no more."
    )
    return Table("Fully against partially homomorphic", text, columns, found)


def _networks(result: Result, record: Record) -> Entry:
    """Return whether networks of the sweep ran under a technique, or why not."""
    if record.task == "training":
        return NOT_MEASURED
    sizes = [x for curve in result.curves if (curve.kind, curve.choice) == ("size", record.choice) for x in curve.x]
    if sizes:
        return f"yes, up to {max(sizes):,.0f} parameters here"
    why = result.unfit.get(f"size/{record.choice}")
    return NOT_MEASURED if why is None else f"no: {why}"


def _sweep(result: Result, figure: str) -> list[Curve]:
    return [curve for curve in result.curves if curve.kind == "size" and curve.y_name == figure]


def inference_against(result: Result) -> Table:
    """Return for each link and model who answers sooner, on ciphertexts or on shares, and by how much."""
    records = {record.choice: record for record in of_task(result, "inference")}
    sides = [record for record in records.values() if scheme(record) or on_shares(record)]
    rows: list[tuple[Entry, ...]] = []
    for figure in ("latency_seconds", *over_links(result, "inference"), "query_total_bytes", "money_dollars"):
        values = {r.choice: r.figure(figure) for r in sides}
        rows.append(_row(f"{words(figure)}, the job's model", figure, sides, values))
        curves = {curve.choice: curve for curve in _sweep(result, figure)}
        for size in sorted({x for curve in curves.values() for x in curve.x}):
            at = {
                choice: curve.y[curve.x.index(size)].median for choice, curve in curves.items() if size in curve.x
            }  # fmt: skip
            rows.append(_row(f"{words(figure)}, network of {size:,.0f} parameters", figure, sides, at))
    text = (
        "Medians of one query; money of 1,000. The last column compares the best of each family, and by how much it "
        "takes less; it says nothing of whom to trust."
    )
    return Table(
        "HE-based against MPC-based inference",
        text,
        ("figure and model", *map(name, sides), "takes less"),
        tuple(row for row in rows if any(cell != NOT_MEASURED for cell in row[1:-1])),
    )


def _row(label: str, figure: str, sides: Sequence[Record], values: Mapping[str, float | None]) -> tuple[Entry, ...]:
    best: dict[str, float] = {}
    cells: list[str] = []
    for record in sides:
        value = values.get(record.choice)
        cells.append(NOT_MEASURED if value is None else shown(figure, value))
        if value is not None:
            family = "HE" if scheme(record) else "MPC"
            best[family] = min(best.get(family, value), value)
    if len(best) < 2:
        return (label, *cells, NOT_MEASURED)
    ratio = max(best.values()) / max(min(best.values()), 1e-12)
    return (label, *cells, f"{min(best, key=best.__getitem__)}, {number(ratio)} times")


def published() -> Table:
    """Return the figures of other people."""
    return Table(
        f"Figures of others ({MARK})",
        "No enclave hardware was at hand: what enclaves cost is what others wrote, and none of it was checked here.",
        ("technique", "setting", "overhead", "source", "status"),
        tuple((one.technique, one.setting, one.value, one.source, MARK) for one in PUBLISHED),
    )


def target(result: Result, *, within_share: float = 0.01) -> float:
    """Return the accuracy that counts as reached: so much below the best round of any technique."""
    best = (spread.median for curve in result.curves if curve.kind == "rounds" for spread in curve.y)
    return max(best, default=0.0) - within_share


def reached(result: Result, *, within_share: float = 0.01) -> Table:
    """Return rounds and bytes until a training comes close to the best accuracy that any round of any technique had.

    Args:
        result: with curves of accuracy after each round.
        within_share: how close, of accuracy.
    """
    curves = [curve for curve in result.curves if curve.kind == "rounds"]
    records = {record.choice: record for record in of_task(result, "training")}
    aim = target(result, within_share=within_share)
    rows: list[tuple[Entry, ...]] = []
    for curve in curves:
        first = next((x for x, y in zip(curve.x, curve.y, strict=True) if y.median >= aim), None)
        record = records.get(curve.choice)
        each = _per_round(record)
        rows.append(
            (
                described("training", curve.choice).title,
                "not reached" if first is None else f"{first:,.0f}",
                NOT_MEASURED if first is None or each is None else shown("upload_bytes", first * each),
                NOT_MEASURED if record is None else median_of(record, curve.y_name),
            )
        )
    quality = words(curves[0].y_name) if curves else "accuracy"
    return Table(
        f"Rounds and bytes to reach {100 * aim:.1f} % {quality}",
        f"{100 * within_share:g} points under the best round of all. Bytes: a party's total, by share of rounds.",
        ("technique", "rounds", "sent per party", f"{quality} at the end"),
        tuple(rows),
    )


def _per_round(record: Record | None) -> float | None:
    """Return the bytes that a party sends in a round, its set-up spread over the rounds."""
    if record is None or not record.figure("rounds_count") or record.figure("upload_bytes") is None:
        return None
    return (record.figure("upload_bytes") or 0.0) / (record.figure("rounds_count") or 1.0)
