"""TOML from elsewhere: the same tables as the standard reader gives, and a line for what would keep it busy."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.data import toml_text
from confide.data.toml_text import MOST_PARTS, read_toml

LIMIT = 1 << 20


def reads(text: str) -> bool:
    try:
        read_toml(text, max_bytes=LIMIT)
    except ValueError:
        return False
    return True


def long_key(parts: int) -> str:
    return ".".join(["a"] * parts) + " = 1"


def test_keys_up_to_the_limit_are_read():
    assert read_toml(long_key(MOST_PARTS), max_bytes=LIMIT) == tomllib.loads(long_key(MOST_PARTS))
    with pytest.raises(ValueError, match="more than 8 parts"):
        read_toml(long_key(MOST_PARTS + 1), max_bytes=LIMIT)


@pytest.mark.parametrize(
    "text",
    [
        "x = 'a.b.c.d.e.f.g.h.i.j.k'",
        'x = "a.b.c.d.e.f.g.h.i.\\".j.k"',
        'x = """\na.b.c.d.e.f.g\\"" .h.i.j.k"""',
        "x = '''a.b.c.d.e.f.g.h.i\n.j.k'''",
        "# a.b.c.d.e.f.g.h.i.j.k\nx = 1",
        "x = [" + "1.5, " * 20 + "]",
        "x = [" + "0.1,\n" * 20 + "]",
        "\n".join(f"a{i}.b = 0.{i}" for i in range(20)),
        'x = "' + "." * 50 + '"',
    ],
)
def test_dots_elsewhere_join_nothing(text):
    assert read_toml(text, max_bytes=LIMIT) == tomllib.loads(text)


@pytest.mark.parametrize(
    "part", ["a", '"a b"', "'a.b'", '""', '"\\""', "a-1", "'\"'", '"\'"', '"#"', "1"], ids=lambda part: repr(part)
)
@pytest.mark.parametrize("dot", [".", " . ", "\t.", ". "])
@pytest.mark.parametrize(
    "frame", ["{} = 1", "x = 'a'\n[{}]", "[[{}]]", "x = {{ {} = 1 }}", '# "\n{} = 1', "x='''\n'''\n{}=1"]
)
def test_no_way_of_writing_a_long_key_is_missed(part, dot, frame):
    text = frame.format(dot.join(f"{part}" for _ in range(MOST_PARTS + 1)))
    tomllib.loads(text)  # it is TOML: nothing but the length of its key is wrong
    assert not reads(text)
    assert reads(frame.format(dot.join(f"{part}" for _ in range(MOST_PARTS - 1))))


def parts_of_keys(text: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the parts of the longest key that the standard reader itself meets before it ends or stumbles."""
    found = [1]
    parse_key = tomllib._parser.parse_key

    def counted(src, pos):
        pos, key = parse_key(src, pos)
        found.append(len(key))
        return pos, key

    monkeypatch.setattr(tomllib._parser, "parse_key", counted)
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):
        pass
    finally:
        monkeypatch.undo()
    return max(found)


PIECES = st.sampled_from(
    [
        "a",
        ".",
        ".a",
        "=",
        "1",
        "\n",
        '"',
        "'",
        '"""',
        "'''",
        "\\",
        "#",
        "[",
        "]",
        "{",
        "}",
        ",",
        " ",
        "x = ",
        "\\\n",
        '\\"',
    ]
)


@given(st.lists(PIECES, max_size=60).map("".join))
def test_whatever_the_standard_reader_meets_was_counted(text):
    with pytest.MonkeyPatch.context() as patch:
        met = parts_of_keys(text, patch)
    assert met <= toml_text._longest_key(text)


def test_the_counter_of_the_test_counts(monkeypatch):
    assert parts_of_keys("x = 'a'\n[a.b.c]\nd.e.f.g = 1", monkeypatch) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = 0x" + "f" * 5000, "more than 64 bits"),
        ("a = [{ b = 9223372036854775808 }]", "more than 64 bits"),
        ("a = 1\ud800", "surrogate"),
        ("a = '" + "é" * LIMIT + "'", "at most 1048576 are read"),
        ("a", "Expected '='"),
    ],
)
def test_what_is_refused_says_why(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_toml(text, max_bytes=LIMIT)
    assert read_toml("a = [-9223372036854775808, 9223372036854775807]", max_bytes=LIMIT)


@pytest.mark.parametrize("unit", ['"""\n\\', '"a\\', "'a\n", '"""\\', "'''a", '"\\\n', '"', "#", "a.", '"".'])
def test_a_mebibyte_of_anything_is_counted(unit):
    """Would take hours if the count looked at what is left once for every letter."""
    assert toml_text._longest_key(unit * (LIMIT // len(unit))) >= 1
