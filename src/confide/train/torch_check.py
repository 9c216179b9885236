"""What of a module stands in the way of private training: all of it at once, each with its replacement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from confide.errors import ModelError
from confide.model.graph import Problem
from confide.train.torch_state import matching

#: Layers whose parameters are used elsewhere than in their own call, or many times in one.
_ENTANGLED = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear, nn.EmbeddingBag)

_MOST_GROUPS = 32


def problems(module: nn.Module, trained: Sequence[str] = ("*",)) -> list[Problem]:
    """Return everything that keeps `module` from being trained privately, in the order of its layers.

    Args:
        module: as it would be trained.
        trained: patterns of the parameters to train; frozen layers are checked for state only.
    """
    names = [name for name, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad]
    chosen = matching(trained, names) if names else set[str]()
    layers = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())  # pyright: ignore[reportUnknownMemberType]
    found = [
        problem
        for path, layer in layers
        for problem in _of_layer(
            f"{path or 'module'} ({type(layer).__name__})",
            layer,
            any(f"{path}.{leaf}".removeprefix(".") in chosen for leaf, _ in layer.named_parameters(recurse=False)),
        )
    ]
    found += _shared(module)
    if not chosen:
        found.append(Problem("module", "nothing is trained", "leave requires_grad on for some parameters"))
    return found


def check(module: nn.Module, trained: Sequence[str] = ("*",)) -> None:
    """Raise ModelError with all `problems`, one in a line."""
    if found := problems(module, trained):
        raise ModelError("Expected a module that can be trained privately:\n" + "\n".join(f"  {one}" for one in found))


def _of_layer(name: str, layer: nn.Module, trains: bool) -> Iterator[Problem]:
    if isinstance(layer, _BatchNorm):
        yield Problem(name, "its statistics mix the records of a batch", f"take {_instead(layer)}")
    elif isinstance(layer, _InstanceNorm) and layer.track_running_stats:
        yield Problem(name, "running statistics come from records without noise", "take track_running_stats=False")
    elif isinstance(layer, _DropoutNd) and layer.p > 0:
        yield Problem(name, "its state changes from call to call", "leave it out: the noise regularises already")
    elif isinstance(layer, _ENTANGLED) and trains:
        yield Problem(
            name, "its parameters have no gradient for each record here", "build it of Linear layers, or freeze it"
        )
    elif isinstance(layer, LazyModuleMixin):
        yield Problem(name, "its size is not known yet", "run a batch through the module first")
    elif parametrize.is_parametrized(layer):
        yield Problem(
            name, "a parametrization computes its weight", "merge it with torch.nn.utils.parametrize, or freeze it"
        )
    elif isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse or layer.scale_grad_by_freq):
        yield Problem(name, "it changes itself or counts over the batch", "take max_norm=None and no sparse gradients")
    elif isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode != "zeros":
        yield Problem(name, f"padding_mode={layer.padding_mode!r} has no rule here", "pad before it, by nn.functional")
    elif any(buffer.is_floating_point() for buffer in layer.buffers(recurse=False)) and trains:
        yield Problem(
            name, "a buffer of numbers may carry records' values on", "keep constants in a layer of their own"
        )
    if getattr(layer, "inplace", False):
        yield Problem(name, "it overwrites what the layer before it returned", "take inplace=False")


def _instead(layer: _BatchNorm) -> str:
    """Return the layer to take, with its sizes: normalisation within one record."""
    width = layer.num_features
    if isinstance(layer, nn.BatchNorm1d):  # GroupNorm of as many groups as features would erase a row
        return f"nn.LayerNorm({width}) on rows, nn.GroupNorm({_groups(width)}, {width}) on sequences"
    return f"nn.GroupNorm({_groups(width)}, {width})"


def _groups(width: int) -> int:
    """Return the most groups up to 32 that divide `width` and leave two channels or more to each, else 1."""
    return max((g for g in range(1, min(_MOST_GROUPS, width // 2) + 1) if width % g == 0), default=1)


def _shared(module: nn.Module) -> Iterator[Problem]:
    seen: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name:
            yield Problem(name, f"it is the same parameter as {first}", "give each layer its own")
