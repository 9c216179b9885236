"""Training: a job, its rounds, its ledger, and the signed model at the end."""

from confide.train.job import Job, describe, load, parse
from confide.train.rounds import Round
from confide.train.run import AGGREGATORS, Output, Prepared, load_data, local_models, pooled_model, start_hash, train

__all__ = [
    "AGGREGATORS",
    "Job",
    "Output",
    "Prepared",
    "Round",
    "describe",
    "load",
    "load_data",
    "local_models",
    "parse",
    "pooled_model",
    "start_hash",
    "train",
]
