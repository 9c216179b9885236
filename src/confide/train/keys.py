"""Reads the tables of a TOML file into frozen sections, and names everything that is wrong with them at once.

What a file may hold is a struct with one field for each table; every table is a `Section` whose fields are the keys.
`confide.train.job` and `confide.train.policy` add what their keys mean together.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Iterator, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from confide.data.toml_text import read_toml
from confide.errors import UsageError, nearest
from confide.train.sections import Section

LARGEST_BYTES = 1 << 20

#: Lowest, highest, lowest excluded, highest excluded.
Range = tuple[float, float, bool, bool]


def load_tables(path: Path, what: str, error: type[UsageError]) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Args:
        path: the file.
        what: what the texts call it, "job file".
        error: what to raise.

    Raises:
        UsageError: the file is absent, larger than 1 MiB or no TOML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_BYTES + 1)
        if len(text) > LARGEST_BYTES:
            raise error(f"Expected a {what} of at most {LARGEST_BYTES} bytes at {path}")
        return read_toml(text.decode(), max_bytes=LARGEST_BYTES)
    except OSError as caught:
        raise error(f"Expected a readable {what} at {path}; {caught.strerror}") from None
    except ValueError as caught:  # no TOML, no UTF-8, numbers or nesting without end
        raise error(f"Expected TOML in {path}; {caught}") from None


def sections_of(kind: type[msgspec.Struct]) -> dict[str, type[Section]]:
    """Return the tables of a file, by name: the fields of `kind` that are sections."""
    found = {name: section_type(hint) for name, hint in _hints(kind).items()}
    return {name: section for name, section in found.items() if section is not None}


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    """Return the types of a struct's fields; worked out once, which takes longer than all checks of a file."""
    return types.MappingProxyType(get_type_hints(kind))


def section_type(hint: Any) -> type[Section] | None:
    """Return the section in a type such as `PrivacySection | None`, or None."""
    parts = (*get_args(hint), hint)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)


def table_faults(table: Mapping[str, Any], sections: Mapping[str, type[Section]], what: str) -> Iterator[str]:
    """Yield the tables that `what` does not have, and those that are none."""
    yield from (unknown(key, sections, f"{what} has the tables") for key in table if key not in sections)
    for name in sections:
        if not isinstance(section := table.get(name, {}), dict):
            yield f"Expected [{name}] to be a table, got {name} = {section!r}; write [{name}] and its keys below it"


def faults(
    name: str, kind: type[Section], section: Mapping[str, Any], ranges: Mapping[tuple[str, str], Range], what: str
) -> Iterator[str]:
    """Yield what is wrong with each key of a section by itself.

    Args:
        name: of the section.
        kind: what it may hold.
        section: what it holds.
        ranges: of its numbers, by (section, key).
        what: where a person changes it, "job file".
    """
    hints = _hints(kind)
    for key, value in section.items():
        if key not in hints:
            yield unknown(key, hints, f"[{name}] has the keys", f"{name}.")
            continue
        try:
            msgspec.convert(value, hints[key])
        except msgspec.ValidationError:
            yield from _wrong(f"{name}.{key}", value, hints[key], what)
            continue
        texts = cast("list[Any]", [*value, *value.values()] if isinstance(value, dict) else [value])
        texts = [*texts, *cast("list[Any]", value)] if isinstance(value, list) else texts
        if any(isinstance(text, str) and "\0" in text for text in texts):
            yield f"Expected {name}.{key} without the character NUL, which no path can hold; remove it"
        if (name, key) in ranges:
            yield from _out_of_range(name, key, cast("float", value), ranges[name, key], what)


def _wrong(where: str, value: Any, hint: Any, what: str) -> Iterator[str]:
    """Yield why a value is none of its type; of a list of words, each wrong word."""
    inner = get_args(hint)[0] if get_origin(hint) is tuple else None
    if get_origin(inner) is Literal and isinstance(value, list):
        for word in cast("list[Any]", value):
            if word not in get_args(inner):
                close = nearest(str(word), get_args(inner))
                yield f"Expected {where} to hold {_readable(inner)}, got {word!r}{close}; change it in the {what}"
        return
    close = nearest(value, _choices(hint)) if isinstance(value, str) else ""
    got = repr(value) if _is_plain(value) else f"a {type(value).__name__}"  # which may hold records
    yield f"Expected {where} to be {_readable(hint)}, got {got}{close}; change it in the {what}"


def _is_plain(value: Any) -> bool:
    """Return whether a value is what a TOML file may hold."""
    if isinstance(value, dict):
        return all(map(_is_plain, cast("dict[Any, Any]", value).values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, cast("list[Any]", value)))
    return isinstance(value, str | int | float | date | time | None)


def _out_of_range(name: str, key: str, value: float, range_: Range, what: str) -> Iterator[str]:
    low, high, open_low, open_high = range_
    if not ((low < value if open_low else low <= value) and (value < high if open_high else value <= high)):
        bounds = f"{'above' if open_low else 'at least'} {low:g} and {'below' if open_high else 'at most'} {high:g}"
        yield f"Expected {name}.{key}={value} to be {bounds}; change it in the {what}"


def unknown(key: str, known: Collection[str], what: str, where: str = "") -> str:
    """Return the text about a key that is not known, with the nearest one that is."""
    return f'Unknown key "{where}{key}"{nearest(key, known)}; {what} {", ".join(known)}'


def _choices(hint: Any) -> tuple[str, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _readable(hint: Any) -> str:
    """Return a type as a person would say it."""
    if get_origin(hint) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_readable(part) for part in get_args(hint) if part is not type(None))
    words = {
        str: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        dict: "a table",
        tuple: "a list of texts",
    }
    return words.get(get_origin(hint) or hint, str(hint))


def toml_value(value: object) -> str:
    """Return a scalar or a list of scalars as TOML; JSON's strings are TOML's basic strings."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, cast('tuple[object, ...]', value)))}]"
    return msgspec.json.encode(value).decode()
