"""Cost models: the fit against scipy's, a law that is known, and the errors that the package ships."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from confide.compare import costs
from confide.compare.links import LINKS

MODELS = costs.load()
BAR = 0.25


@pytest.mark.parametrize("seed", range(20))
def test_nonnegative_least_squares_is_scipys(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 1, (12, 5)), rng.normal(0, 1, 12)
    ours, (theirs, residual) = costs.nonnegative(a, b), nnls(a, b)
    assert (ours >= 0).all()
    assert np.linalg.norm(a @ ours - b) == pytest.approx(residual, abs=1e-9)
    assert ours == pytest.approx(theirs, abs=1e-6)


def sums(law):
    """Return measurements of sums that follow a law of parties and length."""
    for parties in (3, 10, 30, 60):
        for length in (10, 1000, 30_000):
            work, sent, trips = law(parties, length)
            seconds = {
                link.name: work + 8 * sent / link.bits_per_second + trips * link.delay_seconds
                for link in LINKS.values()
            }
            yield {
                "task": "training", "choice": "made-up", "parties": parties, "length": length, "compute_seconds": work,
                "bytes": sent, "trips": trips, "seconds": seconds,
            }  # fmt: skip


def test_a_law_of_its_terms_is_found_again():
    rows = list(sums(lambda n, d: (1e-3 + 2e-4 * n + 3e-9 * n * d, 100 * n + 8 * d, 3)))
    assert max(costs.left_out(rows)) < 1e-6
    model = costs.fit(rows)
    assert model.work == pytest.approx([1e-3, 2e-4, 0, 0, 3e-9], abs=1e-12)


def test_what_is_no_law_of_its_terms_has_an_error():
    noisy = np.random.default_rng(1)
    rows = list(sums(lambda n, d: (float(noisy.uniform(1e-3, 1)), 10, 1)))
    assert np.median(costs.left_out(rows)) > 0.05


def test_the_models_of_the_package_are_those_of_its_measurements():
    again = costs.fit_all(MODELS.rows)
    assert again.keys() == MODELS.fitted.keys()
    for name, model in again.items():
        shipped = MODELS.fitted[name]
        assert shipped.measurements == model.measurements
        assert shipped.work == pytest.approx(model.work, rel=1e-4, abs=1e-15)
        assert shipped.errors == pytest.approx(model.errors, rel=1e-4, abs=1e-9)


def test_the_error_on_held_out_sizes_is_within_the_bar_for_every_technique():
    errors = costs.held_out(MODELS.rows)
    assert len(errors) >= 14
    assert all(error <= BAR for error in errors.values()), errors
    assert all(model.errors.keys() == LINKS.keys() for model in MODELS.fitted.values())
    assert np.median([model.errors["loopback"] for model in MODELS.fitted.values()]) <= BAR  # where work is all


def test_measurements_say_where_and_when_they_were_made():
    assert MODELS.machine
    assert len(MODELS.date) == len("2026-01-01")
