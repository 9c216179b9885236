"""What a coordinator asks of a node, and how the node reads it: with its own code, and believing nothing.

    coordinator -> node   `Offer`   the job as TOML, the schema's text, the hash of the start, who takes part

A node parses both texts again, prints the job back and computes the starting parameters. If its own print or its own
start is another, the two sides run different code or somebody changed the offer, and the node takes no part.

    job_hash   SHA-256 over the job's text, the schema's text and the start: what shall be computed. A policy lists it.
    digest     SHA-256 over job_hash and everybody's identity: what a person approves.

Neither holds the run's id: the same job, offered again to the same members, is the same job.
"""

from __future__ import annotations

import hashlib
import re
from importlib import metadata

import msgspec

from confide.cohort.roster import Roster
from confide.crypto.keys import KEY_BYTES
from confide.data.schema import LARGEST_SCHEMA_BYTES, Schema
from confide.data.toml_text import read_toml
from confide.errors import DataError, JobError, ModelError, PrivacyError, ProtocolError, UsageError
from confide.model.graph import Graph
from confide.train.contradictions import check_for_nodes
from confide.train.course import parameters_hash
from confide.train.job import describe, parse
from confide.train.local import flatten
from confide.train.parts import checked_aggregator, preprocess_of, rounds_of, start_of
from confide.train.sections import DataSection, Job, OutputSection, default_quorum, nodes_of
from confide.wire import decode, encode

#: Of the job's text, and of a whole offer as it travels.
LARGEST_JOB_BYTES = 1 << 18
LARGEST_OFFER_BYTES = LARGEST_JOB_BYTES + LARGEST_SCHEMA_BYTES + (1 << 18)

#: Most numbers in a model that an offer may ask for: 128 MiB.
MOST_PARAMETERS = 1 << 24

#: What stands in an offered job for the path of the schema, whose text travels beside it.
_SCHEMA = "schema.toml"


