"""What a job with `aggregate = "tee"` says and cannot mean."""

from __future__ import annotations

from confide.cohort.robust import fewest
from confide.errors import JobError
from confide.train.sections import Job, TrainSection

#: Algorithms whose sums are means of updates, of which a rule can leave some out.
_RULED = ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad")


def check_enclave(train: TrainSection, parties: int, *, private: bool = False) -> None:
    """Refuse a [train] whose rule inside the enclave cannot keep what it is for.

    Args:
        train: with its rule, liars and quorum.
        parties: how many there are.
        private: True if there is a [privacy].

    Raises:
        JobError: with the reason and what to take instead.
    """
    if train.aggregate != "tee":
        return
    if train.rule == "mean":
        if train.liars:
            raise JobError(f'Expected train.liars=0 with train.rule="mean", got {train.liars}; a mean outvotes nobody')
        return
    needed, rule = fewest(train.rule, train.liars), f'train.rule="{train.rule}"'
    if min(parties, train.quorum or parties) < needed:
        raise JobError(
            f"Expected at least {needed} parties, and a train.quorum of as many, which {rule} needs to outvote "
            f"train.liars={train.liars} of them; got {parties} parties and train.quorum={train.quorum}"
        )
    if private:
        raise JobError(
            f'Expected train.rule="mean" with a [privacy], got {rule}; the noise is accounted for a sum, to which each '
            "party adds a share, and a rule that leaves vectors out leaves their shares of the noise out and lets one "
            'record move the result further than a sum. Take rule = "mean"'
        )
    if train.algorithm not in _RULED:
        raise JobError(
            f'Expected train.rule="mean" with train.algorithm="{train.algorithm}", got {rule}; what is summed there is '
            f"no mean of updates, and is spoilt by leaving some out. Take one of {', '.join(_RULED)}"
        )
    if train.clip_quantile:
        raise JobError(
            f"Expected train.clip_quantile=0 with {rule}, got {train.clip_quantile}; the rule would read its counts as "
            "a part of the update. Choose a clip_norm that stays"
        )


def check_enclave_for_nodes(job: Job) -> None:
    """Refuse sums beside the rounds, which nodes would take by the rule as well.

    Raises:
        JobError: with what to take instead.
    """
    if job.train.aggregate != "tee" or job.train.rule == "mean":
        return
    if job.data.standardise or job.train.class_weights != "none" or job.data.evaluate == "federated":
        raise JobError(
            f'Expected no data.standardise, train.class_weights and data.evaluate="federated" in a job for nodes with '
            f'train.rule="{job.train.rule}"; they are counts over all records. Leave them out, or take rule = "mean"'
        )
