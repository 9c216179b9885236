"""Endorsements that a server staples: what is given, and what is fetched beside it."""

import pytest

from confide.errors import UsageError
from confide.serve import staple
from confide.serve.staple import endorsing
from confide.tee.evidence import Quoted
from confide.tee.simulated import Simulated

CAME = Quoted(b"", {"chain.pem": b"came", "vcek.der": b"came"})


def test_what_is_given_stands_before_what_came_and_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(staple, "fetch_endorsements", None)
    endorse = endorsing(Simulated(), given={"chain.pem": b"given"}, fetch=False)
    assert endorse(CAME).endorsements == {"chain.pem": b"given", "vcek.der": b"came"}


def test_what_is_fetched_is_asked_for_beside_what_is_given(monkeypatch):
    seen: list[Quoted] = []

    def stapler(attester, fetch):
        def add(quoted):
            seen.append(quoted)
            return Quoted(quoted.evidence, {**quoted.endorsements, "crl.der": b"fetched"})

        return add

    monkeypatch.setattr(staple, "Stapler", stapler)
    endorse = endorsing(Simulated(), given={"chain.pem": b"given"}, fetch=True)
    assert endorse(CAME).endorsements == {"chain.pem": b"given", "vcek.der": b"came", "crl.der": b"fetched"}
    assert seen[0].endorsements["chain.pem"] == b"given"


def test_names_that_no_verifier_knows_are_refused():
    with pytest.raises(UsageError, match="names"):
        endorsing(Simulated(), given={"notes.txt": b""}, fetch=False)(Quoted(b"", {}))
