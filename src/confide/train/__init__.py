"""Training: a job or a model of your own, its rounds, its ledger, and the signed model at the end."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from confide.errors import MissingExtra
from confide.train.ditto import Ditto
from confide.train.job import describe, load, parse, train_section
from confide.train.learner import Learner, personal_models
from confide.train.local import Silo
from confide.train.output import Output
from confide.train.parts import AGGREGATORS
from confide.train.rounds import Round
from confide.train.run import Prepared, fit, load_data, local_models, pooled_model, start_hash, train
from confide.train.sections import Job, TrainSection

if TYPE_CHECKING:
    from confide.train.private_torch import PrivateTorchLearner, fit_privately, private_label
    from confide.train.torch_check import problems
    from confide.train.torch_graph import Polynomial, Square, graph_of
    from confide.train.torch_learner import TorchLearner, outputs
    from confide.train.torch_low_rank import low_rank

__all__ = [
    "AGGREGATORS",
    "Ditto",
    "Job",
    "Learner",
    "Output",
    "Polynomial",
    "Prepared",
    "PrivateTorchLearner",
    "Round",
    "Silo",
    "Square",
    "TorchLearner",
    "TrainSection",
    "describe",
    "fit",
    "fit_privately",
    "graph_of",
    "load",
    "load_data",
    "local_models",
    "low_rank",
    "outputs",
    "parse",
    "personal_models",
    "pooled_model",
    "private_label",
    "problems",
    "start_hash",
    "train",
    "train_section",
]


#: Where the names that need torch live.
_HOMES: Mapping[str, str] = {
    "Polynomial": "confide.train.torch_graph",
    "PrivateTorchLearner": "confide.train.private_torch",
    "Square": "confide.train.torch_graph",
    "TorchLearner": "confide.train.torch_learner",
    "fit_privately": "confide.train.private_torch",
    "graph_of": "confide.train.torch_graph",
    "low_rank": "confide.train.torch_low_rank",
    "outputs": "confide.train.torch_learner",
    "private_label": "confide.train.private_torch",
    "problems": "confide.train.torch_check",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: jobs run without it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'confide.train' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "dp_accounting"):
            raise
        raise MissingExtra(error.name, "train") from None
