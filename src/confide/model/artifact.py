"""A trained model as one signed file: the graph, its public preprocessing and its privacy label.

    offset      bytes   content
    0           8       magic, "CONFIDE" and a zero byte
    8           4       h, length of the header, unsigned little-endian
    12          h       header, a MessagePack map: format, label, metadata, signer, classes, hashes of the parts ...
    12 + h      64      Ed25519 signature over every byte before it
    76 + h              the graph as ONNX, then the preprocessing as MessagePack, to the last byte of the file

`decode` believes a file step by step: sizes, then the signature (with the key that the caller pins, before anything
is parsed), then the hashes; only then are the parts opened. The header's hash names the model: its fingerprint.

What stands before the graph is the model's statement: a server can show it to clients, who check whose model is served
without seeing a weight (`decode_statement`).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from confide.crypto.keys import KEY_BYTES, SIGNATURE_BYTES, SigningKey, verify
from confide.crypto.random import Randomness
from confide.errors import IntegrityError, ModelError, ProtocolError
from confide.guarantee import PrivacyLabel
from confide.model import onnx
from confide.model.graph import Graph
from confide.model.links import link_of
from confide.model.preprocess import Preprocess
from confide.structs import known

_MAGIC = b"CONFIDE\0"
_FORMAT = 3  # 1 had a label with fewer fields, 2 no classes, outputs and link: they read as not stated
_READABLE = (1, 2, _FORMAT)
_LENGTH_BYTES = 4
_PREFIX_BYTES = len(_MAGIC) + _LENGTH_BYTES
_LARGEST_HEADER_BYTES = 1 << 20
_LARGEST_FILE_BYTES = _PREFIX_BYTES + _LARGEST_HEADER_BYTES + SIGNATURE_BYTES + onnx.LARGEST_BYTES + (1 << 20)
_LARGEST_KEY_FILE_BYTES = 1 << 14
_PRIVATE_MODE = 0o600


class UnverifiedModel(UserWarning):
    """A model was opened without a pinned key: whoever wrote the file may have been anybody."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size_bytes: int
    sha256: bytes

    @staticmethod
    def of(body: bytes) -> _Part:
        return _Part(len(body), hashlib.sha256(body).digest())


