"""A job file: defaults, the printed form, and one clear line for everything that can be wrong with it."""

import math
import re
import tomllib
from pathlib import Path

import pytest
from dp_accounting import get_sigma_gaussian
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from confide.errors import JobError
from confide.train.job import describe, load, parse, train_section
from confide.train.reasons import reasons
from confide.train.sections import (
    DataSection,
    JobSection,
    ModelSection,
    OutputSection,
    PrivacySection,
    SharesSection,
    TrainSection,
    TreesSection,
)

GOOD = {"data": {"set": "breast-cancer"}, "privacy": {"epsilon": 1.0, "expected_records": 455}}


def test_the_printed_job_is_the_job():
    job = parse(GOOD)
    again = parse(tomllib.loads(describe(job)))
    assert again == job
    assert "epsilon = 1.0" in describe(job)
    assert "no differential privacy" in describe(parse({"data": {"set": "breast-cancer"}}))


COLUMN = {"schema": "s", "table": "t.csv", "split": "column", "split_by": "bank", "names": ["a", "b"]}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"trian": {}}, r'Unknown key "trian" \(did you mean "train"\?\)'),
        ({"train": {"learning_rat": 1}}, r'"train.learning_rat" \(did you mean "learning_rate"\?\)'),
        ({"train": {"rounds": "many"}}, r"train.rounds to be a whole number, got 'many'"),
        ({"train": {"rounds": 0}}, r"train.rounds=0 to be at least 1"),
        ({"train": {"start_hash": "A" * 64}}, r"64 hex digits in lower case"),
        ({"train": {"momentum": 1}}, r"train.momentum=1 to be at least 0 and below 1"),
        ({"train": {"momentum": float("nan")}}, r"train.momentum=nan"),
        ({"train": 3}, r"\[train\] to be a table"),
        (
            {"model": {"kind": "forest"}},
            r'model.kind to be "logistic" or "mlp" or "trees" or "cox", got \'forest\'',
        ),
        ({"privacy": {"epsilon": 1.0}}, r"privacy.expected_records"),
        ({"privacy": {"epsilon": -1.0, "expected_records": 9}}, r"privacy.epsilon=-1.0 to be above 0"),
        ({"privacy": {"delta": -0.1, "expected_records": 9}}, r"privacy.delta=-0.1 to be at least 0"),
        ({"privacy": {"delta": 0.002198, "expected_records": 455}}, r"privacy.delta=0.002198 below 1 / expected_rec"),
        ({"data": {}}, r"either data.set"),
        ({"data": {"schema": "s", "set": "x"}}, r"either data.set"),
        ({"data": {"schema": "s", "tables": {"a": "a.csv"}}}, r"at least 2 parties"),
        ({"privacy": {}}, r"privacy.expected_records"),
        ({"data": {"schema": "s", "tables": 3}}, r"data.tables to be a table, got 3"),
        ({"data": {"schema": "s", "table": "t"}}, r'split="column" in \[data\] with table, split_by and names'),
        ({"data": COLUMN | {"split": "even"}}, r'split="column" in'),
        ({"data": COLUMN | {"tables": {"a": "a", "b": "b"}}}, r"without tables and nodes"),
        ({"data": COLUMN | {"names": ["a"]}}, r"at least 2 different values in data.names"),
        ({"data": COLUMN | {"names": ["a", "a", "b"]}}, r"at least 2 different values in data.names"),
        ({"data": {"set": "digits", "split": "column"}}, r'no split="column" with data.set'),
        ({"data": {"set": 5}}, r"data.set to be text, got 5"),
    ],
)
def test_what_is_wrong_is_named(table, text):
    with pytest.raises(JobError, match=text):
        parse(GOOD | table)


def test_all_problems_are_listed_at_once():
    table = {
        "trian": {},
        "job": 3,
        "data": {"set": 5, "partys": 3},
        "train": {"rounds": 0, "momentum": "much", "learning_rat": 1},
        "privacy": {"epsilon": -1},
    }
    with pytest.raises(JobError) as caught:
        parse(table)
    starts = (
        'Unknown key "trian"',
        "Expected [job] to be a table",
        "Expected data.set to be text",
        'Unknown key "data.partys" (did you mean "parties"?)',
        "Expected train.rounds=0 to be at least 1",
        "Expected train.momentum to be a number",
        'Unknown key "train.learning_rat" (did you mean "learning_rate"?)',
        "Expected privacy.epsilon=-1 to be above 0",
        "Expected privacy.expected_records",
    )
    lines = str(caught.value).splitlines()
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data": {"schema": "a\0b", "tables": {"a": "a", "b": "b"}}}, "data.schema"),
        ({"data": {"schema": "s", "tables": {"a": "a", "b": "\0"}}}, "data.tables"),
        ({"data": {"schema": "s", "tables": {"a": "a", "b": "b"}, "test": "\0"}}, "data.test"),
        *(({"output": {key: "a\0"}}, f"output.{key}") for key in ("model", "ledger", "signing_key")),
    ],
)
def test_paths_that_no_system_can_hold_are_named(changes, key):
    with pytest.raises(JobError, match=f"^Expected {key} without the character NUL"):
        parse(GOOD | changes)


