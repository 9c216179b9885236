"""The recipes for enclaves: templates parse, scripts are deterministic, nothing is left open, commands exist."""

from __future__ import annotations

import configparser
import hashlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jinja2
import pytest

from test_deploy import command_lines, fault

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
GRAMINE = DEPLOY / "gramine"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc")
PAGES = [DEPLOY / kind / "README.md" for kind in ("gramine", "cvm", "nitro")]


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GRAMINE / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "site"
    written = {"b/two.py": "2", "a.py": "1", "b/__pycache__/two.pyc": "x", "c.pyc": "y", "b/one.so": "3"}
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def manifest(tree: Path, *options: str) -> tuple[str, dict]:
    trusted = tree.parent / "trusted.toml"
    trusted.write_text(run("collect.py", tree).stdout)
    done = run("render.py", GRAMINE / "confide.manifest.template", trusted, *options)
    assert done.returncode == 0, done.stderr

    class Gramine:
        libos = "/usr/lib/gramine/libsysdb.so"

        @staticmethod
        def runtimedir() -> str:
            return "/usr/lib/gramine/runtime/glibc"

    words = {"gramine": Gramine, "arch_libdir": "/lib/x86_64-linux-gnu"}
    text = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(done.stdout).render(words)
    return done.stdout, tomllib.loads(text)


def test_files_are_listed_once_sorted_and_by_their_hash(tree):
    lines = tomllib.loads(f"files = [\n{run('collect.py', tree, tree / 'a.py').stdout}]")["files"]
    expected = [(name, text) for name, text in (("a.py", "1"), ("b/one.so", "3"), ("b/two.py", "2"))]
    assert lines == [
        {"uri": f"file:{tree / name}", "sha256": hashlib.sha256(text.encode()).hexdigest()} for name, text in expected
    ]


def test_the_same_files_give_the_same_manifest(tree):
    first, _ = manifest(tree)
    (tree / "a.py").touch()
    (tree / "b" / "__pycache__" / "more.pyc").write_text("z")
    assert manifest(tree)[0] == first
    (tree / "a.py").write_text("changed")
    assert manifest(tree)[0] != first


def test_the_manifest_leaves_nothing_open(tree):
    _, found = manifest(tree)
    assert found["sgx"]["debug"] is False
    assert found["sgx"]["remote_attestation"] == "dcap"
    assert "allowed_files" not in found["sgx"]
    assert found["sys"]["disallow_subprocesses"] is True
    assert found["sys"]["enable_sigterm_injection"] is True
    assert not any("insecure" in key for key in found["loader"])
    assert not any(isinstance(value, dict) and value.get("passthrough") for value in found["loader"]["env"].values())
    hashed = [entry for entry in found["sgx"]["trusted_files"] if isinstance(entry, dict)]
    assert len(hashed) == 3
    assert found["libos"]["entrypoint"] == "/usr/bin/python3.11"
    sources = {mount.get("uri") for mount in found["fs"]["mounts"]}
    assert "file:/srv/model.confide" in sources


def test_the_manifest_s_command_can_be_run(tree):
    words = manifest(tree)[1]["loader"]["argv"]
    assert words[:3] == ["python3", "-m", "confide"]
    assert fault(shlex.join(words[3:])) is None
    assert words[words.index("--attester") + 1] == "gramine"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "4GB"),
        ("--python", 'x"'),
        ("--model", "/a b"),
        ("--svn", "-1"),
        ("--threads", "0"),
        ("--site", "rel"),
    ],
)
def test_words_that_cannot_stand_in_a_manifest_are_refused(tree, option, value):
    trusted = tree.parent / "trusted.toml"
    trusted.write_text("")
    done = run("render.py", GRAMINE / "confide.manifest.template", trusted, f"{option}={value}")
    assert done.returncode != 0
    assert "cannot stand in a manifest" in done.stderr


def test_a_word_that_nothing_fills_is_an_error(tree):
    template = tree.parent / "template"
    template.write_text('a = "@NOBODY@"\n')
    (tree.parent / "trusted.toml").write_text("")
    done = run("render.py", template, tree.parent / "trusted.toml")
    assert "@NOBODY@" in done.stderr
    assert done.returncode != 0


def test_files_that_are_absent_or_cannot_be_named_are_errors(tree):
    assert "not there" in run("collect.py", tree / "absent").stderr
    (tree / 'quo"te.py').write_text("")
    done = run("collect.py", tree)
    assert done.returncode != 0
    assert "cannot name" in done.stderr


def test_the_unit_of_a_guest_parses_and_its_command_exists():
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str
    unit.read_string((DEPLOY / "cvm" / "confide-tee.service").read_text())
    service = unit["Service"]
    program, _, line = service["ExecStart"].partition(" ")
    assert program.endswith("/confide")
    assert fault(line) is None
    assert "--attester configfs-tsm" in line
    assert service["User"] == "confide"
    assert service["NoNewPrivileges"] == "yes"
    assert service["LimitCORE"] == "0"
    assert "ProtectKernelTunables" not in service  # it would make configfs read-only
    assert service["ReadWritePaths"] == "/sys/kernel/config/tsm/report"


def test_the_image_of_nitro_starts_a_command_that_exists():
    script = (DEPLOY / "nitro" / "start.sh").read_text()
    subprocess.run(["sh", "-n", str(DEPLOY / "nitro" / "start.sh")], check=True, timeout=10)
    line = re.search(r"^exec confide (.+)$", script, re.MULTILINE)[1]
    assert fault(line) is None
    assert "--attester nitro" in line
    image = (DEPLOY / "nitro" / "Containerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)", image, re.MULTILINE) for word in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == ["model.confide"]  # the one that users bring


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_pages_say_what_was_not_run_and_their_commands_exist(page):
    text = page.read_text()
    assert "**Not run on hardware yet.**" in text
    lines = list(command_lines(text))
    assert lines
    assert [found for found in map(fault, lines) if found] == []
    for link in re.findall(r"\]\(([^)\s#]+)", text):
        assert (page.parent / link).resolve().exists(), link


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_switches_debugging_on_or_takes_the_simulation(path):
    text = path.read_text()
    assert not re.search(r"(?m)^[^#]*debug\s*=\s*true", text)
    assert not re.search(r"run-enclave.*--debug-mode", text)
    assert "--attester simulated" not in text
