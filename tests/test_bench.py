"""The benchmarks: which scripts they are, what they have in common, and the file that each writes."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench import BENCH, script

ROOT = BENCH.parent
TREES = {path.name: ast.parse(path.read_text()) for path in sorted(BENCH.glob("*.py"))}
FIELDS = ["figure", "value", "unit", "peer", "peer_value", "bar", "met"]
#: They have a command line and no figures: two train networks, one is a role of `mpc.py`, one writes a page of docs.
TOOLS = {"train_models.py", "train_relu.py", "mpc_houses.py", "rules_page.py"}


@pytest.fixture(scope="module")
def figures():
    return script("figures")


def calls(tree: ast.AST) -> set[str]:
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def is_run(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)


BENCHMARKS = {name for name, tree in TREES.items() if is_run(tree)} - TOOLS


# --- the scripts ------------------------------------------------------------------------------------------------------


def test_make_bench_runs_every_benchmark_and_nothing_else():
    """Others would stop it: a script without --json, or one that asks for other options."""
    done = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = done.stdout.split("for script in ", 1)[1].split(";", 1)[0].split()
    assert set(listed) == {f"bench/{name}" for name in BENCHMARKS}
    assert len(listed) > 20


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_benchmark_takes_its_command_line_and_its_file_from_one_place(name):
    assert calls(TREES[name]) >= {"command_line", "write"}
    main = next(node for node in TREES[name].body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert "--json" not in ast.unparse(main)
    assert f"python bench/{name} " in ast.get_docstring(TREES[name])


def offered(path: Path) -> set[str]:
    """Return the names that others can import from a file: what it binds, or lists, and the modules beside it."""
    tree = ast.parse(path.read_text())
    nodes = [node for statement in tree.body for node in ast.walk(statement)]
    made = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    made |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    if path.name != "__init__.py":
        return made
    made |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return made | {one.name.partition(".")[0] for one in path.parent.iterdir()}


def source(module: str) -> Path | None:
    """Return the file of a module of ours; None where it is another's."""
    place = Path(*module.split("."))
    roots = (BENCH, BENCH / "peers", ROOT / "src", ROOT / "tests")
    places = [root / end for root in roots for end in (place.with_suffix(".py"), place / "__init__.py")]
    return next((one for one in places if one.is_file()), None)


@pytest.mark.parametrize("name", TREES)
def test_what_a_file_imports_of_ours_exists(name):
    """Nobody runs the benchmarks at each change, so a name that has moved would show late."""
    found = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.ImportFrom) and node.module]
    for node in found:
        path = source(node.module)
        if path is not None:
            assert {alias.name for alias in node.names} <= offered(path)
        else:
            assert not node.module.startswith("confide")


def test_no_file_has_figures_of_its_own():
    made = {name: {node.name for node in tree.body if isinstance(node, ast.ClassDef)} for name, tree in TREES.items()}
    assert [name for name, classes in made.items() if "Figure" in classes] == ["figures.py"]


def test_a_script_knows_the_option_and_writes_a_list(tmp_path):
    """A whole run of a short one."""
    place = tmp_path / "store.json"
    command = [sys.executable, BENCH / "store.py", "--repeats", "2", "--folder", tmp_path, "--json", place]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(place.read_text())
    assert found
    assert all(list(one) == FIELDS for one in found)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_has_the_fields_and_no_more(figures, tmp_path):
    one = figures.Figure("sum", 1.5, "ms", "other", 3.0, 2.0, True, "said beside it")
    figures.write([one, figures.Figure("other sum", None, "ms")], tmp_path / "f.json")
    first, second = json.loads((tmp_path / "f.json").read_text())
    assert list(first.items()) == list(zip(FIELDS, ["sum", 1.5, "ms", "other", 3.0, 2.0, True], strict=True))
    assert list(second.items()) == list(zip(FIELDS, ["other sum", None, "ms", None, None, None, None], strict=True))
    assert figures.read(tmp_path / "f.json") == [
        figures.Figure("sum", 1.5, "ms", "other", 3.0, 2.0, True),
        figures.Figure("other sum", None, "ms"),
    ]


def test_numbers_of_numpy_and_no_numbers_are_written_as_json_has_them(figures, tmp_path):
    """After hours of measuring, a bool of numpy must not be what stops it."""
    one = figures.Figure("a", np.float32(0.5), "x", "b", np.float64("nan"), np.int64(3), np.bool_(True))
    figures.write([one, figures.Figure("inf", math.inf, "x")], tmp_path / "f.json")

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    first, second = json.loads((tmp_path / "f.json").read_text(), parse_constant=refused)
    assert list(first.values()) == ["a", 0.5, "x", "b", None, 3, True]
    assert second["value"] is None


def test_the_file_is_whole_or_as_it_was(figures, tmp_path):
    place = tmp_path / "f.json"
    figures.write([figures.Figure("old", 1.0, "ms")], place)
    with pytest.raises(TypeError):
        figures.write([figures.Figure("new", 1.0, "ms"), figures.Figure("bad", object(), "ms")], place)
    assert [one.figure for one in figures.read(place)] == ["old"]
    assert list(tmp_path.iterdir()) == [place]
    figures.write([figures.Figure("new", 1.0, "ms")], None)
    assert [one.figure for one in figures.read(place)] == ["old"]


def test_what_is_no_file_is_written_to_and_not_replaced(figures, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "behind.json")
    figures.write([], link)
    assert link.is_symlink()
    assert json.loads((tmp_path / "behind.json").read_text()) == []
    figures.write([], Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (("a", 2.0, "ms"), "a           2.00 ms"),
        (("a", None, "ms", None, None, 3.0), "a              -         bar 3: -"),
        (("a", 2.0, "ms", "them", 5.0, 3.0, True), "a           2.00 ms     them: 5.00 (2.5x)  bar 3: met"),
        (("a", 4.0, "ms", None, None, 3.0, False, "9 runs"), "a           4.00 ms      bar 3: MISSED  [9 runs]"),
        (("a", 2.5, "ratio", "them", 5.0), "a           2.50 ratio  them: 5.00"),
    ],
)
def test_a_line_says_what_a_figure_holds(figures, fields, line):
    assert figures.line(figures.Figure(*fields), width=3) == line


@pytest.mark.parametrize("count", [2, 4, 20])
def test_the_interval_is_students(figures, count):
    values = np.random.Generator(np.random.PCG64(count)).normal(3, 2, count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert figures.interval(values) == pytest.approx((high - low) / 2)
    assert math.isnan(figures.interval(values[:1]))


def test_a_bar_is_met_on_its_edge_and_nothing_is_met_without_one(figures):
    assert [figures.at_most(value, 2.0) for value in (1.9, 2.0, 2.1)] == [True, True, False]
    assert [figures.at_least(value, 2.0) for value in (1.9, 2.0, 2.1)] == [False, True, True]
    assert figures.at_most(1.0, None) is figures.at_least(1.0, None) is None
    assert figures.at_most(np.float64(1), 2.0) is True
