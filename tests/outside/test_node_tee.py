"""A client in JavaScript (examples/node: @hpke/core, nothing of confide) asks our enclave, and opens what we seal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import msgspec
import numpy as np
import pytest

from confide.crypto.keys import SigningKey
from confide.crypto.random import SystemRandomness
from confide.errors import ProtocolError
from confide.model.artifact import Artifact
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.preprocess import Preprocess, Scale
from confide.tee.backend import graph_sha256
from confide.tee.channel import EnclaveKey, context_of, seal
from confide.tee.evidence import Bundle, Claims, Provider, report_data
from confide.tee.simulated import Simulated, measure_code
from outside.test_node_client import CLIENT, LEAST, NODE
from serve.toy import LABEL
from tee.test_channel import Stream, XWing

pytestmark = [
    pytest.mark.skipif(NODE is None, reason=f"no node of version {LEAST} or later; pyright[nodejs] brings one"),
    pytest.mark.skipif(not (CLIENT / "node_modules" / "@hpke").is_dir(), reason="no @hpke/core; run make setup-node"),
]

_RNG = np.random.default_rng(11)
GRAPH = Graph((Linear(_RNG.normal(size=(3, 5)), _RNG.normal(size=3)), Sigmoid()), ("one", "two", "three"))
ROWS = np.vstack([_RNG.normal(size=(4, 5)), [0.0, -0.0, 1e-300, 1e9, 1 / 3]])
MODEL = graph_sha256(GRAPH)
#: What a person who trusts this code and this model says.
TRUST = ("--attester", "simulated", "--measurement", measure_code(), "--model-sha256", MODEL)
KIT, KEYS, INFER = (f"/v2/models/model/versions/tee/{name}" for name in ("kit", "keys", "infer"))
CONTEXT = context_of("predict", MODEL)
_HOP = frozenset({"content-length", "connection", "date", "server", "transfer-encoding"})


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """`confide serve --backend tee`, a process of its own."""
    path = tmp_path_factory.mktemp("tee") / "model.confide"
    rules = tuple(Scale(name=f"column {i}", low=-1, high=1) for i in range(5))
    Artifact(GRAPH, Preprocess(rules), LABEL).save(path, SigningKey(bytes(range(32))))
    options = ("--backend", "tee", "--attester", "simulated", "--port", "0")
    command = [sys.executable, "-m", "confide", "serve", str(path), *options]
    environment = os.environ | {"COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as it:
        try:
            assert it.stdout is not None
            lines = iter(it.stdout.readline, "")
            yield next(line.split()[-1] for line in lines if line.startswith("listening"))
        finally:
            it.terminate()


Change = Callable[[str, bytes], bytes]


class Relay:
    """Stands between a client and the server: notes what comes, and changes what goes back."""

    def __init__(self, server: str, change: Change) -> None:
        self.server = server
        self.change = change
        self.asked: list[tuple[str, bytes]] = []
        self.url = ""

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


def handler(relay: Relay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            relay.asked.append((self.path, body))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            request = Request(relay.server + self.path, body or None, headers, method=self.command)
            with urlopen(request, timeout=60) as answer:
                reply = relay.change(self.path, answer.read())
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def relayed(server: str, change: Change = lambda path, body: body) -> Iterator[Relay]:
    relay = Relay(server, change)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(relay)) as listener:
        thread = Thread(target=listener.serve_forever)
        thread.start()
        relay.url = f"http://127.0.0.1:{listener.server_port}"
        try:
            yield relay
        finally:
            listener.shutdown()
            thread.join()


def asked(url: str, *options: str, rows: np.ndarray = ROWS) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    command = [NODE, str(CLIENT / "attested.mjs"), url, "model", *options]
    text = json.dumps(rows.tolist())
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)


def ran(script: str, *arguments: str) -> str:
    """Return what a script beside the client prints."""
    assert NODE is not None
    command = [NODE, "--input-type=module", "-e", script, "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=CLIENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- asking -----------------------------------------------------------------------------------------------------------


def test_the_answers_are_the_models_bit_for_bit(server):
    with relayed(server) as relay:
        done = asked(relay.url, *TRUST)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == GRAPH.apply(ROWS).tolist()
    assert relay.paths == [KIT, KEYS, INFER]
    assert not any(row.tobytes() in body for _, body in relay.asked for row in ROWS)


def test_without_asking_for_a_simulation_nothing_is_sent(server):
    with relayed(server) as relay:
        done = asked(relay.url, *TRUST[2:])
    assert (done.returncode, relay.asked) == (1, [(KIT, b"")])
    assert "refused (provider)" in done.stderr


@pytest.mark.parametrize(("left_out", "check"), [(2, "measurement"), (4, "model")])
def test_code_and_model_must_be_named_and_only_the_nonce_is_sent_before(server, left_out, check):
    with relayed(server) as relay:
        done = asked(relay.url, *TRUST[:left_out], *TRUST[left_out + 2 :])
    assert done.returncode == 1
    assert f"refused ({check})" in done.stderr
    assert TRUST[left_out + 1] in done.stderr  # so that a person can compare it
    assert relay.paths == [KIT, KEYS]
    assert len(relay.asked[1][1]) == 35


def test_evidence_of_hardware_is_not_taken_for_good(server):
    def change(path: str, body: bytes) -> bytes:
        if path != KIT:
            return body
        kit = msgspec.msgpack.decode(body)
        kit["kit"] = msgspec.msgpack.encode(msgspec.msgpack.decode(kit["kit"]) | {"provider": "tdx"})
        return msgspec.msgpack.encode(kit)

    with relayed(server, change) as relay:
        done = asked(relay.url, *TRUST)
    assert (done.returncode, relay.paths) == (1, [KIT])
    assert "dcap-qvl" in done.stderr


def test_evidence_of_an_earlier_asking_is_refused(server):
    first: list[bytes] = []

    def change(path: str, body: bytes) -> bytes:
        if path != KEYS:
            return body
        first.append(body)
        return first[0]

    with relayed(server, change) as relay:
        assert asked(relay.url, *TRUST).returncode == 0  # the control
        again = asked(relay.url, *TRUST)
    assert again.returncode == 1
    assert "refused (nonce)" in again.stderr
    assert relay.paths == [KIT, KEYS, INFER, KIT, KEYS]


def test_changed_claims_are_refused(server):
    """The man in the middle who puts a key of his own into them."""

    def change(path: str, body: bytes) -> bytes:
        if path != KEYS:
            return body
        bundle = Bundle.decode(body)
        mine = msgspec.structs.replace(bundle.read_claims(), public_key=EnclaveKey(SystemRandomness()).public.hex())
        return msgspec.structs.replace(bundle, claims=mine.encode()).encode()

    with relayed(server, change) as relay:
        done = asked(relay.url, *TRUST)
    assert (done.returncode, relay.paths) == (1, [KIT, KEYS])
    assert "refused (report data)" in done.stderr


@pytest.mark.parametrize("where", ["nonce", "body", "tag"])
def test_a_changed_reply_is_refused(server, where):
    def change(path: str, body: bytes) -> bytes:
        if path != INFER:
            return body
        start = json.JSONDecoder().raw_decode(body.decode("latin-1"))[1] + 4  # behind the JSON and a length
        at = {"nonce": start, "body": start + 32, "tag": len(body) - 1}[where]
        return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]

    with relayed(server, change) as relay:
        done = asked(relay.url, *TRUST)
    assert (done.returncode, done.stdout) == (1, "")
    assert "sealed for this request" in done.stderr


def test_the_reply_to_another_request_is_refused(server):
    first: list[bytes] = []

    def change(path: str, body: bytes) -> bytes:
        if path != INFER:
            return body
        first.append(body)
        return first[0]

    with relayed(server, change) as relay:
        assert asked(relay.url, *TRUST).returncode == 0  # the control
        again = asked(relay.url, *TRUST)
    assert (again.returncode, again.stdout) == (1, "")
    assert "sealed for this request" in again.stderr


# --- checking evidence ------------------------------------------------------------------------------------------------

NONCE = bytes(range(32))
NOW = 1_800_000_000


def evidence(*, attester: Simulated | None = None, spaces: bool = False, **changes: object) -> Bundle:
    """Return evidence that its maker signed whatever it says, as whoever reads our source can."""
    public = EnclaveKey(SystemRandomness()).public.hex()
    claims = Claims(
        purpose="predict", public_key=public, model_sha256=MODEL, code_version="0", not_before=NOW - 60,
        not_after=NOW + 60, nonce=NONCE.hex(),
    )  # fmt: skip
    body = msgspec.structs.replace(claims, **changes).encode()
    body = body.replace(b",", b", ") if spaces else body
    quoted = (attester or Simulated()).quote(report_data(body))
    return Bundle(provider=Provider.SIMULATED, evidence=quoted.evidence, endorsements={}, claims=body)


def broken(name: str, value: object) -> bytes:
    """Return evidence with a field of its signed report changed after signing."""
    bundle = evidence()
    report = msgspec.json.decode(bundle.evidence) | {name: value}
    return msgspec.structs.replace(bundle, evidence=msgspec.json.encode(report)).encode()


def test_the_checks_of_evidence(tmp_path):
    """One process of the client, every kind of wrong evidence, and the right one on each side of them."""
    twice = evidence().claims[:-1] + b',"nonce":"' + NONCE.hex().encode() + b'"}'
    doubled = Simulated().quote(report_data(twice))
    cases = {
        "good": ("", evidence().encode()),
        "of another nonce": ("nonce", evidence(nonce=bytes(32).hex()).encode()),
        "of no nonce": ("nonce", evidence(nonce="").encode()),
        "too old": ("validity", evidence(not_after=NOW - 1).encode()),
        "too new": ("validity", evidence(not_before=NOW + 1).encode()),
        "for aggregation": ("purpose", evidence(purpose="aggregate").encode()),
        "of another model": ("model", evidence(model_sha256="00" * 32).encode()),
        "of another form": ("claims", evidence(v=2).encode()),
        "of no key": ("key", evidence(public_key="00").encode()),
        "of a key in capitals": ("key", evidence(public_key="AB" * 1216).encode()),
        "with spaces": ("claims", evidence(spaces=True).encode()),
        "with one claim twice": (
            "claims",
            Bundle(provider=Provider.SIMULATED, evidence=doubled.evidence, endorsements={}, claims=twice).encode(),
        ),
        "open to its host": ("debug", evidence(attester=Simulated(debug=True)).encode()),
        "of other code": ("measurement", evidence(attester=Simulated("00" * 48)).encode()),
        "unsigned": ("signature", broken("signature", "")),
        "signed, then changed": ("signature", broken("measurement", "11" * 48)),
        "of another authority": ("signature", broken("authority", "hardware")),
        "of a chip": ("provider", msgspec.structs.replace(evidence(), provider=Provider.TDX).encode()),
        "good again": ("", evidence().encode()),
    }  # fmt: skip
    wanted = {"attester": "simulated", "model": MODEL, "measurement": measure_code(), "now": NOW}
    script = """
        import { checked } from "./evidence.mjs";
        import { readFileSync } from "node:fs";
        const { cases, wanted, nonce } = JSON.parse(process.argv[1]);
        const verdicts = Object.entries(cases).map(([name, path]) => {
          try { checked(readFileSync(path), { ...wanted, nonce: Buffer.from(nonce, "hex") }); return [name, ""]; }
          catch (error) { return [name, /refused \\((.*?)\\)/.exec(error.message)?.[1] ?? String(error)]; }
        });
        console.log(JSON.stringify(Object.fromEntries(verdicts)));
    """
    paths = {name: str(tmp_path / str(i)) for i, name in enumerate(cases)}
    for name, (_, body) in cases.items():
        Path(paths[name]).write_bytes(body)
    found = json.loads(ran(script, json.dumps({"cases": paths, "wanted": wanted, "nonce": NONCE.hex()})))
    assert found == {name: check for name, (check, _) in cases.items()}


# --- the channel, the other way round ---------------------------------------------------------------------------------

#: Reads a line with a sealed body for each line with a key that it prints; answers with the body and a sealed reply.
OPENER = """
import { createHash, createCipheriv, createHmac, randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import { suite } from "./channel.mjs";
import { label } from "./wire.mjs";
const hpke = suite();
const pair = await hpke.kem.generateKeyPair();
const context = Buffer.from(process.argv[1], "hex");
console.log(Buffer.from(await hpke.kem.serializePublicKey(pair.publicKey)).toString("hex"));
const info = new Uint8Array(label(["confide tee request v1", context]));
for await (const line of createInterface({ input: process.stdin })) {
  const sealed = new Uint8Array(Buffer.from(line, "hex"));
  const [enc, ct] = [sealed.slice(0, 1120), sealed.slice(1120)];
  try {
    const opened = Buffer.from(await hpke.open({ recipientKey: pair.privateKey, enc, info }, ct));
    const nonce = randomBytes(32);
    const extracted = createHmac("sha256", nonce).update(opened.subarray(0, 32)).digest();
    const hash = createHash("sha256").update(enc).digest();
    const bound = Buffer.concat([label(["confide tee reply v1", context, hash]), Buffer.from([1])]);
    const key = createHmac("sha256", extracted).update(bound).digest();
    const cipher = createCipheriv("aes-256-gcm", key, Buffer.alloc(12));
    const reply = Buffer.concat([nonce, cipher.update(Buffer.from("reply")), cipher.final(), cipher.getAuthTag()]);
    console.log(JSON.stringify([opened.subarray(32).toString("hex"), reply.toString("hex")]));
  } catch (error) { console.log(JSON.stringify([])); }
}
"""


@pytest.fixture
def opener() -> Iterator[tuple[bytes, Callable[[bytes], list[str]]]]:
    assert NODE is not None
    command = [NODE, "--input-type=module", "-e", OPENER, "--", CONTEXT.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CLIENT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def opened(sealed: bytes) -> list[str]:
            stdin.write(sealed.hex() + "\n")
            stdin.flush()
            return json.loads(stdout.readline())

        try:
            yield bytes.fromhex(stdout.readline()), opened
        finally:
            process.terminate()


def test_what_we_seal_opens_in_javascript_and_the_reply_from_there_opens_here(opener):
    public, opened = opener
    rng = SystemRandomness()
    for size in (0, 1, 31, 32, 33, 10_000):
        body = rng.bytes(size)
        sealed, reply = seal(body, public, context=CONTEXT, rng=rng)
        shown, answer = opened(sealed)
        assert bytes.fromhex(shown) == body
        assert reply.open(bytes.fromhex(answer)) == b"reply"
        with pytest.raises(ProtocolError):
            reply.open(bytes.fromhex(answer)[:-1] + bytes([bytes.fromhex(answer)[-1] ^ 1]))


def test_the_control_javascript_opens_nothing_of_another_context_or_key(opener):
    public, opened = opener
    rng = SystemRandomness()
    other, _ = seal(b"body", public, context=context_of("predict", "00" * 32), rng=rng)
    assert opened(other) == []
    to_other, _ = seal(b"body", EnclaveKey(rng).public, context=CONTEXT, rng=rng)
    assert opened(to_other) == []
    sealed, _ = seal(b"body", public, context=CONTEXT, rng=rng)
    for at in (0, 1087, 1088, 1119, 1120, len(sealed) - 1):
        assert opened(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) == []
    assert opened(sealed)[0] == b"body".hex()


#: draft-connolly-cfrg-xwing-kem-08, appendix C: seed of the key, seed of the encapsulation, shared secret.
X_WING = [
    (
        "7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26",
        "3cb1eea988004b93103cfb0aeefd2a686e01fa4a58e8a3639ca8a1e3f9ae57e2"
        "35b8cc873c23dc62b8d260169afa2f75ab916a58d974918835d25e6a435085b2",
        "d2df0522128f09dd8e2c92b1e905c793d8f57a54c3da25861f10bf4ca613e384",
    ),
    (
        "badfd6dfaac359a5efbb7bcc4b59d538df9a04302e10c8bc1cbf1a0b3a5120ea",
        "17cda7cfad765f5623474d368ccca8af0007cd9f5e4c849f167a580b14aabdef"
        "aee7eef47cb0fca9767be1fda69419dfb927e9df07348b196691abaeb580b32d",
        "f2e86241c64d60f6649fbc6c5b7d17180b780a3f34355e64a85749949c45f150",
    ),
]


def test_both_libraries_and_the_draft_agree_on_keys_and_secrets():
    """Encapsulated in JavaScript from the draft's seeds, decapsulated here by hand (`tests/tee`)."""
    script = """
        import { suite } from "./channel.mjs";
        const kem = suite().kem;
        const bytes = (hex) => new Uint8Array(Buffer.from(hex, "hex"));
        const hex = (bytes) => Buffer.from(bytes).toString("hex");
        const made = [];
        for (const [seed, ekm] of JSON.parse(process.argv[1])) {
          const { publicKey } = await kem.generateKeyPairDerand(bytes(seed));
          const { sharedSecret, enc } = await kem.encap({ recipientPublicKey: publicKey, ekm: bytes(ekm) });
          made.push([hex(await kem.serializePublicKey(publicKey)), hex(enc), hex(sharedSecret)]);
        }
        console.log(JSON.stringify(made));
    """
    made = json.loads(ran(script, json.dumps(X_WING)))
    for (seed, _, expected), (public, enc, secret) in zip(X_WING, made, strict=True):
        key = XWing(bytes.fromhex(seed))
        ours = EnclaveKey(Stream(key.expanded)).public.hex()
        assert ours == key.public.hex() == public
        assert key.decapsulate(bytes.fromhex(enc)).hex() == secret == expected