@pytest.mark.parametrize(
    "body",
    [
        "a = " + "[" * 50_000,
        "a = " + "{b=" * 20_000,
        "train.rounds" + ".a" * 20_000 + " = 1",
        "job.seed = " + "9" * 5000,
        "job.seed = 0x" + "f" * 5000,
        "job.seed = " + "9" * 400,
        "train.rounds = 0x" + "f" * 5000,
    ],
)
def test_nesting_and_numbers_without_end_are_refused_in_a_line(tmp_path, body):
    (tmp_path / "job.toml").write_text(body + '\n[data]\nset = "breast-cancer"\n')
    with pytest.raises(JobError) as caught:
        load(tmp_path / "job.toml")
    assert len(str(caught.value).splitlines()) == 1


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = [(name, key) for name, section in tomllib.loads(describe(parse(GOOD))).items() for key in [*section, "other"]]


@given(st.dictionaries(st.sampled_from(KEYS), json_like, max_size=6), json_like)
def test_no_content_makes_it_fail_otherwise(values, other):
    table = {"other": other} if other else {}
    for (name, key), value in values.items():
        table.setdefault(name, {})[key] = value
    try:
        parse(table)
    except JobError:
        return


def test_files(tmp_path):
    with pytest.raises(JobError, match="No such file"):
        load(tmp_path / "absent.toml")
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match="Expected TOML"):
        load(path)
    path.write_text("[data\n")
    with pytest.raises(JobError, match="Expected TOML"):
        load(path)
    path.write_text('[data]\nset = "breast-cancer"\n')
    assert load(path).path("model.confide") == tmp_path / "model.confide"


PRIVATE = {"privacy": {"expected_records": 455}}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"train": {"algorithm": "fedadm"}}, r'"fedadam".*got \'fedadm\' \(did you mean "fedadam"\?\)'),
        ({"train": {"algorithm": 3}}, r"train.algorithm to be"),
        ({"train": {"proximal": 0.1}}, r'no train.proximal with train.algorithm="fedavg"; it belongs to fedprox'),
        ({"train": {"second_moment": 0.9, "algorithm": "fedadagrad"}}, r"no train.second_moment"),
        ({"train": {"adaptivity": 0.9, "algorithm": "scaffold", "local_steps": 2}}, r"no train.adaptivity"),
        ({"train": {"algorithm": "scaffold"}}, r"train.local_steps above 1"),
        ({"train": {"algorithm": "fedprox"}}, r"train.local_steps above 1"),
        ({"train": {"algorithm": "fedprox", "proximal": 0}}, r"train.proximal=0 to be above 0"),
        ({"train": {"algorithm": "fedyogi", "second_moment": 1}}, r"train.second_moment=1"),
        ({"train": {"algorithm": "fedyogi", "adaptivity": 0}}, r"train.adaptivity=0"),
        ({"train": {"server_learning_rate": 0}}, r"train.server_learning_rate=0"),
        ({"train": {"local_steps": 2}, **PRIVATE}, r"train.local_steps=1 .* with \[privacy\]"),
        ({"train": {"algorithm": "scaffold", "local_steps": 2}, **PRIVATE}, r"with \[privacy\]"),
    ],
)
def test_algorithms_that_make_no_sense_are_refused(table, text):
    with pytest.raises(JobError, match=text):
        parse({"data": {"set": "breast-cancer"}} | table)


