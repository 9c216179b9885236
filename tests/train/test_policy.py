"""A policy: its file, its defaults, and one line for each rule that a job breaks, alone and together."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.cohort.roster import Roster
from confide.errors import UsageError
from confide.train.budget import Budget
from confide.train.offer import read
from confide.train.parts import AGGREGATORS, aggregator_of
from confide.train.policy import (
    AllowSection,
    ApprovalSection,
    DataSetSection,
    LimitsSection,
    Policy,
    load_policy,
    parse_policy,
    refusals,
)
from confide.wire import MemoryStore
from train.offers import KEYS, ROSTER, job_of, offer_of
from train.test_job import json_like

ROOT = Path(__file__).parents[2]


def said(table, offer=None, *, spent=()):
    """Return what a policy says to an offer, after runs that have spent (epsilon, delta) each."""
    policy, offer, store = parse_policy(table), offer or offer_of(), MemoryStore()
    for number, (epsilon, delta) in enumerate(spent):
        budget = Budget(store, policy.data.data_set)
        store.commit(
            budget.charge(run=f"earlier-{number}", job="0" * 64, round=1, attempt=0, epsilon=epsilon, delta=delta)
        )
    job, _ = read(offer)
    return refusals(policy, offer, job, aggregator_of(job).guarantee, Budget(store, policy.data.data_set))


def test_an_empty_policy_protects_and_a_careful_job_passes():
    policy = parse_policy({})
    assert policy == Policy()
    assert policy.approval.by == "person"
    assert policy.limits.require_privacy
    assert policy.limits.hide_updates
    assert set(policy.allow.aggregates) == set(AGGREGATORS) - {"plain"}
    assert said({}) == []


OPEN = {"limits": {"require_privacy": False}}
PLAIN = job_of(privacy=None, train={"aggregate": "plain"})
EVERYTHING = {
    "allow": {"aggregates": ["plain"]},
    "limits": {"require_privacy": False, "hide_updates": False, "smallest_cohort": 1},
}
LARGE = ("north", "south", "west", "east", "centre", "coast", "hill", "lake", "moor")


def large_offer(**train):
    keys = {name: bytes([number]) * 32 for number, name in enumerate(LARGE, 1)}
    return offer_of(job_of(data={"nodes": list(LARGE)}, privacy=None, train=train), roster=Roster(tuple(keys.items())))


CASES = {
    "model": ({"allow": {"models": ["mlp"]}}, {}, r'model.kind="logistic" to be one of "mlp" \(allow.models'),
    "no model": ({"allow": {"models": []}}, {}, r"one of none at all \(allow.models"),
    "aggregate": ({"allow": {"aggregates": ["he"]}}, {}, r'train.aggregate="masked" to be one of "he" \(allow.aggr'),
    "job": ({"allow": {"jobs": ["0" * 64]}}, {}, rf"\(allow.jobs\), got {offer_of().job_hash}"),
    "coordinator": (
        {"allow": {"coordinators": ["0" * 64]}},
        {},
        rf"\(allow.coordinators\), got {KEYS['server'].hex()}",
    ),
    "helper": (
        {"allow": {"helpers": ["0" * 64]}},
        {"offer": offer_of(helper=KEYS["helper"])},
        rf"\(allow.helpers\), got {KEYS['helper'].hex()}",
    ),
    "roster": ({"allow": {"roster": "0" * 64}}, {}, rf"\(allow.roster of this node\), got {ROSTER.fingerprint}"),
    "hidden updates": (
        OPEN | {"allow": {"aggregates": ["plain"]}, "limits": {"require_privacy": False, "smallest_cohort": 1}},
        {"offer": offer_of(PLAIN)},
        r'train.aggregate="plain" to hide updates .*\(limits.hide_updates',
    ),
    "cohort": (
        {"limits": {"smallest_cohort": 4}},
        {},
        r"sums over 4 nodes at least \(limits.smallest_cohort.* over 3;",
    ),
    "group": (
        {"limits": {"require_privacy": False, "smallest_cohort": 4}},
        {"offer": large_offer(aggregate="groups")},
        r"sums over 4 nodes at least .* over 3; raise train.quorum or train.group_size",
    ),
    "vectors": (
        EVERYTHING | {"limits": EVERYTHING["limits"] | {"smallest_cohort": 2}},
        {"offer": offer_of(PLAIN)},
        r"sums over 2 nodes at least .* the coordinator would see sums over 1;",
    ),
    "quorum": (
        {"limits": {"smallest_quorum": 4}},
        {},
        r"train.quorum=3 to be at least 4 \(limits.smallest_quorum",
    ),
    "rounds": ({"limits": {"most_rounds": 4}}, {}, r"train.rounds=5 to be at most 4 \(limits.most_rounds"),
    "privacy": ({}, {"offer": offer_of(job_of(privacy=None))}, r"a \[privacy\] in the job.*limits.require_privacy"),
    "epsilon of a job": (
        {"limits": {"most_epsilon_per_job": 0.5}},
        {},
        r"privacy.epsilon=1 to be at most 0.5 \(limits.most_epsilon_per_job",
    ),
    "colluding": (
        {},
        {"offer": offer_of(job_of(privacy={"colluding": 0}))},
        r"privacy.colluding=0 to be at least 1 \(limits.least_colluding",
    ),
    "epsilon of a life": (
        {"limits": {"greatest_epsilon": 0.9}},
        {},
        r"privacy.epsilon=1 .*limits.greatest_epsilon=0.9",
    ),
    "epsilon after others": (
        {},
        {"spent": [(1.5, 1e-6), (0.7, 1e-6)]},
        r"privacy.epsilon=1 to fit into the lifetime budget .*limits.greatest_epsilon=3 for all jobs together",
    ),
    "delta of a life": ({"limits": {"greatest_delta": 1e-6}}, {}, r"privacy.delta=1e-05 .*limits.greatest_delta=1e-06"),
    "delta after others": ({}, {"spent": [(0.1, 9.5e-5)]}, r"privacy.delta=1e-05 .*limits.greatest_delta=0.0001"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_by_itself(case):
    table, given_, reason = CASES[case]
    found = said(table, **given_)
    assert len(found) == 1, found
    assert re.search(reason, found[0])
    assert re.search(r"; [a-z]|\(limits.require_privacy\)$", found[0])  # says what to do


def test_the_same_jobs_pass_without_the_rule():
    assert said(EVERYTHING, offer_of(PLAIN)) == []
    assert said(OPEN, large_offer(aggregate="groups")) == []
    assert said({}, offer_of(helper=KEYS["helper"])) == []
    assert said({"allow": {"helpers": [KEYS["helper"].hex()]}}, offer_of(helper=KEYS["helper"])) == []
    assert said({"allow": {"helpers": ["0" * 64]}}) == []  # no helper, nothing to refuse
    pinned = {
        "jobs": ["0" * 64, offer_of().job_hash],
        "coordinators": [KEYS["server"].hex()],
        "roster": ROSTER.fingerprint,
    }
    assert said({"allow": pinned}) == []
    assert said({"limits": {"least_colluding": 0}}, offer_of(job_of(privacy={"colluding": 0}))) == []
    assert said({}, spent=[(1.0, 1e-6), (1.0, 1e-6)]) == []


def test_every_reason_at_once():
    table = {
        "allow": {
            "models": ["mlp"],
            "aggregates": ["he"],
            "jobs": ["0" * 64],
            "coordinators": ["0" * 64],
            "helpers": ["0" * 64],
            "roster": "0" * 64,
        },
        "limits": {
            "smallest_cohort": 4,
            "smallest_quorum": 4,
            "most_rounds": 1,
            "greatest_epsilon": 0.1,
            "greatest_delta": 1e-9,
            "most_epsilon_per_job": 0.1,
            "least_colluding": 2,
        },
    }
    found = said(table, offer_of(helper=KEYS["helper"]))
    keys = [key for section in ("allow", "limits") for key in table[section]]
    assert len(found) == len(keys)
    for key in keys:
        assert sum(f".{key}" in line for line in found) == 1, key
    assert all("\n" not in line for line in found)


def test_no_reason_tells_what_others_have_spent():
    found = "\n".join(said({}, spent=[(2.34567, 9.87654e-5)]))
    assert "greatest_epsilon=3" in found
    assert "greatest_delta=0.0001" in found
    for secret in ("2.34", "0.65", "9.87", "1.23"):
        assert secret not in found


def test_a_run_that_goes_on_is_not_refused_for_what_it_spent_itself():
    offer, store = offer_of(), MemoryStore()
    budget = Budget(store, "records")
    store.commit(budget.charge(run=offer.run, job=offer.job_hash, round=1, attempt=0, epsilon=0.9, delta=1e-5))
    policy, (job, _) = parse_policy({"limits": {"greatest_epsilon": 1.5}}), read(offer)
    guarantee = aggregator_of(job).guarantee
    assert refusals(policy, offer, job, guarantee, budget) == []
    again = offer_of(run="run-2")
    assert len(refusals(policy, again, job, guarantee, budget)) == 1


@pytest.mark.parametrize("by", ["roster", "coordinator", "job", "run"])
def test_a_pin_holds_against_one_byte(by):
    """Each pin, against an offer that differs in nothing but what it pins; the run's id is pinned by none."""
    offer = offer_of()
    pins = {"jobs": [offer.job_hash], "coordinators": [KEYS["server"].hex()], "roster": ROSTER.fingerprint}
    others = {
        "roster": offer_of(roster=Roster((*ROSTER.members[:2], ("west", KEYS["other"])))),
        "coordinator": offer_of(coordinator=KEYS["other"]),
        "job": offer_of(job_of(job={"seed": 2})),
        "run": offer_of(run="run-2"),
    }
    assert len(said({"allow": pins}, others[by])) == (by != "run")


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"alow": {}}, r'Unknown key "alow" \(did you mean "allow"\?\); a policy has the tables allow, limits, att'),
        ({"limits": {"smallest_cohrt": 3}}, r'"limits.smallest_cohrt" \(did you mean "smallest_cohort"\?\)'),
        ({"limits": {"most_rounds": "many"}}, r"limits.most_rounds to be a whole number, got 'many'.* in the policy"),
        ({"limits": {"most_rounds": 0}}, r"limits.most_rounds=0 to be at least 1 and at most 100000; .* in the policy"),
        ({"limits": {"greatest_epsilon": -1}}, r"limits.greatest_epsilon=-1 to be at least 0"),
        ({"limits": {"greatest_epsilon": float("nan")}}, r"limits.greatest_epsilon=nan"),
        ({"limits": {"greatest_delta": 1.0}}, r"limits.greatest_delta=1.0 to be at least 0 and below 1"),
        ({"limits": {"require_privacy": "yes"}}, r"limits.require_privacy to be true or false, got 'yes'"),
        ({"limits": 3}, r"\[limits\] to be a table"),
        ({"allow": {"models": "mlp"}}, r"allow.models to be a list of texts, got 'mlp'"),
        ({"allow": {"models": ["forest"]}}, r'allow.models to hold .* or "trees" or "cox", got \'forest\''),
        ({"allow": {"models": ["logistics"]}}, r'\(did you mean "logistic"\?\)'),
        ({"allow": {"aggregates": ["maskd"]}}, r'allow.aggregates "maskd" \(did you mean "masked"\?\); there are amor'),
        ({"allow": {"jobs": ["abc"]}}, r"allow.jobs to hold 64 hex digits in lower case, got 'abc'"),
        ({"allow": {"roster": "A" * 64}}, r"allow.roster to hold 64 hex digits"),
        ({"allow": {"coordinators": [3]}}, r"allow.coordinators to be a list of texts, got \[3\]"),
        ({"data": {"data_set": "a/b"}}, r"data.data_set='a/b' to be letters"),
        ({"approval": {"by": "nobody"}}, r'approval.by to be "person" or "policy", got \'nobody\''),
    ],
)
def test_what_is_wrong_is_named(table, text):
    with pytest.raises(UsageError, match=text):
        parse_policy(table)


