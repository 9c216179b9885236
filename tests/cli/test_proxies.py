"""Which way a connection to the coordinator takes: the named one, else the environment's, else the direct one."""

from __future__ import annotations

import pytest

from confide import cli
from confide.cli.proxies import DIRECT, Surroundings, proxy_for

PROXY = "http://user:hunter2@proxy.example.com:3128"
FAR = "wss://train.example.org:8443"


@pytest.mark.parametrize(
    ("no_proxy", "passes_by"),
    [
        ("", False),
        ("example.com", False),
        ("ple.org", False),  # a domain ends at a dot
        ("train.example.org.evil", False),
        ("train.example.org:9999", False),
        (",, ,", False),
        ("train.example.org", True),
        ("TRAIN.example.ORG", True),
        ("localhost, .example.org", True),
        ("example.org", True),
        ("train.example.org:8443", True),
        ("*", True),
    ],
)
def test_no_proxy_names_hosts_and_domains(no_proxy, passes_by):
    assert proxy_for(FAR, None, Surroundings(PROXY, no_proxy)) == (None if passes_by else PROXY)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_loopback_is_reached_directly_unless_a_proxy_is_named(host):
    assert proxy_for(f"wss://{host}:8443", None, Surroundings(PROXY)) is None
    assert proxy_for(f"wss://{host}:8443", PROXY, Surroundings()) == PROXY


def test_what_is_named_counts_before_the_environment():
    assert proxy_for(FAR, "http://other:1", Surroundings(PROXY, "*")) == "http://other:1"
    assert proxy_for(FAR, DIRECT, Surroundings(PROXY)) is None
    assert proxy_for(FAR, None, Surroundings()) is None


def test_a_password_is_not_shown():
    assert "hunter2" not in repr(Surroundings(PROXY))


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_the_environment_reaches_the_connection(variable, tmp_path, monkeypatch, capsys):
    """`join` asks through a proxy of the environment that nobody listens on, and says nothing of its password."""
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, PROXY)
    seen: list[str | None] = []

    def asking(url: str, authorities: object, identity: object, *, proxy: str | None = None):
        seen.append(proxy)

        def ask(body: bytes) -> bytes:
            raise OSError(f"no way through {proxy}")

        return ask

    monkeypatch.setattr("confide.net.asking.asking", asking)
    monkeypatch.chdir(tmp_path)
    for line in ("init f --address train.example.org:8443", "invite north --federation f --out i", "join i --into n"):
        with pytest.raises(SystemExit):
            cli.main(["federation", *line.split()])
    assert seen == [PROXY]
    monkeypatch.setenv("NO_PROXY", "example.org")
    with pytest.raises(SystemExit):
        cli.main(["federation", "join", "i", "--into", "n"])
    assert seen == [PROXY, None]
    capsys.readouterr()
