"""What a result has for each rule of thumb: a spread for every technique, model and link that the rule is about.

Each function takes a `Result` and nothing else, and says what it could not find. The spread of a loss is that of the
repeated trainings against the median of the yardstick; the spread of a latency is over the queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from confide.compare.cells import PRIVATE
from confide.compare.deeper import on_shares, scheme
from confide.compare.quantities import shown
from confide.compare.record import Record, Spread
from confide.compare.result import Curve, Result
from confide.compare.tables import name

#: Federations without noise, the one that is taken first.
FEDERATED: tuple[str, ...] = ("masked", "plain", "amortised", "shares", "he", "groups", "tee")
_QUALITY: tuple[str, ...] = ("accuracy_share", "concordance_share")
#: How far an epsilon may be from 1.
_NEAR = 0.05
#: A federation has arrived when it is this close to what pooled records reach.
WITHIN_SHARE = 0.01
#: Sums on exact FHE are a peer's.
_EXACT = "exact (TFHE)"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement for a rule.

    Args:
        name: technique, and model or data where it is not the job's, in a few words.
        what: the same with what it was measured on.
        task, choice, on: as in `RuleMeasured`.
        value: in the unit of the rule.
        repeats: that it rests on.
    """

    name: str
    what: str
    task: str
    choice: str
    on: str
    value: Spread
    repeats: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a result has for a rule, and why not more."""

    points: tuple[Point, ...] = ()
    left_out: tuple[str, ...] = ()


# --- training ---------------------------------------------------------------------------------------------------------


def lost_at_epsilon_one(result: Result) -> Found:
    """Return the share of quality that is lost at epsilon 1, against the same federation without noise."""
    points, why = list[Point](), list[str]()
    for on, records in _trainings(result):
        private, bare = records.get(PRIVATE), _first(records, (*FEDERATED, "pooled"))
        at = f" on {on}" if on else ""
        quality = _shared_quality(private, bare)
        noisy = None if private is None or quality is None else _at_one(result, private, quality, on)
        if private is None:
            why.append(f"no training with differential privacy{at}: the job needs [privacy]")
        elif bare is None or quality is None:
            why.append(f"no training without noise{at} to compare with")
        elif noisy is None:
            why.append(f"no training at epsilon 1{at}: set privacy.epsilon or a point of compare.epsilons to 1")
        else:
            words = f"{private.setting}: {shown(quality, noisy.median)} at epsilon 1"
            points.append(_lost(private, bare, quality, noisy, words, on))
    return Found(tuple(points), tuple(why))


def _at_one(result: Result, private: Record, quality: str, on: str) -> Spread | None:
    epsilon = private.figure("epsilon_total")
    if epsilon is not None and abs(epsilon - 1) <= _NEAR:
        return private.figures[quality]
    for curve in result.curves if not on else ():
        if (curve.kind, curve.choice, curve.y_name) == ("epsilon", private.choice, quality):
            return next((y for x, y in zip(curve.x, curve.y, strict=False) if abs(x - 1) < 1e-9), None)
    return None


def lost_by_federating(result: Result) -> Found:
    """Return the share of quality that a federation without noise loses against pooled records."""
    points, why = list[Point](), list[str]()
    for on, records in _trainings(result):
        pooled, federated = records.get("pooled"), _first(records, FEDERATED)
        quality = _shared_quality(federated, pooled)
        at = f" on {on}" if on else ""
        if pooled is None or federated is None or quality is None:
            why.append(f"no pooled training and federation{at} that can be compared")
        else:
            words = f"{federated.setting}: {shown(quality, federated.figures[quality].median)} federated"
            points.append(_lost(federated, pooled, quality, federated.figures[quality], words, on))
    return Found(tuple(points), tuple(why))


def _lost(record: Record, yardstick: Record, quality: str, reached: Spread, words: str, on: str) -> Point:
    """Return what is lost against a yardstick's median, as a share of it."""
    best = yardstick.figures[quality].median
    ends = (reached.median, reached.high, reached.low, reached.mean)
    value = Spread(*(1 - one / best for one in ends)) if best > 0 else Spread(*(float("nan"),) * 4)
    title = f"{name(record)}, {on or _of_what(record)}"
    what = f"{words}, {shown(quality, best)} with {name(yardstick)}"
    return Point(title, what, record.task, record.choice, on, value, record.repeats)


