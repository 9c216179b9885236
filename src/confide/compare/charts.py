"""The pictures of a comparison: each is drawn from records and curves, or left out with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from confide.compare.deeper import target
from confide.compare.pareto import front
from confide.compare.plots import Picture, cloud, lines
from confide.compare.quantities import median_of, number, words
from confide.compare.record import Record, Spread
from confide.compare.result import Curve, Result
from confide.compare.tables import Table, described, name, of_task, over_links

#: What the front is taken over, beside privacy: figure, and whether more is better. The first that exists is taken.
_QUALITY: Mapping[str, tuple[str, ...]] = {
    "training": ("accuracy_share", "auc_share"),
    "inference": ("agreement_share",),
}
_SECONDS: Mapping[str, tuple[str, ...]] = {
    "training": ("train_wan_seconds", "train_seconds"),
    "inference": ("latency_wan_seconds", "latency_seconds"),
}
_COST = "money_dollars"


@dataclass(frozen=True, slots=True)
class Gallery:
    """The pictures of one phase.

    Args:
        pictures: in their order.
        left_out: by what they would show: why they are not there.
        tables: that stand beside them.
    """

    pictures: tuple[Picture, ...]
    left_out: Mapping[str, str]
    tables: tuple[Table, ...]


def gallery(result: Result, task: str) -> Gallery:
    """Draw everything for one phase that its figures allow. Raises MissingExtra without matplotlib."""
    drawn: Mapping[str, Callable[[], Picture | str]] = (
        {
            "accuracy against epsilon": lambda: accuracy_against_epsilon(result),
            "rounds to reach an accuracy": lambda: against_rounds(result),
            "bytes to reach an accuracy": lambda: against_bytes(result),
            "time against bandwidth and delay": lambda: against_links(result, task),
            "the Pareto front": lambda: on_the_front(result, task),
        }
        if task == "training"
        else {
            "latency against bandwidth and delay": lambda: against_links(result, task),
            "latency against model size": lambda: against_size(result, "latency_seconds", "seconds on this machine"),
            "latency over the WAN against model size": lambda: against_size(
                result, "latency_wan_seconds", "seconds over the WAN"
            ),
            "bytes against model size": lambda: against_size(result, "query_total_bytes", "bytes that all send"),
            "money against model size": lambda: against_size(result, _COST, "dollars per 1,000 queries"),
            "requests per second against security and trust": lambda: against_security(result),
            "the Pareto front": lambda: on_the_front(result, task),
        }
    )
    pictures: list[Picture] = []
    left: dict[str, str] = {}
    for what, draw in drawn.items():
        found = draw()
        if isinstance(found, str):
            left[what] = found
        else:
            pictures.append(found)
    table = front_table(result, task)
    return Gallery(tuple(pictures), left, (table,) if table.rows else ())


def _names(rows: Sequence[Record]) -> dict[str, str]:
    """Return printable names by choice, no two alike."""
    found: dict[str, str] = {}
    for record in rows:
        title = name(record)
        found[record.choice] = title if title not in found.values() else f"{title} [{record.choice}]"
    return found


def _curves(result: Result, kind: str) -> list[Curve]:
    return [curve for curve in result.curves if curve.kind == kind and curve.x]


def _merged(
    curves: Mapping[str, tuple[Sequence[float], Sequence[Spread]]],
) -> dict[str, tuple[Sequence[float], Sequence[Spread]]]:
    """Return lines that lie on one another as one line with all their names."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for title, (x, y) in curves.items():
        groups.setdefault((tuple(x), tuple(spread.median for spread in y)), []).append(title)
    return {"\n= ".join(titles): curves[titles[0]] for titles in groups.values()}


# --- training ---------------------------------------------------------------------------------------------------------


