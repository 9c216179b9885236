"""`confide peers` on the command line."""

from __future__ import annotations

import pytest

from confide.cli import main


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return int(ended.value.code or 0)


def test_the_list_names_every_peer_and_where_they_would_be(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert run("peers", "list") == 0
    said = capsys.readouterr().out
    for name in ("tff", "flower", "pysyft", "tenseal", "concrete-ml", "orion", "spu", "opacus", "diffprivlib"):
        assert name in said
    assert f"makes an environment in {tmp_path}/confide/peers" in said
    assert not list(tmp_path.iterdir())


def test_removing_what_is_not_there_says_so(tmp_path, capsys):
    assert run("peers", "remove", "tenseal", "--folder", tmp_path) == 0
    assert "tenseal: there was nothing" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["install", "remove"])
def test_an_unknown_peer_is_refused_with_the_nearest(tmp_path, capsys, verb):
    assert run("peers", verb, "flowr", "--folder", tmp_path) == 2
    assert 'did you mean "flower"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_comparison_names_the_peers_that_are_not_installed(tmp_path, capsys):
    job = tmp_path / "job.toml"
    job.write_text(
        '[data]\nset = "breast-cancer"\n[train]\nrounds = 2\n[compare]\nqueries = 2\nsizes = []\n'
        "check_link = false\nclients = 0\n"
    )
    options = ("--only", "plain", "--seeds", "1", "--peer", "tenseal", "--peers-folder", tmp_path / "peers")
    assert run("compare", job, *options) == 0
    said = " ".join(capsys.readouterr().out.split())
    line = "not measured: inference/peer:tenseal, inference/peer:tenseal-small: not installed; `confide peers install"
    assert f"{line} tenseal`" in said


def test_an_unknown_peer_of_a_comparison_is_refused_before_anything_runs(tmp_path, capsys):
    assert run("compare", tmp_path / "absent.toml", "--peer", "tensael") == 2
    assert 'did you mean "tenseal"' in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_peer_is_installed_and_asked(tmp_path, capsys):
    folder, job = tmp_path / "peers", tmp_path / "job.toml"
    if run("peers", "install", "tenseal", "--folder", folder):
        pytest.skip("no index of packages is reachable here")
    job.write_text(
        '[data]\nset = "breast-cancer"\n[train]\nrounds = 2\n[compare]\nsizes = []\ncheck_link = false\nclients = 0\n'
    )
    options = ("--only", "inference/plain", "--queries", "5", "--peer", "tenseal", "--peers-folder", folder)
    assert run("compare", job, *options) == 0
    said = capsys.readouterr().out
    assert "peer:tenseal" in said
    assert "not measured" not in said
    assert run("peers", "list", "--folder", folder) == 0
    assert run("peers", "remove", "tenseal", "--folder", folder) == 0
    assert not list(folder.iterdir())
