"""TOML that somebody else may have written: read within bounds on its size and on what it can cost.

The reader of the standard library takes time that grows with the square or the cube of the parts of a dotted key: a
key of 32 kB (`a.a.a ...`) keeps it busy for many seconds, one of 500 kB fills the memory. No file of ours has keys of
more than a few parts, so longer ones are refused before it sees them.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, cast

#: Parts of the longest key that is read: `columns.age.low` has three.
MOST_PARTS = 8

#: The tokens of TOML, as far as dotted keys matter: strings and words are parts of a key, blanks may stand around dots.
#: A string that is never closed takes all that is left: each letter is looked at a few times only.
_TOKEN = re.compile(
    r'(?P<part>"""(?:[^\\]|\\(?:.|\Z))*?(?:"{3,5}|\Z)|'
    r"'''.*?(?:'{3,5}|\Z)|"
    r'"(?:[^"\\\n]|\\(?:.|\Z))*(?:"|(?=\n)|\Z)|'
    r"'[^'\n]*'|[A-Za-z0-9_+-]+)"
    r"|(?P<dot>\.)|(?P<blank>[ \t]+)|(?P<comment>#[^\n]*)|(?P<other>.)",
    re.DOTALL,
)


def read_toml(text: str, *, max_bytes: int) -> dict[str, Any]:
    """Return the tables in `text`.

    Args:
        text: TOML.
        max_bytes: of its UTF-8 form.

    Raises:
        ValueError: it is too large, a key has too many parts, a whole number has more than 64 bits, or it is no
            TOML; the text says which.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no text") from None
    if size > max_bytes:
        raise ValueError(f"it has {size} bytes, at most {max_bytes} are read")
    if _longest_key(text) > MOST_PARTS:
        raise ValueError(f"a key has more than {MOST_PARTS} parts")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_numbers(table)
    return table


def _check_numbers(table: dict[str, Any]) -> None:
    """Refuse whole numbers that TOML does not have: those of thousands of digits cannot even be printed."""
    left: list[object] = [table]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left.extend(cast("dict[str, object]", value).values())
        elif isinstance(value, list):
            left.extend(cast("list[object]", value))
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("a whole number has more than 64 bits")


def _longest_key(text: str) -> int:
    """Return the most parts that dots join anywhere in `text`; time grows with its length alone."""
    longest = dots = 0
    for token in _TOKEN.finditer(text):
        match token.lastgroup:
            case "dot":
                dots += 1
                longest = max(longest, dots)
            case "part" | "blank":
                pass
            case _:
                dots = 0
    return longest + 1
