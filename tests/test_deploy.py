"""What deploy/ says is true: its files keep their own rules, and every command line that we print can be run."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from confide import cli

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = {path.name: yaml.safe_load(path.read_text()) for path in sorted(DEPLOY.glob("*.yaml"))}
NODES = ("north", "south", "west")
OURS = [(name, service) for name, file in COMPOSE.items() for service in file["services"] if service != "database"]

#: Keys of the Compose specification that our services use.
KNOWN = {
    *(
        "build",
        "cap_add",
        "cap_drop",
        "command",
        "depends_on",
        "environment",
        "healthcheck",
        "image",
        "init",
        "network_mode",
    ),
    *("networks", "ports", "pull_policy", "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "user"),
    "volumes",
}


# --- compose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_use_what_they_declare(name):
    file = COMPOSE[name]
    assert {key for key in file if not key.startswith("x-")} <= {"name", "services", "networks", "volumes"}
    for title, service in file["services"].items():
        assert set(service) <= KNOWN, f"{title}: {set(service) - KNOWN}"
        assert not {"networks", "network_mode"} <= set(service)
        assert set(service.get("networks", ())) <= set(file.get("networks", {}))
        assert set(service.get("depends_on", ())) <= set(file["services"])
        for source, _, _ in (volume.partition(":") for volume in service.get("volumes", ())):
            assert source.startswith("./") or source in file.get("volumes", {}), source
        if "build" in service:
            context = (DEPLOY / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).is_file()


def test_only_the_coordinator_s_port_is_published():
    published = {
        title: service["ports"]
        for file in COMPOSE.values()
        for title, service in file["services"].items()
        if "ports" in service
    }
    assert published == {"coordinator": ["8443:8443"]}


def test_nodes_meet_the_coordinator_and_nobody_else():
    file = COMPOSE["compose.yaml"]
    networks = {title: set(service.get("networks", ())) for title, service in file["services"].items()}
    for node in NODES:
        assert networks[node] == {node}
        assert file["networks"][node] == {"internal": True}  # no way out of it
        assert [title for title, joined in networks.items() if node in joined] == ["coordinator", node]
    assert file["services"]["database"]["network_mode"] == "none"


def test_each_member_has_one_folder_of_its_own():
    mounted = [
        volume.partition(":")[0]
        for file, title in OURS
        for volume in COMPOSE[file]["services"][title]["volumes"]
        if volume.startswith("./")
    ]
    assert sorted(mounted) == ["./coordinator", "./member", "./north", "./south", "./west"]
    ignored = (DEPLOY / ".gitignore").read_text().splitlines()
    assert {f"/{folder[2:]}/" for folder in mounted} <= set(ignored)  # no key gets into a commit
    assert "/.env" in ignored


@pytest.mark.parametrize(("file", "title"), OURS)
def test_containers_can_do_little(file, title):
    service = COMPOSE[file]["services"][title]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert re.fullmatch(r"\$\{CONFIDE_USER:-10001:10001\}", service["user"])
    assert service["pull_policy"] == "never"  # a stranger's image of that name is not taken
    assert "docker.sock" not in str(service)


def test_no_file_holds_a_password():
    for path in DEPLOY.iterdir():
        if path.is_file():
            assert not re.search(r"(?i)(password|passwd|secret|token|api_key)\s*[:=]\s*\S", path.read_text()), path.name


# --- the image --------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Return the Containerfile's instructions, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Containerfile").read_text()))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def test_the_image_runs_as_nobody_special():
    stages = "\n".join(f"{word} {rest}" for word, rest in instructions()).split("FROM ")
    last = stages[-1]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert last.index("USER") > last.index("RUN")
    assert "apt-get" not in last  # no compiler travels along
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert re.search(r'ENTRYPOINT \["(\w+)"\]', last)[1] in script
    assert 'CMD ["--help"]' in last


def test_nothing_but_named_files_gets_into_the_image():
    copied = [
        part
        for word, rest in instructions()
        if word in ("COPY", "ADD") and "--from" not in rest
        for part in rest.split()[:-1]
    ]
    assert sorted(copied) == [
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "native",
        "pyproject.toml",
        "src",
    ]
    assert all((ROOT / part).exists() for part in copied)
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignore[0] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied)
    for _, rest in instructions():
        assert not re.search(r"(?i)password|secret|token|\bhttps?://(?!127\.0\.0\.1)", rest)


def test_the_image_installs_what_a_federation_needs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = re.search(r'"\.\[(\w+)\]"', (DEPLOY / "Containerfile").read_text())[1]
    assert any(line.startswith("websockets") for line in extras[installed])
    assert "-c constraints.txt" in (DEPLOY / "Containerfile").read_text()


def test_the_health_of_a_coordinator_is_its_page():
    port = re.search(r"http://127\.0\.0\.1:(\d+)/status\.json", (DEPLOY / "Containerfile").read_text())[1]
    command = COMPOSE["compose.yaml"]["services"]["coordinator"]["command"]
    assert command[command.index("--status-port") + 1] == port
    for node in NODES:
        assert COMPOSE["compose.yaml"]["services"][node]["healthcheck"] == {"disable": True}


# --- command lines ----------------------------------------------------------------------------------------------------

PAGES = [*sorted(DEPLOY.glob("*.md")), ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = typer.main.get_command(cli.app)


#: How a page writes a command: by itself, as a service's command, or inside a running container.
COMMAND = re.compile(
    r"(?:(?:\$ )?(?:\.\./\.venv/bin/)?confide"
    r"|docker compose (?:--file \S+ )?run (?:--\S+ )*(?:coordinator|node|north|south|west)"
    r"|docker compose (?:--file \S+ )?exec (?:--\S+ )*\w+ confide) (.+)"
)


def command_lines(text: str) -> Iterator[str]:
    """Yield what stands behind `confide` in every command line of a page."""
    code = re.findall(r"(?m)^(?: {4}|\t)(.*(?:\n {8,}\S.*)*)", text)
    for block in re.findall(r"(?ms)^```(?:sh|bash|console)?\n(.*?)^```", text):
        code += block.splitlines()
    code += re.findall(r"`(confide [^`\n]+)`", text)
    for line in code:
        if found := COMMAND.match(re.sub(r"\s+#.*", "", line.replace("\n", " ")).strip()):
            yield found[1]


def fault(line: str) -> tuple[str, str] | None:
    """Return ("absent", verb) or ("wrong", why) for a command line without `confide`, None if it can be run."""
    words = [word.strip("[],…").rstrip(".") for word in re.split(r"[ \[\]|;>]+", line)]
    command, verb = PROGRAM, []
    for word in words:
        inner = getattr(command, "commands", {})
        if word in inner:
            command = inner[word]
            verb.append(word)
        elif inner and re.fullmatch(r"[a-z][a-z-]+", word):
            return "absent", " ".join([*verb, word])
        else:
            break
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return ("wrong", f"confide {' '.join(verb)} has no {', '.join(unknown)}") if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_command_lines_can_be_run(page):
    found = [fault(line) for line in command_lines(page.read_text())]
    wrong = sorted({why for kind, why in filter(None, found) if kind == "wrong"})
    assert not wrong
    if absent := sorted({verb for kind, verb in filter(None, found) if kind == "absent"}):
        pytest.skip(f"not in this checkout: confide {', '.join(absent)}")


@pytest.mark.parametrize(("file", "title"), OURS)
def test_commands_of_services_can_be_run(file, title):
    found = fault(shlex.join(COMPOSE[file]["services"][title]["command"]))
    if found and found[0] == "absent":
        pytest.skip(f"not in this checkout: confide {found[1]}")
    assert found is None


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)\s#]+)", (DEPLOY / "README.md").read_text())
    absent = {link for link in links if not (DEPLOY / link).resolve().exists()}
    if absent == {"../docs/federation.md"}:
        pytest.skip("not in this checkout: docs/federation.md")
    assert links
    assert not absent


def test_the_walk_through_is_read():
    """Every step of the README is a command line that the check above has seen."""
    lines = list(command_lines((DEPLOY / "README.md").read_text()))
    for step in (
        "split ",
        "federation init",
        "federation invite",
        "federation join",
        "node --identity",
        "node approve",
    ):
        assert any(line.startswith(step) for line in lines), step
    assert (
        sum(line.startswith("federation join") for line in lines) == 6
    )  # three, one in earnest, one from member.yaml, an analyst


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("split breast-cancer --nodes a,b,c --into x", None),
        ("ledger verify ledger.jsonl --model m", None),
        (
            "serve MODEL.confide [--backend NAME]... [--trust KEY] [--certificate FILE --private-key FILE | --metrics]",
            None,
        ),
        ("train --help", None),
        ("split breast-cancer --knots a,b,c", ("wrong", "confide split has no --knots")),
        ("juggle job.toml --balls 3", ("absent", "juggle")),
        ("ledger forge ledger.jsonl", ("absent", "ledger forge")),
    ],
)
def test_a_command_line_that_cannot_be_run_is_noticed(line, expected):
    assert fault(line) == expected
