"""Which HTTP proxy a connection to the coordinator takes: the named one, or the environment's.

`confide.cli` reads the environment, once, and leaves it in the context of the command; here it is decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import typer

from confide.net.enrolment import split_url
from confide.net.http import is_loopback

#: Where the root command leaves what the environment says.
ENVIRONMENT = "confide.proxies"

#: What `--proxy` takes to go past the environment's proxy.
DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the environment says of proxies.

    Args:
        https_proxy: URL of the proxy for TLS; may hold a password.
        no_proxy: hosts and domains that are reached without one, separated by commas; "*" for all.
    """

    https_proxy: str | None = None
    no_proxy: str = ""

    def __repr__(self) -> str:
        return "Surroundings()"


def proxy_for(url: str, named: str | None, said: Surroundings) -> str | None:
    """Return the proxy on the way to a coordinator, or None for the direct way.

    Args:
        url: "wss://host:port".
        named: what `--proxy` says; "direct" for no proxy, None leaves it to the environment.
        said: by the environment.

    A loopback address is never looked for behind a proxy of the environment.

    Example:
        >>> office = Surroundings("http://proxy:3128", "example.org")
        >>> [proxy_for(f"wss://{host}:8443", None, office) for host in ("train.example.com", "train.example.org")]
        ['http://proxy:3128', None]
    """
    if named is not None:
        return None if named == DIRECT else named
    found = split_url(url)
    if found is None or not said.https_proxy or is_loopback(found[0]) or _is_near(*found, said.no_proxy):
        return None
    return said.https_proxy


def surroundings(context: typer.Context) -> Surroundings:
    """Return what the environment of the running command says."""
    return context.meta.get(ENVIRONMENT, Surroundings())


def _is_near(host: str, port: int, no_proxy: str) -> bool:
    """Return whether a list such as "localhost, .example.org, 10.0.0.7:8443" names the host or a domain above it."""
    for entry in no_proxy.lower().split(","):
        name = entry.strip().lstrip(".")
        if name and (name in ("*", host.lower(), f"{host.lower()}:{port}") or host.lower().endswith(f".{name}")):
            return True
    return False