def test_all_problems_are_listed_at_once():
    table = {
        "alow": {},
        "allow": {"models": ["forest", "tree"], "jobs": 3},
        "limits": {"most_rounds": 0, "smallest_quorum": "few"},
        "approval": 1,
    }
    with pytest.raises(UsageError) as caught:
        parse_policy(table)
    assert len(str(caught.value).splitlines()) == 7


KINDS = {"allow": AllowSection, "limits": LimitsSection, "data": DataSetSection, "approval": ApprovalSection}
KEYS_OF = [(name, key) for name, kind in KINDS.items() for key in [*kind.__struct_fields__, "other"]]


@given(st.dictionaries(st.sampled_from(KEYS_OF), json_like, max_size=6), json_like)
def test_no_content_makes_it_fail_otherwise(values, other):
    table = {"other": other} if other else {}
    for (name, key), value in values.items():
        table.setdefault(name, {})[key] = value
    try:
        parse_policy(table)
    except UsageError:
        return


def test_files(tmp_path):
    with pytest.raises(UsageError, match="Expected a readable policy at .*No such file"):
        load_policy(tmp_path / "absent.toml")
    path = tmp_path / "policy.toml"
    path.write_text("[allow\n")
    with pytest.raises(UsageError, match="Expected TOML"):
        load_policy(path)
    path.write_text("")
    assert load_policy(path) == Policy()


def test_the_example_is_read_and_says_what_the_defaults_say():
    policy = load_policy(ROOT / "examples" / "policy.toml")
    assert policy.data.data_set == "ward-7"
    assert policy.allow.models == ("logistic",)
    assert policy.limits == LimitsSection()
    assert said(tomllib.loads((ROOT / "examples" / "policy.toml").read_text())) == []


def test_the_page_lists_every_key_with_its_default():
    page = (ROOT / "docs" / "policy.md").read_text()
    listed = {
        (section, key): default
        for section, rows in re.findall(r"^### \[(\w+)\]\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
        for key, default in re.findall(r"^\| `(\w+)` \|([^|]*)\|", rows, re.MULTILINE)
    }
    fields = {
        (name, key): value
        for name, section in msgspec.structs.asdict(Policy()).items()
        for key, value in msgspec.structs.asdict(section).items()
    }
    assert set(listed) == set(fields)
    for place, default in listed.items():
        written = tomllib.loads(f"x = {default}")["x"] if default.strip() else None
        value = fields[place]
        assert written == (list(value) if isinstance(value, tuple) else value), place
