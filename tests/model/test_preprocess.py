"""Public preprocessing: the ranges it guarantees, its refusals, and its bytes."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import DataError, ModelError
from confide.model.pixels import Pixels
from confide.model.preprocess import MISSING, OneHot, Preprocess, Projection, Scale
from confide.model.projection import RandomProjection
from confide.model.scattering import Scattering

AGE = Scale(name="age", low=0, high=120)
SEX = OneHot(name="sex", categories=("f", "m"))

finite = st.floats(-1e300, 1e300)
names = st.text(min_size=1, max_size=20).filter(lambda text: text != MISSING)


@st.composite
def scales(draw, name="number"):
    low, high = sorted(draw(st.lists(st.floats(-1e150, 1e150), min_size=2, max_size=2, unique=True)))
    missing = draw(st.none() | st.floats(low, high))
    return Scale(name=name, low=low, high=high, missing=missing, outside=draw(st.sampled_from(("refuse", "clip"))))


@given(scales(), st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_scaled_values_are_the_linear_map_onto_minus_one_to_one(rule, shares):
    values = np.clip([rule.low + share * (rule.high - rule.low) for share in shares], rule.low, rule.high)
    scaled = rule.apply(values)[:, 0]
    assert (np.abs(scaled) <= 1.0).all()
    for value, got in zip(values.tolist(), scaled.tolist(), strict=True):
        span = Fraction(rule.high) - Fraction(rule.low)
        exact = 2 * (Fraction(value) - Fraction(rule.low)) / span - 1
        assert abs(Fraction(got) - exact) <= Fraction(1, 2**50)


@given(scales())
def test_the_bounds_are_exactly_minus_one_and_one(rule):
    np.testing.assert_array_equal(rule.apply(np.array([rule.low, rule.high]))[:, 0], [-1.0, 1.0])


def test_clip_takes_the_nearer_bound_and_refuse_names_column_and_row_and_no_value():
    clip = Scale(name="age", low=0, high=120, outside="clip")
    np.testing.assert_array_equal(clip.apply(np.array([-5.0, 1e9, np.inf]))[:, 0], [-1.0, 1.0, 1.0])
    with pytest.raises(DataError, match=r"'age' from 0 to 120, row 2 is outside; correct it") as caught:
        AGE.apply(np.array([7.0, 130.0, 140.0]))
    assert "130" not in str(caught.value)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 120.0001, -1e-9])
def test_nothing_beyond_the_bounds_passes(value):
    with pytest.raises(DataError):
        AGE.apply(np.array([value]))


def test_missing_numbers_take_their_public_constant_or_are_refused():
    rule = Scale(name="age", low=0, high=120, missing=60)
    np.testing.assert_array_equal(rule.apply(np.array([np.nan, 120.0]))[:, 0], [0.0, 1.0])
    with pytest.raises(DataError, match=r"a value of 'age' in row 3; fill it in"):
        AGE.apply(np.array([1.0, 2.0, np.nan]))


def test_categories_become_one_feature_each():
    np.testing.assert_array_equal(SEX.apply(np.array(["m", "f"], object)), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(SEX.apply(np.array(["m", "f"])), [[0, 1], [1, 0]])


def test_missing_categories_take_a_level_of_their_own_or_are_refused():
    rule = OneHot(name="sex", categories=("f", "m"), missing="level")
    np.testing.assert_array_equal(rule.apply(np.array(["", None, "f"], object)), [[0, 0, 1], [0, 0, 1], [1, 0, 0]])
    assert rule.features == ("sex=f", "sex=m", f"sex={MISSING}")
    for absent in ("", None):
        with pytest.raises(DataError, match=r"a value of 'sex' in row 2"):
            SEX.apply(np.array(["f", absent], object))


def test_unknown_categories_name_the_known_ones_and_not_what_is_there():
    rule = OneHot(name="job", categories=("nurse", "doctor"))
    with pytest.raises(DataError, match="row 2 has another; the model knows nurse, doctor") as caught:
        rule.apply(np.array(["nurse", "docter"]))
    assert "docter" not in str(caught.value)
    many = OneHot(name="job", categories=tuple(f"c{number}" for number in range(4000)))
    with pytest.raises(DataError, match=r"c19 \.\.\.$"):
        many.apply(np.array(["d"]))


def test_numbers_given_as_categories_are_refused():
    with pytest.raises(DataError, match="row 1 has another"):
        SEX.apply(np.array([1.0]))
    with pytest.raises(DataError, match="row 2 has another"):
        SEX.apply(np.array(["f", ["f"]], object))


def test_columns_are_found_by_name_and_features_follow_the_rules():
    prepare = Preprocess((SEX, AGE))
    x = prepare.apply({"ignored": np.zeros(9), "age": np.array([0.0, 120.0]), "sex": np.array(["f", "m"])})
    np.testing.assert_array_equal(x, [[1, 0, -1], [0, 1, 1]])
    assert prepare.names == ("sex=f", "sex=m", "age")
    assert (prepare.columns, prepare.numbers, prepare.features) == (("sex", "age"), ("age",), 3)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"agee": np.zeros(1), "sex": np.array(["f"])}, r"a column 'age' \(did you mean \"agee\"\?\); add it"),
        ({"age": np.zeros(2), "sex": np.array(["f"])}, "one value for each row"),
        ({"age": np.zeros((1, 1)), "sex": np.array([["f"]])}, "one value for each row"),
        ({"age": np.array(["old"], object), "sex": np.array(["f"])}, "Expected numbers in column 'age'"),
        ({"age": np.array([{}], object), "sex": np.array(["f"])}, "Expected numbers in column 'age'"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, text):
    with pytest.raises(DataError, match=text):
        Preprocess((AGE, SEX)).apply(columns)


def test_no_column_that_has_its_place_is_proposed_for_an_absent_one():
    prepare = Preprocess(tuple(Scale(name=name, low=0, high=1) for name in ("mean radius", "worst radius")))
    with pytest.raises(DataError, match="Expected a column 'mean radius'; add it"):
        prepare.apply({"worst radius": np.zeros(1)})
    with pytest.raises(DataError, match=r"'mean radius' \(did you mean \"mean_radius\"\?\); add it"):
        prepare.apply({"worst radius": np.zeros(1), "mean_radius": np.zeros(1)})


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_number_of_rows_passes(rows):
    assert Preprocess((AGE,)).apply({"age": np.zeros(rows)}).shape == (rows, 1)


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 4), min_size=1, max_size=8))
def test_unit_rows_have_norm_one_or_are_zero(rows):
    rules = tuple(Scale(name=str(place), low=-1, high=1) for place in range(4))
    raw = {str(place): np.array(values) for place, values in enumerate(zip(*rows, strict=True))}
    plain, unit = Preprocess(rules).apply(raw), Preprocess(rules, unit_rows=True).apply(raw)
    assert (np.abs(unit) <= 1.0).all()
    for before, after in zip(plain, unit, strict=True):
        if np.abs(before).max() > 1e-150:  # below, the square of a length underflows
            assert abs(np.sqrt(np.sum(after**2)) - 1.0) < 1e-12
            np.testing.assert_allclose(after * np.sqrt(np.sum(before**2)), before, rtol=1e-12, atol=1e-300)


def test_a_row_of_zeros_stays_zero_under_unit_rows():
    prepare = Preprocess((Scale(name="a", low=-1, high=1),), unit_rows=True)
    np.testing.assert_array_equal(prepare.apply({"a": np.zeros(2)}), np.zeros((2, 1)))


@given(st.permutations(range(6)))
def test_a_row_does_not_depend_on_the_others(order):
    raw = {"age": np.array([1.0, 50.0, 70.0, 3.0, 120.0, 0.0]), "sex": np.array(list("fmfmff"))}
    prepare = Preprocess((AGE, SEX), unit_rows=True)
    shuffled = {name: values[order] for name, values in raw.items()}
    np.testing.assert_array_equal(prepare.apply(shuffled), prepare.apply(raw)[order])


# --- rules that cannot work -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "missing"),
    [
        (1, 1, None),
        (2, 1, None),
        (np.nan, 1, None),
        (0, np.nan, None),
        (-np.inf, 0, None),
        (-1e308, 1e308, None),
        (0, 1, 2),
        (0, 1, np.nan),
    ],
)
def test_bounds_that_cannot_scale_are_refused(low, high, missing):
    with pytest.raises(ModelError, match="Expected (low|missing)="):
        Scale(name="a", low=low, high=high, missing=missing)


@pytest.mark.parametrize("categories", [(), ("a", "a"), (MISSING,), ("",), ("x" * 257,)])
def test_categories_that_cannot_work_are_refused(categories):
    with pytest.raises(ModelError):
        OneHot(name="a", categories=categories)


def test_rule_sets_that_cannot_work_are_refused():
    for rules in ((), (AGE, AGE), (AGE, OneHot(name="age", categories=("a",)))):
        with pytest.raises(ModelError, match="at least one rule and one rule for each column"):
            Preprocess(rules)
    with pytest.raises(ModelError, match="at most 65536 features"):
        Preprocess((OneHot(name="a", categories=tuple(map(str, range(65537)))),))
    with pytest.raises(ModelError, match="1 to 256 characters"):
        Scale(name="", low=0, high=1)


# --- bytes ------------------------------------------------------------------------------------------------------------


@st.composite
def rule_sets(draw):
    columns = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    return Preprocess(
        tuple(
            draw(
                scales(name)
                | st.builds(
                    OneHot,
                    name=st.just(name),
                    categories=st.lists(names, min_size=1, max_size=4, unique=True).map(tuple),
                    missing=st.sampled_from(("refuse", "level")),
                )
            )
            for name in columns
        ),
        draw(st.booleans()),
    )


@given(rule_sets())
@settings(max_examples=50)
def test_decode_reads_what_encode_wrote(rules):
    assert Preprocess.decode(rules.encode()) == rules
    assert Preprocess.decode(rules.encode()).encode() == rules.encode()


def test_equal_rules_have_equal_bytes():
    assert (
        Preprocess((Scale(name="a", low=0, high=1, missing=0),)).encode()
        == Preprocess((Scale(name="a", low=0.0, high=1.0, missing=0.0),)).encode()
    )


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(body):
    with pytest.raises(ModelError):
        Preprocess.decode(body)


@given(rule_sets(), st.data())
@settings(max_examples=50)
def test_truncations_are_refused(rules, data):
    body = rules.encode()
    with pytest.raises(ModelError):
        Preprocess.decode(body[: data.draw(st.integers(0, len(body) - 1))])


@pytest.mark.parametrize(
    "value",
    [
        {"rules": []},
        {"rules": [{"rule": "run", "name": "a"}]},
        {"rules": [{"rule": "scale", "name": "a", "low": 1.0, "high": 0.0}]},
        {"rules": [{"rule": "scale", "name": "a", "low": 0.0, "high": 1.0, "mean": 0.5}]},
        {"rules": [{"rule": "scale", "name": "a", "low": "0", "high": 1.0}]},
        {"rules": [{"rule": "scale", "name": "a", "low": 0.0, "high": 1.0}], "extra": 1},
        {"rules": [{"rule": "one-hot", "name": "a", "categories": ["x", "x"]}]},
    ],
)
def test_well_formed_messages_with_bad_rules_are_refused(value):
    with pytest.raises(ModelError):
        Preprocess.decode(msgspec.msgpack.encode(value))


def test_sizes_are_limited_on_both_sides():
    with pytest.raises(ModelError, match="at most 1048576 bytes"):
        Preprocess.decode(bytes((1 << 20) + 1))
    long = tuple(OneHot(name=str(n), categories=tuple(f"{k:0256}" for k in range(100))) for n in range(50))
    with pytest.raises(ModelError, match="at most 1048576 bytes"):
        Preprocess(long).encode()


def test_the_light_client_needs_no_onnx():
    code = (
        "import sys; sys.modules['onnx'] = None; "
        "import confide.model.graph, confide.model.preprocess, confide.model.zoo, confide.model.artifact"
    )
    source = Path(__file__).parents[2] / "src"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source)})


# --- bins -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=6, unique=True).map(sorted),
    st.lists(st.floats(-150, 150), min_size=1, max_size=20),
)
def test_bins_mark_the_interval_that_a_value_lies_in(edges, values):
    rule = Scale(name="age", low=-101, high=101, outside="clip", missing=edges[0], bins=tuple(edges))
    found = rule.apply(np.array([*values, np.nan]))
    assert found.shape == (len(values) + 1, len(edges) + 1) == (len(values) + 1, len(rule.features))
    for value, row in zip([*values, edges[0]], found, strict=True):
        below = sum(edge <= value for edge in edges)  # an edge belongs to the interval above it
        assert row.tolist() == [float(place == below) for place in range(len(edges) + 1)]


def test_bins_survive_the_model_file_and_name_their_intervals():
    prepare = Preprocess((Scale(name="age", low=0, high=120, bins=(18, 65)), SEX))
    assert prepare.names == ("age<18", "age>=18", "age>=65", "sex=f", "sex=m")
    assert Preprocess.decode(prepare.encode()) == prepare
    assert prepare.numbers == ("age",)


@pytest.mark.parametrize("bins", [(0.0,), (120.0,), (5.0, 5.0), (9.0, 7.0), (np.nan,), (np.inf,)])
def test_bins_that_are_no_rising_edges_within_the_bounds_are_refused(bins):
    with pytest.raises(ModelError, match="rising bins"):
        Scale(name="age", low=0, high=120, bins=bins)


def test_bins_and_a_standard_scale_exclude_each_other():
    with pytest.raises(ModelError):
        Scale(name="age", low=0, high=120, bins=(18,), standard=(40.0, 9.0))


# --- images and projections -------------------------------------------------------------------------------------------

SCAN = {"name": "scan", "height": 16, "width": 12, "low": 0, "high": 255}


@given(st.integers(0, 2**32), st.sampled_from([{}, {"scales": 2}, {"scales": 1, "averaged": True, "angles": 3}]))
@settings(deadline=None, max_examples=20)
def test_features_of_images_are_those_of_the_transform_within_minus_one_and_one(seed, form):
    rule = Pixels(**SCAN, **form)
    images = np.random.default_rng(seed).integers(0, 256, (3, 16, 12)).astype(np.uint8)
    x = rule.apply(images)
    assert x.shape == (3, rule.count) == (3, len(rule.features))
    assert len(set(rule.features)) == rule.count
    assert (np.abs(x) <= 1.0).all()
    expected = images / 255.0
    np.testing.assert_array_equal(x, Scattering(16, 12, **form).apply(expected) if form else expected.reshape(3, -1))


@pytest.mark.parametrize("form", [{}, {"scales": 2}, {"scales": 2, "groups": 27, "averaged": True}], ids=str)
def test_no_images_give_no_rows(form):
    prepare = Preprocess((Pixels(**SCAN, **form),), unit_rows=True, projection=Projection(outputs=7, seed=1))
    assert prepare.apply({"scan": np.zeros((0, 16, 12), np.uint8)}).shape == (0, 7)


def test_images_stand_beside_other_columns_and_are_projected_with_them():
    rules = (AGE, Pixels(**SCAN), SEX)
    columns = {"age": np.array([60.0]), "scan": np.full((1, 16, 12), 51), "sex": np.array(["m"])}
    x = Preprocess(rules).apply(columns)
    np.testing.assert_allclose(x, [[0.0, *[0.2] * 192, 0.0, 1.0]])
    fewer = Preprocess(rules, projection=Projection(outputs=20, seed=3))
    assert (fewer.features, len(fewer.names), fewer.images) == (20, 20, ("scan",))
    np.testing.assert_array_equal(fewer.apply(columns), np.clip(RandomProjection(195, 20, 3).apply(x), -1, 1))
    unit = msgspec.structs.replace(fewer, unit_rows=True).apply(columns)
    assert abs(np.linalg.norm(unit) - 1.0) < 1e-12


@pytest.mark.parametrize(
    ("scan", "text"),
    [
        (np.zeros((1, 12, 16)), "'scan' with one value of 16 x 12 pixels for each row"),
        (np.zeros((2, 16, 12)), "'scan' with one value of 16 x 12 pixels for each row"),
        (np.zeros(1), "'scan' with one value of 16 x 12 pixels for each row"),
        (np.full((1, 16, 12), np.nan), "pixels of 'scan' from 0 to 255, row 1 has others"),
        (np.full((1, 16, 12), 256), "row 1 has others"),
        (np.full((1, 16, 12), "0"), "numbers in column 'scan'"),
        (np.full((1, 16, 12), 1j), "numbers in column 'scan'"),
        (np.full((1, 16, 12), None), "numbers in column 'scan'"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(scan, text):
    with pytest.raises(DataError, match=text):
        Preprocess((AGE, Pixels(**SCAN, scales=2))).apply({"age": np.zeros(1), "scan": scan})


def test_rules_with_images_survive_their_bytes():
    prepare = Preprocess((AGE, Pixels(**SCAN, scales=2, groups=27)), projection=Projection(outputs=9, seed=-5))
    assert Preprocess.decode(prepare.encode()) == prepare
    assert prepare.encode() == Preprocess.decode(prepare.encode()).encode()


def test_rules_that_were_saved_before_there_were_projections_still_open():
    old = msgspec.to_builtins(Preprocess((AGE, SEX)))
    del old["projection"]
    assert Preprocess.decode(msgspec.msgpack.encode(old)) == Preprocess((AGE, SEX))


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0},
        {"height": 10**9, "width": 10**9},
        {"height": -16},
        {"height": 256, "width": 256, "scales": 1, "angles": 16},  # more features than a model may have
        {"scales": 6},
        {"scales": -1},
        {"scales": 10**18},
        {"scales": 2, "angles": 0},
        {"scales": 2, "angles": 10**18},
        {"scales": 2, "groups": 26},
        {"scales": 2, "groups": -1},
        {"low": 255},
        {"low": float("nan")},
        {"high": float("inf")},
        {"name": ""},
        {"unknown": 1},
    ],
    ids=str,
)
def test_hostile_rules_of_images_are_refused_before_anything_is_made(changes):
    good = msgspec.to_builtins(Preprocess((Pixels(**SCAN),)))
    assert Preprocess.decode(msgspec.msgpack.encode(good)).features == 192
    good["rules"] = [good["rules"][0] | changes]
    with pytest.raises(ModelError):
        Preprocess.decode(msgspec.msgpack.encode(good))


@pytest.mark.parametrize("projection", [(0, 1), (193, 1), (-1, 1), (10**12, 1), (5, 2**63)], ids=str)
def test_hostile_projections_are_refused(projection):
    good = msgspec.to_builtins(Preprocess((Pixels(**SCAN),)))
    good["projection"] = {"outputs": projection[0], "seed": projection[1]}
    with pytest.raises(ModelError):
        Preprocess.decode(msgspec.msgpack.encode(good))
