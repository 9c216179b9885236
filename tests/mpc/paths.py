"""The engines of the kernels on shares: the numpy twins, and native code with each instruction set of this machine."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

try:
    from confide._native import mpc as native
except ImportError:
    native = None

PATHS = ("portable", "avx2", "vaes", "avx512")
here = [path for path in PATHS if native is not None and native.runs_here(path)]


class Forced:
    """The native kernels with one instruction set, as the seams call them."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: getattr(native, name)(*arguments, path=self._path)


def engines(twin: ModuleType) -> list[Any]:
    """Return the parameters of a test that runs on every engine; one that is not here is skipped by name."""
    return [
        pytest.param(twin, id="numpy"),
        *(
            pytest.param(Forced(path), id=path, marks=pytest.mark.skipif(path not in here, reason=f"no {path} here"))
            for path in PATHS
        ),
    ]
