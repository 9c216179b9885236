"""An offer is understood by the node's own code or not at all: every field changed, every size, every odd text."""

import hashlib
import json
from importlib import metadata

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.cohort.roster import Roster
from confide.data.schema import Schema
from confide.errors import ConfideError, JobError, ProtocolError
from confide.train.job import parse
from confide.train.offer import LARGEST_OFFER_BYTES, Offer, hash_of, job_hash, offered, read, require_member
from confide.wire import encode
from train.offers import JOB, KEYS, NODES, ROSTER, SCHEMA, changed, job_of, offer_of

OFFER = offer_of()


def test_a_node_reads_what_was_meant():
    job, schema = read(Offer.decode(OFFER.encode()))
    assert schema == Schema.read(SCHEMA)
    meant = job_of()
    assert (job.job, job.model, job.privacy) == (meant.job, meant.model, meant.privacy)
    assert msgspec.structs.replace(job.train, quorum=0) == msgspec.structs.replace(meant.train, quorum=0)
    assert job.train.quorum == OFFER.quorum == 3
    assert job.data.nodes == NODES
    assert OFFER.confide == metadata.version("confide")


def test_no_path_and_no_output_travels():
    tables = {name: f"/data/secret/{name}.csv" for name in NODES}
    table = JOB | {"data": {"schema": "private/heart.schema.toml", "tables": tables}}
    offer = offer_of(parse(table))
    assert offer == OFFER  # nodes by name or tables that stay at the coordinator: the same job
    whole = {"schema": "s.toml", "table": "secret.csv", "split": "column", "split_by": "secret", "names": [*NODES]}
    assert offer_of(parse(JOB | {"data": whole})) == OFFER
    for word in (b"secret", b"private", b"heart.confide", b"signing", b"csv", b"[output]"):
        assert word not in offer.encode()
    assert b"rounds = 5" in offer.encode()


def test_the_order_of_the_job_is_that_of_the_roster():
    backwards = {name: f"{name}.csv" for name in reversed(NODES)}
    job = parse(JOB | {"data": {"schema": "s.toml", "tables": backwards}})
    with pytest.raises(ProtocolError, match="roster and the quorum"):
        offer_of(job)
    assert read(offer_of(job, roster=Roster(ROSTER.members[::-1])))[0].data.nodes == NODES[::-1]


def test_hashes_say_what_matters():
    """The oracle is the definition, written out again."""

    def sha(label, *fields):
        return hashlib.sha256(label + b"".join(len(f).to_bytes(8, "little") + f for f in fields))

    start = hashlib.sha256(np.zeros(5, "<f8").tobytes()).hexdigest()  # logistic on 4 features: all zero
    assert OFFER.start_hash == start
    inner = sha(b"confide job v1\0", OFFER.job.encode(), SCHEMA.encode(), start.encode()).hexdigest()
    assert OFFER.job_hash == hash_of(OFFER.job, SCHEMA, start) == job_hash(job_of(), SCHEMA) == inner
    outer = sha(b"confide offer v1\0", inner.encode(), ROSTER.digest, KEYS["server"], b"").hexdigest()
    assert OFFER.digest == outer


def test_a_new_run_of_the_same_job_is_the_same_job():
    again = offer_of(run="run-2")
    assert (again.job_hash, again.digest) == (OFFER.job_hash, OFFER.digest)
    others = [
        offer_of(job_of(train={"rounds": 6})),
        offer_of(job_of(job={"seed": 2})),
        offer_of(schema=SCHEMA + "\n"),
        offer_of(job_of(privacy={"epsilon": 1.0001})),
        offer_of(job_of(privacy=None)),
    ]
    assert len({offer.job_hash for offer in [*others, OFFER]}) == 6
    members = [
        offer_of(coordinator=KEYS["other"]),
        offer_of(helper=KEYS["helper"]),
        offer_of(roster=Roster((*ROSTER.members[:2], ("west", KEYS["other"])))),
    ]
    assert {offer.job_hash for offer in members} == {OFFER.job_hash}
    assert len({offer.digest for offer in [*members, OFFER]}) == 4


