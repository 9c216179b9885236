"""Jobs whose unit is a patient: from the schema to the label, and everything that does not know of units refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.data.schema import Schema
from confide.data.split import aside
from confide.data.table import Table, read_table
from confide.errors import DataError, JobError
from confide.train import Output, load, load_data, parse, train
from confide.train.contradictions import check_for_nodes
from confide.train.job import describe
from confide.train.parts import encoding_of, preprocess_of
from confide.train.reasons import reasons
from confide.train.units import silo_of
from confide.wire import MemoryStore

SCHEMA = """
name = "visits"
identifiers = ["patient_id"]
[label]
name = "ill"
classes = ["no", "yes"]
[columns]
age = { type = "number", low = 0, high = 100 }
dose = { type = "number", low = 0, high = 1 }
"""

JOB = """
[data]
schema = "visits.toml"
tables = {{ north = "north.csv", south = "south.csv", west = "west.csv" }}
{data}
[model]
unit_rows = true
{model}
[train]
{train}
[privacy]
unit = "{unit}"
expected_records = 300
{privacy}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "visits.toml").write_text(SCHEMA)
    stream = np.random.default_rng(1)
    for name in ("north", "south", "west"):
        rows = []
        for patient in range(25):
            age = stream.uniform(0, 100)
            for _ in range(int(stream.integers(1, 8))):
                dose = stream.uniform(0, 1)
                rows.append(f"{age:.1f},p{patient},{dose:.3f},{'yes' if age > 50 else 'no'}")
        (tmp_path / f"{name}.csv").write_text("\n".join(["age,patient_id,dose,ill", *rows]) + "\n")
    return tmp_path


def job_in(folder, unit="patient_id", **parts):
    parts = {"data": "", "model": "", "train": "rounds = 2", "privacy": "", "unit": unit} | parts
    (folder / "job.toml").write_text(JOB.format(**parts))
    return load(folder / "job.toml")


@pytest.mark.parametrize("kind", ["rounds = 2", 'algorithm = "statistics"', 'rounds = 2\nalgorithm = "fedadam"'])
def test_a_job_about_patients_says_so_in_its_label(folder, kind):
    job = job_in(folder, train=kind, privacy="parties_per_unit = 3")
    data = load_data(job)
    *_, done = train(job, data)
    label = Output(job).save(data, done).label
    assert label.unit == "patient_id"
    assert "3 parties at most: this is assumed" in label.relation
    assert "per patient_id" in label.sentence()
    assert "parties_per_unit = 3" in describe(job)
    assert any("all records of one patient_id" in line for line in reasons(job))


def test_identifiers_are_no_features(folder):
    data = load_data(job_in(folder))
    assert data.preprocess.columns == ("age", "dose")
    assert data.start.features == 2


@pytest.mark.parametrize("algorithm", ["fedavg", "statistics"])
def test_removing_a_patient_from_all_parties_moves_their_sum_by_the_plans_sensitivity(folder, algorithm):
    """Grey box: the clipped sums that leave the silos, with the noise taken off again, for D and for D without one."""
    job = job_in(folder, train=f'algorithm = "{algorithm}"', privacy="parties_per_unit = 3")
    whole, moved = _noiseless(job, folder), []
    for patient in range(4):
        for name in ("north", "south", "west"):
            path = folder / f"{name}.csv"
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if f",p{patient}," not in line))
        less = _noiseless(job, folder)
        moved.append(np.linalg.norm((whole[0] - less[0]).astype(float)) / whole[1])
        whole = less
    assert max(moved) <= 1.0
    assert max(moved) > 0.2  # three parties with full clips each would reach 3


def _noiseless(job, folder):
    data = load_data(job)
    encoding = encoding_of(job, data.start, 3)
    plan = encoding._plan
    total = np.zeros(encoding.length, np.int64)
    for silo in data.silos:
        sent = encoding.contribution(encoding.learner.start, silo, 1, SeededRandomness(silo.name), MemoryStore())
        total += sent - plan.noise(SeededRandomness(silo.name))
    return total, plan.grid


def test_all_records_of_a_patient_are_on_one_side_the_same_at_every_party(folder):
    job = job_in(folder)
    schema = Schema.load(folder / "visits.toml")
    sides = {}
    for name in ("north", "south", "west"):
        table = read_table(folder / f"{name}.csv", schema)
        kept, held = aside(table, fraction=0.2, seed=job.job.seed, unit="patient_id")
        assert kept.n + held.n == table.n
        for side, part in ((0, kept), (1, held)):
            for patient in part.identifiers["patient_id"]:
                assert sides.setdefault(patient, side) == side
    assert set(sides.values()) == {0, 1}


