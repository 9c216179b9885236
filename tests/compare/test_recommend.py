"""What is never recommended, what is said where nothing fits, and that what is recommended runs."""

from __future__ import annotations

import functools
import itertools
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.compare import costs
from confide.compare.candidates import backends_for
from confide.compare.recommend import NONE_NEEDED, NOT_MEASURED, NOTHING, RECOMMENDED, recommend, relaxations
from confide.compare.scenario import Scenario, parse
from confide.errors import UsageError
from confide.he.backend import Homomorphic
from confide.serve import load_backend
from confide.train.job import parse as parse_job
from confide.train.keys import sections_of
from confide.train.parts import AGGREGATORS

MODELS = costs.load()
backends = functools.lru_cache(maxsize=None)(backends_for)

#: Written down from the pages of docs/protocols, not from the code: who else must take part and may not pool.
PARTNERS = {
    "mpc-dealer": (1, True), "mpc-outsourced": (2, True), "mpc-3pc": (3, False), "shares": (2, False), "he": (2, False),
    "mpc": (2, True),
}  # fmt: skip
QUANTUM_OPEN = {("training", "masked"), ("training", "groups"), ("training", "shares"), ("inference", "paillier"),
                ("inference", "tee")}  # fmt: skip
WITHSTAND_MALICE = {"masked", "tee", "local"}


def answers(table, records=()):
    scenario = parse(table)
    return recommend(scenario, MODELS, records, backends(scenario.model))


def answer(task, table, records=()):
    table = table | {"scenario": {"phases": [task]}}
    return answers(table, records)[0]


@st.composite
def scenarios(draw):
    def some(*words):
        return draw(st.lists(st.sampled_from(words), unique=True))

    flag = st.booleans()
    return parse(
        {
            "holders": {
                "parties": draw(st.sampled_from([1, 2, 3, 4, 12])), "pooling": draw(flag),
                "model": draw(st.sampled_from(["server", "shares", "client"])),
            },
            "hide": {
                "updates": some("server", "outsiders"), "records": some("server", "parties", "outsiders"),
                "model": some("server"), "query": some("server", "outsiders"), "prediction": some("server"),
                "weights": some("server", "client"),
            },
            "trust": {
                "operator": draw(flag), "servers": draw(st.integers(1, 3)), "dealer": draw(flag),
                "hardware": draw(flag), "enclaves": draw(flag), "parties": draw(flag),
                "adversary": draw(st.sampled_from(["curious", "malicious"])),
            },
            "needs": {
                "epsilon": draw(st.sampled_from([0.0, 1.0])), "post_quantum": draw(flag),
                "liars": draw(st.sampled_from([0, 1])), "latency_seconds": draw(st.sampled_from([0.0, 0.05])),
            },
            "network": {"kind": draw(st.sampled_from(["loopback", "lan", "wan", "mobile"]))},
            "model": draw(st.sampled_from([{}, {"kind": "mlp", "activation": "relu"}])),
        }
    )  # fmt: skip


def claims(task, choice):
    """Return what a technique hides from whom, from the technique itself."""
    if task == "inference":
        backend = Homomorphic(protect_model=False) if choice == "he-open" else load_backend(choice)
        return {(claim.asset, claim.hidden_from) for claim in backend.guarantee.claims}
    kind = AGGREGATORS[choice.partition("+")[0]]
    return {(claim.asset, claim.hidden_from) for claim in kind().guarantee.claims}


def offences(scenario: Scenario, task, choice):
    """Yield why a choice must not be recommended in a scenario."""
    base, _, noise = choice.partition("+")
    hide, trust, needs = scenario.hide, scenario.trust, scenario.needs
    exposed = set() if trust.operator else {"server"}
    if base == "local":
        return
    if task == "training":
        wanted = {("update", who) for who in hide.updates if who in exposed}
        records = {who for who in hide.records if who in exposed | {"parties", "outsiders"}}
        records |= {"outsiders"} if needs.epsilon else set()
        if records and not noise and base != "mpc":
            yield "records without noise"
        if "server" in hide.model and exposed and choice != "mpc":
            yield "the model is shown"
        if base == "pooled" and not scenario.holders.pooling:
            yield "records may not move"
        hidden = bool(wanted or records or ("server" in hide.model and exposed))
        if wanted and base not in ("mpc", "pooled") and not wanted <= claims(task, base):
            yield "updates are shown"
        if base == "pooled" and hidden:
            yield "one place sees everything"
    else:
        wanted = {(asset, "server") for asset in ("query", "prediction") if exposed & set(getattr(hide, asset))}
        wanted |= {("weights", who) for who in hide.weights if who == "client" or who in exposed}
        hidden = bool(wanted)
        held = claims(task, base)
        if base == "he" and scenario.model.kind == "logistic":
            held.add(("weights", "client"))
        if not wanted <= held:
            yield "not hidden"
        if ("weights", "server") in wanted and not (scenario.holders.model == "shares" and base == "mpc-outsourced"):
            yield "the server has the model"
    servers, dealer = PARTNERS.get(base, (1, False)) if (task, base) != ("inference", "he") else (1, False)
    if servers > trust.servers or (dealer and not trust.dealer):
        yield "organisations that are not there"
    if base == "tee" and not (trust.hardware and trust.enclaves):
        yield "hardware that is not trusted"
    if hidden and trust.adversary == "malicious" and base not in WITHSTAND_MALICE:
        yield "malice"
    if hidden and needs.post_quantum and (task, base) in QUANTUM_OPEN:
        yield "quantum computers"