def test_algorithms_have_their_own_defaults_and_print_what_they_read():
    data = {"data": {"set": "breast-cancer"}}
    for name in ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "scaffold"):
        job = parse(data | {"train": {"algorithm": name, "local_steps": 2}})
        assert parse(tomllib.loads(describe(job))) == job
        assert ("proximal" in describe(job)) == (name == "fedprox")
        assert ("second_moment" in describe(job)) == (name in ("fedadam", "fedyogi"))
    assert parse(data | {"train": {"algorithm": "fedadam"}} | PRIVATE).train.server_learning_rate == 0.1
    assert parse(data | {"train": {"algorithm": "scaffold", "local_steps": 2}}).train.momentum == 0.0


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"train": {"compress": "rotat"}}, r'"rotate".*got \'rotat\' \(did you mean "rotate"\?\)'),
        ({"train": {"compress_bits": 4}}, r'no train.compress_bits with train.compress="none"; it belongs to rotate'),
        ({"train": {"compress": "rand-k", "compress_bits": 4}}, r"no train.compress_bits"),
        ({"train": {"compress": "rotate", "compress_share": 0.1}}, r"no train.compress_share .* rand-k, sketch"),
        ({"train": {"compress": "rotate", "compress_bits": 1}}, r"train.compress_bits=1 to be at least 2"),
        ({"train": {"compress": "rotate", "compress_bits": 17}}, r"train.compress_bits=17"),
        ({"train": {"compress": "rand-k", "compress_share": 0}}, r"train.compress_share=0 to be above 0"),
        ({"train": {"compress": "rand-k", "compress_share": 1.5}}, r"train.compress_share=1.5"),
        ({"train": {"clip_norm": -1}}, r"train.clip_norm=-1"),
        ({"train": {"clip_norm": 1, "clip_quantile": 1}}, r"train.clip_quantile=1 to be at least 0 and below 1"),
        ({"train": {"clip_norm": 1, "clip_quantile": 0.5, "clip_rate": 0}}, r"train.clip_rate=0 to be above 0"),
        ({"train": {"clip_quantile": 0.5}}, r"train.clip_norm above 0 with train.clip_quantile"),
        ({"train": {"clip_norm": 1, "clip_rate": 0.5}}, r"train.clip_quantile above 0 with train.clip_rate"),
        ({"train": {"compress": "rotate", "clip_norm": 0}}, r'train.clip_norm above 0 with train.compress="rotate"'),
        ({"train": {"compress": "sketch"}, **PRIVATE}, r"neither train.compress nor train.clip_norm with \[privacy\]"),
        ({"train": {"clip_norm": 1}, **PRIVATE}, r"privacy.clip_norm is their clip"),
        ({"train": {"compress": "rand-k", "algorithm": "scaffold", "local_steps": 2}}, r'algorithm="scaffold"'),
        ({"train": {"clip_norm": 1, "algorithm": "scaffold", "local_steps": 2}}, r'algorithm="scaffold"'),
    ],
)
def test_compression_that_makes_no_sense_is_refused(table, text):
    with pytest.raises(JobError, match=text):
        parse({"data": {"set": "breast-cancer"}} | table)


def test_compressions_have_their_own_defaults_and_print_what_they_read():
    data = {"data": {"set": "breast-cancer"}}
    for name in ("none", "rotate", "rand-k", "sketch"):
        job = parse(data | {"train": {"compress": name}})
        assert parse(tomllib.loads(describe(job))) == job
        assert ("compress_bits" in describe(job)) == (name == "rotate")
        assert ("compress_share" in describe(job)) == (name in ("rand-k", "sketch"))
        assert (job.train.clip_norm, job.train.clip_quantile) == ((1.0, 0.9) if name == "rotate" else (0.0, 0.0))
    fixed = parse(data | {"train": {"compress": "rotate", "clip_quantile": 0}})
    assert parse(tomllib.loads(describe(fixed))) == fixed
    assert "clip_rate" not in describe(fixed)


def test_delta_follows_the_public_size_and_every_choice_has_its_reason():
    for said in ({}, {"delta": 0}, {"delta": 0.0}):
        job = parse({"data": GOOD["data"], "privacy": {"expected_records": 455, **said}})
        assert job.privacy.delta == pytest.approx(math.exp(-1.1 * math.log(455)), rel=1e-12)
        assert parse(tomllib.loads(describe(job))) == job
    assert job.privacy.epsilon == 1.0
    said = list(reasons(job))
    assert said[0].startswith("privacy.epsilon = 1 (the default): up to 1 a promise is called strong")
    assert said[1].startswith("privacy.delta = 0.00119 (the default, expected_records ** -1.1)")
    assert "1 / expected_records = 0.0022 " in said[1]
    rate = norm.cdf(norm.ppf(0.01) + 1 / get_sigma_gaussian(1.0, job.privacy.delta))
    assert f"at most {100 * rate:.2f} % of the records" in said[0]
    chosen = parse({"data": GOOD["data"], "privacy": {"expected_records": 455, "epsilon": 2.0, "delta": 1e-5}})
    assert "default" not in "".join(reasons(chosen))
    assert not list(reasons(parse({"data": GOOD["data"]})))
    for size in (1, 2, 3, 10, 10**9):  # the default always keeps what is asked of delta
        small = parse({"data": GOOD["data"], "privacy": {"expected_records": size}})
        assert small.privacy.delta < 1 / size


def test_the_page_lists_every_key():
    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
    listed = {
        (section, key)
        for section, rows in re.findall(r"^### \[(\w+)\]\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
        for key in re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)
    }
    kinds = {"job": JobSection, "data": DataSection, "model": ModelSection, "train": TrainSection}
    kinds |= {"trees": TreesSection, "shares": SharesSection, "privacy": PrivacySection, "output": OutputSection}
    assert listed == {(name, key) for name, kind in kinds.items() for key in kind.__struct_fields__}


def test_a_section_for_a_model_of_ones_own_has_the_defaults_and_checks_of_a_job():
    assert train_section(aggregate="groups", rule="mean").liars == 0
    assert train_section(aggregate="groups", rule="median").liars == 1
    with pytest.raises(JobError, match="64 hex digits in lower case"):
        train_section(start_hash="abc")
