"""`confide seal` and `confide broker` as people run them: processes of their own, TLS, signals, kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest

from confide.errors import ConfideError, IntegrityError, MissingExtra, ServiceError, UsageError
from confide.model.artifact import decode
from confide.serve.client import Client
from confide.serve.unseal import unsealed
from confide.tee.sealed import read_head, read_sealed
from confide.tee.simulated import Simulated, measure_code
from serve.toy import GRAPH
from tee.released import MEASUREMENT, OWNER, certificate, evidence, model_file, write_policy

ROOT = Path(__file__).parents[2]
PASSPHRASE = "correct horse battery staple"
ATTESTER = Simulated(MEASUREMENT)
X = np.array([[0.5, -0.25, 1.0]])


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """Return a folder with a sealed model, its keys under a passphrase, a policy and a certificate."""
    folder = tmp_path_factory.mktemp("broker")
    (folder / "model.confide").write_bytes(model_file())
    (folder / "passphrase.txt").write_text(PASSPHRASE + "\n")
    write_policy(folder / "policy.toml", MEASUREMENT)
    certificate(folder)
    done = subprocess.run(
        [
            sys.executable, "-m", "confide", "seal", "model.confide", "--out", "model.sealed", "--keys", "keys.sqlite",
            "--passphrase-file", "passphrase.txt", "--trust", OWNER.public.hex(),
        ],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout + done.stderr)
    return folder


class Running:
    """A broker's process, its URL, and what it wrote."""

    def __init__(self, process: subprocess.Popen, url: str) -> None:
        self.process, self.url = process, url


