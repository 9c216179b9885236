"""An offer to try things on: three nodes with tables of two numbers and a category."""

from __future__ import annotations

import msgspec

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.train.job import parse
from confide.train.offer import Offer

NODES = ("north", "south", "west")
KEYS = {name: SigningKey(name.encode().ljust(32, b"\0")).public for name in (*NODES, "server", "helper", "other")}
ROSTER = Roster(tuple((name, KEYS[name]) for name in NODES))

SCHEMA = """
name = "heart"
[label]
name = "ill"
classes = ["no", "yes"]
[columns]
age = { type = "number", unit = "years", low = 0, high = 120 }
height = { type = "number", unit = "cm", low = 30, high = 250, missing = "middle" }
sex = { type = "category", categories = ["f", "m"] }
"""

JOB = {
    "job": {"name": "heart"},
    "data": {"schema": "heart.schema.toml", "nodes": list(NODES)},
    "train": {"rounds": 5, "expected_records": 50},
    "privacy": {"expected_records": 150, "epsilon": 1.0, "delta": 1e-5},
    "output": {"model": "heart.confide", "signing_key": "signing.pem"},
}


def job_of(**changes):
    """Return `JOB` with keys of its tables changed; None for a table leaves it out."""
    table = {name: section | (changes.get(name) or {}) for name, section in JOB.items()}
    table |= {name: section for name, section in changes.items() if name not in table}
    return parse({name: section for name, section in table.items() if changes.get(name, {}) is not None})


def offer_of(job=None, *, schema=SCHEMA, roster=ROSTER, run="run-1", coordinator=KEYS["server"], helper=b""):
    return Offer.of(job or job_of(), schema, roster, run, coordinator=coordinator, helper=helper)


def changed(offer, **fields):
    return msgspec.structs.replace(offer, **fields)
