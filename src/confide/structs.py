"""What msgspec knows of a type, worked out by one thread at a time.

msgspec works a type out when it is first decoded or converted to, and keeps what it found on the type. Two threads that
do so at once crash the process (0.22; `tests/test_structs.py` shows it), so every type that is not given to a decoder
of its module goes through `known`.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import msgspec

_ONE_AT_A_TIME = threading.Lock()


def known(kind: Any) -> Any:
    """Return `kind`, any type that msgspec decodes, once msgspec has worked it out."""
    _work_out(kind)
    return kind


@cache
def _work_out(kind: Any) -> None:
    with _ONE_AT_A_TIME:
        msgspec.json.Decoder(kind)
