"""Fetching from vendors: what is refused, what is asked again, what is named."""

from __future__ import annotations

import httpx2
import pytest

from confide.errors import ServiceError, UsageError
from confide.net.endorsements import fetch_endorsements

URL = "https://vendor.example/crl?x=1"


def fetch(answer, url=URL, **settings):
    settings.setdefault("pause", lambda seconds: pytest.fail(f"waited {seconds} s"))
    return fetch_endorsements({"crl.der": url}, transport=httpx2.MockTransport(answer), **settings)


def test_an_answer_keeps_its_body_and_headers():
    found = fetch(lambda request: httpx2.Response(200, content=b"\0list", headers={"Issuer-Chain": "a%0Ab"}))
    assert found["crl.der"].body == b"\0list"
    assert found["crl.der"].headers["issuer-chain"] == "a%0Ab"


@pytest.mark.parametrize("url", ["http://vendor.example/crl", "file:///etc/passwd", "ftp://x", ""])
def test_only_https_is_asked(url):
    with pytest.raises(UsageError, match="https://"):
        fetch(lambda request: pytest.fail("asked"), url)


def test_redirections_are_not_followed():
    with pytest.raises(ServiceError, match="302.*vendor.example/crl"):
        fetch(lambda request: httpx2.Response(302, headers={"location": "https://elsewhere.example"}))


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_errors_name_the_url_and_not_the_body(status):
    with pytest.raises(ServiceError, match=f"{status}.*vendor.example") as caught:
        fetch(lambda request: httpx2.Response(status, text="secret"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_with_growing_pauses(status):
    waited, answers = [], iter([status, status, 200])
    found = fetch(lambda request: httpx2.Response(next(answers), content=b"x"), pause=waited.append)
    assert found["crl.der"].body == b"x"
    assert len(waited) == 2
    assert waited[0] < waited[1]
    with pytest.raises(ServiceError):
        fetch(lambda request: httpx2.Response(status), pause=waited.append)
    assert len(waited) == 4


def test_an_answer_without_end_is_cut():
    sent = []

    def endless():
        while len(sent) < 1000:
            sent.append(1)
            yield bytes(1 << 16)

    with pytest.raises(UsageError, match="at most 262144 bytes from https://vendor"):
        fetch(lambda request: httpx2.Response(200, content=endless()))
    assert len(sent) < 20


@pytest.mark.parametrize("error", [httpx2.ConnectError, httpx2.ReadTimeout, httpx2.RemoteProtocolError])
def test_a_service_that_is_away_is_named(error):
    waited = []

    def answer(request):
        raise error("no")

    with pytest.raises(UsageError, match=f"{error.__name__}; let this machine out") as caught:
        fetch(answer, pause=waited.append)
    assert URL in str(caught.value)
    assert len(waited) == 2


def test_a_certificate_that_nobody_knows_is_not_tried_twice():
    def answer(request):
        raise httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")

    with pytest.raises(UsageError):
        fetch(answer)
