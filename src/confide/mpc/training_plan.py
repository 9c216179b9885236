"""What is trained on shares, in public numbers: shapes, steps, and the whole numbers that stand for rates.

    paper        here                   paper     here
    eta          learning_rate          lambda    weight_decay
    B            batch                  mu        momentum

A step moves a weight by eta / B times a sum over the batch. The parties multiply by whole numbers for free and divide
by opening, so eta / B is taken as `factor` / 2^`shift`, and a weight is kept as its sum of steps at the scale
32 + `shift`: nothing is rounded from step to step, and one opening at the end of each divides it down to what the next
step multiplies with. What the rates are after that rounding is `Rates.learning_rate` and the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from confide.errors import UsageError
from confide.mpc.operations import MOST_ELEMENTS, SCALE

#: What the last layer's outputs are compared by; see `Task.loss`.
Loss = Literal["logistic", "squared"]

#: Most layers of a network, and most that one row or one layer may have.
MOST_LAYERS, MOST_WIDTH = 8, 1 << 16
#: eta / B and eta lambda are multiples of 2^-16; momentum is one of 2^-5.
MOST_SHIFT, MOMENTUM_BITS = 16, 5
#: A factor has this many bits if it can: a rate is then off by less than 1 %.
_FACTOR_BITS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rates of a training as the parties use them.

    Args:
        factor, shift: eta / B = factor / 2^shift, shift from 0 to 16.
        decay: eta lambda in units of 2^-(16 + shift).
        momentum: in units of 2^-5, 0 to 31.
    """

    factor: int
    shift: int
    decay: int = 0
    momentum: int = 0

    @staticmethod
    def of(*, learning_rate: float, batch: int, weight_decay: float = 0.0, momentum: float = 0.0) -> Rates:
        """Return the nearest rates that there are.

        Args:
            learning_rate: eta, on the mean over a batch, > 0.
            batch: rows of a step, >= 1.
            weight_decay: lambda, >= 0.
            momentum: 0 <= momentum < 1.

        Raises:
            UsageError: a rate is out of range, or too small for the grid.

        Example:
            >>> Rates.of(learning_rate=0.5, batch=128)
            Rates(factor=1, shift=8, decay=0, momentum=0)
        """
        if not (0 < learning_rate <= 1 << 10 and 0 <= weight_decay <= 1 << 10 and 0 <= momentum < 1 and batch >= 1):
            raise UsageError(
                f"Expected learning_rate={learning_rate} above 0, weight_decay={weight_decay} of at least 0, both at "
                f"most 1024, momentum={momentum} from 0 to below 1, and batch={batch} of at least 1"
            )
        wanted, shift = learning_rate / batch, 0
        while shift < MOST_SHIFT and (wanted < 1 << _FACTOR_BITS) and wanted != round(wanted):
            wanted, shift = 2 * wanted, shift + 1
        if (factor := round(wanted)) < 1:
            raise UsageError(
                f"Expected learning_rate={learning_rate} of at least batch / 2^17={batch / 2**17:.3g}; shares move by "
                "whole steps: take a larger one, or a smaller batch"
            )
        decay = round(learning_rate * weight_decay * 2.0 ** (SCALE + shift))
        if weight_decay and not decay:
            raise UsageError(
                f"Expected weight_decay={weight_decay} of at least {2.0**-17 / learning_rate:.3g} at this rate"
            )
        return Rates(factor=factor, shift=shift, decay=decay, momentum=min(31, round(momentum * (1 << MOMENTUM_BITS))))

    def learning_rate(self, batch: int) -> float:
        """Return eta as it is used."""
        return batch * self.factor / 2.0**self.shift

    @property
    def pull(self) -> float:
        """Return eta lambda as it is used: the share of a weight that a step takes away."""
        return self.decay / 2.0 ** (SCALE + self.shift)

    @property
    def inertia(self) -> float:
        """Return mu as it is used."""
        return self.momentum / 2.0**MOMENTUM_BITS

    @property
    def sum_scale(self) -> int:
        """Return the scale at which weights are summed up."""
        return 2 * SCALE + self.shift


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model and how it learns, in public numbers.

    Args:
        features: columns of a row, >= 1.
        hidden: units of each hidden layer, ReLU behind each; () for linear models.
        outputs: columns of the last layer: targets of "squared", classes of "logistic" (1 for two classes).
        loss: "logistic": each output's probability is sigmoid3(z) = relu(z + 1/2) - relu(z - 1/2), the line through
            (0, 1/2) of slope 1, cut at 0 and 1, in place of 1 / (1 + exp(-z)); several outputs are trained one against
            the rest. "squared": half the square of the difference. Both give the error p - y or z - y.
        rates: of a step.
        noise: whether every party adds noise of its own to the sum of each step. Then there are no biases: the last
            column of every row is 1 in its place, so that all that is summed has one grid.

    Raises:
        UsageError: a size is out of range.
    """

    features: int
    hidden: tuple[int, ...] = ()
    outputs: int = 1
    loss: Loss = "logistic"
    rates: Rates
    noise: bool = False

    def __post_init__(self) -> None:
        if len(self.hidden) >= MOST_LAYERS or not all(1 <= width <= MOST_WIDTH for width in self.widths):
            raise UsageError(f"Expected at most {MOST_LAYERS} layers of 1 to {MOST_WIDTH} columns, got {self.widths}")
        if any(a * b > MOST_ELEMENTS for a, b in pairwise(self.widths)):
            raise UsageError(f"Expected layers of at most 2^26 weights, got {self.widths}")
        if self.loss not in get_args(Loss):
            raise UsageError(f'Expected loss="{self.loss}" to be one of {", ".join(get_args(Loss))}')
        if self.noise and self.hidden:
            raise UsageError("Expected no hidden layers with noise; a row's gradient has no public bound behind them")

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the columns before the first layer and after each."""
        return (self.features, *self.hidden, self.outputs)

    @property
    def biases(self) -> bool:
        """Return whether layers have biases beside their weights."""
        return not self.noise

    @property
    def parameters(self) -> int:
        """Return how many numbers are learnt."""
        return sum(a * b + b * self.biases for a, b in pairwise(self.widths))
