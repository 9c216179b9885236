"""A node's policy: what its organisation allows, in one TOML file that no coordinator can change.

    [allow]     models, aggregates, jobs by hash, coordinators, helpers, the roster
    [limits]    smallest cohort and quorum, privacy required, greatest epsilon over the data's lifetime ...
    [attestation]  which enclaves may hold updates in the clear
    [data]      the data set that the budget belongs to
    [approval]  by a person, or by this policy alone

Every key has its default, and the defaults protect: an empty file takes part in jobs with differential privacy under
secure aggregation over three nodes or more, once a person has approved each. `docs/policy.md` lists every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from confide.errors import UsageError, nearest
from confide.guarantee import Guarantee
from confide.structs import known
from confide.tee.aggregate import Enclaves
from confide.tee.policy import read_policy
from confide.train.budget import Budget
from confide.train.keys import Range, faults, load_tables, sections_of, table_faults
from confide.train.offer import Offer
from confide.train.parts import AGGREGATORS, hidden_among
from confide.train.sections import USUAL_DELTA, Job, Section, default_quorum, nodes_of


class AllowSection(Section, frozen=True, kw_only=True):
    """[allow]: what may be asked, and by whom; an empty list of jobs, coordinators or helpers pins none.

    Args:
        models: kinds of model.
        aggregates: what may add the updates.
        jobs: hex hashes of the only jobs that may run; empty for any job that the rest allows.
        coordinators: hex identities of the only coordinators; empty for whoever the node's certificates admit.
        helpers: hex identities of the only second servers, key holders and enclaves.
        roster: hex fingerprint of the only roster.
    """

    models: tuple[Literal["logistic", "mlp", "trees", "cox"], ...] = ("logistic", "mlp", "trees", "cox")
    aggregates: tuple[str, ...] = ("amortised", "groups", "he", "masked", "shares", "tee")
    jobs: tuple[str, ...] = ()
    coordinators: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    roster: str | None = None


class LimitsSection(Section, frozen=True, kw_only=True):
    """[limits]: how far a job may go.

    Args:
        smallest_cohort: fewest nodes in any sum that the coordinator sees; under "groups" those of a group.
        smallest_quorum: fewest nodes whose records are in a released model.
        require_privacy: only jobs with [privacy].
        hide_updates: only aggregators that hide this node's update from the coordinator.
        greatest_epsilon, greatest_delta: of all runs together over the data set's lifetime.
        most_epsilon_per_job: of one job.
        least_colluding: nodes that may pool with the coordinator before epsilon grows; a job's privacy.colluding is at
            least this.
        most_rounds: of one job.
    """

    smallest_cohort: int = 3
    smallest_quorum: int = 3
    require_privacy: bool = True
    hide_updates: bool = True
    greatest_epsilon: float = 3.0
    greatest_delta: float = USUAL_DELTA
    most_epsilon_per_job: float = 1.0
    least_colluding: int = 1
    most_rounds: int = 100


class AttestationSection(Section, frozen=True, kw_only=True):
    """[attestation]: of train.aggregate = "tee": which enclaves this node seals its updates to.

    Args:
        policy: the file that says which code on whose hardware, relative to this file; without it none.
        allow_simulated: accept a trial without hardware, in which the coordinator sees every update.
    """

    policy: str | None = None
    allow_simulated: bool = False


class DataSetSection(Section, frozen=True, kw_only=True):
    """[data]: `data_set` names the data that the budget belongs to; it stays when the file changes."""

    data_set: str = "records"


class ApprovalSection(Section, frozen=True, kw_only=True):
    """[approval]: who agrees to a job: a "person", or this "policy" alone."""

    by: Literal["person", "policy"] = "person"


class Policy(Section, frozen=True, kw_only=True):
    """A whole policy."""

    allow: AllowSection = AllowSection()
    limits: LimitsSection = LimitsSection()
    attestation: AttestationSection = AttestationSection()
    data: DataSetSection = DataSetSection()
    approval: ApprovalSection = ApprovalSection()


_RANGES: Mapping[tuple[str, str], Range] = {
    ("limits", "smallest_cohort"): (1, 1000, False, False),
    ("limits", "smallest_quorum"): (1, 1000, False, False),
    ("limits", "greatest_epsilon"): (0, 1e6, False, False),
    ("limits", "greatest_delta"): (0, 1, False, True),
    ("limits", "most_epsilon_per_job"): (0, 1e6, False, False),
    ("limits", "least_colluding"): (0, 999, False, False),
    ("limits", "most_rounds"): (1, 100_000, False, False),
}

#: Keys of [allow] that hold 64 hex digits, and who prints them.
_HEX: Mapping[str, str] = {
    "jobs": "`confide node check --job` prints a job's hash",
    "coordinators": "`confide node show` prints the coordinator's identity",
    "helpers": "`confide node show` prints the helper's identity",
    "roster": "`confide node show` prints the roster's fingerprint",
}


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        UsageError: the file is absent or no TOML; or as in `parse_policy`.
    """
    return parse_policy(load_tables(path, "policy", UsageError))


