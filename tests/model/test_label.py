"""The privacy label as a page: its rates against scipy, and what must stand in it, and where."""

from __future__ import annotations

import math

import msgspec
import pytest
from dp_accounting import get_epsilon_gaussian
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from confide.dp.plan import PrivacyPlan
from confide.guarantee import PrivacyLabel, UtilityLost
from confide.model.artifact import Artifact
from confide.model.label import above, facts, page
from confide.model.preprocess import Preprocess, Scale
from confide.model.zoo import logistic

PLAN = PrivacyPlan.calibrate(
    epsilon=1.0, delta=1e-5, clip_norm=0.5, rounds=20, length=31, silos=4, quorum=3, colluding=1, expected_records=455
)
BARE = PrivacyLabel(aggregator="masked", parties=("a", "b", "c", "d"), quorum=3, colluding=1, rounds=20)
LABEL = msgspec.structs.replace(
    BARE,
    **PLAN.label_fields(),
    server_sees="noisy sums",
    parties_see="noisy sums and models",
    outsiders_see="this file",
    metrics="none",
    public_data="none",
)


def artifact(label):
    return Artifact(logistic(1), Preprocess((Scale(name="age", low=0, high=120),)), label, {"job": "j"})


def text(label, *, pinned=True):
    return "\n".join(page(artifact(label), pinned=pinned))


@pytest.mark.parametrize("mu", [0.05, 0.268, 1.0, 3.0])
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2])
def test_the_worst_rate_is_what_no_test_between_two_gaussians_beats(mu, rate):
    label = msgspec.structs.replace(BARE, mu=mu)
    found = label.worst_true_positive_rate(rate)
    assert found == pytest.approx(norm.sf(norm.isf(rate), loc=mu), rel=1e-9)  # the likelihood ratio's own threshold
    assert label.advantage == pytest.approx(
        -minimize_scalar(lambda t: norm.sf(t) - norm.sf(t, loc=mu), bounds=(-5, 9), method="bounded").fun, abs=1e-6
    )


def test_the_worst_rate_is_the_tightest_that_the_privacy_curve_allows():
    """e^epsilon a + delta bounds the rate at every point of the curve, and at one point it is reached."""
    curve = [10**-power for power in [0.5 + 0.01 * k for k in range(900)]]
    sigma = 1 / LABEL.mu
    bounds = [math.exp(get_epsilon_gaussian(sigma, delta)) * 0.01 + delta for delta in curve]
    assert LABEL.worst_true_positive_rate() <= min(bounds)
    assert LABEL.worst_true_positive_rate() == pytest.approx(min(bounds), rel=1e-3)


def test_the_nutrition_line_at_epsilon_1():
    shown = " ".join(text(LABEL).split())
    assert "recognises at most 1.98 % of those that did (guessing: 1 %)" in shown
    assert "advantage at most 0.107 of 1; mu = 0.269" in shown


@pytest.mark.parametrize(("value", "shown"), [(1.0, "1"), (1.0001, "1.01"), (0.78554, "0.786"), (12.31, "12.4")])
def test_no_bound_is_rounded_down(value, shown):
    assert above(value) == shown
    assert float(above(value)) >= value


def test_the_guarantee_stands_above_what_can_undermine_it():
    shown = text(LABEL)
    order = ["What is promised", "epsilon ", "Who sees what", "How the promise is kept", "What can undermine it"]
    places = [shown.index(words) for words in order]
    assert places == sorted(places)
    together = " ".join(shown.split())
    assert "noisy sums; epsilon=1 against it together with up to 1 party" in together
    assert f"this file; epsilon={above(PLAN.epsilon_outsiders)} against it" in together
    assert "full batch" in together
    assert "exact discrete Gaussian" in together
    assert "operating system" in together
    assert max(map(len, shown.splitlines())) <= 110


def test_every_field_of_the_label_is_on_the_page_or_in_the_data():
    told = facts(artifact(LABEL), pinned=False)
    assert set(told["label"]) == set(PrivacyLabel.__struct_fields__)
    assert told["worst_true_positive_rate_at_1_percent"] == pytest.approx(0.0198, abs=1e-4)
    assert told["claims_privacy"]
    marks = {
        name: msgspec.structs.replace(LABEL, **{name: f"mark of {name}"})
        for name, value in msgspec.structs.asdict(LABEL).items()
        if isinstance(value, str) and name not in ("seed", "relation", "unit")
    }
    for name, label in marks.items():
        assert f"mark of {name}" in " ".join(text(label).split()), name


def test_a_fixed_seed_is_said_first_and_no_privacy_is_said_plainly():
    voided = msgspec.structs.replace(LABEL, seed="fixed seed 'x': no privacy claim")
    assert text(voided).splitlines()[3].strip().startswith("NO PRIVACY CLAIM")
    assert not facts(artifact(voided), pinned=True)["claims_privacy"]
    plain = text(BARE)
    assert plain.splitlines()[3].strip().startswith("NO DIFFERENTIAL PRIVACY")
    assert "epsilon=" not in plain
    assert not facts(artifact(BARE), pinned=True)["claims_privacy"]


def test_what_an_older_file_does_not_say_is_named():
    old = msgspec.structs.replace(LABEL, sampling=None, noise=None, server_sees=None, epsilon_party=None, metrics=None)
    assert text(old).count("not stated in this file") == 4


def test_utility_is_told_only_from_public_data_or_a_paid_release():
    assert "not measured" in text(LABEL)
    lost = UtilityLost(points=1.5, figure="accuracy in %, 20 seeds", measured_on="public data")
    assert "1.5 points of accuracy in %, 20 seeds, from public data" in " ".join(
        text(msgspec.structs.replace(LABEL, utility_lost=lost)).split()
    )
    with pytest.raises(msgspec.ValidationError, match="measured_on"):
        msgspec.convert({"points": 1.0, "figure": "accuracy", "measured_on": "private records"}, UtilityLost)


def test_an_unpinned_signer_is_named_as_such():
    assert "name the key with --trust" in " ".join(text(LABEL, pinned=False).split())
    assert "name the key with --trust" not in " ".join(text(LABEL).split())
