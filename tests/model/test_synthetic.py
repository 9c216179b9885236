"""Images of nothing: the same for ever, within their range, and like what they stand for."""

import numpy as np
import pytest

from confide.model.synthetic import synthetic

KINDS = ("natural", "strokes")


@pytest.mark.parametrize("kind", KINDS)
def test_images_follow_from_kind_seed_and_size_alone(kind):
    images = synthetic(kind, 6, 12, 10, 3)
    assert images.shape == (6, 12, 10)
    np.testing.assert_array_equal(images, synthetic(kind, 6, 12, 10, 3))
    assert not np.array_equal(images, synthetic(kind, 6, 12, 10, 4))
    assert not np.array_equal(images, synthetic("strokes" if kind == "natural" else "natural", 6, 12, 10, 3))
    assert len({image.tobytes() for image in images}) == 6


#: Mean and deviation of 8 images of 28 x 28 from seed 0: a model that was saved must open with the same features.
KEPT = {
    "natural": [
        [0.4998, 0.5000, 0.4997, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000],
        [0.2263, 0.1831, 0.2155, 0.0967, 0.2181, 0.0976, 0.1354, 0.1961],
    ],
    "strokes": [
        [0.1297, 0.0528, 0.0578, 0.0547, 0.1052, 0.0896, 0.1355, 0.1320],
        [0.2916, 0.1947, 0.2031, 0.1924, 0.2656, 0.2504, 0.3002, 0.2938],
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_the_ones_they_always_were(kind):
    images = synthetic(kind, 8, 28, 28, 0)
    np.testing.assert_allclose([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], KEPT[kind], atol=1e-4)


@pytest.mark.parametrize("size", [(28, 28), (40, 28), (1, 1), (8, 64)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_grey_values_are_from_zero_to_one(kind, size):
    images = synthetic(kind, 40, *size, 1)
    assert np.isfinite(images).all()
    assert images.min() >= 0.0
    assert images.max() <= 1.0


def radial_slope(images):
    """Return the slope of the logarithm of the mean amplitude over that of the frequency."""
    amplitude = np.abs(np.fft.fft2(images - images.mean(axis=(1, 2), keepdims=True))).mean(axis=0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(28), np.fft.fftfreq(28)))
    within = (f > 0) & (f < 0.4)
    return np.polyfit(np.log(f[within]), np.log(amplitude[within]), 1)[0]


def test_natural_images_have_the_spectrum_of_nature_and_noise_has_not():
    assert -1.8 < radial_slope(synthetic("natural", 400, 28, 28, 0)) < -0.8
    assert radial_slope(np.random.default_rng(0).uniform(size=(400, 28, 28))) > -0.1


@pytest.mark.parametrize("side", [28, 84])
def test_strokes_are_thin_and_bright_on_a_black_margin(side):
    images = synthetic("strokes", 300, side, side, 0)
    assert 0.05 < images.mean() < 0.2
    assert (images.max(axis=(1, 2)) > 0.9).mean() > 0.95
    edge = side // 28
    assert images[:, :edge].max() < 0.2
