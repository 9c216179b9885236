"""Run the conformance suite on one technique that stands in no registry: while it is written, and in the documentation.

The checks are those of `test_aggregators` and `test_backends`, with the same parameters. Left out are checks that pytest
must hand something to, and the hash of the wire format, which a technique gets when it is registered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from types import ModuleType
from typing import Any

from confide.ideal import Aggregator
from conformance import test_aggregators, test_backends
from conformance.test_backends import Case


def conform(aggregator: Aggregator) -> list[str]:
    """Run every check of an aggregator and return the names of the checks; the first that fails raises."""
    ran: list[str] = []
    for name, check in _checks(test_aggregators, "aggregator"):
        for more in _parameters(check, "aggregator"):
            check(aggregator=aggregator, **more)
        ran.append(name)
    return ran


def conform_backend(case: Case) -> list[str]:
    """Run every check that is meant for such a backend and return the names; the first that fails raises."""
    ran: list[str] = []
    test_backends.CASES.append(case)
    try:
        for name, check in _checks(test_backends, "case"):
            if _is_for(case, _values(check)["case"]):
                for more in _parameters(check, "case"):
                    check(case=case, **more)
                ran.append(name)
    finally:
        test_backends.CASES.remove(case)
        test_backends.pair_of.cache_clear()
    return ran


def _checks(suite: ModuleType, subject: str) -> Iterator[tuple[str, Callable[..., None]]]:
    for name, check in vars(suite).items():
        if name.startswith("test_") and subject in inspect.signature(check).parameters:
            if set(inspect.signature(check).parameters) <= set(_values(check)):
                if "expected" not in _values(check):
                    yield name, check


def _values(check: Callable[..., None]) -> dict[str, Sequence[Any]]:
    marks = [mark for mark in getattr(check, "pytestmark", []) if mark.name == "parametrize"]
    found: dict[str, Sequence[Any]] = {}
    for mark in marks:
        names, values = mark.args
        for name in (names,) if isinstance(names, str) else names:
            found[name] = values
    return found


def _parameters(check: Callable[..., None], subject: str) -> Iterator[Mapping[str, Any]]:
    values = {name: given for name, given in _values(check).items() if name != subject}
    for chosen in product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _is_for(case: Case, cases: Sequence[Case]) -> bool:
    """Return whether a check over `cases`, a part of all, is one for a backend like this."""
    parts = ((test_backends.ONE_ROUND, case.one_round), (test_backends.JOINT, not case.one_round))
    known = {id(part): fits for part, fits in (*parts, (test_backends.PRIVATE, case.hides))}
    return cases is test_backends.CASES or known.get(id(cases), case.hides and case.one_round)