def enclaves_of(policy: Policy, path: Path) -> Enclaves:
    """Return which evidence of enclaves a node accepts by its `policy`, which was read from `path`.

    Raises:
        UsageError: the file that [attestation] names is absent, or is none.
    """
    asked = policy.attestation
    if asked.policy is None:
        return Enclaves()
    return Enclaves(policy=read_policy(path.parent / asked.policy), allow_simulated=asked.allow_simulated)


def refusals_of_enclaves(job: Job, enclaves: Enclaves) -> list[str]:
    """Return why no enclave of a job could be accepted, whatever evidence it shows; [] where one could."""
    accepted = enclaves.policy
    if job.train.aggregate != "tee" or accepted is None:
        return []
    hardware = any(table is not None for table in (accepted.sgx, accepted.tdx, accepted.snp, accepted.nitro))
    if job.train.attester == "simulated" and accepted.simulated is None:
        return [
            "Expected the table [simulated] in the file of attestation.policy for a job with train.attester="
            '"simulated"; no evidence of its enclave would be accepted'
        ]
    if job.train.attester == "hardware" and not hardware:
        return [
            "Expected a table [sgx], [tdx], [snp] or [nitro] in the file of attestation.policy for a job with "
            'train.attester="hardware"; no evidence of its enclave would be accepted'
        ]
    return []


def parse_policy(table: Mapping[str, Any]) -> Policy:
    """Return the policy that `table` describes.

    Raises:
        UsageError: with every unknown key, wrong type and value out of range, one in a line.
    """
    if problems := list(_problems(table)):
        raise UsageError("\n".join(problems))
    try:
        return msgspec.convert(table, known(Policy))
    except msgspec.ValidationError as error:  # everything that a user can cause was named above
        raise UsageError(f"Expected a well-formed policy; {error}") from None


def _problems(table: Mapping[str, Any]) -> Iterator[str]:
    sections = sections_of(Policy)
    yield from table_faults(table, sections, "a policy")
    for name, kind in sections.items():
        section = table.get(name, {})
        if not isinstance(section, dict):
            continue
        section = cast("dict[str, Any]", section)
        found = list(faults(name, kind, section, _RANGES, "policy"))
        yield from found
        if name == "allow" and not found:
            yield from _wrong_names(msgspec.convert(section, known(AllowSection)))
        if name == "data" and not found:
            yield from _wrong_data_set(msgspec.convert(section, known(DataSetSection)))


def _wrong_names(allow: AllowSection) -> Iterator[str]:
    for name in allow.aggregates:
        if name not in AGGREGATORS:
            known = ", ".join(sorted(AGGREGATORS))
            yield f'Unknown allow.aggregates "{name}"{nearest(name, AGGREGATORS)}; there are {known}'
    named = {key: getattr(allow, key) for key in _HEX}
    named["roster"] = () if allow.roster is None else (allow.roster,)
    for key, texts in named.items():
        for text in texts:
            if not re.fullmatch("[0-9a-f]{64}", text):
                yield f"Expected allow.{key} to hold 64 hex digits in lower case, got {text!r}; {_HEX[key]}"


def _wrong_data_set(data: DataSetSection) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", data.data_set):
        yield f"Expected data.data_set={data.data_set!r} to be letters, digits, '-', '_' and '.', at most 64; rename it"


# --- what a policy says to a job --------------------------------------------------------------------------------------


def refusals(
    policy: Policy, offer: Offer, job: Job, guarantee: Guarantee, budget: Budget, *, trains: bool = True
) -> list[str]:
    """Return every reason for which this node takes no part in an offered job; none if it may run.

    Args:
        policy: the node's.
        offer, job: what was offered, and what `read` made of it.
        guarantee: of the job's aggregator.
        budget: of the policy's data set.
        trains: False for a helper, which seals nothing to anybody.

    Returns:
        One line for each reason, for the coordinator to see: the policy's rule and what the job asks.

    **Leaks**: the policy's rules, and whether the job fits into what is left of the budget; not what is left.
    """
    return [
        *_refused_members(policy.allow, offer),
        *refusals_of_job(policy, job, guarantee, budget, job_hash=offer.job_hash, run=offer.run, trains=trains),
    ]


def refusals_of_job(
    policy: Policy,
    job: Job,
    guarantee: Guarantee,
    budget: Budget,
    *,
    job_hash: str,
    run: str | None = None,
    trains: bool = True,
) -> list[str]:
    """Return the reasons that lie in the job itself, whoever offers it; as in `refusals`.

    Args:
        run: id of the run, whose own charges do not count against it when it goes on after an interruption.
        trains: as in `refusals`.
    """
    return [
        *_refused_kind(policy, job, guarantee, job_hash),
        *(_refused_enclave(policy.attestation, job) if trains else ()),
        *_refused_size(policy.limits, job),
        *_refused_privacy(policy.limits, job, budget, run),
    ]


