"""Ditto: beside the common model each silo trains one of its own, which never leaves it.

Paper: Li et al., Ditto: Fair and Robust Federated Learning Through Personalization (2021), Algorithm 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError, UsageError
from confide.train.learner import Learner, Model, staged
from confide.train.local import Silo
from confide.wire import Store

Matrix = NDArray[np.float64]

_PERSONAL = "ditto/personal"


class Ditto(Learner[Model]):
    """The common model is trained as by `common` alone; `personal` trains each silo's own, pulled to the common one.

    What a silo contributes does not depend on its own model. A silo starts its own from the common model of the first
    round that counts for it, and keeps it in its store; `personal_models` returns them.

    Args:
        common: the learner of the common model.
        personal: the learner of the silos' own models, of the same parameters; its proximal term is the pull
            (the paper's lambda): with 0 a silo trains alone.
    """

    def __init__(self, common: Learner[Model], personal: Learner[Model]) -> None:
        if personal.kept or personal.start.shape != common.start.shape:
            raise UsageError(
                f"Expected two learners of the same {len(common.start)} parameters, the personal one without private "
                f"parts, got {len(personal.start)}; build both from one model"
            )
        self._common, self._personal = common, personal
        self.start, self.statistics = common.start, common.statistics
        self.kept = (_PERSONAL, *common.kept)

    def travel(self, silo: Silo) -> Matrix | float:
        return self._common.travel(silo)

    def model(self, parameters: Matrix) -> Model:
        return self._common.model(parameters)

    def personal(self, parameters: Matrix, store: Store) -> Model:
        return self._personal.model(self._own(parameters, store))

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
        own = self._own(parameters, store)
        own = own + self._personal.change(parameters, silo, store, number=number, begin=own)
        store.commit({staged(_PERSONAL): own.astype("<f8").tobytes()})
        return self._common.change(parameters, silo, store, number=number, shift=shift, begin=begin)

    def _own(self, parameters: Matrix, store: Store) -> Matrix:
        body = store.get(_PERSONAL)
        if body is None:
            return parameters
        if len(body) != 8 * len(parameters):
            raise ModelError("Expected a store with a personal model of these parameters; take an empty one")
        return np.frombuffer(body, "<f8")
