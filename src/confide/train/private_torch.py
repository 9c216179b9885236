"""Private training of any `nn.Module` that passes the check: noisy stochastic gradient descent over silos (DP-SGD).

Each round every silo draws a Poisson sample of its records by coins of its own, sums their clipped integer gradients
(`torch_records`), adds its share of the noise, and one secure sum adds the silos. Sampler, sum, noise and account come
from one `SampledPlan`; the server's step is public post-processing: momentum and the adaptive optimisers cost nothing.

Paper: Abadi et al. (arXiv 1607.00133), algorithm 1; docs/protocols/dp-sgd.md for what differs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from confide.crypto.random import Randomness, SystemRandomness
from confide.dp.mechanisms import Clipped
from confide.dp.sampled_plan import SampledPlan
from confide.dp.sampling import SampledSums
from confide.errors import JobError, PrivacyError
from confide.guarantee import PrivacyLabel
from confide.ideal import Aggregator, Cohort
from confide.secagg.masked import Masked
from confide.train.course import approve, parameters_hash
from confide.train.encodings import Encoding, charge, charges
from confide.train.learner import Learner
from confide.train.ledger import Ledger
from confide.train.local import Silo
from confide.train.parts import AGGREGATORS
from confide.train.rounds import Round, federate
from confide.train.sections import TrainSection, default_quorum
from confide.train.torch_check import check
from confide.train.torch_learner import TorchLearner
from confide.train.torch_records import RecordGradients, RecordLoss
from confide.train.torch_rounding import default_grid
from confide.train.torch_state import Resident
from confide.wire import Fault, Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: At how many numbers of releases a run's epsilon is computed.
_MARKS = 16


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Return each record's cross-entropy, shape (n,)."""
    return functional.cross_entropy(outputs, y, reduction="none")


class PrivateTorchLearner(Learner[nn.Module]):
    """A module whose gradient can be had for each record, on the processor.

    With `fit` in place of `fit_privately` it trains the same model without privacy, like a `TorchLearner`.

    Args:
        module: the public starting point; it is copied.
        train: from `train_section`.
        loss: each record's own loss, shape (n,), from what the module returns and y; of nothing else.
        trained: patterns of the parameters to train; all others are frozen and never travel.
        slots: records of one pass through the module; every pass has this shape, whatever the sample's size.
        batch_size, seed: of `fit` alone.

    Raises:
        ModelError: the module cannot be trained privately; the text names every reason and replacement.

    **Guarantees**: what one record adds to a silo's sum depends on the record, the model and the shape of a pass alone,
    as far as torch's kernels compute a row of a batch without looking at the others' values. That, and whether a row's
    bits depend on its slot, is tried out on random records before the first sum; in the second case each record draws
    its slot for itself.
    """

    def __init__(
        self,
        module: nn.Module,
        train: TrainSection,
        *,
        loss: RecordLoss = cross_entropy,
        trained: Sequence[str] = ("*",),
        slots: int = 64,
        batch_size: int | None = None,
        seed: int = 1,
    ) -> None:
        check(module, trained)
        self._inner = TorchLearner(
            module, train, loss=lambda o, y: loss(o, y).mean(), trained=trained, batch_size=batch_size, seed=seed
        )
        self._resident = Resident(copy.deepcopy(module), trained, ())
        self._gradients = RecordGradients(self._resident, loss, slots)
        self.start, self.grid = self._inner.start, default_grid(module, len(self._inner.start))

    def travel(self, silo: Silo) -> Matrix | float:
        return self._inner.travel(silo)

    def model(self, parameters: Matrix) -> nn.Module:
        return self._inner.model(parameters)

    def change(
        self,
        parameters: Matrix,
        silo: Silo,
        store: Store,
        *,
        number: int,
        shift: Matrix | float = 0.0,
        begin: Matrix | None = None,
    ) -> Matrix:
        return self._inner.change(parameters, silo, store, number=number, shift=shift, begin=begin)

    def plan(
        self,
        train: TrainSection,
        *,
        parties: int,
        epsilon: float = 1.0,
        delta: float | None = None,
        clip_norm: float = 1.0,
        expected_batch: int,
        expected_records: int,
        colluding: int = 0,
        max_batch: int | None = None,
        before: tuple[SampledSums, ...] = (),
    ) -> SampledPlan:
        """Return the plan for training this module in train.rounds rounds.

        Args:
            parties: how many silos there are; train.quorum of them are in every sum.
            expected_batch: public: records of all silos in one sample, on average. All records are the full batch.
            expected_records: public size of the pooled data; the sampling rate is expected_batch over it.
            epsilon, delta, clip_norm, colluding, max_batch, before: as in `SampledPlan`.

        Raises:
            UsageError: a value is out of its range.
            PrivacyError: nobody honest would carry noise.
        """
        return SampledPlan.calibrate(
            epsilon=epsilon,
            delta=delta,
            clip_norm=clip_norm,
            rate=expected_batch / expected_records,
            rounds=train.rounds,
            length=len(self.start),
            silos=parties,
            quorum=train.quorum or default_quorum(parties),
            colluding=colluding,
            expected_records=expected_records,
            max_batch=max_batch,
            grid=self.grid,
            before=before,
        )

    def clipped_sum(self, parameters: Matrix, silo: Silo, plan: SampledPlan, rng: Randomness) -> Clipped:
        """Return the clipped sum of one fresh sample of a silo's records."""
        self._resident.load(parameters, self._resident.own.numpy().astype(np.float64))
        chosen = plan.sample(len(silo.x), rng)
        return self._gradients.clipped_sum(
            silo.x, silo.y, chosen, clip_norm=plan.clip_norm, grid=plan.grid, rng=rng.branch()
        )


