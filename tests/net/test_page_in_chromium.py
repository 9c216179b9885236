"""The status page in a real browser: it follows the run by itself, and hostile names stay words."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from confide.net.page import StatusPage
from confide.train.status import Phase
from net.chromium import PROGRAM, Tab, browser
from train.federation_day import LEDGER_HASH, MODEL_HASH, begun, gathered, take_round

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed; .ci/run installs it")

#: Each sets window.stolen or opens a dialog if it is ever taken for markup or code.
HOSTILE = (
    "<script>window.stolen=1</script>",
    '<img src=x onerror="window.stolen=2">',
    "<svg/onload=alert(3)>",
    '"><b onmouseover=alert(4)>x</b>',
    "</script><script>window.stolen=5</script>",
    "javascript:alert(6)",
    "{{7*7}}${7*7}",
    "</title></style><iframe srcdoc='<script>parent.stolen=8</script>'>",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def loud_tab(chromium) -> Iterator[Tab]:
    """A tab in which the browser is meant to complain."""
    yield chromium
    chromium.evaluate("1")  # takes in what the browser has told of
    chromium.trouble = []


@pytest.fixture
def tab(loud_tab) -> Iterator[Tab]:
    """A tab whose console stays quiet."""
    yield loud_tab
    loud_tab.evaluate("1")
    assert not loud_tab.trouble


def rows(tab: Tab, body: str) -> list[list[str]]:
    script = f"[...document.querySelectorAll('#{body} tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    return tab.evaluate(script)


def test_the_page_follows_a_run_without_being_reloaded(tab):
    board = begun()
    with StatusPage(board.json) as page:
        tab.open(page.url)
        tab.evaluate("window.sameDocument = 1")
        tab.wait_for("document.getElementById('phase').innerText === 'waiting for nodes'")
        assert "0 of 4 nodes are here; waiting for east, north, south, west." in tab.text()
        for name in ("east", "north", "south"):
            board.node_joined(name, role="node", at_seconds=105.0)
        board.phase_begun(Phase.APPROVALS, at_seconds=106.0)
        board.node_asks("north", at_seconds=106.0)
        tab.wait_for("document.body.innerText.includes('Waiting for a person at north to approve the job.')")
        board.node_approved("north", at_seconds=107.0)
        board.node_refused("west", reason="model mlp is not in my policy", at_seconds=108.0)
        board.round_begun(1, attempt=1, asked={"east", "north", "south"}, at_seconds=110.0)
        tab.wait_for("document.body.innerText.includes('Round 1 of 3: east, north, south at work.')")
        assert tab.evaluate("document.querySelector('#refusals').innerText").endswith(
            "west: model mlp is not in my policy"
        )
        for number in (1, 2):
            take_round(board, number, at_seconds=110.0 + 10 * number)
            board.evaluated(number, accuracy=0.8 + number / 100, at_seconds=119.0 + 10 * number)
        tab.wait_for("document.getElementById('progress').innerText === '2 of 3 rounds finished'")
        assert tab.evaluate("document.getElementById('track').getAttribute('aria-valuenow')") == "2"
        assert tab.evaluate("document.getElementById('fill').style.width").startswith("66.6")
        text = tab.text()
        for figure in ("82.0 %", "0.2\nof 1 for this job", "5 s\n4.5 kB of traffic", LEDGER_HASH, MODEL_HASH):
            assert figure in text
        assert "update hidden from server" in text
        assert [row[:2] for row in rows(tab, "round-rows")] == [["2", "3"], ["1", "3"]]
        assert [row[0] for row in rows(tab, "node-rows")] == ["east", "north", "south", "west", "escrow helper"]
        board.run_done(model_hash=MODEL_HASH, at_seconds=150.0)
        tab.wait_for("document.getElementById('phase').innerText === 'done'")
        assert tab.evaluate("document.title") == "heart: done"
        assert tab.evaluate("window.sameDocument") == 1


def test_every_chart_is_drawn_and_tells_its_last_value(tab):
    board = gathered()
    for number in (1, 2, 3):
        take_round(board, number, at_seconds=110.0 + 10 * number)
    with StatusPage(board.json) as page:
        tab.open(page.url)
        labels = "[...document.querySelectorAll('.chart svg')].map(svg => svg.getAttribute('aria-label'))"
        tab.wait_for(f"{labels}.length === 3")
        assert tab.evaluate(labels) == ["Epsilon spent: 0.3", "Time of a round: 5 s", "Traffic of a round: 4.5 kB"]
        assert "No round has been evaluated yet." in tab.text()
        board.evaluated(3, accuracy=0.915, at_seconds=150.0)
        tab.wait_for(f"{labels}.includes('Accuracy: 91.5 %')")
        assert tab.evaluate("document.querySelector('.limit-text').textContent") == "budget of the job"
        budget = "Number(document.querySelector('.limit').getAttribute('y1'))"
        curve = "Number(document.querySelectorAll('.point')[1].getAttribute('cy'))"
        assert tab.evaluate(f"{budget} < {curve}")  # 1 stands above 0.3
        at_left = "new PointerEvent('pointermove', {clientX: svg.getBoundingClientRect().left + 20})"
        tab.evaluate(f"(svg => svg.dispatchEvent({at_left}))(document.querySelectorAll('.chart svg')[1])")
        assert tab.evaluate("document.querySelectorAll('.read')[1].textContent") == "round 1: 0.1"


def test_a_large_federation_and_a_long_run_stay_readable(tab):
    board = begun(rounds=2000)
    for number in range(100):
        board.node_joined(f"n{number:03}", role="node", at_seconds=101.0)
    board.node_refused("n077", reason="no", at_seconds=102.0)
    for number in range(1, 700):
        take_round(board, number, at_seconds=110.0 + 10 * number)
    with StatusPage(board.json) as page:
        tab.open(page.url)
        tab.wait_for("document.querySelectorAll('.chart svg').length === 3")
        names = [row[0] for row in rows(tab, "node-rows")]
        assert names.index("n077") < names.index("n000")  # who needs somebody comes first
        assert (
            tab.evaluate("document.querySelectorAll('.column').length") == 0
        )  # lines, where columns would run together
        assert tab.evaluate("document.getElementById('nodes').clientHeight") < 700


def test_a_job_without_privacy_says_so(tab):
    board = gathered(epsilon_budget=None)
    with StatusPage(board.json) as page:
        tab.open(page.url)
        tab.wait_for("document.body.innerText.includes('no differential privacy')")


def test_a_failed_run_and_a_lost_quorum_stand_out(tab):
    board = gathered()
    board.node_left("east", reason="connection closed", at_seconds=121.0)
    board.round_begun(1, attempt=1, asked={"north", "south"}, at_seconds=122.0)
    with StatusPage(board.json) as page:
        tab.open(page.url)
        tab.wait_for("document.getElementById('notice-head').innerText === 'Too few nodes'")
        board.run_failed(reason="round 1 lost its quorum", at_seconds=123.0)
        tab.wait_for("document.getElementById('notice-head').innerText === 'The run has failed'")
        assert tab.evaluate("document.getElementById('notice-text').innerText") == "round 1 lost its quorum"


def test_hostile_names_and_reasons_stay_words(tab):
    board = gathered()
    for number, text in enumerate(HOSTILE):
        board.node_joined(text, role=text, at_seconds=120.0)
        board.node_refused(text, reason=text, at_seconds=121.0)
        board.node_left(f"n{number}", reason=text, at_seconds=121.0)
    take_round(board, 1, at_seconds=122.0)
    board.round_done(
        members={"east"},
        missing=set(HOSTILE),
        smallest_sum=1,
        seconds=1.0,
        bytes_up=1,
        bytes_down=1,
        at_seconds=130.0,
    )
    board.run_failed(reason=" ".join(HOSTILE), at_seconds=131.0)
    with StatusPage(board.json) as page:
        tab.open(page.url)
        tab.wait_for("document.getElementById('phase').innerText === 'failed'")
        text = tab.text()
        for hostile in HOSTILE:
            assert hostile[:63] in text
        assert tab.evaluate("window.stolen === undefined")
        assert tab.evaluate("document.querySelectorAll('script, iframe, img, b[onmouseover]').length") == 1
        assert not tab.trouble


def test_what_would_fire_is_noticed(loud_tab):
    """The control: the same words as markup. Even then the page's policy stops them, and the browser says so."""
    board = gathered()
    with StatusPage(board.json) as page:
        loud_tab.open(page.url)
        loud_tab.evaluate(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(HOSTILE[1])})")
        loud_tab.wait_for("document.querySelectorAll('img').length === 1")
        for _ in range(100):
            loud_tab.evaluate("new Promise(done => setTimeout(done, 20))")
            if any("Content Security Policy" in text for text in loud_tab.trouble):
                break
        assert any("Content Security Policy" in text for text in loud_tab.trouble)
        assert loud_tab.evaluate("window.stolen === undefined")


