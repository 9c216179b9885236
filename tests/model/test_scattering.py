"""The scattering transform: equal to another implementation's, and what it guarantees about any image."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import DataError, ModelError
from confide.model.scattering import Scattering

REFERENCE = json.loads((Path(__file__).parent / "scattering_reference.json").read_text())
SMALL = Scattering(16, 12, scales=2, angles=4)
SIZES = [Scattering(28, 28), Scattering(32, 48, 3, 4), Scattering(30, 18, 1, 6), Scattering(64, 64, 5, 1), SMALL]

seeds = st.integers(0, 2**32)


def image(height, width):
    """The formula of bench/peers/kymatio/reference.py."""
    row, column = np.mgrid[:height, :width].astype(np.float64)
    waves = np.cos(1.9 * row + 0.4 * column) + np.sin(0.7 * row - 1.1 * column) + np.cos(0.05 * row * column)
    block = (row > height / 3) & (row < height / 2) & (column > width / 4)
    return np.clip(0.4 + 0.1 * waves + 0.2 * row / height + 0.3 * block, 0.0, 1.0)


def pictures(seed, n, transform=SMALL):
    return np.random.default_rng(seed).uniform(-1, 1, (n, transform.height, transform.width))


def mirrored(images, transform):
    """Pad as the transform does, by numpy's own rule."""
    filters = transform.filters
    around = [(0, 0)]
    for side, length in zip(filters.sides, images.shape[1:], strict=True):
        before = (len(side.places) - length) // 2
        around.append((before, len(side.places) - length - before))
    return np.pad(images, around, mode="reflect")


