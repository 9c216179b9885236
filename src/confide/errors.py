"""Every exception that confide raises on purpose, as one tree.

    ConfideError
    ├── UsageError              the caller can mend it; the CLI prints one line and exits with 2
    │   ├── JobError            a job file
    │   ├── DataError           a schema or a table
    │   ├── ModelError          a model, a layer that no rule covers, an artifact
    │   ├── KeysExpired         keys that are too old, or have been used as often as they may; set up again
    │   └── MissingExtra        an optional dependency, with its install line
    ├── ProtocolError           bytes that no honest party would have sent
    │   └── Aborted             a session that ended without an output: too few parties, a refusal
    ├── IntegrityError          a hash, signature or chain that does not hold
    │   └── AttestationError    evidence of an enclave that does not hold, by the name of the check
    ├── PrivacyError            a request that would spend or reveal more than was agreed
    ├── StoreError              a store that did not keep or give what it was asked; the text says whether it is there
    └── ServiceError            a server's refusal, with its HTTP status

Texts follow `Expected {name}={value} ...; {what to do}`. No text contains an input row, a weight or a key
of somebody else: below the server boundary every malformed message becomes `ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfideError(Exception):
    """The root: catch this to catch everything that confide raises on purpose."""


class UsageError(ConfideError):
    """Something that the caller gave cannot work; the text says what to change."""


class JobError(UsageError):
    """A job file that cannot be run as written."""


class DataError(UsageError):
    """A schema or a table that does not fit the other."""


class ModelError(UsageError):
    """A model that cannot be built, read or run by the chosen backend."""


class KeysExpired(UsageError):
    """Keys of one's own that are no longer good; setting up again makes and sends new ones."""


class MissingExtra(UsageError):
    """An optional dependency is absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"Expected the package {package}; install it with: pip install 'confide[{extra}]'")


class ProtocolError(ConfideError):
    """A message that no honest party would have sent: malformed, repeated, late or out of order."""


class Aborted(ProtocolError):
    """A session that ended without an output; nothing was revealed beyond the messages already sent."""


class SetUpAgain(Aborted):
    """What was set up or dealt is not there any more, or was used before; setting up again mends that."""


class AskAgain(Aborted):
    """What was dealt for a question was lost with the process that held it; asking again takes what was dealt next."""


class IntegrityError(ConfideError):
    """A hash, a signature or a chain of hashes that does not hold."""


class AttestationError(IntegrityError):
    """Evidence of an enclave that does not hold; nothing was sent to it.

    Args:
        check: the name of the first check that failed.
        text: why.
    """

    def __init__(self, check: str, text: str) -> None:
        super().__init__(f"{text} [{check}]")
        self.check = check


class PrivacyError(ConfideError):
    """A request that would spend or reveal more than was agreed."""


class StoreError(ConfideError):
    """A store could not write or read: a full disk, a database that is gone; a commit is there wholly or not at all."""


class ServiceError(ConfideError):
    """A server refused a request.

    Args:
        status: the HTTP status code, 400 to 599.
        text: the server's one-line reason.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"The server answered {status}: {text}")
        self.status = status


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean "x"?)' for the nearest known name, or an empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""
