"""Finished cells on disk."""

from __future__ import annotations

import shutil

import pytest

from confide.compare.cache import Cache, Outcome, name_of, records_hash, source_hash, where
from confide.compare.settings import parse
from confide.errors import UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust

GUARANTEE = Guarantee(
    frozenset({Claim("query", "server", ("dealer",)), Claim("weights", "client")}), Adversary.SEMI_HONEST,
    Trust.NON_COLLUSION, 128, True, False, "sizes", "shares", "a paper",
)  # fmt: skip


def outcome(name: str = "a" * 64) -> Outcome:
    return Outcome(
        name=name, figures={"latency_seconds": 0.1}, samples={"latency_seconds": (0.1, 0.2)}, curve=(0.5, 0.9),
        guarantee=GUARANTEE, graph=b"\x00\xffonnx", setting="words", repeats=3, seconds=1.5,
    )  # fmt: skip


def test_what_was_kept_comes_back(tmp_path):
    Cache(tmp_path / "cells").put(outcome())
    assert Cache(tmp_path / "cells").get("a" * 64) == outcome()
    assert Cache(tmp_path / "cells").get("b" * 64) is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b'{"name": 3}', b"[" * 100_000, b'{"name": "' + b"a" * 64 + b'"}']
)
def test_a_damaged_file_is_measured_again(tmp_path, body):
    kept = Cache(tmp_path)
    kept.put(outcome())
    kept.path("a" * 64).write_bytes(body)
    assert kept.get("a" * 64) is None


def test_a_file_that_is_cut_short_is_measured_again(tmp_path):
    kept = Cache(tmp_path)
    kept.put(outcome())
    whole = kept.path("a" * 64).read_bytes()
    for end in range(0, len(whole), 7):
        kept.path("a" * 64).write_bytes(whole[:end])
        assert kept.get("a" * 64) is None


def test_a_file_under_another_name_is_not_taken(tmp_path):
    kept = Cache(tmp_path)
    kept.put(outcome())
    shutil.copy(kept.path("a" * 64), kept.path("b" * 64))
    assert kept.get("b" * 64) is None


def test_fresh_takes_what_this_run_made_and_nothing_older(tmp_path):
    Cache(tmp_path).put(outcome())
    anew = Cache(tmp_path, fresh=True)
    assert anew.get("a" * 64) is None
    anew.put(outcome())
    assert anew.get("a" * 64) == outcome()


def test_every_part_is_in_the_name():
    parts = {"cell": {"choice": "he", "seed": 1}, "job": "text", **where()}
    names = {name_of(parts)}
    for key, value in parts.items():
        names.add(name_of({**parts, key: {**value, "seed": 2} if isinstance(value, dict) else f"{value}."}))
    assert len(names) == 1 + len(parts)
    assert name_of(dict(reversed(parts.items()))) == name_of(parts)
    assert len(source_hash()) == 64


def test_other_records_have_another_hash(tmp_path):
    table = {
        "data": {"schema": "s.toml", "tables": {"a": "a.csv", "b": "b.csv"}},
        "compare": {"data": "public"},
    }
    for name in ("s.toml", "a.csv", "b.csv"):
        (tmp_path / name).write_text(name)
    seen = {records_hash(parse(table, base=tmp_path))}
    assert records_hash(parse(table, base=tmp_path)) in seen
    (tmp_path / "b.csv").write_text("another row")
    seen.add(records_hash(parse(table, base=tmp_path)))
    (tmp_path / "b.csv").unlink()
    seen.add(records_hash(parse(table, base=tmp_path)))
    seen.add(records_hash(parse({"data": {"set": "breast-cancer"}})))
    assert len(seen) == 4


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="folder"):
        Cache(tmp_path / "file" / "cells")


def test_what_stands_in_the_way_of_a_cell_is_named_before_it_is_measured(tmp_path):
    kept = Cache(tmp_path)
    kept.path("a" * 64).mkdir()
    with pytest.raises(UsageError, match="move what is there away"):
        kept.get("a" * 64)
    with pytest.raises(UsageError, match="can be written"):
        kept.put(outcome())


def test_cells_are_for_this_user_alone(tmp_path):
    kept = Cache(tmp_path / "cells")
    kept.put(outcome())
    assert (tmp_path / "cells").stat().st_mode & 0o077 == 0
    assert kept.path("a" * 64).stat().st_mode & 0o077 == 0