class _Format(msgspec.Struct, frozen=True):
    """The one field of the header that every format has."""

    format: int


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int
    signer: bytes
    created: str
    label: PrivacyLabel
    metadata: dict[str, str]
    graph: _Part
    preprocess: _Part
    classes: tuple[str, ...] | None = None
    outputs: int | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """What a model's owner has signed, without the model.

    Args:
        signer: hex Ed25519 public key.
        created: UTC time, "2026-01-31T12:00:00Z".
        label: what the training promised.
        metadata: further public facts.
        preprocess_sha256: of the preprocessing's bytes.
        graph_sha256: of the graph's bytes, which stay at the server.
        classes, outputs, link: as the graph has them (`confide.model.links`); None in files of earlier formats.
        fingerprint: hex SHA-256 of the file's header, which names the model.
    """

    signer: str
    created: str
    label: PrivacyLabel
    metadata: Mapping[str, str]
    preprocess_sha256: bytes
    graph_sha256: bytes
    classes: tuple[str, ...] | None
    outputs: int | None
    link: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A model with everything that whoever serves or queries it must know.

    Args:
        graph: the layers with their parameters.
        preprocess: raw columns to the graph's features; runs where the raw data is.
        label: what the training promised.
        metadata: further public facts, text to text ("data set", "job"). "link" says what the outputs are
            (`confide.model.links`) where the graph does not.
        created: UTC time, "2026-01-31T12:00:00Z"; empty takes the time of saving.
        signer: hex Ed25519 public key that the file is signed with; empty if not from a file.
        fingerprint: hex SHA-256 of the file's header, which covers everything else; empty if not from a file.
        statement: the signed head of the file, for `decode_statement`; empty if not from a file.

    **Guarantees**: `load` accepts exactly what `save` wrote: a file with any bit changed, cut off or appended is
    refused, and with a pinned key so is every file that its holder did not sign. Nothing inside a file is run.

    **Leaks**: the file holds the weights in the clear; `save` lets only its owner read it.
    """

    graph: Graph
    preprocess: Preprocess
    label: PrivacyLabel
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    created: str = ""
    signer: str = ""
    fingerprint: str = ""
    statement: bytes = b""

    def __post_init__(self) -> None:
        if self.preprocess.features != self.graph.features:
            raise ModelError(
                f"Expected preprocessing that gives the graph's {self.graph.features} features, "
                f"got {self.preprocess.features}"
            )

    @property
    def link(self) -> str:
        """Return what the outputs are, see `confide.model.links`. Raises ModelError if the metadata say nonsense."""
        return link_of(self.graph, self.metadata.get("link", ""))

    def encode(self, key: SigningKey) -> bytes:
        """Return the signed file's bytes.

        Raises:
            ModelError: metadata or the model are too large.
            MissingExtra: `onnx` is not installed.
        """
        graph, preprocess = onnx.to_onnx(self.graph), self.preprocess.encode()
        header = msgspec.msgpack.encode(
            _Header(
                format=_FORMAT,
                signer=key.public,
                created=self.created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                label=self.label,
                metadata=dict(self.metadata),
                graph=_Part.of(graph),
                preprocess=_Part.of(preprocess),
                classes=self.graph.classes,
                outputs=self.graph.outputs,
                link=self.link,
            )
        )
        if len(header) > _LARGEST_HEADER_BYTES:
            raise ModelError(
                f"Expected a label and metadata of at most {_LARGEST_HEADER_BYTES} bytes, got {len(header)}"
            )
        signed = _MAGIC + len(header).to_bytes(_LENGTH_BYTES, "little") + header
        return signed + key.sign(signed) + graph + preprocess

    def save(self, path: Path, key: SigningKey) -> Artifact:
        """Write the signed file, whole or not at all, readable by its owner only.

        A link at `path` is replaced, not followed. Returns this artifact with `created`, `signer` and `fingerprint` as
        in the file.

        Raises:
            ModelError: the file cannot be written, or as in `encode`.
            MissingExtra: `onnx` is not installed.
        """
        body = self.encode(key)
        try:
            write_whole(path, body)
        except OSError as error:
            raise ModelError(f"Expected to write the model to {path}; {error.strerror}") from None
        header_bytes, end = _header_bytes(body, str(path))
        header = _header(header_bytes, str(path))
        return replace(
            self,
            created=header.created,
            signer=header.signer.hex(),
            fingerprint=hashlib.sha256(header_bytes).hexdigest(),
            statement=body[: end + SIGNATURE_BYTES],
        )


def load(path: str | Path, *, trust: bytes | None = None) -> Artifact:
    """Read a signed file; see `decode`.

    Raises:
        ModelError: the file is absent or too large, or as in `decode`.
        IntegrityError: as in `decode`.
        MissingExtra: `onnx` is not installed.
    """
    return decode(read(path), trust=trust, where=str(path))


def read(path: str | Path) -> bytes:
    """Return a model file's bytes, for `decode`. Raises ModelError if the file is absent or too large."""
    return _read(Path(path), _LARGEST_FILE_BYTES, "model")