def rounds_against_passes(result: Result) -> Found:
    """Return rounds of a federation over passes of one holder of all records, to the same accuracy."""
    passes = next((curve for curve in result.curves if curve.kind == "passes" and curve.x), None)
    curves = {curve.choice: curve for curve in result.curves if curve.kind == "rounds" and curve.x}
    choice = next((one for one in FEDERATED if one in curves), None)
    record = next((r for r in result.records if (r.task, r.choice) == ("training", choice)), None)
    if passes is None or record is None or choice is None:
        return Found(left_out=("no accuracies after each pass over pooled records and after each round",))
    target = passes.y[-1].median - WITHIN_SHARE
    single = _reached(passes, [y.median for y in passes.y], target)
    rounds = curves[choice]
    soon, median, late = (
        _reached(rounds, values, target)
        for values in ([y.high for y in rounds.y], [y.median for y in rounds.y], [y.low for y in rounds.y])
    )
    if median is None or single is None:
        return Found(left_out=(f"{name(record)} did not come within 1 point of pooled in {rounds.x[-1]:g} rounds",))
    low, high = (soon or median) / single, (late or max(median, rounds.x[-1])) / single
    words = (
        f"{record.setting}: {median:g} rounds, {single:g} passes over pooled records, to {shown(rounds.y_name, target)}"
    )
    value = Spread(median / single, low, high, median / single)
    return Found((Point(f"{name(record)}, {_of_what(record)}", words, "training", choice, "", value, record.repeats),))


def _reached(curve: Curve, values: Sequence[float], target: float) -> float | None:
    return next((x for x, y in zip(curve.x, values, strict=False) if y >= target and x > 0), None)


def _of_what(record: Record) -> str:
    """Return the data set that a training's setting begins with."""
    return record.setting.partition(",")[0]


def _trainings(result: Result) -> Iterator[tuple[str, Mapping[str, Record]]]:
    yield "", {record.choice: record for record in result.records if record.task == "training"}
    for on in dict.fromkeys(aside.on for aside in result.asides if aside.kind == "set"):
        yield on, {one.record.choice: one.record for one in result.asides if (one.kind, one.on) == ("set", on)}


def _first(records: Mapping[str, Record], choices: Sequence[str]) -> Record | None:
    """Return the first of these techniques that was measured, without noise."""
    return next(
        (records[one] for one in choices if one in records and "epsilon_total" not in records[one].figures), None
    )


def _shared_quality(one: Record | None, other: Record | None) -> str | None:
    if one is None or other is None:
        return None
    return next((quality for quality in _QUALITY if quality in one.figures and quality in other.figures), None)


# --- predictions ------------------------------------------------------------------------------------------------------


def linear_under_he(result: Result) -> Found:
    """Return the latency of a linear model under each homomorphic technique."""
    linear = [(on, r) for on, r in _predictions(result) if _depth(r) == 1 and scheme(r)]
    points = tuple(_timed(on, r, link) for on, r in linear for link in _near(r))
    return Found(points, () if points else ("no linear model was asked under homomorphic encryption",))


def image_under_he(result: Result) -> Found:
    """Return the latency of each network under homomorphic encryption, leveled or exact."""
    deep = [(on, r) for on, r in _predictions(result) if _depth(r) > 1 and scheme(r)]
    why = [] if deep else ["no network was asked under homomorphic encryption: name some in compare.networks"]
    why += _refused(result, "he")
    if not any((scheme(r) or "").endswith(_EXACT) for _, r in deep):
        why.append("exact FHE: not measured here, no peer's record of a network")
    return Found(tuple(_timed(on, r, link) for on, r in deep for link in _near(r)), tuple(why))


