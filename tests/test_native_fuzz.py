"""The native evaluator on any bytes, under the sanitizers, and on another processor: native/fuzz.

A target is one function that takes bytes. libFuzzer drives it where clang has its runtime; random bytes do elsewhere.
`make fuzz` runs for longer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "native"
TARGETS = ("ckks", "residues", "shares")
#: What is fuzzed, and for how long: seconds of libFuzzer, and random inputs of each target.
SECONDS = int(os.environ.get("CONFIDE_FUZZ_SECONDS", "5"))
REPEATS = {"ckks": 100 * SECONDS, "residues": 10_000 * SECONDS, "shares": 400 * SECONDS}
SOURCES = [
    path
    for room in ("ckks", "mpc")
    for path in sorted((NATIVE / room).glob("*.cpp"))
    if not path.name.startswith("bind") and not path.stem.endswith("_test")
]
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DCONFIDE_SANITIZE")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wno-maybe-uninitialized", "-Wno-uninitialized")
#: Files of one instruction set and their options, as in CMakeLists.txt.
OPTIONS = {
    "ifma": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512ifma", "-mavx512bw", "-mavx512vbmi"),
    "avx2": ("-mavx2", "-mfma", "-maes"),
    "vaes": ("-mavx2", "-maes", "-mvaes"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-maes", "-mvaes"),
}


def compiled(folder: Path, source: Path, compiler: str, flags: tuple[str, ...]) -> Path:
    """Compile one file, without warnings on gcc."""
    made = folder / f"{source.parent.name}_{source.stem}.o"
    options = flags if "aarch64" in compiler else (*flags, *_options(source))
    command = [compiler, "-std=c++17", "-pthread", f"-I{NATIVE}", *options, "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return made


def _options(source: Path) -> tuple[str, ...]:
    return next((options for name, options in OPTIONS.items() if f"_{name}" in source.stem), ())


def built(folder: Path, compiler: str, *flags: str, link: tuple[str, ...] = ()) -> dict[str, Path]:
    """Return a program for each target."""
    sources = [*SOURCES, *(NATIVE / "fuzz" / f"{target}_fuzz.cpp" for target in TARGETS)]
    with ThreadPoolExecutor(2) as pool:
        objects = dict(
            zip(sources, pool.map(lambda source: compiled(folder, source, compiler, flags), sources), strict=True)
        )
    programs: dict[str, Path] = {}
    for target in TARGETS:
        programs[target] = folder / target
        own = objects[NATIVE / "fuzz" / f"{target}_fuzz.cpp"]
        parts = [own, *(objects[source] for source in SOURCES)]
        sanitize = [flag for flag in flags if flag.startswith("-fsanitize")]
        command = [compiler, "-pthread", *sanitize, *link, *map(str, parts), "-o", str(programs[target])]
        subprocess.run(command, check=True)
    return programs


def ran(program: Path, *arguments: str, before: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [*before, str(program), *arguments], capture_output=True, text=True, check=False, cwd=program.parent
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> dict[str, Path]:
    if not shutil.which("g++"):
        pytest.skip("no g++ on this machine")
    folder = tmp_path_factory.mktemp("gcc")
    return built(folder, "g++", "-g1", "-O1", *WARNINGS, "-Werror", "-DCONFIDE_DRIVER", *ADDRESS)


@pytest.mark.parametrize("target", TARGETS)
def test_random_bytes_under_the_sanitizers(sanitized, target):
    assert "agree" in ran(sanitized[target], str(REPEATS[target]), "1")


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clang")
    if not shutil.which("clang++"):
        pytest.skip("no clang on this machine; apt-get install clang")
    (folder / "probe.cpp").write_text(
        'extern "C" int LLVMFuzzerTestOneInput(const unsigned char *, unsigned long) { return 0; }'
    )
    probe = ["clang++", "-fsanitize=fuzzer,address,undefined", str(folder / "probe.cpp"), "-o", str(folder / "probe")]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no libFuzzer on this machine; apt-get install libclang-rt-dev")
    flags = ("-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all", "-DCONFIDE_SANITIZE")
    return built(folder, "clang++", "-g1", "-O1", *flags, link=("-fsanitize=fuzzer",))


@pytest.mark.parametrize("target", TARGETS)
def test_bytes_that_reach_new_code(fuzzers, target, tmp_path):
    """libFuzzer; an input that fails is left in the folder that its report names."""
    ran(fuzzers[target], f"-max_total_time={SECONDS}", "-max_len=400", "-timeout=60", str(tmp_path))


def test_threads_share_what_they_may(tmp_path):
    if not shutil.which("g++"):
        pytest.skip("no g++ on this machine")
    programs = built(tmp_path, "g++", "-g1", "-O1", "-DCONFIDE_DRIVER", "-DCONFIDE_SANITIZE", "-fsanitize=thread")
    quiet = ("setarch", "-R") if shutil.which("setarch") else ()  # the sanitizer wants addresses that do not move
    for target in TARGETS:
        assert "agree" in ran(programs[target], str(REPEATS[target] // 10), "2", before=quiet)


# --- another processor ------------------------------------------------------------------------------------------------

ARM = "aarch64-linux-gnu-g++"


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> dict[str, Path]:
    if not shutil.which(ARM):
        pytest.skip("no compiler for arm64; apt-get install g++-aarch64-linux-gnu")
    folder = tmp_path_factory.mktemp("arm")
    return built(folder, ARM, "-O2", *WARNINGS, "-Werror", "-DCONFIDE_DRIVER", link=("-static",))


def test_all_of_it_compiles_for_arm64(arm, tmp_path):
    for source in sorted(NATIVE.glob("*.cpp")):
        if source.name != "module.cpp":
            compiled(tmp_path, source, ARM, ("-O2", *WARNINGS))
    assert all(program.exists() for program in arm.values())


def test_arm64_computes_the_same(arm, sanitized):
    """The same programs on the same bytes give the same numbers, portable loops there, vectors here."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("nothing here runs arm64; apt-get install qemu-user")
    for target, repeats in (("ckks", "60"), ("residues", "2000"), ("shares", "100")):
        expected = ran(sanitized[target], repeats, "3")
        assert ran(arm[target], repeats, "3", before=(emulator,)) == expected