def test_a_split_by_records_would_part_patients(folder):
    table = read_table(folder / "north.csv", Schema.load(folder / "visits.toml"))
    kept, held = aside(table, fraction=0.2, seed=1)
    assert set(kept.identifiers["patient_id"]) & set(held.identifiers["patient_id"])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"unit": "patient"}, "identifier of the schema"),
        ({"data": "standardise = true"}, "standardise"),
        ({"data": 'standardise = "centre"'}, "standardise"),
        ({"train": 'class_weights = "balanced"'}, "class_weights"),
        ({"train": 'algorithm = "newton"'}, "newton"),
        ({"data": 'evaluate = "federated"'}, "evaluate"),
        ({"privacy": "parties_per_unit = 4"}, "at most the 3 parties"),
        ({"unit": "record", "privacy": "parties_per_unit = 2"}, "parties_per_unit"),
        ({"privacy": "parties_per_unit = 0"}, "parties_per_unit"),
    ],
)
def test_what_does_not_know_of_units_is_refused_before_a_row_is_read(folder, parts, said):
    for name in ("north", "south", "west"):
        (folder / f"{name}.csv").unlink()
    with pytest.raises(JobError, match=said):
        load_data(job_in(folder, **parts))


def test_nodes_and_shipped_sets_are_refused(folder):
    with pytest.raises(JobError, match="nodes"):
        check_for_nodes(job_in(folder))
    text = JOB.format(data="", model="", train="", unit="id", privacy="")
    lines = [line for line in text.splitlines() if not line.startswith(("schema", "tables"))]
    (folder / "set.toml").write_text("\n".join(lines).replace("[data]", '[data]\nset = "digits"'))
    with pytest.raises(JobError, match="shipped set"):
        load(folder / "set.toml")


def test_a_record_that_is_nobodys_is_refused_with_its_row(folder):
    path = folder / "north.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "50,,0.5,no", *lines[3:]]))
    with pytest.raises(DataError, match=r"say of every record whose it is; 1 of \d+ records \(first in row 3\)"):
        load_data(job_in(folder))


@pytest.mark.parametrize("identifiers", ['["age"]', '["ill"]', '["a", "a"]', '[" "]', '"a"', "[1]"])
def test_schemas_whose_identifiers_are_something_else(identifiers):
    with pytest.raises(DataError, match="identifiers"):
        Schema.read(SCHEMA.replace('["patient_id"]', identifiers))


def test_tables_carry_identifiers_through(folder, tmp_path):
    schema = Schema.load(folder / "visits.toml")
    table = read_table(folder / "north.csv", schema)
    assert table.take(np.array([2, 0])).identifiers["patient_id"].tolist() == [
        table.identifiers["patient_id"][place] for place in (2, 0)
    ]
    twice = Table.concatenate([table, table])
    assert len(twice.identifiers["patient_id"]) == 2 * table.n
    archive = tmp_path / "t.npz"
    np.savez(archive, age=[1.0, 2.0], dose=[0.1, 0.2], ill=["no", "yes"], patient_id=[7, 8])
    assert read_table(archive, schema).identifiers["patient_id"].tolist() == ["7", "8"]


def test_a_budget_counts_one_unit(folder):
    from confide.errors import PrivacyError
    from confide.store import SqliteStore
    from confide.train.data_budget import set_limit

    job = job_in(folder, data='budget = "b.db"')
    store = SqliteStore(folder / "b.db")
    set_limit(store, "visits", epsilon=2.0, delta=0.1)
    with pytest.raises(PrivacyError, match='privacy.unit="record"'):
        load_data(job)
    set_limit(store, "visits", epsilon=2.0, delta=0.05)
    store.close()
    (folder / "b.db").unlink()
    store = SqliteStore(folder / "b.db")
    set_limit(store, "visits", epsilon=2.0, delta=0.1, unit="patient_id")
    store.close()
    load_data(job)


def test_units_whose_names_end_alike_stay_apart(folder):
    """numpy's fixed-width text ends at a NUL: two patients would share one vector, and move a sum by two."""
    table = read_table(folder / "north.csv", Schema.load(folder / "visits.toml"))
    texts = np.array(["p1"] * (table.n - 1) + ["p1\0"], dtype=object)
    changed = replace(table, identifiers={"patient_id": texts})
    job = job_in(folder)
    silo = silo_of(job, "north", preprocess_of(Schema.load(folder / "visits.toml"), job), changed)
    assert len(set(silo.units.tolist())) == 2


def test_one_file_for_two_parties_is_refused(folder):
    (folder / "south.csv").unlink()
    (folder / "south.csv").hardlink_to(folder / "north.csv")
    with pytest.raises(JobError, match="one for north and south"):
        load_data(job_in(folder))


def test_statistics_of_units_at_very_many_parties_are_refused():
    """Each would get less than a sixteenth part of the weight's parts, and beyond 256 nothing at all."""
    sections = {
        "data": {"schema": "s.toml", "tables": {f"p{place}": f"{place}.csv" for place in range(20)}},
        "model": {"unit_rows": True},
        "train": {"algorithm": "statistics"},
        "privacy": {"expected_records": 4000, "unit": "patient_id", "parties_per_unit": 17},
    }
    with pytest.raises(JobError, match="at most 16 with statistics"):
        parse(sections)
    assert parse(sections | {"privacy": sections["privacy"] | {"parties_per_unit": 16}}).privacy.parties_per_unit == 16