class SampledGradients(Encoding):
    """DP-SGD: the clipped gradient sum of a Poisson sample plus the silo's share of the noise.

    Every attempt for which vectors left spends a release of the plan. Each silo counts in its own store, and draws
    sample, slots and noise from its own randomness.
    """

    def __init__(self, learner: PrivateTorchLearner, plan: SampledPlan, train: TrainSection) -> None:
        self.learner, self._gradients = learner, learner.clipped_sum
        self._plan, self._train = plan, train
        self.length = plan.length
        self.bound = plan.bound
        self.releases = plan.rounds
        self._spent: dict[int, float] = {}

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        clipped = self._gradients(parameters, silo, self._plan, rng)
        return self._plan.release(clipped, rng, done=charges(store))

    def charge(self, store: Store) -> Mapping[str, bytes | None]:
        return charge(store)

    def charged(self, store: Store) -> int:
        return charges(store)

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        return -self._train.learning_rate * (self._plan.decode(sums) + self._train.weight_decay * parameters)

    def epsilon(self, releases: int) -> float | None:
        """Return what `releases` sums have spent, counted up to the next of 16 marks: accounting takes time."""
        stair = -(-self._plan.rounds // _MARKS)
        mark = min(self._plan.rounds, -(-releases // stair) * stair)
        if mark not in self._spent:
            self._spent[mark] = self._plan.spent(mark)
        return self._spent[mark]


def fit_privately(
    learner: PrivateTorchLearner,
    silos: Sequence[Silo],
    train: TrainSection,
    plan: SampledPlan,
    *,
    aggregator: Aggregator | None = None,
    rng: Randomness | None = None,
    run_id: str = "fit",
    ledger: Ledger | None = None,
    fault: Fault | None = None,
    stores: Mapping[str, Store] | None = None,
) -> Iterator[Round[nn.Module]]:
    """Train a module over `silos` under `plan`, yielding after every round with the epsilon spent.

    Args:
        learner: the module.
        silos: the parties.
        train: learning_rate, weight_decay, the server's optimiser, rounds, averaging, quorum and aggregate.
        plan: from `learner.plan(train, ...)`.
        aggregator: who sums, instead of the one that `train` names.
        rng: secret randomness; the operating system's if None. A fixed seed voids the claim.
        ledger: gets [train], the parties, the plan's promise, every release and every round.
        fault: what the simulated network does to messages.
        stores: of the silos, where each counts its releases; in memory if None, which forgets them with the process.

    Raises:
        JobError: no aggregator has that name.
        PrivacyError: the plan is another setting's, or the server would see silos with their own noise alone.
        Aborted: a round lost its quorum in each of its attempts.
    """
    approve(learner.start, train.start_hash)
    names = tuple(silo.name for silo in silos)
    quorum = train.quorum or default_quorum(len(names))
    mine = (train.rounds, len(learner.start), len(names), quorum)
    if mine != (plan.rounds, plan.length, plan.silos, plan.quorum):
        raise PrivacyError(f"Expected a plan for (rounds, length, silos, quorum)={mine}; make it with learner.plan")
    aggregator = aggregator or _aggregator(train, plan)
    if plan.shares > 1 and not aggregator.guarantee.hides("update", "server"):
        raise PrivacyError(
            f'Expected an aggregator that hides updates; under "{aggregator.name}" the server would see each silo with '
            'its own share of the noise only: take "masked"'
        )
    aggregator.check(Cohort(names, quorum))
    if ledger is not None:
        fields = {"run": run_id, "train": msgspec.json.encode(train).decode(), "parties": list(names)}
        promise = {"epsilon": plan.epsilon, "delta": plan.delta, "rate": plan.rate, "clip_norm": plan.clip_norm}
        ledger.append("fit", fields | {"start": parameters_hash(learner.start).hex()} | promise)
    return federate(
        silos,
        SampledGradients(learner, plan, train),
        train,
        aggregator=aggregator,
        rng=rng or SystemRandomness(),
        run_id=run_id,
        ledger=ledger,
        fault=fault,
        stores=stores,
    )


def _aggregator(train: TrainSection, plan: SampledPlan) -> Aggregator:
    if train.aggregate not in AGGREGATORS or train.aggregate in ("amortised", "groups", "tee"):
        raise JobError(
            f'Expected train.aggregate="{train.aggregate}" to be "masked", "shares", "he" or "plain"; or pass one as '
            "aggregator="
        )
    return Masked(colluding=plan.colluding) if train.aggregate == "masked" else AGGREGATORS[train.aggregate]()


def private_label(
    plan: SampledPlan, train: TrainSection, silos: Sequence[Silo], done: Round[Any], **said: Any
) -> PrivacyLabel:
    """Return the privacy label of the model after `done`.

    Args:
        plan, train, silos: of the run.
        said: fields of `PrivacyLabel` that only its user knows: preprocessing, tuning, public_data, ledger ...
    """
    told = plan.label_fields()
    told["noise"] += (
        "; gradients before rounding are torch's, whose kernels are assumed to compute a record's row from that row, "
        "its place and the model alone"
    )
    fields: dict[str, Any] = {
        **told,
        "server_sees": f"noisy sums over {plan.quorum} or more parties, each round, and every round's model",
        "parties_see": "every round's noisy sum and model, and what is their own",
        "outsiders_see": "this file: the last model and this label; the ledger if published",
        "metrics": "none are released by the training",
        "public_data": "none",
        "preprocessing": "whatever the caller did to the records; epsilon covers none of it",
        "seed": done.origin,
        "hidden_among": plan.quorum,
        **said,
    }
    return PrivacyLabel(
        aggregator=train.aggregate,
        parties=tuple(silo.name for silo in silos),
        quorum=plan.quorum,
        colluding=plan.colluding,
        rounds=done.number,
        **fields,
    )
