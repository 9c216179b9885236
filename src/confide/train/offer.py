"""What a coordinator offers a node: stand-in until the branch `policy` lands."""

from __future__ import annotations

import hashlib
import tomllib

import msgspec

from confide.cohort.roster import Roster
from confide.data.schema import Schema
from confide.train.job import describe, parse
from confide.train.sections import Job, OutputSection


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run: str
    job: str
    schema: str
    members: tuple[tuple[str, bytes], ...]
    signer: bytes = b""

    @classmethod
    def of(cls, job: Job, schema_text: str, roster: Roster, run: str, signer: bytes = b"") -> Offer:
        plain = msgspec.structs.replace(job, output=OutputSection())
        return cls(run, describe(plain), schema_text, roster.members, signer)


def job_hash(offer: Offer) -> str:
    return hashlib.sha256(offer.job.encode() + offer.schema.encode()).hexdigest()


def read(offer: Offer) -> tuple[Job, Schema]:
    return parse(tomllib.loads(offer.job)), Schema.parse(tomllib.loads(offer.schema))
