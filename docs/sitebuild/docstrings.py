"""Docstrings on their way to autodoc: what is plain text there must not be markup here."""

from __future__ import annotations

import re

_KEPT = re.compile(r"(``.+?``|`[^`]+`|\*\*[^*\s][^*]*\*\*)")
_BULLET = re.compile(r"^\s*(?:[*-]|\d+\.) ")


def prepare(lines: list[str]) -> list[str]:
    """Return a docstring in Google's form with what reStructuredText would read as markup escaped.

    An indented block after a blank line, outside of every section, is a formula or a table: it stays as it is set.
    """
    out: list[str] = []
    literal = doctest = False
    for number, line in enumerate(lines):
        blank, indent = not line.strip(), len(line) - len(line.lstrip())
        if not blank and indent == 0:
            literal = False
        if line.lstrip().startswith(">>> "):
            doctest = True
        elif blank:
            doctest = False
        if not blank and indent >= 4 and not literal and number and not lines[number - 1].strip():
            before = next((one for one in reversed(out) if one.strip()), "")
            if before and not before.startswith((" ", "*", "-")):
                out += ["::", ""]
                literal = True
        if literal or doctest or blank:
            out.append(line)
            continue
        if _BULLET.match(line):
            if out and out[-1].strip() and not _in_list(out):
                out.append("")
            mark = _BULLET.match(line).group()  # type: ignore[union-attr]
            out.append(mark + escaped(line[len(mark) :]))
        else:
            out.append(escaped(line))
    return out


def _in_list(out: list[str]) -> bool:
    for line in reversed(out):
        if not line.strip():
            return False
        if _BULLET.match(line):
            return True
    return False


def escaped(line: str) -> str:
    """Return a line whose plain text has no markup; what stands in backticks or is bold stays."""
    pieces = _KEPT.split(line)
    for at in range(0, len(pieces), 2):
        text = pieces[at].replace("\\", "\\\\").replace("*", "\\*").replace("|", "\\|").replace("`", "\\`")
        pieces[at] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)
    for at in range(1, len(pieces), 2):  # code or bold that touches a letter would neither begin nor end
        if at + 1 < len(pieces) and re.match(r"[^\s'\")\]}>/:.,;!?-]", pieces[at + 1]):
            pieces[at] += "\\ "
        if re.search(r"[^\s'\"(\[{</:-]$", pieces[at - 1]):
            pieces[at] = "\\ " + pieces[at]
    return "".join(pieces)
