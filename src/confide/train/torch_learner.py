"""Local training of any `nn.Module`.

One module is resident and all silos of the process train it in turn: a round costs a silo its batches, and one copy of
the parameters in and out. What of the module travels is decided in `torch_state`.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from confide.crypto.random import public_stream
from confide.errors import DataError, ModelError, ProtocolError, UsageError
from confide.train.learner import Learner, staged
from confide.train.local import Silo
from confide.train.sections import TrainSection
from confide.train.torch_state import Resident, tensor_of, vector_of
from confide.wire import Array, Store, decode, encode

Matrix = NDArray[np.float64]

#: (what the module returns for a batch, the batch's y) -> the mean loss.
Loss = Callable[[Tensor, Tensor], Tensor]

#: Where a silo keeps the values that do not travel.
_PRIVATE = "torch/private"


class TorchLearner(Learner[nn.Module]):
    """Gradient descent in batches on an `nn.Module`.

    The optimiser starts afresh in every round. The vectors are float64,
    which holds every value of a narrower module exactly.

    Args:
        module: the public starting point; it is copied.
        train: local_steps (passes over the records), learning_rate, weight_decay, and proximal for fedprox.
        loss: mean loss of a batch, from what the module returns and y.
        batch_size: records of a step, the last step of a pass takes the rest; None takes all at once.
        optimiser: "sgd", or "adamw" with torch's other settings.
        momentum: of sgd, 0 <= momentum < 1; it starts at 0 in every round.
        trained: patterns (as of file names) of the parameters to train; all others are frozen and never travel.
        private: patterns of parameters and buffers (statistics) that each silo trains for itself; they stay there.
        device: "cpu", "cuda" ...
        seed: public; of the order of batches and of dropout.
    """

    def __init__(
        self,
        module: nn.Module,
        train: TrainSection,
        *,
        loss: Loss = functional.cross_entropy,
        batch_size: int | None = None,
        optimiser: Literal["sgd", "adamw"] = "sgd",
        momentum: float = 0.0,
        trained: Sequence[str] = ("*",),
        private: Sequence[str] = (),
        device: str = "cpu",
        seed: int = 1,
    ) -> None:
        if (batch_size is not None and batch_size < 1) or not 0 <= momentum < 1:
            raise UsageError(
                f"Expected batch_size={batch_size} of 1 or more, and momentum={momentum} from 0 to below 1"
            )
        if optimiser not in ("sgd", "adamw") or (momentum and optimiser != "sgd"):
            raise UsageError(f'Expected optimiser={optimiser!r} to be "sgd" or "adamw", momentum with "sgd" only')
        self._train, self._loss, self._batch_size, self._seed = train, loss, batch_size, seed
        self._optimiser, self._momentum = optimiser, momentum
        self._proximal = train.proximal if train.algorithm == "fedprox" else 0.0
        self._device = torch.device(device)
        self._template = copy.deepcopy(module).to(self._device).eval()
        self._resident = Resident(copy.deepcopy(self._template), trained, private)
        self.start = vector_of(self._resident.sent)
        self.statistics = self._resident.buffer_count
        self._own = vector_of(self._resident.own)
        self.kept = (_PRIVATE,) if len(self._own) else ()

    def travel(self, silo: Silo) -> Matrix | float:
        if self._optimiser != "sgd" or self._momentum:
            raise UsageError("Expected plain sgd without momentum for scaffold, whose variates are mean gradients")
        steps = self._train.local_steps * math.ceil(len(silo.x) / (self._batch_size or len(silo.x)))
        moved = np.full_like(self.start, self._train.learning_rate * steps)
        moved[: self._resident.buffer_count] = math.inf
        return moved

    def model(self, parameters: Matrix) -> nn.Module:
        """Return a module of its own with these parameters, in evaluation mode; what does not travel is as at first."""
        return self._made(parameters, self._own)

    def personal(self, parameters: Matrix, store: Store) -> nn.Module:
        return self._made(parameters, self._kept(store))

    @torch.no_grad()
    def _made(self, sent: Matrix, own: Matrix) -> nn.Module:
        module = copy.deepcopy(self._template)
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        values = tensor_of(np.concatenate([sent, own]))
        for part, place in zip(self._resident.parts, self._resident.places, strict=True):
            state[part.name].copy_(values[place].view(part.tensor.shape))
        return module

    def _kept(self, store: Store) -> Matrix:
        """Return what a silo keeps, the starting point before its first round."""
        body = store.get(_PRIVATE) if self.kept else None
        if body is None:
            return self._own
        try:
            return decode(body, Array, max_bytes=8 * len(self._own) + 64).numpy("float64", self._own.shape)
        except ProtocolError:
            raise ModelError("Expected a store with the private part of this model; take an empty one") from None

    def change(
        self,
        parameters: Matrix,
        silo: Silo,
        store: Store,
        *,
        number: int,
        shift: Matrix | float = 0.0,
        begin: Matrix | None = None,
    ) -> Matrix:
        if not len(silo.x):
            raise DataError(f"Expected at least one record at {silo.name} to train on")
        resident = self._resident
        first, last = resident.buffer_count, resident.sent_count
        with torch.no_grad():
            resident.load(parameters if begin is None else begin, self._kept(store))
            before = resident.sent.clone()
            anchor = before if begin is None else tensor_of(parameters).to(before)
            moved = None
            if isinstance(shift, np.ndarray):
                moved = tensor_of(shift[first:]).to(before)
        try:
            with self._seeded(silo, number):
                self.descend(silo, number, anchor[first:], moved)
        except Exception as error:  # the module's, the loss's or torch's own
            error.add_note(f"while {silo.name} trained in round {number}")
            raise
        with torch.no_grad():
            resident.collect()
            if self.kept:
                store.commit({staged(_PRIVATE): encode(Array.of(vector_of(resident.own)))})
            return vector_of(resident.flat[:last] - before)

    def order(self, silo: Silo, number: int) -> Iterator[NDArray[np.int64]]:
        """Yield the order of the records in each pass of round `number`; public, so that a run can be repeated."""
        stream = public_stream(self._seed, f"batches of {silo.name!r} in round {number}")
        for _ in range(self._train.local_steps):
            yield stream.permutation(len(silo.x))

    def descend(self, silo: Silo, number: int, anchor: Tensor, shift: Tensor | None) -> None:
        """Take the silo's steps of round `number` on the resident module.

        Args:
            anchor: where the proximal term pulls the parameters that travel to.
            shift: added to their gradients.
        """
        resident, size = self._resident, self._batch_size or len(silo.x)
        module, gradient, weights = resident.module, resident.gradient, resident.trained
        common, common_gradient = weights[: len(anchor)], gradient[: len(anchor)]
        step = self._stepper(weights, gradient)
        for places in self.order(silo, number):
            for at in range(0, len(places), size):
                rows = places[at : at + size]
                gradient.zero_()
                self._loss(module(self._batch(silo.x[rows])), self._batch(silo.y[rows])).backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    if self._proximal:
                        common_gradient.add_(common - anchor, alpha=self._proximal)
                    if shift is not None:
                        common_gradient.add_(shift)
                    step()

    def _stepper(self, weights: Tensor, gradient: Tensor) -> Callable[[], object]:
        """Return one step of a fresh optimiser on the flat tensors."""
        rate, decay, momentum = self._train.learning_rate, self._train.weight_decay, self._momentum
        if self._optimiser == "adamw":
            flat = nn.Parameter(weights)
            flat.grad = gradient
            return torch.optim.AdamW([flat], lr=rate, weight_decay=decay).step  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        velocity = torch.zeros_like(gradient) if momentum else gradient

        def step() -> None:
            if decay:
                gradient.add_(weights, alpha=decay)
            if momentum:
                velocity.mul_(momentum).add_(gradient)
            weights.sub_(velocity, alpha=rate)

        return step

    def _batch(self, rows: NDArray[Any]) -> Tensor:
        """Return rows on the device; floats as wide as the module's, whole numbers as they are."""
        batch = tensor_of(rows)
        return batch.to(self._device, self._resident.flat.dtype if batch.is_floating_point() else batch.dtype)

    @contextmanager
    def _seeded(self, silo: Silo, number: int) -> Generator[None]:
        """Draw dropout and the like from the public seed, and leave torch's generator as it was."""
        generator = torch.default_generator
        if self._device.type == "cuda":
            generator = torch.cuda.default_generators[self._resident.flat.device.index]
        text = f"confide torch\0{self._seed}\0{silo.name!r}\0{number}"
        state = generator.get_state()
        generator.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True))
        try:
            yield
        finally:
            generator.set_state(state)


@torch.no_grad()
def outputs(module: nn.Module, x: NDArray[Any], *, batch_size: int = 1024) -> Matrix:
    """Return what `module`, in evaluation mode, gives for `x`, float64, shape (n, ...)."""
    state = [*module.parameters(), *module.buffers()]
    device, floating = state[0].device, next(tensor.dtype for tensor in state if tensor.is_floating_point())
    mode = module.training
    module.eval()
    found: list[Matrix] = []
    for at in range(0, len(x), batch_size):
        batch = tensor_of(np.array(x[at : at + batch_size]))
        found.append(vector_of(module(batch.to(device, floating if batch.is_floating_point() else batch.dtype))))
    module.train(mode)
    return np.concatenate(found)
