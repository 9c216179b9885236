"""The compiled kernels (native/): call them through the rooms, which check the arguments."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

def add_words(acc: NDArray[Any], words: NDArray[Any], negate: bool) -> None: ...
def pack(words: NDArray[Any], bits: int) -> bytes: ...
def unpack(data: bytes, bits: int, count: int) -> NDArray[Any]: ...
def pack_residues(residues: NDArray[Any], primes: Sequence[int]) -> bytes: ...
def unpack_residues(body: NDArray[Any], primes: Sequence[int], rows: int, count: int) -> NDArray[Any] | None: ...

class Products:
    def __init__(self, primes: Sequence[int], degree: int) -> None: ...
    def forward(self, polynomial: NDArray[Any]) -> NDArray[Any]: ...
    def multiply(
        self, query: NDArray[Any], weights: NDArray[Any], zero: NDArray[Any] | None = None
    ) -> NDArray[Any] | None: ...

def project(acc: NDArray[Any], words: NDArray[Any], choices: NDArray[Any]) -> None: ...
def histograms(
    codes: NDArray[Any],
    gradients: NDArray[Any],
    slots: NDArray[Any],
    wanted: NDArray[Any],
    starts: NDArray[Any],
    found: NDArray[Any],
) -> None: ...
def route(
    codes: NDArray[Any], slots: NDArray[Any], column: NDArray[Any], goes_left: NDArray[Any], next: NDArray[Any]
) -> None: ...
def best_splits(
    sums: NDArray[Any],
    whole: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    ridge: float,
    least: float,
    best: NDArray[Any],
    gain: NDArray[Any],
) -> None: ...
