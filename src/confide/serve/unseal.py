"""How a server inside an enclave gets its model: evidence to the broker, a key back, the file opened in memory.

    body = unsealed("model.sealed", "https://broker.example.org", attester)
    artifact = decode(body, trust=...)

The broker's certificate says who it is, and the key that comes back must be the one that the sealed file commits to: a
wrong broker can refuse, and nothing else.

Guarantees:
    The model is decrypted into this process's memory and written nowhere; core files are switched off first, since one
    would be a copy. Swap is the operator's to switch off, or to encrypt.
    No text and no log line has a byte of the key or of the model.

Leaks: to the broker the evidence, which model is asked for, and when. To whoever sits between, when and from where.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2
import msgspec

from confide.crypto.keys import KEY_BYTES
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import IntegrityError, ProtocolError
from confide.serve.broker import PROTECTED, PROTECTION, UNPROTECTED
from confide.serve.connect import Address, Carrier, Through
from confide.serve.direct import Direct
from confide.serve.effects import Patience, Pause, Received, Send, Steps
from confide.structs import known
from confide.tee.attest import Attester
from confide.tee.broker import PURPOSE
from confide.tee.channel import REQUEST_BYTES
from confide.tee.enclave import Enclave, Endorse, key_id_of
from confide.tee.evidence import NONCE_BYTES, Provider
from confide.tee.sealed import FileKey, Head, open_sealed, read_head, read_sealed

#: A key for one answer: clocks differ, and evidence may take long.
_LIFETIME_SECONDS = 600
_TIMEOUT_SECONDS = 30.0
_RETRIES = 8
_MOST_REPLY_BYTES = 1 << 16


class _Challenge(msgspec.Struct, frozen=True):
    nonce: str


def unsealed(
    path: str | Path,
    broker_url: str,
    attester: Attester,
    *,
    endorse: Endorse | None = None,
    ca_file: str | Path | None = None,
    give_up_seconds: float = 120.0,
    rng: Randomness | None = None,
    clock: Callable[[], float] = time.time,
    transport: httpx2.BaseTransport | None = None,
) -> bytes:
    """Return the bytes of the model file in a sealed one, for `confide.model.artifact.decode`.

    Args:
        path: of the sealed model.
        broker_url: "https://HOST[:PORT]"; plain "http://" only to this machine.
        attester: signs for the hardware that this process runs on.
        endorse: adds endorsements to its evidence; None adds none to those that came with it.
        ca_file: PEM file with the authority that signed the broker's certificate; the system's by default.
        give_up_seconds: how long a broker that is busy is asked again.
        rng: for the key of this moment; the operating system's by default.
        clock: seconds since the epoch.
        transport: instead of the network, for tests.

    Raises:
        ServiceError: the broker refuses; the text names the check that failed.
        IntegrityError: not the broker's certificate; a broker whose keys anybody gets, where this attester is none; or
            the sealed file was changed.
        ProtocolError: an answer that no broker gives, or another file's key.
        ModelError: no sealed model.
        UsageError: nobody answers there, or the hardware refuses.
    """
    rng = SystemRandomness() if rng is None else rng
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    name = Path(path).name
    body = read_sealed(path)
    head = read_head(body, where=name)
    address = Address(broker_url, None, ca_file, False, _TIMEOUT_SECONDS)
    patience = Patience(
        broker_url, retries=_RETRIES, give_up_seconds=give_up_seconds, repeat_questions=False, clock=time.monotonic,
        rng=rng,
    )  # fmt: skip
    enclave = Enclave(
        attester, purpose=PURPOSE, model_sha256=head.graph_sha256, rng=rng, endorse=endorse,
        lifetime_seconds=_LIFETIME_SECONDS, clock=clock,
    )  # fmt: skip
    carrier: Carrier = Direct(address) if transport is None else Through(address, transport)
    try:
        key = _key(head, enclave, carrier, patience)
    finally:
        carrier.close()
    return open_sealed(body, key, where=name)


def _key(head: Head, enclave: Enclave, carrier: Carrier, patience: Patience) -> FileKey:
    """Return the key of a sealed file."""
    challenge = Send("POST", "/v1/challenge", b"", max_bytes=_MOST_REPLY_BYTES)
    asked = _carried(patience.exchange(challenge), carrier)
    bundle = enclave.bundle(_nonce(asked.body))
    _check(asked, bundle.provider)
    send = Send(
        "POST", f"/v1/release/{head.key_id}", bundle.encode(), {"content-type": bundle.provider.media_type},
        max_bytes=_MOST_REPLY_BYTES,
    )  # fmt: skip
    sealed = _carried(patience.exchange(send, question=True), carrier).body
    if len(sealed) != REQUEST_BYTES + KEY_BYTES:
        raise ProtocolError("Expected a sealed key from the broker; check that the URL is a broker's")
    opened = enclave.open(key_id_of(bytes.fromhex(bundle.read_claims().public_key)), sealed)
    key = FileKey(opened.body)
    if key.key_id != head.key_id:
        raise ProtocolError("Expected the key of this sealed model from the broker; it gave another one")
    return key


def _carried(steps: Steps[Received], carrier: Carrier) -> Received:
    """Carry out what the steps want done."""
    try:
        effect = next(steps)
        while True:
            try:
                match effect:
                    case Send():
                        result = carrier.send(effect, _unseen)
                    case Pause(seconds):
                        result = time.sleep(seconds)
                    case _:
                        raise ProtocolError("Expected requests and pauses alone")
            except httpx2.TransportError as error:
                effect = steps.throw(error)
            else:
                effect = steps.send(result)
    except StopIteration as stop:
        return stop.value


def _check(received: Received, provider: Provider) -> None:
    """Refuse what is no broker, and a broker that protects less than this attester's evidence would."""
    protection = received.headers.get(PROTECTION)
    if protection not in (PROTECTED, UNPROTECTED):
        raise ProtocolError("Expected an answer of a broker; check that the URL is a broker's")
    if protection == UNPROTECTED and provider.hardware:
        raise IntegrityError(
            "Expected a broker that takes hardware's evidence alone, this one runs with --attester simulated: anybody "
            "gets its keys; name another broker, or seal the model under another key"
        )


def _nonce(body: bytes) -> bytes:
    try:
        found: _Challenge = msgspec.json.decode(body, type=known(_Challenge))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = _Challenge("")
    if not re.fullmatch(f"[0-9a-f]{{{2 * NONCE_BYTES}}}", found.nonce):
        raise ProtocolError("Expected a nonce from the broker; check that the URL is a broker's")
    return bytes.fromhex(found.nonce)


def _unseen(done: int, total: int) -> None:
    """Take progress that nobody watches."""