@contextmanager
def broker(folder: Path, *options: str, policy: str = "policy.toml"):
    command = [
        sys.executable, "-m", "confide", "broker", policy, "--keys", "keys.sqlite", "--port", "0",
        "--passphrase-file", "passphrase.txt", "--certificate", "cert.pem", "--private-key", "key.pem", *options,
    ]  # fmt: skip
    with (
        (folder / "errors").open("w+") as errors,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        line = process.stdout.readline()
        try:
            assert line.startswith("listening on https://"), (folder / "errors").read_text()
            yield Running(process, line.split()[-1])
        finally:
            if process.poll() is None:
                process.terminate()


@pytest.fixture(scope="module")
def running(sealed):
    with broker(
        sealed, "--attester", "simulated", "--audit", "audit.jsonl", "--requests-per-second", "1000"
    ) as started:
        yield started


def audit(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_a_model_goes_from_its_owner_to_an_attested_server(sealed, running):
    before = len(audit(sealed))
    body = unsealed(sealed / "model.sealed", running.url, ATTESTER, ca_file=sealed / "cert.pem")
    assert body == model_file()
    assert decode(body, trust=OWNER.public).label.parties == ("north", "south")
    line = audit(sealed)[before]
    assert (line["verdict"], line["key_id"]) == ("released", read_head(read_sealed(sealed / "model.sealed")).key_id)
    assert "INSECURE SIMULATION" in (sealed / "errors").read_text()


def test_a_certificate_that_nobody_knows(sealed, running):
    with pytest.raises(IntegrityError, match="ca_file"):
        unsealed(sealed / "model.sealed", running.url, ATTESTER)


@pytest.mark.parametrize(
    ("attester", "check"),
    [(Simulated(), "measurement"), (Simulated(MEASUREMENT, debug=True), "debug")],
)
def test_other_code_gets_nothing(sealed, running, attester, check):
    assert measure_code() != MEASUREMENT
    with pytest.raises(ServiceError, match=f"what fails is: {check} "):
        unsealed(sealed / "model.sealed", running.url, attester, ca_file=sealed / "cert.pem")
    assert audit(sealed)[-1]["check"] == check


def test_what_was_sent_once_is_sent_in_vain_again(sealed, running):
    head = read_head(read_sealed(sealed / "model.sealed"))
    context = ssl.create_default_context(cafile=sealed / "cert.pem")
    with httpx2.Client(verify=context, base_url=running.url, trust_env=False) as http:
        nonce = bytes.fromhex(http.post("/v1/challenge").json()["nonce"])
        body = evidence(nonce, head.graph_sha256, now=time.time()).encode()
        first, second = (http.post(f"/v1/release/{head.key_id}", content=body) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 403)
    assert "nonce" in second.json()["error"]
    assert first.headers["x-confide-protection"] == "none (simulated)"


def test_two_servers_at_once(sealed, running):
    got: list[bytes | ConfideError] = []

    def ask() -> None:
        try:
            got.append(unsealed(sealed / "model.sealed", running.url, ATTESTER, ca_file=sealed / "cert.pem"))
        except ConfideError as error:
            got.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [model_file()] * 2


def test_a_model_that_is_sealed_meanwhile_is_found(sealed, running, run):
    (sealed / "later.confide").write_bytes(model_file("later"))
    run(
        "seal", sealed / "later.confide", "--out", sealed / "later.sealed", "--keys", sealed / "keys.sqlite",
        "--passphrase-file", sealed / "passphrase.txt",
    )  # fmt: skip
    body = unsealed(sealed / "later.sealed", running.url, ATTESTER, ca_file=sealed / "cert.pem")
    assert body == model_file("later")


def test_no_file_and_no_output_has_a_key(sealed):
    """The keys are under a passphrase, so no byte of one stands anywhere; nor does the model, but in its own file."""
    from confide.serve.key_store import KeyStore
    from confide.tee.broker import BrokerKeys

    with KeyStore(sealed / "keys.sqlite", passphrase=PASSPHRASE, lifetime_seconds=None) as store:
        keys = BrokerKeys(store)
        secrets = [keys.find(key_id).key.secret for key_id in keys.ids()]
    assert secrets
    weights = model_file()[-64:]
    for path in sealed.iterdir():
        content = path.read_bytes()
        for secret in secrets:
            assert secret not in content
            assert secret.hex().encode() not in content
        assert path.suffix == ".confide" or weights not in content


def test_without_the_option_simulated_evidence_is_refused_until_the_broker_is_told_to_stop(sealed):
    with broker(sealed) as started:
        with pytest.raises(ServiceError, match="what fails is: provider"):
            unsealed(sealed / "model.sealed", started.url, ATTESTER, ca_file=sealed / "cert.pem")
        assert "INSECURE" not in (sealed / "errors").read_text()
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(60) in (0, 143)
    assert '"check":"provider"' in (sealed / "keys.sqlite.audit.jsonl").read_text()


def test_a_broker_that_is_killed_behind_its_audit_has_written_the_line(tmp_path, run):
    (tmp_path / "model.confide").write_bytes(model_file())
    keys, rules, lines = tmp_path / "keys.sqlite", tmp_path / "policy.toml", tmp_path / "audit.jsonl"
    write_policy(rules, MEASUREMENT)
    run("seal", tmp_path / "model.confide", "--out", tmp_path / "model.sealed", "--keys", keys, "--unencrypted-keys")
    command = [sys.executable, str(ROOT / "tests" / "tee" / "stalled.py"), str(keys), str(rules), str(lines)]
    got: list[bytes | ConfideError] = []

    def ask(url: str) -> None:
        try:
            got.append(unsealed(tmp_path / "model.sealed", url, ATTESTER))
        except ConfideError as error:
            got.append(error)

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            asking = threading.Thread(target=ask, args=[process.stdout.readline().strip()])
            asking.start()
            assert process.stdout.readline() == "an answer is ready\n"
        finally:
            process.kill()
        asking.join()
    assert isinstance(got[0], UsageError)  # no key came
    assert [line["verdict"] for line in audit(tmp_path)] == ["released"]


def test_from_the_owner_to_a_prediction(sealed, tmp_path):
    """All three commands and a client; the model stands in no file while it is served."""
    rules, scratch = write_policy(sealed / "code.toml", measure_code()), tmp_path / "scratch"
    scratch.mkdir()
    model_sha256 = read_head(read_sealed(sealed / "model.sealed")).graph_sha256
    rules.write_text(f'model_sha256 = ["{model_sha256}"]\n{rules.read_text()}')
    weights = np.array([1.5, -2.0, 0.25], "<f8").tobytes()
    assert weights in (sealed / "model.confide").read_bytes()  # the control
    options = ("--attester", "simulated", "--audit", "end.jsonl", "--requests-per-second", "1000")
    with broker(sealed, *options, policy="code.toml") as started:
        command = [
            sys.executable, "-m", "confide", "serve", str(sealed / "model.sealed"), "--backend", "tee", "--attester",
            "simulated", "--broker", started.url, "--broker-ca", str(sealed / "cert.pem"), "--port", "0",
            "--trust", OWNER.public.hex(),
        ]  # fmt: skip
        environment = os.environ | {"TMPDIR": str(scratch)}
        with subprocess.Popen(
            command, cwd=scratch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                line = process.stdout.readline()
                assert line.startswith("listening on "), process.stderr.read()
                with Client(line.split()[-1], backend="tee", policy=rules, attester="simulated") as client:
                    np.testing.assert_allclose(client.predict(X), GRAPH.apply(X), rtol=1e-6)
                for path in filter(Path.is_file, scratch.rglob("*")):
                    assert weights not in path.read_bytes(), path
                limits = Path(f"/proc/{process.pid}/limits").read_text()
                assert re.search(r"Max core file size +0 ", limits)
            finally:
                process.terminate()
    assert '"verdict":"released"' in (sealed / "end.jsonl").read_text()


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["seal", "model.confide", "--out", "x.sealed", "--keys", "new.sqlite"], "--unencrypted-keys"),
        (["seal", "model.confide", "--out", "model.sealed", "--keys", "n.sqlite", "--unencrypted-keys"], "no file at"),
        (["seal", "absent", "--out", "x.sealed", "--keys", "new.sqlite", "--unencrypted-keys"], "no such file"),
        (["seal", "model.sealed", "--out", "x.sealed", "--keys", "new.sqlite", "--unencrypted-keys"], "confide model"),
        (["seal", "model.confide", "--out", "x.sealed", "--keys", "keys.sqlite", "--unencrypted-keys"], "passphrase"),
        (["seal", "model.confide", "--out", "x.sealed", "--keys", "n.sqlite", "--unencrypted-keys", "--trust",
          "00" * 32],
         "pinned key"),
        (["broker", "policy.toml", "--keys", "absent.sqlite"], "confide seal"),
        (["broker", "absent.toml", "--keys", "keys.sqlite"], "policy"),
        (["broker", "policy.toml", "--keys", "keys.sqlite"], "passphrase"),
        (["broker", "plain.toml", "--keys", "keys.sqlite", "--passphrase-file", "passphrase.txt", "--attester",
          "simulated"], "[simulated]"),
        (["broker", "policy.toml", "--keys", "keys.sqlite", "--passphrase-file", "passphrase.txt", "--host", "0.0.0.0"],
         "certificate"),
        (["broker", "policy.toml", "--keys", "keys.sqlite", "--audit", "."], "audit file"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(sealed, run, monkeypatch, arguments, reason):
    monkeypatch.chdir(sealed)
    Path("plain.toml").write_text("max_age_seconds = 60\n")
    before = {path.name for path in sealed.iterdir()}
    *warnings, shown = run(*arguments, code=2)[1].splitlines()
    assert reason in shown
    assert all(line.startswith("warning: ") for line in warnings)
    left = {path.name for path in sealed.iterdir()} - before
    assert not any(name.endswith(".sealed") or name.startswith("x.") for name in left)


def test_what_seal_prints(sealed):
    head = read_head(read_sealed(sealed / "model.sealed"))
    printed = (sealed / "printed").read_text().splitlines()
    assert printed == ["sealed model: model.sealed", f"model_sha256: {head.graph_sha256}", f"key: {head.key_id}"]


def test_inspect_shows_whose_model_it_is(sealed, run):
    head = read_head(read_sealed(sealed / "model.sealed"))
    shown = run("inspect", sealed / "model.sealed", "--trust", OWNER.public.hex())[0]
    for line in (f"model_sha256: {head.graph_sha256}", f"key: {head.key_id}", f"signer: {OWNER.public.hex()}"):
        assert line in shown.splitlines()
    assert "pinned key" in run("inspect", sealed / "model.sealed", "--trust", "00" * 32, code=2)[1]
    assert "no such file" in run("inspect", sealed / "absent", code=2)[1]


def test_a_broker_for_other_machines_needs_a_certificate_and_no_option_goes_without(sealed, run):
    for host in ("0.0.0.0", "192.0.2.1"):
        _, err = run("broker", sealed / "policy.toml", "--keys", sealed / "keys.sqlite", "--host", host, code=2)
        assert "--certificate" in err
        assert "--private-key" in err
        assert "insecure" not in err


@pytest.mark.parametrize(("table", "package"), [("tdx", "dcap-qvl"), ("sgx", "dcap-qvl")])
def test_a_broker_without_the_package_of_its_policy_says_so_at_its_start(monkeypatch, table, package):
    command = import_module("confide.cli.broker")  # the package has the command under the same name
    policy = SimpleNamespace(**(dict.fromkeys(("sgx", "tdx", "snp", "nitro")) | {table: object()}))
    check = command.require_packages
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=package):
        check(policy)
    check(SimpleNamespace(sgx=None, tdx=None, snp=object(), nitro=None))  # these need no package
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    check(policy)