@settings(max_examples=200, deadline=None)
@given(scenarios())
def test_what_does_not_cover_a_need_is_never_recommended(scenario):
    for found in recommend(scenario, MODELS, (), backends(scenario.model), relax=False):
        for choice in found.fitting:
            assert not list(offences(scenario, found.task, choice)), choice
        assert found.choice is None or found.choice in found.fitting


def test_the_control_has_teeth():
    """Plain serving of a hidden query, a sum of two, a dealer that is not there: each is an offence."""
    hidden = parse({"hide": {"query": ["server"], "updates": ["server"], "weights": ["client"]}})
    assert list(offences(hidden, "inference", "plain"))
    assert list(offences(hidden, "inference", "mpc-dealer"))
    assert list(offences(hidden, "inference", "he-open"))
    assert list(offences(hidden, "training", "plain"))
    assert not list(offences(hidden, "inference", "he"))


def test_nothing_hidden_needs_nothing():
    found = answer("inference", {})
    assert (found.status, found.choice) == (NONE_NEEDED, "plain")
    assert "plain serving with TLS and access control is enough" in " ".join(found.reasons)


def test_where_nothing_fits_the_nearest_is_named_with_what_it_lacks():
    found = answer("inference", {"hide": {"query": ["server"]}, "model": {"kind": "mlp", "activation": "relu"}})
    assert (found.status, found.choice) == (NOTHING, None)
    assert found.reasons[0].startswith("the nearest is ")
    assert {change.choice for change in found.changes} >= {"plain", "tee", "mpc-dealer", "mpc-3pc"}


def test_what_nobody_measured_or_modelled_is_not_ranked():
    empty = costs.Models("", "", "", {}, ())
    scenario = parse({"hide": {"query": ["server"]}, "scenario": {"phases": ["inference"]}})
    found = recommend(scenario, empty, (), backends(scenario.model))[0]
    assert (found.status, found.choice) == (NOT_MEASURED, None)
    assert set(found.fitting) == {"he", "he-open", "paillier"}


def test_changes_are_what_the_changed_scenario_answers():
    table = {"hide": {"query": ["server"], "weights": ["client"]}, "scenario": {"phases": ["inference"]}}
    scenario = parse(table)
    found = recommend(scenario, MODELS, (), backends(scenario.model))[0]
    assert found.choice == "he"
    told = {change.what: change.choice for change in found.changes}
    for what, other in relaxations(scenario, "inference"):
        again = recommend(other, MODELS, (), backends(other.model), relax=False)[0]
        assert told.get(what, found.choice) == again.choice
    assert told["the client may learn the weights"] == "he-open"


@pytest.mark.parametrize(
    ("hide", "needs", "kind"),
    list(itertools.product([{}, {"updates": ["server"]}], [{}, {"epsilon": 2.0}], ["logistic", "mlp"])),
)
def test_the_job_file_is_one_that_training_parses(hide, needs, kind):
    table = {"hide": hide, "needs": needs, "model": {"kind": kind}}
    found = answer("training", table)
    assert found.status in (RECOMMENDED, NONE_NEEDED)
    job = parse_job(tomllib.loads(found.runs))
    assert job.train.aggregate == found.choice.partition("+")[0]
    assert (job.privacy is not None) == bool(needs)
    assert not needs or job.privacy.epsilon == 2.0


def test_a_model_that_stays_hidden_is_trained_and_served_as_shares():
    table = {
        "holders": {"model": "shares"},
        "hide": {"model": ["server"], "weights": ["server"]},
        "trust": {"servers": 2, "dealer": True},
    }
    training, inference = answers(table)
    assert parse_job(tomllib.loads(training.runs)).shares.folder == "shares"
    assert inference.runs.startswith("confide serve shares --backend mpc-outsourced --federation")
    assert "--dealer broker --helper partner" in inference.runs or "--helper partner --dealer broker" in inference.runs


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"trust": {"advesary": "curious"}}, 'did you mean "adversary"'),
        ({"trust": {"adversary": "malicous"}}, 'did you mean "malicious"'),
        ({"netwrk": {}}, 'did you mean "network"'),
        ({"hide": {"query": ["sever"]}}, 'did you mean "server"'),
        ({"trust": {"servers": 0}}, "trust.servers=0"),
        ({"model": {"hidden": []}}, "model.hidden"),
        ({"network": {"bits_per_second": 0.0}}, "network.bits_per_second"),
    ],
)
def test_a_wrong_key_or_word_is_named_with_the_nearest(table, text):
    with pytest.raises(UsageError, match=text):
        parse(table)


def test_the_page_lists_every_key():
    page = (Path(__file__).parents[2] / "docs" / "advise.md").read_text()
    for name, section in sections_of(Scenario).items():
        assert f"`[{name}]`" in page
        for key in section.__struct_fields__:
            assert f"`{key}`" in page, f"{name}.{key}"


def test_a_network_from_torch_takes_the_same_sums_and_no_job_file():
    found = answer("training", {"hide": {"updates": ["server"]}, "model": {"kind": "mlp", "activation": "relu"}})
    assert (found.choice, found.runs) == ("amortised", "")
    assert "docs/torch.md" in " ".join(found.reasons)


def test_a_cnn_takes_a_square_image():
    with pytest.raises(UsageError, match="square image"):
        answer("inference", {"model": {"kind": "cnn", "features": 30}})