def order_of(transform):
    """Return each channel's order and the channel of kymatio with the same path: it counts its angles differently."""
    scales, angles = transform.scales, transform.angles
    turned = [(angles // 2 - 1 - angle) % angles for angle in range(angles)]
    orders, theirs = [0], [0]
    orders += [1] * (scales * angles)
    theirs += [1 + j * angles + turned[angle] for j in range(scales) for angle in range(angles)]
    start = 1 + scales * angles
    for first in range(scales):
        later = (scales - 1 - first) * angles
        for angle in range(angles):
            for j in range(scales - 1 - first):
                theirs += [start + turned[angle] * later + j * angles + turned[second] for second in range(angles)]
        orders += [2] * (angles * later)
        start += angles * later
    return np.array(orders), np.array(theirs)


@pytest.mark.parametrize("reference", REFERENCE["transforms"], ids=lambda one: "x".join(map(str, one["size"])))
def test_coefficients_are_those_of_kymatio(reference):
    transform = Scattering(*reference["size"])
    maps = transform.apply(image(transform.height, transform.width)[None]).reshape(transform.shape)
    rows, columns = reference["map"]
    assert maps.shape[1:] == (rows, columns)
    orders, theirs = order_of(transform)
    # Their wavelets have no common factor, and every filter of theirs is divided by 2 * 3.1415 * variance. A wave that
    # they turn the other way loses its other end at the highest frequency of a coarser map, hence 3e-6.
    scale = transform.filters.factor**orders * (3.1415 / math.pi) ** (orders + 1.0)
    ours = [maps.mean(axis=(1, 2)), maps[:, 0, 0], maps[:, rows // 2, columns // 3], maps[:, -1, -1]]
    for found, wanted in zip(ours, np.array(reference["coefficients"]), strict=True):
        np.testing.assert_allclose(found, wanted[theirs] * scale, rtol=5e-5, atol=3e-6)
        assert not np.allclose(found[1:], wanted[1:] * scale[1:], rtol=1e-3)  # the order of the angles matters


@pytest.mark.parametrize("transform", SIZES, ids=repr)
def test_no_frequency_gains_energy(transform):
    for pixels in range(transform.scales):
        assert transform.filters.littlewood_paley(pixels).max() <= 1.0 + 1e-12
    whole = transform.filters.littlewood_paley()
    assert np.partition(whole.ravel(), -2)[-2] > 0.99  # the factor is as large as it may be


@pytest.mark.parametrize("transform", SIZES, ids=repr)
def test_wavelets_do_not_see_a_flat_image_and_the_mean_keeps_it(transform):
    maps = transform.apply(np.full((1, transform.height, transform.width), 0.7)).reshape(transform.shape)
    np.testing.assert_allclose(maps[0], 0.7, rtol=3e-6)  # float32, and sums in the order of the machine
    assert np.abs(maps[1:]).max() < 1e-6


@pytest.mark.parametrize("averaged", [False, True])
def test_an_image_of_zeros_gives_zeros(averaged):
    transform = Scattering(16, 12, angles=4, averaged=averaged)
    assert not transform.apply(np.zeros((3, 16, 12), np.uint8)).any()


@given(seeds, st.floats(1e-6, 1.0))
@settings(max_examples=30, deadline=None)
def test_images_do_not_move_apart(seed, distance):
    one, other = pictures(seed, 2)
    other = one + distance * (other - one)
    a, b = SMALL.apply(np.stack([one, other]))
    padded = mirrored(np.stack([one, other]), SMALL)
    apart = np.linalg.norm(padded[0] - padded[1])
    assert np.linalg.norm(a - b) <= apart * (1.0 + 1e-5) + 1e-4  # float32 keeps 1e-7 of every pixel
    assert apart <= 2.0 * np.linalg.norm(one - other) * (1.0 + 1e-12)


@pytest.mark.parametrize("transform", SIZES, ids=repr)
def test_norms_stay_within_the_bound(transform):
    signs = np.sign(pictures(1, 4, transform))
    stripes = np.where(np.arange(transform.width) % 2, 1.0, -1.0) * np.ones((1, transform.height, 1))
    images = np.concatenate([signs, stripes, np.ones_like(stripes)])
    norms = np.linalg.norm(transform.apply(images), axis=1)
    assert np.all(norms <= np.linalg.norm(mirrored(images, transform), axis=(1, 2)) * (1.0 + 1e-6))
    assert np.all(norms <= transform.bound)


def test_a_factor_that_is_too_large_is_noticed():
    """Without the factor, or with twice it, an image can gain energy at some frequency."""
    bands = [band.astype(np.float64) * 2.0 for (kept, _), band in SMALL.filters.bands.items() if not kept]
    power = sum((band**2).sum(axis=0) for band in bands)
    opposite = np.roll(power[::-1, ::-1], 1, axis=(0, 1))
    assert (SMALL.filters.low**2 + 0.5 * (power + opposite)).max() > 1.5


@given(seeds, st.integers(1, 40), st.integers(0, 39))
@settings(max_examples=20, deadline=None)
def test_a_row_depends_on_its_own_image_alone(seed, n, place):
    images = pictures(seed, n)
    place %= n
    alone, among = SMALL.apply(images[place, None])[0], SMALL.apply(images)[place]
    assert np.array_equal(alone, among)
    images[np.arange(n) != place] = 1e30
    assert np.array_equal(alone, SMALL.apply(images)[place])


def test_rows_are_the_same_across_blocks():
    transform = Scattering(28, 28)
    images = pictures(3, 150, transform)
    whole = transform.apply(images)
    order = np.random.default_rng(4).permutation(150)
    assert np.array_equal(transform.apply(images[order]), whole[order])
    assert np.array_equal(transform.apply(images[:1])[0], whole[0])


def test_what_moves_in_the_image_moves_in_the_features():
    """A spot that is four pixels further gives the same features one place further; a pixel changes them little."""
    transform = Scattering(44, 44)
    row, column = np.mgrid[:44, :44]

    def spot(r, c):
        return np.exp(-0.5 * ((row - r) ** 2 + (column - c) ** 2) / 2.0)

    maps = transform.apply(np.stack([spot(20, 20), spot(24, 20), spot(20, 21)])).reshape(3, *transform.shape)
    np.testing.assert_allclose(maps[1, :, 2:-1], maps[0, :, 1:-2], atol=2e-4)
    moved = np.linalg.norm(maps[2] - maps[0]) / np.linalg.norm(maps[0])
    pixels = np.linalg.norm(spot(20, 21) - spot(20, 20)) / np.linalg.norm(spot(20, 20))
    assert moved < 0.6 * pixels


def test_a_mirrored_turn_of_the_image_permutes_the_angles():
    """Exchanging rows and columns exchanges the angles a and pi/2 - a."""
    transform = Scattering(28, 28)
    images = pictures(5, 1, transform)
    maps, turned = (transform.apply(x).reshape(transform.shape) for x in (images, images.transpose(0, 2, 1)))
    swap = [(4 - angle) % 8 for angle in range(8)]
    first = maps[1:17].reshape(2, 8, 7, 7)
    np.testing.assert_allclose(
        turned[1:17].reshape(2, 8, 7, 7)[:, swap], first.transpose(0, 1, 3, 2), rtol=1e-4, atol=1e-6
    )


def test_averages_are_the_means_of_the_maps():
    images = pictures(6, 5)
    maps = SMALL.apply(images).reshape(5, SMALL.channels, -1)
    averaged = Scattering(16, 12, scales=2, angles=4, averaged=True)
    np.testing.assert_allclose(averaged.apply(images), maps.mean(axis=2), rtol=1e-12, atol=1e-12)


def test_shapes():
    assert Scattering(28, 28).shape == (81, 7, 7)
    assert Scattering(28, 28).features == 3969
    assert Scattering(28, 28, averaged=True).features == 81
    assert Scattering(28, 28).apply(np.zeros((0, 28, 28))).shape == (0, 3969)


@pytest.mark.parametrize(
    "size", [(28, 28, 0), (28, 28, 6), (28, 28, 2, 0), (28, 28, 2, 17), (7, 28, 2), (28, 257, 2)], ids=str
)
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ModelError):
        Scattering(*size)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 12, 16)),
        np.zeros((16, 12)),
        np.full((1, 16, 12), np.nan),
        np.full((1, 16, 12), 1e39),  # infinite in float32
        np.zeros((1, 16, 12), complex),
        np.full((1, 16, 12), "0"),
    ],
    ids=["turned", "one image", "nan", "huge", "complex", "text"],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(DataError):
        SMALL.apply(images)


@given(seeds, st.floats(1e-3, 1.0))
@settings(max_examples=20, deadline=None)
def test_groups_are_centred_and_as_long_as_each_other_and_rows_no_longer_than_one(seed, strength):
    images = strength * pictures(seed, 4)
    plain, grouped = SMALL, Scattering(16, 12, scales=2, angles=4, groups=5)
    found = grouped.apply(images).reshape(4, 5, -1)
    raw = plain.apply(images).reshape(4, 5, -1)
    variance = raw.var(axis=2, keepdims=True)
    expected = (raw - raw.mean(axis=2, keepdims=True)) / np.sqrt(variance + 1e-6) / math.sqrt(plain.features)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert grouped.bound == 1.0
    assert np.all(np.linalg.norm(grouped.apply(images), axis=1) <= 1.0)
    alone = grouped.apply(images[2:3])[0]
    assert np.array_equal(alone, grouped.apply(images)[2])


def test_groups_that_do_not_divide_the_channels_are_refused():
    for groups in (-1, 2, 26, 82):
        with pytest.raises(ModelError, match="to divide the 81 channels"):
            Scattering(28, 28, groups=groups)