class Offer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One job, offered to the nodes of a federation. Make it with `of`, read it with `read`.

    Args:
        run: id of the run, chosen by the coordinator: letters, digits, '-', '_' and '.', at most 64.
        job: as `describe` prints it, without [output] and without paths; the parties are data.nodes.
        schema: the text of the schema file.
        start_hash: hex SHA-256 of the starting parameters.
        roster: the nodes with their identities, in the order of data.nodes.
        quorum: fewest nodes in a released sum.
        confide: version of the coordinator's package.
        coordinator: the coordinator's public identity, which signs the ledger (32 bytes).
        helper: that of the second server or key holder (32 bytes), or b"" where the aggregator has none.

    **Leaks**: to every node, the job, the schema and who takes part.
    """

    run: str
    job: str
    schema: str
    start_hash: str
    roster: Roster
    quorum: int
    confide: str
    coordinator: bytes
    helper: bytes = b""

    @staticmethod
    def of(
        job: Job, schema_text: str, roster: Roster, run_id: str, *, coordinator: bytes, helper: bytes = b""
    ) -> Offer:
        """Return the offer of `job`.

        Args:
            job: with data.schema, and data.nodes or data.tables whose files are never read.
            schema_text: of that schema.
            roster: of the job's parties, in its order.
            run_id: as `run` of the class.
            coordinator, helper: as in the class.

        Raises:
            JobError: the job cannot be offered, or cannot run.
            ProtocolError: the roster, an identity or the id is none that a node would accept.
        """
        job = offered(job)
        start = _start(job, _schema(schema_text))
        offer = Offer(
            run=run_id,
            job=describe(job, output=False),
            schema=schema_text,
            start_hash=parameters_hash(flatten(start)).hex(),
            roster=roster,
            quorum=job.train.quorum,
            confide=metadata.version("confide"),
            coordinator=coordinator,
            helper=helper,
        )
        read(offer)
        return offer

    @property
    def job_hash(self) -> str:
        """Return the hex SHA-256 of what shall be computed."""
        return hash_of(self.job, self.schema, self.start_hash)

    @property
    def digest(self) -> str:
        """Return the hex SHA-256 of what shall be computed, by whom and with whom."""
        return _digest(b"confide offer v1", self.job_hash.encode(), self.roster.digest, self.coordinator, self.helper)

    def encode(self) -> bytes:
        """Return the body of the message that carries it."""
        return encode(self)

    @staticmethod
    def decode(body: bytes) -> Offer:
        """Return the offer in `body`, unread.

        Raises:
            ProtocolError: it is too large or none.
        """
        return decode(body, Offer, max_bytes=LARGEST_OFFER_BYTES)


def offered(job: Job) -> Job:
    """Return what of a job is offered: nothing that only the coordinator's machine knows, nodes by their names.

    Raises:
        JobError: the job names a shipped set or a test table, which no node has, or standardises.
    """
    if job.data.set is not None:
        raise JobError("Expected data.schema with data.nodes, got data.set; a shipped set has no organisations")
    if job.data.test is not None:
        raise JobError(
            "Expected no data.test in a job for nodes; each sets aside data.test_fraction of its own records, so leave "
            "it out"
        )
    check_for_nodes(job)
    names = nodes_of(job)
    data = msgspec.structs.replace(
        job.data, schema=_SCHEMA, tables={}, nodes=names, table=None, split_by=None, names=(), split=DataSection().split
    )
    train = msgspec.structs.replace(job.train, quorum=job.train.quorum or default_quorum(len(names)))
    return msgspec.structs.replace(job, data=data, train=train, output=OutputSection(), base=".")


def hash_of(job_text: str, schema_text: str, start_hash: str) -> str:
    """Return the hash of a job, hex, from the three texts of its offer."""
    return _digest(b"confide job v1", job_text.encode(), schema_text.encode(), start_hash.encode())


def job_hash(job: Job, schema_text: str) -> str:
    """Return the hash that the offer of `job` will have, hex; what [allow] jobs of a policy lists.

    Raises:
        JobError: the job cannot be offered, or cannot run.
    """
    job = offered(job)
    start = _start(job, _schema(schema_text))
    return hash_of(describe(job, output=False), schema_text, parameters_hash(flatten(start)).hex())


def read(offer: Offer) -> tuple[Job, Schema]:
    """Return what this node understands by an offer, after checking that the coordinator means the same.

    Raises:
        ProtocolError: an id, an identity or the roster is malformed, or this node's code makes another job of it.
        JobError: the job cannot run; the text says why and holds nothing but what was offered.

    **Guarantees**: after this the job that will run is the text that was offered, the starting parameters are those of
    `start_hash`, and the nodes are those of the roster; a model has at most `MOST_PARAMETERS` numbers.
    """
    _check_members(offer)
    try:
        job = parse(read_toml(offer.job, max_bytes=LARGEST_JOB_BYTES))
    except ValueError as error:
        raise JobError(f"Expected TOML in the offered job; {error}") from None
    own = metadata.version("confide")
    differs = f"; this node's confide {own} understands the job differently than the coordinator's {offer.confide}"
    if job.data.schema != _SCHEMA or describe(offered(job), output=False) != offer.job:
        raise ProtocolError(f"Expected the job as it is printed here{differs}")
    if nodes_of(job) != tuple(offer.roster.keys()) or job.train.quorum != offer.quorum:
        raise ProtocolError("Expected the roster and the quorum of the job in its offer; they name others")
    schema = _schema(offer.schema)
    start = _start(job, schema)
    if parameters_hash(flatten(start)).hex() != offer.start_hash:
        raise ProtocolError(f"Expected the starting parameters that are computed here{differs}")
    if job.train.start_hash not in (None, offer.start_hash):
        raise ProtocolError("Expected train.start_hash of the job to be the hash of its start")
    return job, schema


def require_member(offer: Offer, name: str, identity: bytes) -> None:
    """Refuse an offer whose roster does not show this node as itself.

    Args:
        offer: to look at.
        name: of this node.
        identity: its own public identity (32 bytes).

    Raises:
        ProtocolError: the node is absent, or stands there under another key.
    """
    if offer.roster.keys().get(name) != identity:
        raise ProtocolError(
            f"Expected {name} with its own identity in the roster of the offer; somebody else may have joined under "
            "that name: compare the fingerprints"
        )


def _check_members(offer: Offer) -> None:
    keys = [*offer.roster.keys().values(), offer.coordinator, *([offer.helper] if offer.helper else [])]
    if any(len(key) != KEY_BYTES for key in keys) or len(set(keys)) != len(keys):
        raise ProtocolError(
            f"Expected different identities of {KEY_BYTES} bytes of the nodes, the coordinator and the helper"
        )
    for text in (offer.run, offer.confide):
        if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", text):
            raise ProtocolError("Expected letters, digits, '-', '_' and '.' in the id of a run and in a version")


def _schema(text: str) -> Schema:
    try:
        return Schema.read(text, where="the offered schema")
    except DataError as error:
        raise JobError(str(error)) from None


def _start(job: Job, schema: Schema) -> Graph:
    """Return the starting point of a job after checking that it can run from there."""
    try:
        preprocess = preprocess_of(schema, job)
        features = preprocess.features
        outputs = 1 if len(schema.label.classes) <= 2 else len(schema.label.classes)
        width = job.model.hidden if job.model.kind == "mlp" else outputs
        if (features + 1) * width + (width + 1) * outputs > MOST_PARAMETERS:
            raise JobError(f"Expected a model of at most {MOST_PARAMETERS} parameters; narrow it")
        checked_aggregator(job, nodes_of(job))
        start = start_of(job, features, schema.label.classes, preprocess=preprocess)
        rounds_of(job, start, len(nodes_of(job)), preprocess)
    except (ModelError, PrivacyError, UsageError) as error:
        raise JobError(str(error)) from None
    return start


def _digest(label: bytes, *fields: bytes) -> str:
    """Return SHA-256 over a label and fields, each prefixed by its length; hex."""
    text = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    return hashlib.sha256(label + b"\0" + text).hexdigest()
