"""What a job stands for at every party alike: computed from the job and the schema, never from records."""

from __future__ import annotations

from dataclasses import dataclass

from confide.data.schema import Schema
from confide.dp.plan import PrivacyPlan
from confide.errors import JobError
from confide.ideal import Aggregator, Cohort
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess
from confide.train.course import Course, approve
from confide.train.encodings import Encoding, PrivateGradients
from confide.train.learner import GraphLearner
from confide.train.run import aggregator_of, encoding_of, plan_of, preprocess_of, start_of
from confide.train.sections import Job, default_quorum


@dataclass(frozen=True, slots=True)
class Setting:
    """A job with everything that follows from it.

    Args:
        job: as it was read.
        cohort: the nodes in the job's order, the quorum, the helper if the aggregator has one.
        plan: under [privacy].
        preprocess, start: public, from the schema.
    """

    job: Job
    cohort: Cohort
    plan: PrivacyPlan | None
    preprocess: Preprocess
    start: Graph

    @classmethod
    def of(cls, job: Job, schema: Schema, nodes: tuple[str, ...]) -> Setting:
        """Return what `job` stands for over `nodes`.

        Raises:
            JobError, UsageError: the job contradicts itself, or is none for a network.
        """
        if job.data.standardise:
            raise JobError(
                "Expected data.standardise = false in a job for nodes: they scale by the schema's bounds; leave it out"
            )
        preprocess = preprocess_of(schema, unit_rows=job.model.unit_rows)
        start = start_of(job, preprocess.features, schema.label.classes)
        cohort = Cohort(nodes, job.train.quorum or default_quorum(len(nodes)), helper=job.train.helper)
        setting = cls(job, cohort, plan_of(job, start.parameters, len(nodes)), preprocess, start)
        aggregator = setting.aggregator()
        if setting.plan and not aggregator.guarantee.hides("update", "server"):
            raise JobError(
                f'Expected train.aggregate to hide updates when there is a [privacy], got "{aggregator.name}"; take '
                '"masked"'
            )
        aggregator.check(cohort)
        setting.course()  # the approved start
        return setting

    @property
    def names(self) -> tuple[str, ...]:
        """Return the nodes' names in their order."""
        return self.cohort.clients

    def aggregator(self) -> Aggregator:
        """Return a new aggregator: some remember what they agreed on, so each set-up gets its own."""
        return aggregator_of(self.job)

    def encoding(self) -> Encoding:
        """Return what a node contributes."""
        learner = GraphLearner(self.start, self.job.train)
        if self.plan is not None:
            return PrivateGradients(learner, self.plan, self.job.train)
        return encoding_of(learner, self.job.train, len(self.cohort.clients), seed=self.job.job.seed)

    def course(self) -> Course:
        """Return the course from its beginning.

        Raises:
            IntegrityError: it starts from other parameters than the job approves.
        """
        course = Course(self.encoding(), self.job.train)
        approve(course.parameters, self.job.train.start_hash)
        return course