def accuracy_against_epsilon(result: Result) -> Picture | str:
    """Draw the sweep over privacy budgets, with what trainings without noise reach as levels."""
    curves = _curves(result, "epsilon")
    if not curves:
        return "no sweep over epsilon in this result: a job with [privacy] has one"
    bare = [
        r for r in of_task(result, "training") if "epsilon_total" not in r.figures and r.choice in ("local", "pooled")
    ]
    levels = {f"{name(r)}, no noise": v for r in bare if (v := r.figure("accuracy_share")) is not None}
    return lines(
        {described("training", curve.choice).title: (curve.x, curve.y) for curve in curves},
        across="epsilon (smaller is more private)",
        label="accuracy, %",
        factor=100,
        log_x=True,
        levels=levels,
        caption="Accuracy on held-out records against the privacy budget: median, 5th to 95th percentile over seeds.",
    )


def against_rounds(result: Result) -> Picture | str:
    """Draw accuracy after each round; techniques that add the same integers lie on one line, and it says so."""
    curves = _curves(result, "rounds")
    if not curves:
        return "no technique here trained in rounds"
    rows = _merged({described("training", one.choice).title: (one.x, one.y) for one in curves})
    caption = "Accuracy after each round. Techniques with the same accuracies share a line."
    return lines(
        rows, across="round", label="accuracy, %", factor=100, caption=caption, levels=_target(result)
    )  # fmt: skip


def against_bytes(result: Result) -> Picture | str:
    """Draw accuracy against what a party has sent by then."""
    records = {record.choice: record for record in of_task(result, "training")}
    rows: dict[str, tuple[Sequence[float], Sequence[Spread]]] = {}
    for curve in _curves(result, "rounds"):
        record = records.get(curve.choice)
        if record is None or not record.figure("rounds_count") or not record.figure("upload_bytes"):
            continue
        each = (record.figure("upload_bytes") or 0.0) / (record.figure("rounds_count") or 1.0) / 1e3
        rows[name(record)] = (tuple(x * each for x in curve.x), curve.y)
    if not rows:
        return "no technique here has both a curve over rounds and its bytes"
    caption = "Accuracy against what one party has sent by then, set-up spread over the rounds. Left and high is good."
    return lines(
        rows, across="kB sent per party", label="accuracy, %", factor=100, log_x=True, caption=caption,
        levels=_target(result),
    )  # fmt: skip


def _target(result: Result) -> dict[str, float]:
    """Return the accuracy for which the table of rounds and bytes is made, by its name."""
    value = target(result)
    return {f"{100 * value:.1f} %: the table says who is there when": value}


# --- both phases ------------------------------------------------------------------------------------------------------


def against_links(result: Result, task: str) -> Picture | str:
    """Draw a line for each technique over the links, from the fastest to the slowest."""
    figures, records = over_links(result, task), of_task(result, task)
    titles = _names(records)
    rows = {
        titles[r.choice]: (
            [float(place) for place, figure in enumerate(figures) if figure in r.figures],
            [r.figures[figure] for figure in figures if figure in r.figures],
        )
        for r in records
        if any(figure in r.figures for figure in figures)
    }
    if not rows:
        return "no technique here has seconds over a link"
    what = "a training" if task == "training" else "a query"
    return lines(
        rows,
        across="link (delay one way, rate of each uplink)",
        label=f"seconds for {what}",
        log_y=True,
        places=[f"{one.name}\n{1e3 * one.delay_seconds:g} ms\n{_rate(one.bits_per_second)}" for one in result.links],
        caption=f"What {what} takes over each link: measured work, bytes and chains of messages, the link modelled.",
    )


def _rate(bits: float) -> str:
    return f"{bits / 1e9:g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:g} Mbit/s"


def against_size(result: Result, figure: str, label: str) -> Picture | str:
    """Draw a figure against the parameters of a network."""
    curves = [curve for curve in _curves(result, "size") if curve.y_name == figure]
    if not any(spread.median > 0 for curve in curves for spread in curve.y):
        return f"no sweep of {figure} over model sizes in this result"
    titles = _names(of_task(result, "inference"))
    return lines(
        {titles.get(one.choice, described("inference", one.choice).title): (one.x, one.y) for one in curves},
        across="parameters of the network",
        label=label,
        log_x=True,
        log_y=True,
        caption=f"A query against model size: {label}. Networks with random weights, the job's own inputs; a median of "
        "few queries, with the 5th to the 95th percentile.",
    )


