"""Endorsements that a server staples: what is given, what is fetched, and for how long that is kept."""

import pytest

from confide.errors import UsageError
from confide.serve import staple
from confide.serve.staple import Stapler
from confide.tee.evidence import Quoted
from confide.tee.simulated import Simulated
from tee.enclaves import Clock


@pytest.fixture
def vendor(monkeypatch):
    """A vendor whose list ends after 100 s; counts how often it is asked."""
    asked: list[dict] = []
    clock = Clock()
    monkeypatch.setattr(staple, "wanted", lambda provider, quoted: {"crl.der": "https://vendor/crl"})
    monkeypatch.setattr(staple, "assemble", lambda provider, answers: {"crl.der": answers["crl.der"]})
    monkeypatch.setattr(staple, "valid_until", lambda kept: clock.now + 100)

    def ask(urls):
        asked.append(dict(urls))
        return {"crl.der": b"%d" % len(asked)}

    return asked, clock, ask


def test_without_fetch_nobody_is_asked(vendor):
    asked, clock, ask = vendor
    one = Stapler(Simulated(), given={"chain.pem": b"given"}, ask=ask, clock=clock)
    assert one(Quoted(b"", {"chain.pem": b"came", "vcek.der": b"came"})).endorsements == {
        "chain.pem": b"given",
        "vcek.der": b"came",
    }
    assert not asked


def test_what_was_fetched_is_kept_while_it_holds(vendor):
    asked, clock, ask = vendor
    one = Stapler(Simulated(), given={}, fetch=True, ask=ask, clock=clock)
    assert one(Quoted(b"", {})).endorsements == one(Quoted(b"", {})).endorsements == {"crl.der": b"1"}
    assert len(asked) == 1
    clock.now += 101
    assert one(Quoted(b"", {})).endorsements == {"crl.der": b"2"}


def test_names_that_no_verifier_knows_are_refused():
    with pytest.raises(UsageError, match="names"):
        Stapler(Simulated(), given={"notes.txt": b""})(Quoted(b"", {}))
