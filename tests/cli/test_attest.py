"""`confide attest`, `serve --backend tee` and `predict --policy` against a real server process over HTTP."""

import json
import time

import pytest

from confide.compare.hosted import hosted
from confide.crypto.keys import SigningKey
from confide.model.artifact import Artifact
from confide.tee.evidence import Bundle, Claims, Provider
from confide.tee.simulated import measure_code
from serve.toy import GRAPH, LABEL, PREPROCESS

OWNER = SigningKey(bytes(range(32)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attest")
    Artifact(GRAPH, PREPROCESS, LABEL).save(folder / "model.confide", OWNER)
    (folder / "x.csv").write_text("age,sex\n61,f\n47,m\n")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with hosted(folder / "model.confide", ["tee"], "--attester", "simulated") as url:
        yield url


@pytest.fixture
def policy(run, server, tmp_path):
    """A policy that was drafted from the server."""
    run("attest", server, "--write-policy", tmp_path / "policy.toml")
    return tmp_path / "policy.toml"


def test_a_drafted_policy_names_what_is_there_and_is_accepted_by_option_alone(run, server, policy):
    text = policy.read_text()
    assert measure_code() in text
    out, _ = run("attest", server, "--policy", policy, "--attester", "simulated")
    assert "INSECURE" in out
    out, _ = run("attest", server, "--policy", policy, code=1)
    assert "simulated" in out


def test_the_checks_as_json_say_which_one_does_not_hold(run, server, policy):
    wrong = policy.with_name("wrong.toml")
    wrong.write_text(policy.read_text().replace(measure_code(), "00" * 48))
    out, _ = run("attest", server, "--policy", wrong, "--attester", "simulated", "--json", code=1)
    failed = [check["name"] for check in json.loads(out)["checks"] if not check["holds"]]
    assert failed == ["measurement"]


def test_json_carries_nothing_that_a_terminal_obeys(run, tmp_path):
    name = "[/x]\x1b[31m\x9b31m\x7f\u202e"
    claims = Claims(
        purpose="predict", public_key="00", model_sha256="ab" * 32, code_version="", not_before=0, not_after=1
    )
    large = Bundle(
        provider=Provider.NITRO, evidence=b"x", endorsements={name: bytes((1 << 19) + 1)}, claims=claims.encode()
    )
    (tmp_path / "evidence.json").write_bytes(large.encode())
    (tmp_path / "policy.toml").write_text(f'model_sha256 = ["{"ab" * 32}"]\n')
    arguments = ("attest", "--evidence", tmp_path / "evidence.json", "--policy", tmp_path / "policy.toml")
    out, _ = run(*arguments, "--json", code=1)
    assert out.isascii()
    assert all(one.isprintable() or one == "\n" for one in out)
    assert name in json.loads(out)["checks"][0]["detail"]


def test_saved_evidence_is_checked_without_the_server(run, server, policy, tmp_path):
    saved = tmp_path / "evidence.json"
    run("attest", server, "--out", saved)
    Bundle.decode(saved.read_bytes())
    again = ("attest", "--evidence", saved, "--policy", policy, "--attester", "simulated")
    run(*again)
    out, _ = run(*again, "--now", int(time.time()) + 10 * 86400, code=1)
    assert "validity" in out
    saved.write_text("{}")
    _, err = run(*again, code=2)
    assert "evidence" in err


def test_predictions_under_a_policy_are_the_model_s(run, server, policy, folder):
    out, err = run(
        "predict", server, folder / "x.csv", "--policy", policy, "--attester", "simulated", "--signer",
        OWNER.public.hex(),
    )  # fmt: skip
    assert len(out.splitlines()) == 3
    assert "nothing is hidden" in err
    _, err = run("predict", server, folder / "x.csv", "--policy", policy, code=2)
    assert "simulat" in err
    _, err = run("predict", server, folder / "x.csv", code=2)
    assert "--policy" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("attest",), "URL"),
        (("attest", "http://127.0.0.1:1"), "--policy"),
        (("attest", "http://127.0.0.1:1", "--evidence", "x", "--policy", "y"), "one of them"),
        (("attest", "--evidence", "absent", "--policy", "absent"), "absent"),
        (("attest", "http://127.0.0.1:1", "--out", "e.json"), "127.0.0.1"),
    ],
)
def test_what_cannot_work_is_one_line(run, arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, err = run(*arguments, code=2)
    assert text in err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--backend", "tee"), "--attester"),
        (("--backend", "tee", "--attester", "gramin"), "gramine"),
        (("--backend", "tee", "--attester", "simulated", "--endorsements", "absent"), "absent"),
        (("--backend", "tee", "--attester", "simulated", "--broker", "https://x"), "seal"),
        (("--backend", "tee", "--attester", "simulated", "--broker-ca", "ca.pem"), "--broker"),
        (("--backend", "he", "--attester", "simulated"), "--backend tee"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, folder, options, text):
    _, err = run("serve", folder / "model.confide", "--port", "0", *options, code=2)
    assert text in err


def test_hardware_that_is_not_here_is_said_so(run, folder):
    for name in ("configfs-tsm", "gramine", "nitro"):
        _, err = run("serve", folder / "model.confide", "--port", "0", "--backend", "tee", "--attester", name, code=2)
        assert "Expected" in err


def test_no_file_is_written_over_another_and_each_is_told(run, server, tmp_path):
    policy, saved = tmp_path / "policy.toml", tmp_path / "evidence.json"
    _, err = run("attest", server, "--write-policy", policy, "--out", saved)
    told = " ".join(err.split())
    assert "policy.toml" in told
    assert "evidence.json" in told
    assert told.count("wrote") == told.count("simulated") == 2
    before = policy.read_bytes(), saved.read_bytes()
    for option, path in (("--write-policy", policy), ("--out", saved)):
        _, err = run("attest", server, option, path, code=2)
        assert "Expected no file" in err
    assert (policy.read_bytes(), saved.read_bytes()) == before


def test_a_server_without_an_enclave_says_what_it_serves(run, folder, policy):
    with hosted(folder / "model.confide", ["plain"]) as url:
        _, err = run("attest", url, "--policy", policy, code=2)
        assert "no backend tee" in err
        assert "it serves plain" in " ".join(err.split())
        _, err = run("predict", url, folder / "x.csv", "--policy", policy, code=2)
        assert "No row was sent" in " ".join(err.split())
        _, err = run("predict", url, folder / "x.csv", "--policy", policy, "--backend", "plain", code=2)
        assert "--policy" in err


def test_a_policy_that_is_not_there_is_named_once(run, tmp_path):
    _, err = run("attest", "http://127.0.0.1:1", "--policy", tmp_path / "absent.toml", code=2)
    assert "".join(err.split()).count("absent.toml") == 1


def test_inspect_shows_the_hash_that_a_policy_names(run, folder, policy):
    out, _ = run("inspect", folder / "model.confide")
    shown = next(line.split()[1] for line in out.splitlines() if line.startswith("model_sha256: "))
    assert f'"{shown}"' in policy.read_text()


def test_a_broker_elsewhere_is_asked_over_tls_alone(run, folder):
    options = ("--backend", "tee", "--attester", "simulated", "--broker", "http://broker.example.org")
    _, err = run("serve", folder / "model.confide", "--port", "0", *options, code=2)
    assert "https://" in err
    assert "insecure" not in err
