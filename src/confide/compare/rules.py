"""The field's rules of thumb, and what a comparison measured for each: a verdict that code computes.

A rule is a range that people quote. `judged_rules` takes what a result has for it, a spread for each technique, model
and link, and says whether the rule holds, is too pessimistic (the field says that it costs more than it did here), too
optimistic, or was not measured, and why not. Where a rule is said stands in `Rule.sources`; a source that nobody here
could read says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confide.compare import rule_figures as figures
from confide.compare.record import Spread
from confide.compare.result import Result, RuleJudged, RuleMeasured
from confide.compare.rule_figures import Found

#: How a rule that nothing was measured for is judged.
NOT_HERE = "not measured here"
HOLDS = "holds"
PESSIMISTIC = "too pessimistic"
OPTIMISTIC = "too optimistic"
UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule is said, or where it may come from.

    Args:
        title: of the page or paper.
        address: where it is.
        says: what it says of the rule, in our words.
        read: whether it was opened and says that; else it is quoted from memory or from others.
    """

    title: str
    address: str
    says: str
    read: bool = True

    def words(self) -> str:
        """Return the source in a sentence."""
        at = f" ({self.address})" if self.address else ""
        return f"{self.title}{at}: {self.says}" + ("" if self.read else " [not opened by us]")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of thumb.

    Args:
        key: a short name that stays.
        said: the rule in our words.
        low, high: its range, in the unit of `figure`.
        figure: what is measured, with the unit at its end.
        measure: what a result has for it.
        sources: where it is said.
        usual: what it is usually measured on.
        why: why our figures differ, or do not.
    """

    key: str
    said: str
    low: float
    high: float
    figure: str
    measure: Callable[[Result], Found]
    sources: tuple[Source, ...]
    usual: str
    why: str


RULES: tuple[Rule, ...] = (
    Rule(
        key="utility-at-epsilon-1",
        said="Differential privacy at epsilon 1 costs 20 to 30 % of utility.",
        low=0.20,
        high=0.30,
        figure="loss_share",
        measure=figures.lost_at_epsilon_one,
        sources=(
            Source(
                "DQ0, Setting epsilon considering utility",
                "https://dq0.io/docs/methods/utility/",
                'calls above 80 % of the accuracy without privacy "good" at epsilon 1',
            ),
            Source(
                "Tramer and Boneh, ICLR 2021",
                "https://arxiv.org/abs/2011.11660",
                "private deep learning on CIFAR-10 stood at 66 % at epsilon 7.5, less than shallow models without "
                "privacy reach; better features help more than better training",
            ),
        ),
        usual="Convolutional networks trained from nothing by noisy gradient steps, a few thousand to 60,000 images.",
        why=(
            "A small model on bounded features, gradients clipped and summed over all parties before one share of "
            "noise is added, an accountant without slack. The loss grows as records get fewer and outputs more: "
            "compare data sets. These are defaults; examples/learning/digits.toml is set for few records. A large "
            "network trained from nothing is another matter: see the second source."
        ),
    ),
    Rule(
        key="federated-against-pooled",
        said="A federated model comes within 2 to 5 % of a centralised one.",
        low=0.02,
        high=0.05,
        figure="loss_share",
        measure=figures.lost_by_federating,
        sources=(
            Source(
                "Sheller and others, Scientific Reports 10, 2020",
                "https://profiles.wustl.edu/en/publications/"
                "federated-learning-in-medicine-facilitating-multi-institutional-c",
                "ten institutions reached 99 % of the quality of centralised data (abstract)",
            ),
            Source(
                "FLamby, benchmark of Fed-Heart-Disease",
                "https://github.com/owkin/FLamby",
                "pooled 0.735, FedAvg 0.685, the best federated 0.731, mean accuracy over four hospitals",
                read=False,
            ),
        ),
        usual="FedAvg with many local steps between rounds, parties whose records differ.",
        why=(
            "With one local step in a round, a sum of gradients over parties is the gradient over the pooled records: "
            "nothing is lost but rounding. The gap of the rule is the price of fewer messages, not of federating."
        ),
    ),
    Rule(
        key="rounds",
        said="Federated training takes 10 to 100 times the rounds.",
        low=10.0,
        high=100.0,
        figure="rounds_factor",
        measure=figures.rounds_against_passes,
        sources=(
            Source(
                "McMahan and others, AISTATS 2017",
                "https://arxiv.org/abs/1602.05629",
                "FedAvg needs 10 to 100 times FEWER rounds than synchronous gradient steps: the figure is often quoted "
                "the other way round",
            ),
        ),
        usual="Communication rounds of FedAvg beside epochs or steps of one machine.",
        why=(
            "Counted alike (a federated round against the passes over pooled records that reach the same accuracy), a "
            "round with one local step is a pass. Small convex models need a few dozen, and one sum "
            '(algorithm = "statistics") gives linear models in one. A round costs a trip over the network, a pass does '
            "not: that is what is slower."
        ),
    ),
    Rule(
        key="linear-under-he",
        said="A linear model takes 100 to 500 ms under homomorphic encryption.",
        low=0.1,
        high=0.5,
        figure="latency_seconds",
        measure=figures.linear_under_he,
        sources=(
            Source(
                "talks and vendors' pages",
                "",
                "no page that we could open states this range with its setting; Paillier with 3072-bit keys and early "
                "CKKS libraries at large parameters are of this size",
                read=False,
            ),
        ),
        usual="Paillier, or CKKS at the parameters of a deep circuit (N = 8192 and more) for a circuit of depth one.",
        why=(
            "A dot product needs one multiplication by a known number, so the smallest ring that is secure will do, "
            "packed so that one ciphertext goes each way. Evaluation keys are sent once. Paillier is slower by an "
            "order, and may be where the rule comes from."
        ),
    ),
    Rule(
        key="deep-factor",
        said="A deep network costs about 100 times the clear under encryption or on shares.",
        low=30.0,
        high=300.0,
        figure="clear_factor",
        measure=figures.deep_over_clear,
        sources=(
            Source(
                "Inferensys, HE-based against MPC-based inference",
                "https://inferensys.com/comparisons/privacy-preserving-machine-learning-ppml/"
                "he-based-model-inference-vs-mpc-based-model-inference",
                "100 to 1,000 times plaintext for a small network under CKKS",
            ),
        ),
        usual="Whatever computes the clear at hand: often the same slow code without encryption.",
        why=(
            "The clear here is onnxruntime on the same machine, which is the fastest that a user has; against our own "
            "plain backend every factor would look smaller. Work alone is compared, dealing ahead included, without a "
            "network. Counted as holding between 30 and 300 times. On shares the work is a few times that of the "
            "clear, and what a dealer makes for rectifiers; encryption transforms polynomials where the clear "
            "multiplies two numbers. Over a WAN trips take longer than all of it."
        ),
    ),
    Rule(
        key="image-under-fhe",
        said="An image takes seconds to minutes under fully homomorphic encryption.",
        low=1.0,
        high=600.0,
        figure="latency_seconds",
        measure=figures.image_under_he,
        sources=(
            Source(
                "Activate Me!, 2025",
                "https://arxiv.org/abs/2508.11575",
                "LeNet-5 with squares 128 s, ResNet-20 with polynomials 1,145 s an image (OpenFHE)",
            ),
            Source(
                "Brutzkus, Oren and Gilad-Bachrach, ICML 2019 (LoLa)",
                "https://arxiv.org/abs/1812.10659",
                "ten times below CryptoNets; 0.16 s where a public network in the clear makes the features",
            ),
        ),
        usual="CKKS with bootstrapping or TFHE, on networks with rectifiers, on one to many cores.",
        why=(
            "Ours is leveled: squares in place of rectifiers, a depth that is fixed ahead, no bootstrapping, a plan "
            "for each network. So an image takes less than where bootstrapping is paid for. Networks with rectifiers "
            "do not run here as they are, and none as deep as ResNet-20: for them the rule stands. Exact FHE (TFHE) "
            "is another thing, and a peer's figure."
        ),
    ),
    Rule(
        key="image-under-mpc",
        said="An image takes hundreds of milliseconds under multi-party computation.",
        low=0.1,
        high=1.0,
        figure="latency_seconds",
        measure=figures.image_under_mpc,
        sources=(
            Source(
                "Wagh and others, PETS 2021 (Falcon)",
                "https://arxiv.org/abs/2004.02229",
                "over a WAN and for large networks work, not messages, is what takes long (abstract)",
            ),
            Source(
                "Haralampieva, Rueckert and Passerat-Palmbach, 2020",
                "https://arxiv.org/abs/2011.05296",
                "compares PySyft, CrypTen and others on small image networks, and finds CrypTen satisfying (abstract)",
            ),
        ),
        usual="Two or three servers in one data centre, a small network for MNIST.",
        why=(
            "Over a LAN the rule is of libraries of its day: masks are dealt ahead and every layer takes one or two "
            "trips. Over a WAN the trips are what counts. What a dealer makes ahead of a query is in the lines "
            "that say so; papers often leave it out."
        ),
    ),
)


def judged_rules(result: Result) -> tuple[RuleJudged, ...]:
    """Return every rule beside what a result has for it, in the order of `RULES`."""
    return tuple(_judged(rule, rule.measure(result)) for rule in RULES)


def _judged(rule: Rule, found: Found) -> RuleJudged:
    measured = tuple(
        RuleMeasured(
            name=one.name, what=one.what, task=one.task, choice=one.choice, on=one.on, value=one.value,
            repeats=one.repeats, verdict=verdict(one.value, rule.low, rule.high, rule.figure),
        )
        for one in found.points
        if usable(one.value)
    )  # fmt: skip
    broken = [f"{one.name}: its figure is not finite" for one in found.points if not usable(one.value)]
    return RuleJudged(
        key=rule.key, said=rule.said, figure=rule.figure, low=rule.low, high=rule.high, measured=measured,
        verdict=overall([one.verdict for one in measured]), left_out="; ".join([*found.left_out, *broken]),
    )  # fmt: skip


def usable(value: Spread) -> bool:
    """Return whether a spread is one: finite, and in order."""
    return all(map(math.isfinite, (value.low, value.median, value.high))) and value.low <= value.median <= value.high


def verdict(value: Spread, low: float, high: float, figure: str) -> str:
    """Return what a measurement says of a rule that gives a range of what something costs.

    Args:
        value: measured.
        low, high: of the rule, in the same unit.
        figure: its name; shares differ by points, everything else by a factor.
    """
    if low <= value.median <= high:
        inside = low <= value.low and value.high <= high
        return HOLDS if inside else f"{HOLDS} at the median, not over the whole spread"
    word, at = (PESSIMISTIC, low) if value.median < low else (OPTIMISTIC, high)
    by = _by(value.median, at, figure)
    reaches = value.high >= low if word == PESSIMISTIC else value.low <= high
    return f"{UNDECIDED}: {word} by {by} at the median, the spread reaches the range" if reaches else f"{word} by {by}"


def _by(median: float, at: float, figure: str) -> str:
    if figure.endswith("_share"):
        return f"{100 * abs(at - median):.1f} points"
    if min(median, at) <= 0:
        return "any factor"
    ratio = max(median, at) / min(median, at)
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:,.0f}x"


def overall(verdicts: Sequence[str]) -> str:
    """Return one verdict over many: theirs if they agree in kind, else how many of each there are."""
    if not verdicts:
        return NOT_HERE
    kinds = [
        next(kind for kind in (HOLDS, PESSIMISTIC, OPTIMISTIC, UNDECIDED) if one.startswith(kind)) for one in verdicts
    ]
    different = list(dict.fromkeys(kinds))
    if len(verdicts) == 1:
        return verdicts[0]
    if len(different) == 1:
        return different[0] if different[0] in (HOLDS, UNDECIDED) else _between(different[0], verdicts)
    first, *rest = (f"{kind} for {kinds.count(kind)}" for kind in different)
    return ", ".join([f"{first} of {len(kinds)}", *rest])


def _between(kind: str, verdicts: Sequence[str]) -> str:
    """Return a kind with the least and the most that it is off by."""
    amounts = sorted({one.removeprefix(f"{kind} by ") for one in verdicts}, key=_amount)
    return f"{kind} by {amounts[0]}" + (f" to {amounts[-1]}" if len(amounts) > 1 else "")


def _amount(text: str) -> float:
    try:
        return float(text.rstrip("x").removesuffix(" points").replace(",", ""))
    except ValueError:
        return math.inf
