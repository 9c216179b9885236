"""The browser view: readable without its script, and in a real browser, from a file, filtered and sorted by keys."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from compare.example import HELD, HOSTILE, report, result
from compare.test_writing import Page
from confide.cli import app
from confide.compare import view as views
from confide.compare.result import read_result
from confide.compare.settings import PRIVATE_WARNING
from confide.compare.techniques import INFERENCE
from confide.compare.view import Running, view, viewed, write_view
from confide.errors import UsageError
from net.chromium import PROGRAM, Tab, browser

RUNNING = Running(3, 20, f"training: {HOSTILE}", "about 30 s left", "12:00:00")


def test_the_page_is_complete_without_its_script():
    text = view(result())
    page = Page(text)
    said = "".join(page.texts)
    for record in result().records:
        assert all(sentence in said for sentence in record.guarantee.sentences())
        assert record.guarantee.leaks in said
    assert page.tags.count("script") == 1
    assert page.tags.count("tbody") == len(result().records)
    assert set(page.links) == {"compare.html", "compare.json", "compare.csv"}
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?://", re.sub(r"https://evil\.example/", "", text))


def test_only_our_script_may_run():
    text = view(result())
    assert re.search(r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[\w+/=]{44}'", text)
    assert "stolen=1</script>" not in text


def test_a_running_comparison_says_how_far_it_is_and_is_read_anew():
    text = view(result(), RUNNING)
    assert 'http-equiv="refresh"' in text
    assert "3 of 20 measured" in text
    assert 'http-equiv="refresh"' not in view(result())
    assert PRIVATE_WARNING in view(result(private=True))
    assert PRIVATE_WARNING not in text


def test_a_finished_folder_is_viewed_and_another_refused(tmp_path):
    with pytest.raises(UsageError, match=r"compare\.json"):
        viewed(tmp_path)
    (tmp_path / "compare.json").write_bytes(result().encode())
    page = viewed(tmp_path)
    assert page.read_text() == (finished := view(read_result(result().encode())))
    running = write_view(result(), tmp_path, RUNNING)
    later = time.time() + 10
    os.utime(running, (later, later))
    assert "3 of 20" in viewed(tmp_path).read_text()  # as the run left it
    os.utime(tmp_path / "compare.json", (later + 10, later + 10))
    assert viewed(tmp_path).read_text() == finished


def test_the_command_opens_a_folder(tmp_path, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(views.webbrowser, "open", lambda url: opened.append(url) or True)
    (tmp_path / "compare.json").write_bytes(result().encode())
    done = CliRunner().invoke(app, ["compare", str(tmp_path), "--open"])
    assert done.exit_code == 0, done.output
    assert opened == [(tmp_path / "view.html").resolve().as_uri()]
    monkeypatch.setattr(views.webbrowser, "open", lambda url: False)
    assert "no browser was found" in CliRunner().invoke(app, ["compare", str(tmp_path), "--open"]).output


@pytest.fixture
def note(tmp_path, monkeypatch):
    """A browser as `webbrowser` finds one by BROWSER: it notes the address and copies the page; the file of its notes."""
    note, program = tmp_path / "opened", tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >> {note}\ncp "${{1#file://}}" {tmp_path}/seen.html\n')
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{program} %s")
    monkeypatch.setattr(webbrowser, "_tryorder", None)  # BROWSER is read at the first use in a process
    monkeypatch.setattr(webbrowser, "_browsers", {})
    return note


def test_a_browser_is_given_the_page_while_a_comparison_runs(note, tmp_path):
    (tmp_path / "job.toml").write_text(
        '[data]\nset = "breast-cancer"\n[train]\nrounds = 2\n'
        "[compare]\nseeds = 2\nsizes = []\ncheck_link = false\nclients = 0\n"
    )
    out = tmp_path / "found"
    asked = ["compare", str(tmp_path / "job.toml"), "--only", "training/plain", "--out", str(out), "--open"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert note.read_text().splitlines() == [(out / "view.html").resolve().as_uri()]  # once
    seen = (tmp_path / "seen.html").read_text()
    assert "of 2 measured" in seen
    assert 'http-equiv="refresh"' in seen
    assert "of 2 measured" not in (out / "view.html").read_text()


def test_a_browser_is_given_the_page_of_a_finished_folder(note, tmp_path):
    (tmp_path / "compare.json").write_bytes(result().encode())
    command = [sys.executable, "-m", "confide", "compare", str(tmp_path), "--open"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert note.read_text().splitlines() == [(tmp_path / "view.html").resolve().as_uri()]
    assert (tmp_path / "seen.html").read_text() == view(result())


# --- in a browser -----------------------------------------------------------------------------------------------------

in_chromium = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed; .ci/run installs it")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(chromium) -> Iterator[Tab]:
    """A tab whose console stays quiet."""
    yield chromium
    chromium.evaluate("1")  # takes in what the browser has told of
    assert not chromium.trouble


def shown(tab, phase="inference"):
    """Return the choices that a reader sees, in their order."""
    rows = f"[...document.querySelectorAll('section[data-phase={phase}] tbody')]"
    return tab.evaluate(f"{rows}.filter(body => body.checkVisibility()).map(body => body.dataset.choice)")


def press(tab, key, code, text=""):
    for kind in ("keyDown", "keyUp"):
        told = {"text": text} if text and kind == "keyDown" else {}
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **told)


@in_chromium
def test_a_reader_filters_sorts_and_opens_details_from_a_file(tab, tmp_path):
    tab.open(write_view(result(), tmp_path).as_uri())
    assert shown(tab) == list(HELD)
    assert not tab.evaluate("document.querySelector('.details').checkVisibility()")
    tab.evaluate("document.getElementById('trust-operator').click()")
    assert shown(tab) == [choice for choice in HELD if HELD[choice].trust != "operator"]
    tab.evaluate("document.getElementById('quantum').click()")
    assert shown(tab) == ["he", "mpc-dealer"]
    tab.evaluate("document.getElementById('phase-inference').click()")
    assert shown(tab, "training") == []
    assert "2 techniques shown" in tab.text()
    assert INFERENCE["paillier"].title not in tab.text()
    tab.evaluate("location.reload()")
    tab.wait_for("document.readyState === 'complete' && document.getElementById('quantum').checked")
    assert shown(tab) == ["he", "mpc-dealer"]  # what was chosen outlives a reload
    tab.evaluate("document.getElementById('reset').click()")
    tab.wait_for("document.getElementById('count').innerText.startsWith('9')")
    assert tab.evaluate("typeof window.stolen") == "undefined"


def click(tab, selector):
    """Press the mouse where an element is, as a hand does."""
    tab.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    x, y = tab.evaluate(
        f"(box => [box.x + box.width / 2, box.y + box.height / 2])"
        f"(document.querySelector({selector!r}).getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@in_chromium
def test_a_mouse_filters_by_trust_and_phase_and_what_is_hidden(tab, tmp_path):
    tab.open(write_view(result(), tmp_path).as_uri())
    click(tab, "#trust-cryptography")
    assert shown(tab) == [choice for choice in HELD if HELD[choice].trust != "cryptography"]
    assert shown(tab, "training") == ["plain"]
    click(tab, "#trust-cryptography")
    click(tab, "#phase-training")
    assert shown(tab) == []
    assert shown(tab, "training") == ["plain", "masked", "masked+dp"]
    click(tab, "#phase-both")
    tab.evaluate("(box => { box.value = 'query from server'; box.dispatchEvent(new Event('input', {bubbles: true})) })"
                 "(document.getElementById('hides'))")  # fmt: skip
    assert shown(tab) == ["he", "paillier", "mpc-dealer"]
    assert "No technique of this phase passes the filters." in tab.text()
    click(tab, "#quantum")
    assert shown(tab) == ["he", "mpc-dealer"]
    click(tab, "#inference-1")
    assert tab.evaluate("document.getElementById('inference-1-more').checkVisibility()")
    click(tab, "#reset")
    tab.wait_for("document.getElementById('count').innerText.startsWith('9')")


@in_chromium
def test_keys_alone_sort_and_open(tab, tmp_path):
    tab.open(write_view(result(), tmp_path).as_uri())
    tab.evaluate("document.getElementById('head-inference-4').focus()")  # here, p50
    press(tab, "Enter", 13, "\r")
    assert shown(tab) == ["plain", "tee", "mpc-dealer", "he", HOSTILE, "paillier"]
    assert (
        tab.evaluate("document.querySelector('#table-inference th[aria-sort=ascending]').innerText.slice(0, 9)")
        == "here, p50"
    )
    press(tab, "Enter", 13, "\r")
    assert shown(tab)[0] == "paillier"
    tab.evaluate("document.getElementById('inference-1').focus()")
    press(tab, "Enter", 13, "\r")
    assert tab.evaluate("document.getElementById('inference-1-more').checkVisibility()")
    assert "query hidden from server" in tab.text()
    press(tab, "Tab", 9)
    assert tab.evaluate("document.activeElement.tagName") == "BUTTON"


@in_chromium
@pytest.mark.parametrize(("wide", "dark"), [(1280, False), (1280, True), (420, False)])
def test_it_fits_the_window_and_can_be_read_in_the_dark(tab, tmp_path, wide, dark):
    page = write_view(result(name="hospitals"), tmp_path, RUNNING)
    tab.open(page.as_uri() + "#follow=0", wide=wide, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth") <= wide
    ink, paper = tab.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light, back = (sum(int(part) for part in re.findall(r"\d+", colour)[:3]) for colour in (ink, paper))
    assert (light > back) == dark
    assert abs(light - back) > 450
    tab.picture(tmp_path / "view.png")
    assert (tmp_path / "view.png").read_bytes().startswith(b"\x89PNG")


@in_chromium
def test_a_running_page_shows_what_was_written_since(tab, tmp_path):
    page = write_view(result(), tmp_path, RUNNING)
    tab.open(page.as_uri())
    tab.evaluate("document.getElementById('quantum').click()")
    write_view(result(), tmp_path)
    tab.wait_for("document.body && !document.body.innerText.includes('3 of 20')")
    assert shown(tab) == ["he", "mpc-dealer"]


@in_chromium
def test_the_report_loads_nothing_and_fits(tab):
    tab.open((report() / "compare.html").as_uri())
    assert tab.evaluate("performance.getEntriesByType('resource').length") == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    assert tab.evaluate("document.querySelectorAll('figure svg').length") >= 8
