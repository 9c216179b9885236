"""The table [compare], and on whose records a comparison runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.compare.links import LINKS
from confide.compare.prices import PUBLISHED
from confide.compare.settings import CompareSection, load, parse
from confide.errors import JobError

ROOT = Path(__file__).parents[2]
SET = {"data": {"set": "breast-cancer"}}
TABLES = {"data": {"schema": "s.toml", "tables": {"north": "north.csv", "south": "south.csv"}}}
SPLIT = {
    "data": {
        "schema": "s.toml", "table": "all.csv", "split": "column", "split_by": "hospital", "names": ["north", "south"],
    }
}  # fmt: skip


def refused(table) -> str:
    with pytest.raises(JobError) as found:
        parse(table)
    return str(found.value)


def test_a_training_job_is_a_comparison_as_it_is():
    found = parse(SET)
    assert found.job.data.set == "breast-cancer"
    assert (found.data_kind, found.private) == ("public", False)
    assert [link.name for link in found.links] == list(LINKS)
    assert found.prices == PUBLISHED
    assert "compare" not in found.table


def test_records_of_several_parties_need_a_declaration():
    assert "compare.data" in refused(TABLES)
    assert "may lawfully hold" in refused({**TABLES, "compare": {"seeds": 2}})
    for said, kind, private in (
        ("own", "own table", True),
        ("public", "public", False),
        ("synthetic", "synthetic", False),
    ):
        found = parse({**TABLES, "compare": {"data": said}})
        assert (found.data_kind, found.private) == (kind, private)


@pytest.mark.parametrize("data", [5, 1.5, True, "nodes", ["nodes"]])
def test_data_that_are_no_table_are_refused(data):
    assert "[data]" in refused({"data": data})


def test_a_network_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    table = {"data": {"set": "breast-cancer"}, "compare": {"networks": ["mine.onnx"]}}
    with pytest.raises(JobError, match=r"an ONNX file at mine\.onnx"):
        parse(table, base=tmp_path)
    (tmp_path / "mine.onnx").write_bytes(b"")
    parse(table, base=tmp_path)


NODES = {
    "data": {"schema": "s.toml", "nodes": ["east", "north", "south", "west"]},
    "train": {"quorum": 3},
    "privacy": {"expected_records": 400, "colluding": 1},
}


def test_across_nodes_every_run_is_charged_so_there_is_a_privacy():
    bare = {name: section for name, section in NODES.items() if name != "privacy"}
    for declared in ({}, {"compare": {"seeds": 1}}, {"compare": {"data": "public", "rows": "rows.csv"}}):
        assert "Expected [privacy] in a comparison across real nodes" in refused({**bare, **declared})
    found = parse(NODES)
    assert (found.data_kind, found.private, found.across) == ("real nodes", False, True)
    assert not parse(SET).across


def test_across_nodes_a_training_runs_once_unless_the_file_says_more():
    assert parse(NODES).settings.seeds == 1
    assert parse({**NODES, "compare": {"seeds": 2}}).settings.seeds == 2
    assert parse(SET).settings.seeds == 5


def test_rows_that_are_asked_across_nodes_are_declared_and_nobodys():
    assert parse({**NODES, "compare": {"rows": "rows.csv", "data": "synthetic"}}).settings.rows == "rows.csv"
    for section in ({"rows": "rows.csv"}, {"data": "public"}, {"rows": "rows.csv", "data": "own"}):
        assert "rows that belong to nobody there" in refused({**NODES, "compare": section})
    assert "Expected no compare.rows without data.nodes" in refused({**SET, "compare": {"rows": "rows.csv"}})


def test_names_of_protected_trainings_belong_to_nodes():
    assert parse({**NODES, "compare": {"training": ["amortised+dp"]}}).settings.training == ("amortised+dp",)
    assert "compare.training to hold" in refused({**SET, "compare": {"training": ["amortised+dp"]}})


def test_one_table_parted_again_is_the_users_own():
    assert parse(SPLIT).private
    assert not parse({**SPLIT, "compare": {"data": "synthetic"}}).private


def test_a_shipped_set_is_public_and_nothing_else():
    assert parse({**SET, "compare": {"data": "public"}}).data_kind == "public"
    assert "which is public" in refused({**SET, "compare": {"data": "own"}})


def test_a_charged_data_set_is_refused():
    private = {"privacy": {"expected_records": 455}}
    job = {"data": {"set": "breast-cancer", "budget": "budget.db"}, **private}
    assert "Expected no data.budget in a comparison" in refused(job)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"seed": 3}, 'Unknown key "compare.seed"; did you mean "seeds"'),
        ({"seeds": 0}, "Expected compare.seeds=0 to be at least 1"),
        ({"queries": 1}, "Expected compare.queries=1 to be at least 2"),
        ({"links": ["lan", "wlan"]}, "compare.links to hold"),
        ({"links": []}, "at least one name in compare.links"),
        ({"training": ["masked", "maskd"]}, "compare.training to hold"),
        ({"inference": ["he", "he"]}, "different names in compare.inference"),
        ({"epsilons": [1.0, 0.0]}, "compare.epsilons above 0"),
        ({"sizes": [0]}, "compare.sizes from 1"),
        ({"data": "mine"}, 'Expected compare.data to be "own" or "public" or "synthetic"'),
        ({"gigabyte_dollars": -1.0}, "Expected compare.gigabyte_dollars=-1.0"),
    ],
)
def test_what_is_wrong_is_named(section, text):
    said = refused({**SET, "compare": section})
    assert text.partition(";")[0] in said


def test_everything_that_is_wrong_is_named_at_once():
    said = refused({**SET, "compare": {"seeds": 0, "queries": "many", "fast": True}})
    assert len(said.splitlines()) == 3


def test_faults_of_the_job_itself_are_named():
    assert "train.rounds" in refused({**SET, "train": {"rounds": 0}, "compare": {}})
    assert "Expected [compare] to be a table" in refused({**SET, "compare": 3})


def test_prices_of_the_job_file_replace_the_published_ones():
    found = parse({**SET, "compare": {"gigabyte_dollars": 0.02}}).prices
    assert found.gigabyte_dollars == 0.02
    assert found.server_core_hour_dollars == PUBLISHED.server_core_hour_dollars
    assert "published" not in found.source


def test_money_is_hours_and_gigabytes():
    made = parse({**SET, "compare": {
        "client_core_hour_dollars": 2.0, "server_core_hour_dollars": 1.0, "gigabyte_dollars": 0.5,
    }}).prices  # fmt: skip
    assert made.dollars(client_seconds=1800, server_seconds=7200, sent_bytes=4e9) == pytest.approx(1 + 2 + 2)


def test_every_key_is_explained():
    text = (ROOT / "docs" / "compare.md").read_text()
    assert not [key for key in CompareSection.__struct_fields__ if f"`{key}`" not in text]


def test_the_example_is_read():
    found = load(ROOT / "examples" / "hospitals.toml")
    assert found.job.data.parties == 4
    assert not found.private