TAMPERED = {
    "run": ["", "a b", "x" * 65, "../x", "a\0"],
    "job": [
        "",
        "x",
        OFFER.job + " ",
        OFFER.job.replace("rounds = 5", "rounds = 6") + "\n# note",
        OFFER.job.replace("rounds = 5", "rounds = 5.0"),
        OFFER.job.replace("rounds = 5\n", ""),  # a default in its place is another text
        OFFER.job.replace("rounds = 5", "rounds = 0"),
        OFFER.job.replace("rounds = 5", "round = 5"),
        OFFER.job.replace("schema.toml", "other.toml"),
        OFFER.job.replace("quorum = 3", "quorum = 2"),
        OFFER.job.replace('"north", "south"', '"south", "north"'),
        OFFER.job.replace('"north", ', ""),
        OFFER.job.replace("north", "North"),
        OFFER.job + '[output]\nmodel = "x"\n',
        OFFER.job.replace("[model]", "[model]\nhidden = 3"),
        OFFER.job.replace('aggregate = "masked"', 'aggregate = "plain"'),  # its noise would be seen alone
        OFFER.job.replace('aggregate = "masked"', 'aggregate = "magic"'),
        OFFER.job.replace("colluding = 1", "colluding = 3"),
        OFFER.job.replace("[train]", "[train]\nstart_hash = " + json.dumps("0" * 64)),
        "a" + ".a" * 100_000 + " = 1",
        "a = 0x" + "f" * 5000,
        "[" * 100_000,
    ],
    "schema": [
        "",
        "x",
        SCHEMA.replace('"f", "m"', '"f", "m", "x"'),  # another start
        SCHEMA.replace("low = 0", "low = 200"),
        SCHEMA.replace('name = "ill"', 'name = "age"'),
        "a" + ".a" * 100_000 + " = 1",
        SCHEMA + "#" * (1 << 20),
        SCHEMA.replace('"f", "m"', ", ".join(f'"{n}"' for n in range(70_000))),
    ],
    "start_hash": ["", "0" * 64, OFFER.start_hash.upper(), OFFER.start_hash[:-1]],
    "roster": [
        Roster(()),
        Roster(ROSTER.members[::-1]),
        Roster(ROSTER.members[:2]),
        Roster((*ROSTER.members, ("other", KEYS["other"]))),
        Roster((*ROSTER.members[:2], ("west", KEYS["server"]))),  # the coordinator as a node
        Roster((*ROSTER.members[:2], ("West", KEYS["west"]))),
    ],
    "quorum": [0, 2, 4, -1, 2**63],
    "confide": ["", "1 0", "\x1b[2J", "x" * 100],
    "coordinator": [b"", b"x", KEYS["north"], KEYS["north"] + b"\0"],
    "helper": [b"x", KEYS["server"], KEYS["south"]],
}


def test_every_field_is_tampered_with():
    assert set(TAMPERED) == set(Offer.__struct_fields__)


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in TAMPERED.items() for value in values],
    ids=lambda value: repr(value)[:24],
)
def test_a_tampered_offer_is_refused(field, value):
    tampered = changed(OFFER, **{field: value})
    assert tampered != OFFER
    with pytest.raises((ProtocolError, JobError)) as caught:
        read(tampered)
    assert str(caught.value)


def test_a_changed_job_that_stands_by_itself_is_another_job():
    """What a node cannot refuse by itself, because it is a whole and honest offer, has another hash."""
    other = changed(OFFER, job=OFFER.job.replace("rounds = 5", "rounds = 6"))
    assert read(other)[0].train.rounds == 6
    assert other.job_hash != OFFER.job_hash


