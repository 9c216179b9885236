"""The compiled kernels (native/): call them through the rooms, which check the arguments."""

from typing import Any

from numpy.typing import NDArray

def add_words(acc: NDArray[Any], words: NDArray[Any], negate: bool) -> None: ...
def pack(words: NDArray[Any], bits: int) -> bytes: ...
def unpack(data: bytes, bits: int, count: int) -> NDArray[Any]: ...
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

class IntegerMap:
    def __init__(
        self, inputs: int, outputs: int, groups: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
    ) -> None: ...
    def sums(
        self,
        residues: NDArray[Any],
        biases: NDArray[Any],
        primes: list[int],
        out: NDArray[Any],
        threads: int,
        path: str = "",
    ) -> None: ...
