"""Fill a manifest template: the same words and files give the same manifest.

python3 render.py confide.manifest.template trusted.toml --python /usr/bin/python3.11 --stdlib /usr/lib/python3.11 \
        --site /srv/confide/site --model /srv/model.confide > confide.manifest.jinja
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

WORDS = {
    "python": "/usr/bin/python3.11",
    "stdlib": "/usr/lib/python3.11",
    "site": "/srv/confide/site",
    "model": "/srv/model.confide",
    "size": "4G",
    "threads": "4",
    "product": "1",
    "svn": "1",
}
FORMS = {"size": r"[1-9][0-9]*[MG]", "threads": r"[1-9][0-9]?", "product": r"[0-9]{1,5}", "svn": r"[0-9]{1,5}"}


def render(template: str, trusted: str, words: dict[str, str]) -> str:
    """Return `template` with `words` and the lines of `trusted` filled in; whatever stays empty is an error."""
    for name, word in words.items():
        if not re.fullmatch(FORMS.get(name, r"/[A-Za-z0-9_./+-]+"), word):
            raise SystemExit(f"render.py: --{name} {word!r} cannot stand in a manifest")
    text = "\n".join(line for line in template.splitlines() if not line.startswith("#")) + "\n"
    filled = text
    for name, word in words.items():
        filled = filled.replace(f"@{name.upper()}@", word)
    filled = filled.replace("@TRUSTED@\n", gramine_files() + trusted)
    if left := re.findall(r"@[A-Z]+@", filled):
        raise SystemExit(f"render.py: nothing fills {', '.join(left)}")
    return filled


def gramine_files() -> str:
    """Return the lines for what Gramine and the C library bring; gramine-manifest hashes them."""
    places = ("{{ gramine.libos }}", "{{ gramine.runtimedir() }}/", "{{ arch_libdir }}/", "/usr{{ arch_libdir }}/")
    return "".join(f'  "file:{place}",\n' for place in places)


def main() -> None:
    """Read the words from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("template", type=Path)
    parser.add_argument("trusted", type=Path)
    for name, word in WORDS.items():
        parser.add_argument(f"--{name}", default=word, help=f"default {word}")
    given = vars(parser.parse_args())
    template, trusted = given.pop("template"), given.pop("trusted")
    sys.stdout.write(render(template.read_text(), trusted.read_text(), given))


if __name__ == "__main__":
    main()