def decode(body: bytes, *, trust: bytes | None, where: str = "the model") -> Artifact:
    """Return the model in a signed file's bytes.

    Args:
        body: the file; may come from anybody.
        trust: the 32-byte public key that must have signed it. None accepts any signer with a warning and shows
            only that the file is as its signer left it.
        where: what the texts call it.

    Raises:
        ModelError: not a model of this format, or one that cannot be run.
        IntegrityError: another signer, or the file is incomplete or changed.
        MissingExtra: `onnx` is not installed.
    """
    header, header_bytes, end = _signed(body, trust, where)
    if trust is None:
        warnings.warn(
            f"{where} was opened without a pinned key; pin the key of whoever trained it with trust= "
            f"(the file says {header.signer.hex()})",
            UnverifiedModel,
            stacklevel=3,  # where `load` was called
        )
    graph, preprocess = _parts(body[end:], header, where)
    return Artifact(
        graph=onnx.from_onnx(graph),
        preprocess=Preprocess.decode(preprocess),
        label=header.label,
        metadata=header.metadata,
        created=header.created,
        signer=header.signer.hex(),
        fingerprint=hashlib.sha256(header_bytes).hexdigest(),
        statement=body[:end],
    )


def decode_statement(body: bytes, *, trust: bytes | None, where: str = "the model's statement") -> Statement:
    """Return what a model's owner has signed.

    Args:
        body: `Artifact.statement`; may come from anybody.
        trust: the 32-byte public key that must have signed it. None accepts any signer: it then says who, not that
            it is the right one.
        where: what the texts call it.

    Raises:
        ModelError: not a statement of this format.
        IntegrityError: another signer, or it is incomplete or changed.
    """
    header, header_bytes, end = _signed(body, trust, where)
    if end != len(body):
        raise IntegrityError(f"Expected {where} to end with its signature; get it again")
    return Statement(
        signer=header.signer.hex(),
        created=header.created,
        label=header.label,
        metadata=header.metadata,
        preprocess_sha256=header.preprocess.sha256,
        graph_sha256=header.graph.sha256,
        classes=header.classes,
        outputs=header.outputs,
        link=header.link,
        fingerprint=hashlib.sha256(header_bytes).hexdigest(),
    )


def _signed(body: bytes, trust: bytes | None, where: str) -> tuple[_Header, bytes, int]:
    """Return the header, its bytes, and where the signature ends; with a pinned key nothing is parsed before that."""
    header_bytes, end = _header_bytes(body, where)
    signed, signature = body[:end], body[end : end + SIGNATURE_BYTES]
    if trust is not None:
        _verify(trust, signed, signature, f"Expected {where} as the holder of the pinned key signed it")
    header = _header(header_bytes, where)
    if trust is None:
        _verify(header.signer, signed, signature, f"Expected {where} as its signer left it")
    elif header.signer != trust:
        raise IntegrityError(f"Expected {where} to name the pinned key as its signer; get the file again")
    return header, header_bytes, end + SIGNATURE_BYTES


def _header_bytes(body: bytes, where: str) -> tuple[bytes, int]:
    """Return the header and where it ends."""
    if not body.startswith(_MAGIC):
        raise ModelError(
            f"Expected a confide model, {where} is something else; write one with `confide train`, or of an ONNX, "
            "torch, scikit-learn or XGBoost model as docs/models.md shows"
        )
    length = int.from_bytes(body[len(_MAGIC) : _PREFIX_BYTES], "little")
    end = _PREFIX_BYTES + length
    if length > _LARGEST_HEADER_BYTES or len(body) < end + SIGNATURE_BYTES:
        raise IntegrityError(f"Expected {where} to be complete, {len(body)} bytes are not; get the file again")
    return body[_PREFIX_BYTES:end], end


def _header(body: bytes, where: str) -> _Header:
    try:
        found = msgspec.msgpack.decode(body, type=known(_Format)).format
        if found in _READABLE:
            return msgspec.msgpack.decode(body, type=known(_Header))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise IntegrityError(f"Expected {where} to have a well-formed header; get the file again") from None
    mend = "update confide" if found > _FORMAT else "train the model again"
    raise ModelError(f"Expected {where} in format {_FORMAT}, got format {found}; {mend}")


def _verify(public: bytes, signed: bytes, signature: bytes, expected: str) -> None:
    try:
        verify(public, signed, signature)
    except ProtocolError:
        raise IntegrityError(f"{expected}; get the file, or the key, again") from None


