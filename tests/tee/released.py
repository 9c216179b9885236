"""A broker with one sealed model, and servers that ask it, for the tests of both rooms."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confide.crypto.keys import SigningKey
from confide.crypto.random import SystemRandomness
from confide.model.artifact import Artifact
from confide.tee.broker import BrokerKeys
from confide.tee.channel import EnclaveKey
from confide.tee.evidence import Bundle, Claims, report_data
from confide.tee.policy import Policy, SimulatedRules
from confide.tee.sealed import FileKey, Head, seal_model
from confide.tee.simulated import Simulated
from confide.wire import MemoryStore, Store
from serve.toy import GRAPH, LABEL, PREPROCESS

OWNER = SigningKey(bytes(range(32)))
MEASUREMENT = "ab" * 48
NOW = 1_790_000_000
RNG = SystemRandomness()


def model_file(job: str = "") -> bytes:
    """Return the same bytes whenever it is asked."""
    return Artifact(GRAPH, PREPROCESS, LABEL, metadata={"job": job}, created="2026-01-31T12:00:00Z").encode(OWNER)


def sealed_model(store: Store, body: bytes | None = None) -> tuple[bytes, FileKey, Head]:
    """Return a sealed file, its key and its head; the key is in the broker's store."""
    key = FileKey.draw(RNG)
    sealed, head = seal_model(model_file() if body is None else body, key, model="model", trust=OWNER.public)
    BrokerKeys(store).add(key, head, now=NOW)
    return sealed, key, head


def policy(*measurements: str, simulated: bool = True) -> Policy:
    return Policy(simulated=SimulatedRules(measurements=measurements or (MEASUREMENT,)) if simulated else None)


def evidence(
    nonce: bytes,
    model_sha256: str,
    *,
    key: EnclaveKey | None = None,
    purpose: str = "unseal",
    attester: Simulated | None = None,
    now: float = NOW,
    **changes,
) -> Bundle:
    """Return what an enclave shows a broker; `changes` are of its claims."""
    said = {
        "purpose": purpose,
        "public_key": (key or EnclaveKey(RNG)).public.hex(),
        "model_sha256": model_sha256,
        "code_version": "test",
        "not_before": int(now) - 60,
        "not_after": int(now) + 600,
        "nonce": nonce.hex(),
    }
    claims = Claims(**(said | changes)).encode()
    attester = attester or Simulated(MEASUREMENT)
    quoted = attester.quote(report_data(claims))
    return Bundle(provider=attester.provider, evidence=quoted.evidence, endorsements=quoted.endorsements, claims=claims)


class Lines(list):
    """An audit in memory."""

    def append(self, line) -> None:
        super().append(dict(line))


def write_policy(path: Path, *measurements: str) -> Path:
    path.write_text(f"[simulated]\nmeasurements = {list(measurements)!r}\n".replace("'", '"'))
    return path


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-made certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "confide test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def memory() -> MemoryStore:
    return MemoryStore()
