"""What a job stands for at every party alike: computed from the job and the schema, never from records."""

from __future__ import annotations

from dataclasses import dataclass, replace

from confide.data.schema import Schema
from confide.dp.client_plan import ClientPlan
from confide.dp.plan import PrivacyPlan
from confide.ideal import Aggregator, Cohort, Session
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess
from confide.tee.aggregate import Enclaves
from confide.train.contradictions import check_for_nodes
from confide.train.control import Open
from confide.train.course import Course, approve, parameters_hash
from confide.train.encodings import Encoding
from confide.train.federated_evaluation import tally_of
from confide.train.parts import aggregator_of, checked_aggregator, plan_of, preprocess_of, rounds_of, start_of
from confide.train.prepared_rounds import PreparedRounds
from confide.train.preparing import Preparation
from confide.train.sections import Job, default_quorum, nodes_of
from confide.train.tally import Tally
from confide.train.units import require_unit


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
    plan: PrivacyPlan | ClientPlan | None
    preprocess: Preprocess
    start: Graph

    @classmethod
    def of(cls, job: Job, schema: Schema) -> Setting:
        """Return what `job` stands for over the nodes that it names.

        Raises:
            JobError, UsageError: the job contradicts itself, or is none for a network.
        """
        check_for_nodes(job)
        nodes = nodes_of(job)
        require_unit(job, schema)
        preprocess = preprocess_of(schema, job)
        start = start_of(job, preprocess.features, schema.label.classes, preprocess=preprocess)
        cohort = Cohort(nodes, job.train.quorum or default_quorum(len(nodes)), helper=job.train.helper)
        checked_aggregator(job, nodes)
        plan = plan_of(job, start, len(nodes), preprocess=preprocess)
        setting = cls(job, cohort, plan, preprocess, start)
        setting.course()  # the approved start
        return setting

    @property
    def names(self) -> tuple[str, ...]:
        """Return the nodes' names in their order."""
        return self.cohort.clients

    def aggregator(self, enclaves: Enclaves | None = None) -> Aggregator:
        """Return a new aggregator: some remember what they agreed on, so each set-up gets its own.

        Args:
            enclaves: what the member that takes part brings; see `aggregator_of`.
        """
        return aggregator_of(self.job, enclaves=enclaves)

    def encoding(self) -> Encoding:
        """Return what a node contributes."""
        return rounds_of(self.job, self.start, len(self.cohort.clients), self.preprocess)

    def preparation(self, course: Course) -> Preparation:
        """Return how records are prepared where `course` is: by the schema alone, until a sum says more."""
        encoding = course.encoding
        return encoding.preparation if isinstance(encoding, PreparedRounds) else Preparation(self.preprocess)

    def after(self, course: Course) -> Setting:
        """Return the setting with the preparation that a finished `course` has come to."""
        return replace(self, preprocess=self.preparation(course).preprocess)

    def course(self) -> Course:
        """Return the course from its beginning.

        Raises:
            IntegrityError: it starts from other parameters than the job approves.
        """
        course = Course(self.encoding(), self.job.train)
        approve(course.parameters, self.job.train.start_hash)
        return course

    def tally(self) -> Tally:
        """Return how the nodes count their held-out records."""
        return tally_of(self.job, self.start, len(self.cohort.clients))

    def evaluation_epsilon(self, spent: float | None) -> float | None:
        """Return what the run has spent once the evaluation is released, after `spent` for the training.

        A record is either trained on or held out, so the two do not add up.
        """
        plan = self.tally().plan
        return None if plan is None else max(plan.spent(1), spent or 0.0)


def evaluation_of_run(run: str, setting: Setting, course: Course, order: Open) -> Session:
    """Return what the evaluation after a run's last round is about: the next sum of the run, over its final model."""
    tally = setting.tally()
    return Session(
        run=run,
        round=order.number,
        attempt=order.attempt,
        cohort=setting.cohort,
        length=tally.length,
        bound=tally.bound,
        model_hash=parameters_hash(course.kept),
    )