def image_under_mpc(result: Result) -> Found:
    """Return the latency of each network on shares, over the LAN and over the WAN, without and with dealing ahead."""
    points: list[Point] = []
    for on, record in _predictions(result):
        if _depth(record) < 2 or not on_shares(record):
            continue
        links = ("lan", "wan") if "latency_lan_seconds" in record.figures else _near(record)
        for link in [one for one in links if _latency(one) in record.figures]:
            points.append(_timed(on, record, link))
            if link and (ahead := record.figure(f"offline_{link}_seconds")):
                points.append(_timed(on, record, link, ahead=ahead))
    return Found(tuple(points), () if points else ("no network was asked on shares: name some in compare.networks",))


def deep_over_clear(result: Result) -> Found:
    """Return the work of each network under encryption or on shares, over onnxruntime in the clear; dealing counts."""
    points, why = list[Point](), list[str]()
    for on, record in _predictions(result):
        if _depth(record) < 2 or not (scheme(record) or on_shares(record)):
            continue
        clear = record.figure("clear_seconds")
        if not clear or clear <= 0:
            why.append(f"{_called(record, on)}: onnxruntime, the yardstick, is not installed or does not run it")
            continue
        figure = next((one for one in (_latency("loopback"), _latency("")) if one in record.figures), None)
        if figure is None:
            continue
        seconds, ahead = record.figures[figure], record.figure(f"offline_{figure.removeprefix('latency_')}") or 0.0
        ends = (seconds.median, seconds.low, seconds.high, seconds.mean)
        value = Spread(*((one + ahead) / clear for one in ends))
        dealt = f" and {shown(figure, ahead)} of dealing ahead" if ahead else ""
        what = f"{record.setting}: {shown(figure, seconds.median)}{dealt}, {shown(figure, clear)} in the clear"
        points.append(Point(_called(record, on), what, record.task, record.choice, on, value, record.repeats))
    if not points and not why:
        why.append("no network was asked under encryption or on shares: name some in compare.networks")
    return Found(tuple(points), tuple(why))


def _predictions(result: Result) -> Iterator[tuple[str, Record]]:
    yield from (("", record) for record in result.records if record.task == "inference")
    yield from ((aside.on, aside.record) for aside in result.asides if aside.kind == "network")


def _depth(record: Record) -> float:
    """Return how many layers with weights a record's model has; 0 where nobody knows."""
    return record.figure("weight_layers_count") or 0.0


def _latency(link: str) -> str:
    return f"latency_{link}_seconds" if link else "latency_seconds"


def _near(record: Record) -> tuple[str, ...]:
    """Return the LAN, or else what there is: papers measure over one."""
    return tuple(one for one in ("lan", "loopback", "") if _latency(one) in record.figures)[:1]


def _called(record: Record, on: str) -> str:
    return f"{name(record)}, {on or 'the model of the job'}"


def _timed(on: str, record: Record, link: str, *, ahead: float = 0.0) -> Point:
    """Return a latency over a link; with what is dealt ahead of a query, where that is given."""
    over = f"over the {link.upper()}" if link in ("lan", "wan") else "over loopback" if link else "in one process"
    also = f", {shown('offline_seconds', ahead)} of them for correlations that a dealer makes ahead" if ahead else ""
    kind = f"; {found}" if (found := scheme(record)) else ""
    what = f"{record.setting}; {over}{also}{kind}"
    short = f"{link.upper() if link in ('lan', 'wan') else link or 'here'}{', with dealing' if ahead else ''}"
    spread = record.figures[_latency(link)]
    value = Spread(*(one + ahead for one in (spread.median, spread.low, spread.high, spread.mean)))
    return Point(f"{_called(record, on)}, {short}", what, record.task, record.choice, on, value, record.repeats)


def _refused(result: Result, choice: str) -> list[str]:
    """Return the networks that a technique does not run, with the first reason."""
    found: list[str] = []
    for place, why in result.unfit.items():
        kind, _, rest = place.partition("/")
        on, _, technique = rest.rpartition("/")
        if kind == "network" and technique == choice:
            found.append(f"{on} does not run: {shortened(why)}")
    return found


def shortened(why: str) -> str:
    """Return the first reason of many, and how many more there are."""
    first, *rest = why.split("; ")
    return f"{first} (and {len(rest)} more)" if rest else first
