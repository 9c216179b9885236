"""The house rules, each with a snippet that breaks it: a rule without teeth fails here too."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_ERROR, EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "confide"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LARGEST_FILE, LARGEST_BODY = 600, 80
BANNED_FILES = {"utils", "util", "common", "core", "base", "helpers", "helper", "manager", "misc"}
BANNED_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "random", "secrets"}
#: The one file that may name it, for each thing that only one place may touch.
RESERVED = {
    "np.random": "crypto/random.py",
    "numpy.random": "crypto/random.py",
    "os.urandom": "crypto/random.py",
    "os.environ": "cli/__init__.py",
    "os.getenv": "cli/__init__.py",
    "print": "cli/__init__.py",
    "sys.exit": "cli/__init__.py",
    "eval": "",
    "exec": "",
    "torch.load": "",
}
#: Reading a type is not drawing from it.
TYPES = {"np.random.Generator", "numpy.random.Generator"}


class Source:
    """One module: where it lies in the package, its text, its tree."""

    def __init__(self, place: str, text: str) -> None:
        self.place, self.text, self.tree = place, text, ast.parse(text)

    def walk(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


#: Scripts that run in the environments of other people's frameworks: nothing here imports them, nor they anything here.
GUESTS = PACKAGE / "compare" / "peers" / "runners"


def read(path: Path) -> Source:
    return Source(path.relative_to(PACKAGE).as_posix(), path.read_text())


SOURCES = [read(path) for path in sorted(PACKAGE.rglob("*.py")) if GUESTS not in path.parents]

Rule = Callable[[Source], Iterator[tuple[int, str]]]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def dotted(node: ast.AST) -> str:
    """Return "a.b.c" for a name or an attribute of one, else ""."""
    if isinstance(node, ast.Attribute):
        return f"{stem}.{node.attr}" if (stem := dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import among `nodes`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


def package_of(module: str) -> str:
    return module.partition(".")[0]


def public(name: str) -> bool:
    return not name.startswith("_")


# --- the rules --------------------------------------------------------------------------------------------------------


def file_is_small(source: Source) -> Iterator[tuple[int, str]]:
    if (lines := source.text.count("\n")) > LARGEST_FILE:
        yield 1, f"{lines} lines, more than {LARGEST_FILE}: split it by idea"


def functions_are_short(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk(*FUNCTIONS):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        if lines > LARGEST_BODY:
            yield node.lineno, f"{node.name} has {lines} lines, more than {LARGEST_BODY}"


def file_name_says_something(source: Source) -> Iterator[tuple[int, str]]:
    for part in Path(source.place).with_suffix("").parts:
        if part in BANNED_FILES:
            yield 1, f"{part} says nothing about what is inside"


def imports_nothing_banned(source: Source) -> Iterator[tuple[int, str]]:
    for line, name in imported(ast.walk(source.tree)):
        if package_of(name) in BANNED_IMPORTS:
            yield line, f"imports {name}"


def touches_nothing_reserved(source: Source) -> Iterator[tuple[int, str]]:
    types = {id(node.value) for node in source.walk(ast.Attribute) if dotted(node) in TYPES}
    for node in source.walk(ast.Attribute, ast.Name):
        name = dotted(node)
        if RESERVED.get(name, source.place) != source.place and id(node) not in types:
            yield node.lineno, f"{name} belongs to {RESERVED[name] or 'nobody'}"


def nothing_is_left_for_later(source: Source) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := re.search(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b", line):
            yield number, found[0]


def module_holds_no_state(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk(ast.Global):
        yield node.lineno, "global"
    for node in source.tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = dotted(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        read_only = isinstance(node, ast.AnnAssign) and re.match(
            r"(Mapping|Sequence|Final|frozenset|tuple)\b", ast.unparse(node.annotation)
        )
        mutable = isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
        made = isinstance(node.value, ast.Call) and dotted(node.value.func).rpartition(".")[2]
        if (
            mutable or made in {"list", "dict", "set", "defaultdict", "OrderedDict", "Counter", "deque", "bytearray"}
        ) and (target != "__all__" and not read_only):
            yield node.lineno, f"{target} can be changed: annotate it as Mapping or Sequence, or use a tuple"


def imports_stand_at_the_top(source: Source) -> Iterator[tuple[int, str]]:
    for function in source.walk(*FUNCTIONS):
        for line, name in imported(ast.walk(function)):
            own_verb = source.place.startswith("cli/") and package_of(name) == "confide"  # a verb loads what it needs
            if package_of(name) not in OPTIONAL and not needs_an_extra(name) and not own_verb:
                yield line, f"imports {name} inside a function, and it is no extra"


def no_chain_of_super(source: Source) -> Iterator[tuple[int, str]]:
    foreign = {
        alias.asname or alias.name
        for node in source.walk(ast.ImportFrom)
        for alias in node.names
        if not (node.module or "").startswith("confide")
    }
    allowed = {
        id(call)
        for node in source.walk(ast.ClassDef)
        for base in map(dotted, node.bases)
        if base.partition(".")[0] in foreign or re.search(r"(Error|Exception|Aborted)$", base)
        for call in ast.walk(node)
    }
    for node in source.walk(ast.Call):
        if dotted(node.func) == "super" and id(node) not in allowed:
            yield node.lineno, "super(): wrap instead of inheriting; only errors and other libraries' classes go up"


def new_names_are_explained(source: Source) -> Iterator[tuple[int, str]]:
    if not ast.get_docstring(source.tree):
        yield 1, "the module has no docstring"
    for node in source.tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and public(node.name) and not ast.get_docstring(node):
            yield node.lineno, f"{node.name} has no docstring"
        if isinstance(node, ast.ClassDef) and public(node.name):
            for method in filter(lambda part: isinstance(part, FUNCTIONS), node.body):
                if public(method.name) and not ast.get_docstring(method) and method.name not in EXPLAINED:
                    yield method.lineno, f"{node.name}.{method.name} has no docstring"


#: Where a key of SEAL's becomes bytes for its owner's store: nowhere else does our code see what it holds.
KEEPERS = {"he/enrolment.py", "he/sum_keys.py", "he/paillier.py"}


def secret_keys_stay_with_their_library(source: Source) -> Iterator[tuple[int, str]]:
    own = {
        id(node)
        for outer in source.walk(ast.ClassDef)
        if outer.name == "SecretKey"
        for method in outer.body
        if isinstance(method, FUNCTIONS) and method.name not in {"__init__", "to_bytes"}
        for node in ast.walk(method)
    }
    for node in source.walk(ast.Attribute):
        owner = dotted(node.value).rpartition(".")[2]
        read = node.attr == "to_bytes" and (owner.endswith("secret") or (id(node) in own and owner == "self"))
        if (read and source.place not in KEEPERS) or (node.attr == "_value" and id(node) in own):
            yield node.lineno, f"{dotted(node)} reads a secret key: leave it to SEAL's encryptor and decryptor"


#: Methods that some docstring explains: an override of one says nothing new.
EXPLAINED = {
    method.name
    for source in SOURCES
    for node in source.walk(ast.ClassDef)
    for method in node.body
    if isinstance(method, FUNCTIONS) and ast.get_docstring(method)
}

LONG = "def f():\n" + "    x = 1\n" * (LARGEST_BODY + 1)
TEETH: list[tuple[Rule, str, str]] = [
    (file_is_small, "wire.py", "x = 1\n" * (LARGEST_FILE + 1)),
    (functions_are_short, "wire.py", LONG),
    (file_name_says_something, "crypto/utils.py", ""),
    (imports_nothing_banned, "wire.py", "import pickle"),
    (imports_nothing_banned, "wire.py", "from random import choice"),
    (touches_nothing_reserved, "wire.py", "import numpy as np\nx = np.random.normal()"),
    (touches_nothing_reserved, "wire.py", "import os\ndef f(): return os.environ['HOME']"),
    (touches_nothing_reserved, "wire.py", "print(1)"),
    (nothing_is_left_for_later, "wire.py", "# TODO"),
    (module_holds_no_state, "wire.py", "CACHE = {}"),
    (module_holds_no_state, "wire.py", "def f():\n    global x\n    x = 1"),
    (imports_stand_at_the_top, "wire.py", "def f():\n    import json"),
    (no_chain_of_super, "wire.py", "class A(B):\n    def f(self):\n        super().f()"),
    (secret_keys_stay_with_their_library, "he/linear.py", "def f(secret):\n    return secret.to_bytes()"),
    (secret_keys_stay_with_their_library, "he/seal.py", "class SecretKey:\n    def f(self): return self.to_bytes()"),
    (secret_keys_stay_with_their_library, "he/seal.py", "class SecretKey:\n    def f(self): return self._value.data()"),
    (new_names_are_explained, "wire.py", '"""Text."""\ndef f(): ...'),
    (new_names_are_explained, "wire.py", '"""Text."""\nclass A:\n    """Text."""\n    def unheard_of(self): ...'),
]


# --- what is installed with what --------------------------------------------------------------------------------------


def required(extra: str | None) -> set[str]:
    """Return the distributions that `extra` (None: the light client) asks for, extras of confide itself resolved."""
    project = PYPROJECT["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    names: set[str] = set()
    for line in lines:
        if inner := re.match(r"confide\[(.*)\]", line):
            names |= set().union(*(required(part) for part in inner[1].split(",")))
        else:
            names.add(re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-"))
    return names


def modules_of(distributions: set[str]) -> set[str]:
    """Return the top-level import names of `distributions`."""
    return {
        module
        for module, providers in importlib.metadata.packages_distributions().items()
        if distributions & {name.lower().replace("_", "-") for name in providers}
    }


#: Distributions of environments of their own, and what they are imported as; nothing imports the file that names them.
ELSEWHERE = {"flwr": "flwr"}

LIGHT = required(None)
OPTIONAL = modules_of(set().union(*map(required, PYPROJECT["project"]["optional-dependencies"])) - LIGHT)
OPTIONAL |= set(ELSEWHERE.values())


def needs_an_extra(module: str) -> bool:
    """Return True if `module` of confide imports a package of an extra at its top."""
    place = module.replace(".", "/").removeprefix("confide/")
    return any(
        source.place in (f"{place}.py", f"{place}/__init__.py")
        and any(package_of(name) in OPTIONAL for _, name in imported(source.tree.body))
        for source in SOURCES
    )


IMPORTED = {(source.place, package_of(name)) for source in SOURCES for _, name in imported(ast.walk(source.tree))}


def test_every_third_party_import_is_declared():
    declared = modules_of(set().union(LIGHT, *map(required, PYPROJECT["project"]["optional-dependencies"])))
    known = declared | sys.stdlib_module_names | {"confide", *ELSEWHERE.values()}
    assert not {(place, package) for place, package in IMPORTED if package not in known}


#: Wanted, though no line imports them.
WANTED = {
    "httptools": "uvicorn parses with it",
}


def test_every_dependency_is_used():
    packages = {package for _, package in IMPORTED}
    extras = set(PYPROJECT["project"]["optional-dependencies"]) - {"dev"}
    distributions = LIGHT.union(*map(required, extras)) - set(WANTED)
    assert not {name for name in distributions if not (modules_of({name}) | {ELSEWHERE.get(name)}) & packages}


def test_the_package_imports_without_any_extra():
    """Blocks every optional package, then imports what the light client promises."""
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"{{name}} is not part of the light client", name=name)
sys.meta_path.insert(0, Absent())
import confide
for name in getattr(confide, "__all__", ()):
    getattr(confide, name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=ENV)
    assert done.returncode == 0, done.stderr


ENV = {"PYTHONPATH": str(PACKAGE.parent), "PATH": ""}


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in TEETH), ids=lambda rule: rule.__name__)
def test_the_source_keeps(rule: Rule):
    offences = [f"{source.place}:{line}: {text}" for source in SOURCES for line, text in rule(source)]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    "rule",
    [
        file_is_small,
        functions_are_short,
        file_name_says_something,
        imports_nothing_banned,
        nothing_is_left_for_later,
        module_holds_no_state,
    ],
    ids=lambda rule: rule.__name__,
)
def test_scripts_of_other_environments_keep_what_they_can(rule: Rule):
    scripts = [read(path) for path in sorted(GUESTS.glob("*.py"))]
    assert len(scripts) > 5
    assert not [f"{script.place}:{line}: {text}" for script in scripts for line, text in rule(script)]
    assert not [script.place for script in scripts if "confide" in {name for _, name in imported(script.walk(ast.AST))}]


@pytest.mark.parametrize(("rule", "place", "text"), TEETH, ids=lambda value: getattr(value, "__name__", ""))
def test_the_rule_has_teeth(rule: Rule, place: str, text: str):
    assert list(rule(Source(place, text)))


def test_native_files_are_small():
    for path in (ROOT / "native").rglob("*.?pp"):
        assert path.read_text().count("\n") <= LARGEST_FILE, path.name


def lint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(folder)
    return lint_imports(config_filename="pyproject.toml", no_cache=True)


def test_imports_run_downwards(monkeypatch):
    assert lint(ROOT, monkeypatch) == EXIT_STATUS_SUCCESS


def test_an_import_that_runs_upwards_is_noticed(tmp_path, monkeypatch):
    house = tmp_path / "house"
    for room in {source.place.partition("/")[0].removesuffix(".py") for source in SOURCES} - {"__init__", "__main__"}:
        (house / room).mkdir(parents=True)
        (house / room / "__init__.py").touch()
    (house / "__init__.py").touch()
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")[2].replace('"confide"', '"house"')
    (tmp_path / "pyproject.toml").write_text("[tool.importlinter]" + settings)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert lint(tmp_path, monkeypatch) == EXIT_STATUS_SUCCESS
    (house / "crypto" / "__init__.py").write_text("import house.wire")
    assert lint(tmp_path, monkeypatch) == EXIT_STATUS_ERROR


def test_public_names_are_sorted_and_exist():
    import confide

    names = list(getattr(confide, "__all__", ()))
    assert names == sorted(names)
    assert all(hasattr(confide, name) for name in names)


def test_tracked_files_name_no_machine_and_no_registry():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing is tracked")
    own = re.compile(
        r"/(wor[k]|roo[t]|hom[e])/\w|/tm[p]/\w|\bpyp[i]\.org|pythonhoste[d]|npmj[s]\.|download\.pytorc[h]|/op[t]/\w"
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if not path.is_file() or path.suffix in {".png", ".npz", ".onnx", ".bin", ".dat"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            assert not own.search(line), f"{name}:{number}: {own.search(line)[0]}"
