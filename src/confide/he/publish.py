"""What a key's owner decrypted under CKKS, and how it may be shown to others.

A decrypted CKKS value is f(x) + e, where e depends on the secret key; who collects such values with their ciphertexts
solves for the key (Li and Micciancio). So decryption gives a `Decrypted`, which is the owner's; `publish` adds Gaussian
noise beside which e does not show, and its rows are counted per key. BFV results are exact, e is rounded away: there is
nothing to hide, and they may be shown as they are.

    symbol   here               meaning
    t        error              largest |e| in any output for every input in the box: a static bound
    n, Q     outputs, rows      numbers in a row; rows that may be published under one key
    g        grid               a power of two, t/128 < g <= t/64: values are rounded to multiples of it
    v        variance           of the discrete Gaussian that is added, in steps of g
    s        statistical_bits   16 unless the client says otherwise

Statement. Rounding to the grid moves an output by less than g/2, so computed and exact values differ by at most
D = floor(t/g + 1) steps. The divergence of two discrete Gaussians with a shift of D steps is D² / 2v (Canonne,
Kamath and Steinke, NeurIPS 2020, proposition 5), and those of all numbers published under a key add up, adaptively or
not, to at most Q n D² / 2v. With

    v = 12 Q n D² 2^s        the total is 2^-s / 24.

Then by Li, Micciancio, Schultz and Sorrell (CRYPTO 2022, the KL form of their theorem) what is published costs no more
than s bits of statistical security allow, beside the computational security of the scheme; and by Pinsker's inequality
nobody tells it from exact results plus the same noise with an advantage above 2^(-s/2) / sqrt(48), once and for all
under that key, however much is computed. It takes a server that follows the protocol (a forged reply can carry any
e), inputs in the box, and the bound t. The server works t out once, from plan and weights, before any query, and names
a power of two above it; it is proved up to the assumptions that the plan states, never estimated from data. The client
takes no less than what follows from the plan (`least_error`). What f(x) itself tells is not hidden.

At s = 16 the advantage is at most 2^-10.7 for all that one key ever shows; at s = 30 it is 2^-17.7, which needs plans
with 7 bits more. Statistical bits are not computational ones: no computing power adds to the chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from confide.crypto.noise import discrete_gaussian
from confide.crypto.random import Randomness
from confide.errors import KeysExpired, UsageError
from confide.model.graph import sigmoid
from confide.wire import Store

Matrix = NDArray[np.float64]

#: Largest standard deviation that publishing may add, where outputs are typically 1.
_LARGEST_NOISE = 2.0**-4

_FINER_BITS = 6  # how much finer than the error the grid is, so that rounding hardly adds to it
_MOST_STEPS = 2.0**61  # beyond every honest output, and the noise still fits an int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Publications:
    """What may be published under one key.

    Args:
        rows: Q, 1 to 2^20.
        statistical_bits: s, 8 to 40.
    """

    rows: int = 8
    statistical_bits: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= 1 << 20:
            raise UsageError(f"Expected rows={self.rows} from 1 to {1 << 20} under one key")
        if not 8 <= self.statistical_bits <= 40:
            raise UsageError(f"Expected statistical_bits={self.statistical_bits} from 8 to 40; 16 suits most uses")

    def __str__(self) -> str:
        return f"{self.rows}/{self.statistical_bits}"


@dataclass(frozen=True, slots=True)
class Flooding:
    """The noise that publishing adds, in units: outputs are typically 1.

    Args:
        grid: g, a power of two.
        variance: v, in steps of the grid.
    """

    grid: float
    variance: int

    @property
    def deviation(self) -> float:
        """Return the standard deviation of the noise, in units."""
        return math.sqrt(self.variance) * self.grid

    @property
    def shown(self) -> float:
        """Return the step to which published values are rounded at last: the largest power of two in a deviation."""
        return 2.0 ** math.floor(math.log2(self.deviation))


def flooding(error: float, *, outputs: int, allowed: Publications) -> Flooding:
    """Return the noise that lets all that is allowed be published under one key.

    Args:
        error: t, largest error of an output in units, above 0.
        outputs: n, numbers in a row.
        allowed: Q and s.

    Raises:
        UsageError: it would drown the outputs.
    """
    grid = 2.0 ** (math.floor(math.log2(error)) - _FINER_BITS)
    shift = math.floor(error / grid + 1)
    made = Flooding(grid, 12 * allowed.rows * outputs * shift**2 << allowed.statistical_bits)
    if made.deviation > _LARGEST_NOISE:
        more = math.ceil(math.log2(made.deviation / _LARGEST_NOISE))
        raise UsageError(
            f"Expected a plan with {more} more bits of precision to publish {allowed.rows} rows under one key; have "
            "the server raise precision_bits, or publish fewer rows under a key"
        )
    return made


class Decrypted:
    """What CKKS decryption gave: for the owner of the key. No repr, no pickle, no arithmetic.

    Args:
        normal: float64, shape (rows, outputs), in units; with noise that depends on the secret key.
        exponents: outputs are 2^e times that.
        error: bound of the noise, in units.
        ends_in_sigmoid: whether the model ends in a sigmoid.
    """

    __slots__ = ("_ends_in_sigmoid", "_error", "_exponents", "_normal")

    def __init__(self, normal: Matrix, exponents: NDArray[np.int64], error: float, *, ends_in_sigmoid: bool) -> None:
        self._normal = normal
        self._exponents = exponents
        self._error = error
        self._ends_in_sigmoid = ends_in_sigmoid

    def __repr__(self) -> str:
        return "Decrypted()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("what was decrypted is not pickled; publish it")

    def private(self) -> Matrix:
        """Return the outputs, shape (rows, outputs), for the owner of the key and nobody else."""
        return self._outputs(self._normal)

    def publish(self, allowed: Publications, rng: Randomness) -> Matrix:
        """Return the outputs with noise, shape (rows, outputs), to be shown to anybody.

        Args:
            allowed: under this key; the caller counts (`reserve`).
            rng: for the noise.

        Raises:
            UsageError: the noise would drown the outputs.
        """
        noise = flooding(self._error, outputs=self._normal.shape[1], allowed=allowed)
        steps = np.rint(np.clip(self._normal / noise.grid, -_MOST_STEPS, _MOST_STEPS)).astype(np.int64)
        steps += discrete_gaussian(noise.variance, steps.size, rng).reshape(steps.shape)
        return self._outputs(np.rint(steps * (noise.grid / noise.shown)) * noise.shown)

    def _outputs(self, normal: Matrix) -> Matrix:
        y = np.ldexp(normal, self._exponents)
        return sigmoid(y) if self._ends_in_sigmoid else y


# --- counting ---------------------------------------------------------------------------------------------------------


def _path(backend: str, key_id: str) -> str:
    return f"{backend}/published/{key_id}"


def may_publish(backend: str, key_id: str, store: Store, allowed: Publications) -> bool:
    """Return whether anything is left to publish under a key."""
    return _left(backend, key_id, store, allowed) > 0


def reserve(backend: str, key_id: str, *, rows: int, allowed: Publications, rng: Randomness) -> dict[str, bytes | None]:
    """Return what must be in the client's store before `rows` rows are asked for, so that a crash counts them too.

    It is an entry of its own: processes that share the store cannot overwrite each other's. Once it is there,
    `check_reserved` says whether all of them together are within the allowance.

    Raises:
        UsageError: more rows at once than one key allows.
    """
    if rows > allowed.rows:
        raise UsageError(f"Expected at most {allowed.rows} rows, the most that one key may publish; send fewer")
    return {f"{_path(backend, key_id)}/{rng.bytes(8).hex()}": f"{rows}/{allowed}".encode()}


def check_reserved(backend: str, key_id: str, store: Store, allowed: Publications) -> None:
    """Check, after a reservation was stored, that nothing went beyond the allowance; if so the rest is forfeited.

    Raises:
        KeysExpired: more rows than were left, or noise for another allowance before.
    """
    if _left(backend, key_id, store, allowed) < 0:
        raise KeysExpired(f"Expected keys under which fewer than {allowed.rows} rows were published; set up again")


def _left(backend: str, key_id: str, store: Store, allowed: Publications) -> int:
    """Return the rows that may still be published; less than none if any before had noise for another allowance."""
    used = 0
    for path in store.keys(_path(backend, key_id)):
        rows, _, under = (store.get(path) or b"0/").partition(b"/")
        if under.decode() != str(allowed):
            return -1
        used += int(rows)
    return allowed.rows - used