def test_another_understanding_names_both_versions():
    with pytest.raises(ProtocolError, match=rf"this node's confide {OFFER.confide} understands .* than .* 9\.9\.9"):
        read(changed(OFFER, start_hash="0" * 64, confide="9.9.9"))


def test_sizes_are_refused_before_anything_is_read():
    with pytest.raises(ProtocolError, match="at most"):
        Offer.decode(encode(changed(OFFER, job="#" * LARGEST_OFFER_BYTES)))
    with pytest.raises(JobError, match="at most 262144 are read"):
        read(changed(OFFER, job="#" * (1 << 18) + "\n" + OFFER.job))
    wide = SCHEMA.replace('"f", "m"', ", ".join(f'"{n}"' for n in range(50_000)))
    with pytest.raises(JobError, match="at most 16777216 parameters"):
        offer_of(job_of(model={"kind": "mlp", "hidden": 4096}, privacy=None), schema=wide)
    many = SCHEMA.replace('"no", "yes"', ", ".join(f'"c{n}"' for n in range(5000)))
    many = many.replace('"f", "m"', ", ".join(f'"{n}"' for n in range(5000)))
    with pytest.raises(JobError, match="at most 16777216 parameters"):
        offer_of(job_of(privacy=None), schema=many)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", msgspec.msgpack.encode({"run": "x"}), OFFER.encode()[:-1], b"\x90" * 99]
)
def test_bodies_that_are_no_offer(body):
    with pytest.raises(ProtocolError):
        Offer.decode(body)


def test_a_roster_with_keys_twice_is_no_roster():
    twin = msgspec.to_builtins(OFFER, builtin_types=(bytes,))
    twin["roster"]["members"] = [("north", KEYS["north"]), ("south", KEYS["north"]), ("west", KEYS["west"])]
    with pytest.raises(ProtocolError, match="well-formed Offer"):
        Offer.decode(msgspec.msgpack.encode(twin))


@given(st.integers(0, len(OFFER.encode()) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_changes_what_is_approved(place, flip):
    body = bytearray(OFFER.encode())
    body[place] ^= flip
    try:
        other = Offer.decode(bytes(body))
        read(other)
    except ConfideError:
        return
    told = msgspec.structs.replace(other, run=OFFER.run, confide=OFFER.confide)
    assert told == OFFER or other.digest != OFFER.digest


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"set": "breast-cancer"}, "data.set"),
        ({"schema": "s", "tables": dict.fromkeys(NODES, "x"), "test": "t.csv"}, "data.test"),
    ],
)
def test_jobs_that_no_node_could_run(data, reason):
    with pytest.raises(JobError, match=reason):
        offer_of(parse(JOB | {"data": data}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": {"quorum": 9}}, "train.quorum=9"),
        ({"train": {"aggregate": "plain"}}, "to hide updates"),
        ({"train": {"start_hash": "0" * 64}}, "start_hash"),
        ({"privacy": {"colluding": 3}}, "privacy.colluding=3"),
    ],
)
def test_the_coordinator_hears_at_once_of_a_job_that_cannot_run(changes, reason):
    with pytest.raises((JobError, ProtocolError), match=reason):
        offer_of(job_of(**changes))


def test_a_node_must_stand_there_as_itself():
    require_member(OFFER, "north", KEYS["north"])
    for name, key in (("north", KEYS["other"]), ("east", KEYS["north"]), ("south", KEYS["north"])):
        with pytest.raises(ProtocolError, match="own identity"):
            require_member(OFFER, name, key)


def test_nodes_in_groups_do_not_prepare_and_the_refusal_says_so():
    nodes = [f"n{place}" for place in range(12)]
    for more in ({"data": {"standardise": True}}, {"train": {"class_weights": "balanced"}}):
        sections = {"data": {"schema": "s", "nodes": nodes}, "train": {"aggregate": "groups"}}
        job = parse({name: sections[name] | more.get(name, {}) for name in sections})
        with pytest.raises(JobError, match="each group's sum would say something else"):
            offered(job)
