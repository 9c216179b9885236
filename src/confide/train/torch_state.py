"""Which part of an `nn.Module` travels, and its state as one flat tensor.

The order in the flat tensor:

    floating buffers that travel | parameters that travel | private parameters | private floating buffers
    '------------------ what is sent -------------------'   '--------- kept in the silo's store ---------'
                                   '------------ what is trained ------------'

so loading a round's model, a step of an optimiser, a proximal term and the change are one operation each, whatever the
number of layers. Other buffers (counters, masks, statistics of frozen layers) start every round as the module had them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from confide.errors import ModelError, nearest

Matrix = NDArray[np.float64]


def tensor_of(values: NDArray[Any]) -> Tensor:
    """Return `values` as a tensor that must not be written to; torch shares memory with writable arrays only."""
    shared = cast("Callable[[NDArray[Any]], Tensor]", torch.from_numpy)  # pyright: ignore[reportUnknownMemberType]
    return shared(values if values.flags.writeable else values.copy())


def vector_of(tensor: Tensor) -> Matrix:
    """Return a tensor as float64 in memory of its own; exact."""
    return tensor.detach().to("cpu", torch.float64, copy=True).numpy()


def matching(patterns: Sequence[str], names: Sequence[str], *, of: str = "a name in the module") -> set[str]:
    """Return which of `names` match a pattern, written as for file names.

    Raises:
        ModelError: a pattern matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        own = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not own:
            raise ModelError(f"Expected {pattern!r} to match {of}{nearest(pattern, names)}")
        found |= own
    return found


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a module's state that is no constant: its name, whether it travels, whether it is trained."""

    name: str
    tensor: Tensor
    travels: bool
    trained: bool


def _parts(module: nn.Module, trained: Sequence[str], private: Sequence[str]) -> list[Part]:
    """Return what of `module` is not constant, in the order of the flat tensor; freeze the parameters that are."""
    persistent = module.state_dict().keys()
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    chosen, kept = matching(trained, list(tensors)), matching(private, list(tensors))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in chosen)
    found: list[Part] = []
    for name, tensor in tensors.items():
        owner = module.get_submodule(name.rpartition(".")[0])
        own = list(owner.parameters(recurse=False))
        if isinstance(tensor, nn.Parameter):
            changes = tensor.requires_grad
        else:  # statistics follow their layer: those of a frozen one stay
            learns = any(parameter.requires_grad for parameter in own) if own else name in chosen
            changes = tensor.is_floating_point() and name in persistent and learns
            if not learns and getattr(owner, "track_running_stats", False):
                owner.eval()
        if changes:
            found.append(Part(name, tensor, name not in kept, isinstance(tensor, nn.Parameter)))
    if not any(part.trained for part in found) or not any(part.travels for part in found):
        raise ModelError("Expected parameters to train and parameters that travel; widen trained=, narrow private=")
    if len(kinds := {part.tensor.dtype for part in found}) > 1 or not found[0].tensor.is_floating_point():
        raise ModelError(f"Expected parameters of one floating type, got {kinds}; convert with module.float()")
    return sorted(found, key=lambda part: (not part.travels, part.trained == part.travels))


class Resident:
    """A module whose state lies in one flat tensor.

    Args:
        module: becomes the resident; on its device.
        trained, private: patterns of names.
    """

    def __init__(self, module: nn.Module, trained: Sequence[str], private: Sequence[str]) -> None:
        self.module = module.train()
        self.parts = _parts(module, trained, private)
        counts = [part.tensor.numel() for part in self.parts]
        ends = np.cumsum(counts).tolist()
        self.places = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
        self.sent_count = sum(part.tensor.numel() for part in self.parts if part.travels)
        self.buffer_count = sum(part.tensor.numel() for part in self.parts if part.travels and not part.trained)
        trained_count = sum(part.tensor.numel() for part in self.parts if part.trained)
        self.flat = torch.cat([part.tensor.detach().reshape(-1) for part in self.parts])
        self.sent, self.own = self.flat[: self.sent_count], self.flat[self.sent_count :]
        self.trained = self.flat[self.buffer_count : self.buffer_count + trained_count]
        self.gradient = torch.zeros_like(self.trained)
        views = [self._alias(part, place) for part, place in zip(self.parts, self.places, strict=True)]
        self._buffers = [view for part, view in zip(self.parts, views, strict=True) if not part.trained]
        names = {part.name for part in self.parts}
        self._constant = [
            (*self._home(name), buffer.detach().clone()) for name, buffer in module.named_buffers() if name not in names
        ]

    def _home(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self.module.get_submodule(path), leaf

    def _alias(self, part: Part, place: slice) -> tuple[nn.Module, str, Tensor]:
        """Let the module's tensor be a view of the flat one, and a parameter's gradient a view of the flat gradient."""
        owner, leaf = self._home(part.name)
        view = self.flat[place].view(part.tensor.shape)
        if isinstance(part.tensor, nn.Parameter):
            at = place.start - self.buffer_count
            part.tensor.data = view
            part.tensor.grad = self.gradient[at : at + part.tensor.numel()].view(part.tensor.shape)
            return owner, leaf, part.tensor
        setattr(owner, leaf, view)
        return owner, leaf, view

    def load(self, sent: Matrix, own: Matrix) -> None:
        """Take over what travels and what a silo keeps; everything else becomes what it was at first."""
        self.sent.copy_(tensor_of(sent))
        self.own.copy_(tensor_of(own))
        for owner, leaf, made in self._constant:
            setattr(owner, leaf, made.clone())

    def collect(self) -> None:
        """Bring back what the module put beside the flat tensor: a buffer may have been assigned to, not written to."""
        for owner, leaf, view in self._buffers:
            if (now := getattr(owner, leaf)) is not view:
                view.copy_(now)
                setattr(owner, leaf, view)