def against_security(result: Result) -> Picture | str:
    """Draw requests per second against bits of security, coloured by what must be trusted."""
    rate = "requests_per_second_rate"
    records = [record for record in of_task(result, "inference") if record.figure(rate)]
    if not records:
        return "no technique here was measured under load (compare.clients = 0 leaves that out)"
    bits = sorted({record.guarantee.security_bits or 0 for record in records})
    titles = _names(records)
    return cloud(
        [
            (
                titles[record.choice],
                float(bits.index(record.guarantee.security_bits or 0)),
                record.figure(rate) or 0.0,
                f"rests on {record.guarantee.trust.value}",
                record.guarantee.post_quantum and bool(record.guarantee.claims),
            )
            for record in records
        ],
        across="security level",
        label="requests per second, under load",
        log_x=False,
        places=[f"{one} bits" if one else "none" for one in bits],
        caption="Measured requests per second of several clients at once, against the security level; the colour is "
        "what must be trusted, filled is post-quantum.",
    )


def axes(result: Result, task: str) -> dict[str, bool]:
    """Return the figures over which a phase's front is taken, True where more is better."""
    names = {figure for record in of_task(result, task) for figure in record.figures}
    found = {one: True for one in (next((n for n in _QUALITY[task] if n in names), None),) if one}
    found |= {one: False for one in (next((n for n in _SECONDS[task] if n in names), None),) if one}
    return found | ({_COST: False} if _COST in names else {})


def on_the_front(result: Result, task: str) -> Picture | str:
    """Draw seconds against money, with the techniques that nothing beats filled."""
    records, over = of_task(result, task), axes(result, task)
    seconds = next((figure for figure, more in over.items() if not more and figure != _COST), None)
    drawn = [r for r in records if seconds and (r.figure(seconds) or 0) > 0 and (r.figure(_COST) or 0) > 0]
    if len(drawn) < 2 or seconds is None:
        return "fewer than two techniques here have both seconds and money"
    beaten, titles = front(records, over), _names(records)
    quality = next((figure for figure, more in over.items() if more), None)
    per = "a training" if task == "training" else "1,000 queries"
    where = " over the WAN" if "_wan_" in seconds else ""
    return cloud(
        [
            (
                titles[r.choice] + (f", {median_of(r, quality)}" if quality and quality in r.figures else ""),
                r.figure(seconds) or 0.0,
                r.figure(_COST) or 0.0,
                f"rests on {r.guarantee.trust.value}",
                beaten[r.choice] is None,
            )
            for r in drawn
        ],
        across=f"seconds for {'a training' if task == 'training' else 'a query'}{where}",
        label=f"dollars for {per}",
        caption="Latency and cost; a disc stands beside its point where others are near. Accuracy stands behind the "
        "name. Filled: on the front, nothing here is at least as private, as accurate, as fast and as cheap. Privacy "
        "is compared claim by claim.",
    )


def front_table(result: Result, task: str) -> Table:
    """Return who is on the front, and for each other technique one that beats it."""
    records, over = of_task(result, task), axes(result, task)
    beaten, titles = front(records, over), _names(records)
    return Table(
        "The Pareto front of privacy, accuracy, latency and cost",
        f"Over privacy (claim by claim) and {', '.join(words(one) for one in over) or 'nothing else'}. What is beaten "
        "may still be right: people, machines and what must be trusted are not figures here.",
        ("technique", "privacy", *(words(one) for one in over), "beaten by"),
        tuple(
            (
                titles[record.choice],
                _privacy(record),
                *(median_of(record, figure) for figure in over),
                titles[winner] if (winner := beaten[record.choice]) else "nothing here",
            )
            for record in records
        ),
    )


def _privacy(record: Record) -> str:
    claims = len(record.guarantee.claims)
    budget = record.figure("epsilon_total")
    said = f"{claims} claims" if claims != 1 else "1 claim"
    return (said if claims else "nothing is hidden") + ("" if budget is None else f", epsilon {number(budget)}")
