"""A real Flower federation on loopback: a SuperLink with TLS, and SuperNodes that it knows. No test lives here.

Flower is in an environment of its own (`make setup-flower`); everything of confide runs in the one of the tests.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confide.net.flower import write_app

ROOT = Path(__file__).parents[2]
FLOWER = ROOT / "bench" / "peers" / "flower" / ".venv" / "bin"


def free_port() -> int:
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def pem(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def certify(folder: Path) -> None:
    """Write an authority and the SuperLink's certificate for 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])

    def build(name: x509.Name, holder: ec.EllipticCurvePrivateKey, is_ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(issuer, name, holder.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        )

    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    root = build(issuer, authority, True).sign(authority, hashes.SHA256())
    own = build(subject, key, False).add_extension(address, critical=False).sign(authority, hashes.SHA256())
    (folder / "authority.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    (folder / "superlink.pem").write_bytes(own.public_bytes(serialization.Encoding.PEM))
    (folder / "superlink.key").write_bytes(pem(key, serialization.PrivateFormat.PKCS8))


class Federation:
    """SuperLink, SuperNodes and the nodes' own processes, each with its log in `folder`."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names
        self.address = f"127.0.0.1:{free_port()}"
        self.running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.environment = {
            "PATH": f"{FLOWER}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        }

    def __enter__(self) -> Federation:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        certify(self.folder)
        (self.folder / "flower").mkdir()
        root = f'root-certificates = "{self.folder / "authority.pem"}"'
        config = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{self.address}"\n{root}\n'
        (self.folder / "flower" / "config.toml").write_text(config)
        tls = ["--ssl-certfile=superlink.pem", "--ssl-keyfile=superlink.key", "--ssl-ca-certfile=authority.pem"]
        options = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        port = f"--port={self.address.rpartition(':')[2]}"
        self.launch("superlink", [str(FLOWER / "flower-superlink"), port, *tls, *options])
        for name in self.names:
            self.start_node(name)
        self.wait_for_port()
        for name in self.names:
            self.start_supernode(name)
        write_app(self.folder / "app")
        socket_path = f'confide-socket="{self.folder / "coordinator.sock"}"'
        self.flwr("run", str(self.folder / "app"), "here", "--run-config", socket_path)

    def start_node(self, name: str) -> None:
        """Start the process in which the parties of `name` live."""
        path = os.pathsep.join(str(ROOT / part) for part in ("src", "tests"))
        script = str(Path(__file__).with_name("flower_node.py"))
        self.launch(name, [sys.executable, script, str(self.folder), name], {"PYTHONPATH": path})

    def start_supernode(self, name: str) -> None:
        """Register a new key at the SuperLink, and start a SuperNode that has it."""
        key, place = ec.generate_private_key(ec.SECP384R1()), self.folder / f"{name}.key"
        place.write_bytes(pem(key, serialization.PrivateFormat.OpenSSH))
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        place.with_suffix(".pub").write_bytes(key.public_key().public_bytes(*form))
        self.flwr("supernode", "register", str(place.with_suffix(".pub")), "here")
        config = f"confide-socket={json.dumps(str(self.folder / f'{name}.sock'))}"
        options = [f"--superlink={self.address}", f"--port={free_port()}", f"--node-config={config}"]
        trust = ["--root-certificates=authority.pem", f"--auth-supernode-private-key={place.name}"]
        self.launch(f"supernode-{name}", [str(FLOWER / "flower-supernode"), *options, *trust])

    def launch(self, title: str, command: list[str], more: dict[str, str] | None = None) -> None:
        with (self.folder / f"{title}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | (more or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append((title, process))

    def flwr(self, *command: str) -> str:
        done = subprocess.run(
            [str(FLOWER / "flwr"), *command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def wait_for_port(self) -> None:
        host, _, port = self.address.partition(":")
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return
            time.sleep(0.1)
        raise AssertionError(self.logs())

    def kill(self, title: str) -> None:
        """End a process as the loss of its machine would."""
        (process,) = (process for known, process in self.running if known == title)
        process.kill()
        process.wait()
        self.running = [(known, process) for known, process in self.running if known != title]

    def stop(self) -> None:
        """End every process, those that speak to the SuperLink first, and whatever one of them has left behind."""
        for _, process in reversed(self.running):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own, which we started
        self.running = []

    def logs(self) -> str:
        """Return the end of every log, for a test that has failed."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.folder.glob("*.log")
        )