def _refused_members(allow: AllowSection, offer: Offer) -> Iterator[str]:
    if allow.coordinators and offer.coordinator.hex() not in allow.coordinators:
        yield (
            f"Expected a coordinator that this node names (allow.coordinators), got {offer.coordinator.hex()}; ask its "
            "people to add that identity"
        )
    if allow.helpers and offer.helper and offer.helper.hex() not in allow.helpers:
        yield (
            f"Expected a helper that this node names (allow.helpers), got {offer.helper.hex()}; ask its people to add "
            "that identity"
        )
    if allow.roster not in (None, offer.roster.fingerprint):
        yield (
            f"Expected the roster {allow.roster} (allow.roster of this node), got {offer.roster.fingerprint}; members "
            "changed: compare the fingerprints by telephone"
        )


def _refused_kind(policy: Policy, job: Job, guarantee: Guarantee, job_hash: str) -> Iterator[str]:
    allow = policy.allow
    if allow.jobs and job_hash not in allow.jobs:
        yield (
            f"Expected a job that this node names by its hash (allow.jobs), got {job_hash}; ask its people to add that "
            "hash"
        )
    for key, asked, allowed, where in (
        ("model.kind", job.model.kind, allow.models, "allow.models"),
        ("train.aggregate", job.train.aggregate, allow.aggregates, "allow.aggregates"),
    ):
        if asked not in allowed:
            yield f'Expected {key}="{asked}" to be one of {_listed(allowed)} ({where} of this node); take one of these'
    if policy.limits.hide_updates and not guarantee.hides("update", "server"):
        yield (
            f'Expected train.aggregate="{job.train.aggregate}" to hide updates from the coordinator '
            '(limits.hide_updates of this node); take "masked"'
        )


def _refused_enclave(attestation: AttestationSection, job: Job) -> Iterator[str]:
    if job.train.aggregate != "tee":
        return
    if attestation.policy is None:
        yield (
            'Expected no train.aggregate="tee": this node names no enclaves that it accepts (attestation.policy); take '
            '"masked"'
        )
    if job.train.attester == "simulated" and not attestation.allow_simulated:
        yield (
            'Expected train.attester="hardware", got "simulated", which protects nothing (attestation.allow_simulated '
            "of this node)"
        )


def _refused_size(limits: LimitsSection, job: Job) -> Iterator[str]:
    parties = len(nodes_of(job))
    quorum = job.train.quorum or default_quorum(parties)
    among = hidden_among(job, parties) or 1
    if among < limits.smallest_cohort:
        yield (
            f"Expected sums over {limits.smallest_cohort} nodes at least (limits.smallest_cohort of this node), the "
            f"coordinator would see sums over {among}; raise train.quorum or train.group_size"
        )
    if quorum < limits.smallest_quorum:
        yield (
            f"Expected train.quorum={quorum} to be at least {limits.smallest_quorum} (limits.smallest_quorum of this "
            "node); raise it"
        )
    if job.train.rounds > limits.most_rounds:
        yield (
            f"Expected train.rounds={job.train.rounds} to be at most {limits.most_rounds} (limits.most_rounds of this "
            "node); take fewer"
        )


def _refused_privacy(limits: LimitsSection, job: Job, budget: Budget, run: str | None) -> Iterator[str]:
    asked = job.privacy
    if asked is None:
        if limits.require_privacy:
            yield (
                "Expected a [privacy] in the job; this node takes part under differential privacy alone "
                "(limits.require_privacy)"
            )
        return
    if asked.epsilon > limits.most_epsilon_per_job:
        yield (
            f"Expected privacy.epsilon={asked.epsilon:g} to be at most {limits.most_epsilon_per_job:g} "
            "(limits.most_epsilon_per_job of this node); ask for less"
        )
    if asked.colluding < limits.least_colluding:
        yield (
            f"Expected privacy.colluding={asked.colluding} to be at least {limits.least_colluding} "
            "(limits.least_colluding of this node); raise it"
        )
    spent = budget.spent(besides=run)
    for name, more, before, most in (
        ("epsilon", asked.epsilon, spent.epsilon, limits.greatest_epsilon),
        ("delta", asked.delta, spent.delta, limits.greatest_delta),
    ):
        if before + more > most:
            yield (
                f"Expected privacy.{name}={more:g} to fit into the lifetime budget of this node's data "
                f"(limits.greatest_{name}={most:g} for all jobs together); lower privacy.{name} in the job"
            )


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in words) or "none at all"
