"""What `serve --backend tee` is told of its enclave: who signs, what is shown beside, who has the model's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from confide.errors import UsageError

AttesterName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="With tee: who signs the evidence, configfs-tsm, gramine or nitro; simulated protects nothing.",
    ),
]
Endorsements = Annotated[
    str,
    typer.Option(
        metavar="FOLDER|fetch",
        help="With tee: the vendor's certificates and lists, shown with the evidence; fetch asks the vendor for them.",
    ),
]
BrokerUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="With tee and a sealed model: the broker that has its key.")
]
BrokerCa = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEM file of the authority that signed the broker's certificate.")
]


@dataclass(frozen=True, slots=True)
class EnclaveOptions:
    """The options of `confide serve` that go with tee; all empty for other backends.

    Args:
        attester: name; "" for none.
        endorsements: "fetch", or a folder with them; "" for none.
        broker, broker_ca: where a sealed model's key is.
    """

    attester: str = ""
    endorsements: str = ""
    broker: str | None = None
    broker_ca: Path | None = None

    def check(self, backends: tuple[str, ...]) -> None:
        """Refuse options without the backend that they are for."""
        given = {
            "--attester": self.attester,
            "--endorsements": self.endorsements,
            "--broker": self.broker,
            "--broker-ca": self.broker_ca,
        }
        if "tee" not in backends and (wrong := [name for name, value in given.items() if value]):
            raise UsageError(f"Expected {', '.join(wrong)} with --backend tee alone; leave it out")
        if "tee" in backends and not self.attester:
            raise UsageError(
                "Expected --attester with --backend tee: configfs-tsm, gramine or nitro; or simulated, for a trial "
                "that protects nothing"
            )
        if self.broker_ca and not self.broker:
            raise UsageError("Expected --broker URL with --broker-ca; it names the broker's authority")
        if self.broker and _is_plain_elsewhere(self.broker):
            raise UsageError(
                f"Expected --broker {self.broker} with https://; plain http:// is for a broker on this machine, such "
                "as http://127.0.0.1:8090, and no option changes that"
            )

    @property
    def fetch(self) -> bool:
        """Return whether the vendor is asked for endorsements."""
        return self.endorsements == "fetch"

    def given(self) -> Mapping[str, bytes]:
        """Return the endorsements of a folder, by the names of their files."""
        from confide.tee.endorsements import read_endorsements

        return {} if self.fetch or not self.endorsements else read_endorsements(self.endorsements)

    def model_file(self, path: Path) -> bytes:
        """Return the bytes of a model file; a sealed one is opened in memory, with its key from the broker."""
        from confide.model.artifact import read
        from confide.serve.staple import endorsing
        from confide.serve.unseal import unsealed
        from confide.tee.attest import load_attester
        from confide.tee.sealed import is_sealed

        sealed = path.is_file() and is_sealed(_begin(path))
        if not sealed and self.broker:
            raise UsageError(f"Expected a sealed model at {path} with --broker; `confide seal` makes one")
        if not sealed:
            return read(path)
        if not self.broker:
            raise UsageError(
                f"Expected --broker URL with {path}, a sealed model, and --backend tee: `confide broker` gives its key "
                "to attested servers"
            )
        attester = load_attester(self.attester)
        endorse = endorsing(attester, given=self.given(), fetch=self.fetch)
        return unsealed(path, self.broker, attester, endorse=endorse, ca_file=self.broker_ca)


def _is_plain_elsewhere(url: str) -> bool:
    """Return whether `url` is plain HTTP to another machine."""
    from confide.net.http import is_loopback

    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and not is_loopback(parts.hostname or "")
    except ValueError:
        return False  # no URL at all, which is said where it is asked


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise UsageError(f"Expected a model that can be read at {path}; {error.strerror}") from None