def _parts(body: bytes, header: _Header, where: str) -> tuple[bytes, bytes]:
    split = header.graph.size_bytes
    if split < 0 or split + header.preprocess.size_bytes != len(body):
        raise IntegrityError(f"Expected {where} to end where its header says; get the file again")
    parts = body[:split], body[split:]
    if (_Part.of(parts[0]), _Part.of(parts[1])) != (header.graph, header.preprocess):
        raise IntegrityError(f"Expected the parts of {where} to have the hashes in its header; get the file again")
    return parts


# --- keys in files ----------------------------------------------------------------------------------------------------


def create_signing_key(path: Path, rng: Randomness) -> SigningKey:
    """Draw a signing key and write it: the secret at `path` (PEM, PKCS #8, readable by its owner only), the public half
    beside it with ".pub" added to the name.

    Raises:
        ModelError: `path` exists (a key is never overwritten), or cannot be written.
    """
    seed = SigningKey.draw_seed(rng)
    secret = Ed25519PrivateKey.from_private_bytes(seed)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_MODE), "wb") as file:
            file.write(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        path.with_name(path.name + ".pub").write_bytes(public)
    except FileExistsError:
        raise ModelError(f"Expected no file at {path}; read that key, or name another file for a new one") from None
    except OSError as error:
        raise ModelError(f"Expected to write a signing key to {path}; {error.strerror}") from None
    return SigningKey(seed)


def read_signing_key(path: Path) -> SigningKey:
    """Return the signing key that `create_signing_key` or `openssl genpkey -algorithm ed25519` wrote.

    Raises:
        ModelError: the file is absent, others may read it, or it holds no such key; no text shows its content.
    """
    body = _read(path, _LARGEST_KEY_FILE_BYTES, "signing key")
    if path.stat().st_mode & 0o077:
        raise ModelError(f"Expected that only you can read the signing key {path}; run: chmod 600 {path}")
    try:
        key = load_pem_private_key(body, password=None)
    except (ValueError, TypeError):  # TypeError: encrypted under a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ModelError(f"Expected an Ed25519 private key without password, as PEM, in {path}")
    return SigningKey(key.private_bytes_raw())


def read_public_key(source: str | Path) -> bytes:
    """Return the 32-byte public key that `source` is (64 hex digits) or that lies in the PEM file it names.

    Raises:
        ModelError: it is neither.
    """
    if re.fullmatch(f"[0-9a-fA-F]{{{2 * KEY_BYTES}}}", str(source)):
        return bytes.fromhex(str(source))
    try:
        key = load_pem_public_key(_read(Path(source), _LARGEST_KEY_FILE_BYTES, "public key"))
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ModelError(f"Expected 64 hex digits or an Ed25519 public key, as PEM, in {source}")
    return key.public_bytes_raw()


def _read(path: Path, largest_bytes: int, what: str) -> bytes:
    try:
        if not path.is_file():  # a pipe or a device would block or never end
            raise ModelError(f"Expected a {what} at {path}; no such file")
        with path.open("rb") as file:
            body = file.read(largest_bytes + 1)
    except OSError as error:
        raise ModelError(f"Expected a readable {what} at {path}; {error.strerror}") from None
    if len(body) > largest_bytes:
        raise ModelError(f"Expected a {what} of at most {largest_bytes} bytes at {path}")
    return body


@contextmanager
def whole_file(path: Path, *, mode: int = _PRIVATE_MODE) -> Generator[IO[bytes]]:
    """Open a file for writing that is either there in full or as it was before, also after a power cut.

    Args:
        path: replaced if it exists, when the `with` block ends without an error; a link is replaced, not followed.
        mode: permissions; its owner alone by default.

    Raises:
        OSError: as the system says; nothing is left behind.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)


def write_whole(path: Path, body: bytes, *, mode: int = _PRIVATE_MODE) -> None:
    """Write a file at once; as `whole_file`."""
    with whole_file(path, mode=mode) as file:
        file.write(body)