def test_a_lost_connection_is_told_and_mended(loud_tab):
    """The coordinator goes and comes back at the same port: the page says so, then goes on by itself."""
    board = begun()
    page = StatusPage(board.json)
    try:
        loud_tab.open(page.url)
        loud_tab.wait_for("document.getElementById('live-text').innerText === 'live'")
        page.close()
        loud_tab.wait_for("document.getElementById('live-text').innerText.startsWith('connection lost; this is from')")
        board.phase_begun(Phase.SET_UP, at_seconds=120.0)
        page = _again(board.json, page.port)
        loud_tab.wait_for("document.getElementById('phase').innerText === 'set-up'")
        assert loud_tab.evaluate("document.getElementById('live-text').innerText") == "live"
    finally:
        page.close()


def _again(snapshot, port: int) -> StatusPage:
    assert isinstance(port, int)
    with socket.socket() as probe:
        probe.settimeout(1)
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    return StatusPage(snapshot, port=port)


@pytest.mark.parametrize("wide", [320, 390, 768, 1280, 2000])
def test_nothing_runs_out_of_the_window(tab, wide):
    board = gathered()
    board.node_refused("west", reason="w" * 300, at_seconds=121.0)
    board.node_joined("n" * 64, role="node", at_seconds=121.0)
    for number in range(1, 4):
        take_round(board, number, at_seconds=121.0 + 10 * number)
    with StatusPage(board.json) as page:
        tab.open(page.url, wide=wide)
        tab.wait_for("document.querySelectorAll('.chart svg').length === 3")
        assert tab.evaluate("document.documentElement.scrollWidth") <= wide
        outside = (
            "[...document.querySelectorAll('main *')].filter(part => !part.closest('.scroll, svg') && "
            "part.getBoundingClientRect().right > innerWidth + 1).length"
        )
        assert tab.evaluate(outside) == 0


def test_dark_and_light_differ_and_both_can_be_read(tab):
    board = gathered()
    shades = {}
    with StatusPage(board.json) as page:
        for dark in (False, True):
            tab.open(page.url, dark=dark)
            tab.wait_for("!document.getElementById('head').hidden")
            script = "['body', '#job'].map(s => getComputedStyle(document.querySelector(s)))"
            ground, ink = tab.evaluate(f"(([a, b]) => [a.backgroundColor, b.color])({script})")
            shades[dark] = (_luminance(ground), _luminance(ink))
    for ground, ink in shades.values():
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 7  # WCAG 2.2, contrast of level AAA
    assert shades[False][0] > 0.5 > shades[True][0]


def _luminance(colour: str) -> float:
    """Return the relative luminance of "rgb(r, g, b)" (WCAG 2.2)."""
    channels = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
