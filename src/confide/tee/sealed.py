"""A model file that only an attested server opens: a public head, and the file encrypted under a key of a broker.

    offset      bytes   content
    0           8       magic, "CONFSEA" and a zero byte
    8           4       h, length of the head, unsigned little-endian
    12          h       head, a MessagePack map: format, model, graph_sha256, key_id, statement
    12 + h              the model file under AES-256-GCM, its tag last, to the last byte of the file

Every byte before the ciphertext is its associated data. The key is drawn for this file and encrypts nothing else, so
the nonce is zero. AES-GCM does not bind to a key by itself; the key's id does, which is a commitment to it.

Guarantees:
    Without the key the file says what its head says, and its length; with the key, `open_sealed` returns exactly the
    bytes that were sealed: a file with any bit changed, cut off or appended is refused.
    Whoever reads the head alone learns who signed the model, as the signature says; that the ciphertext holds this very
    model is known to whoever opens it.

Leaks: the length of the model file; the statement: label, classes, metadata and the hash of the weights, which confirms
a guess of all of them.

Paper: NIST SP 800-38D for AES-GCM; commitment by a hash of the key as in Albertini and others, "How to abuse and fix
authenticated encryption without key commitment", USENIX Security 2022, section 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confide.crypto.keys import KEY_BYTES, commit
from confide.crypto.random import Randomness
from confide.errors import IntegrityError, ModelError, ProtocolError
from confide.model import onnx
from confide.model.artifact import Statement, decode, decode_statement
from confide.structs import known

_MAGIC = b"CONFSEA\0"
MAGIC_BYTES = len(_MAGIC)
_FORMAT = 1
_PREFIX_BYTES = len(_MAGIC) + 4
_TAG_BYTES = 16
_LARGEST_HEAD_BYTES = (1 << 20) + (1 << 13)  # the statement of a model is at most 1 MiB and its signature
#: A model file, its statement once more, and what sealing adds.
LARGEST_BYTES = onnx.LARGEST_BYTES + (4 << 20)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMITMENT = b"confide sealed model v1, id of its key"


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int
    model: str
    graph_sha256: str
    key_id: str
    statement: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What a sealed model says to everybody.

    Args:
        model: its name: letters, digits, '-', '_' and '.', at most 64.
        graph_sha256: hex, of the model's graph as its owner signed it; what an enclave claims as `model_sha256`.
        key_id: hex, the name of the key at the broker, and a commitment to it.
        statement: what the owner signed (`confide.model.artifact.decode_statement`), as in the model file.
        size_bytes: of everything before the ciphertext.
    """

    model: str
    graph_sha256: str
    key_id: str
    statement: bytes
    size_bytes: int


class FileKey:
    """The key of one sealed file.

    Args:
        secret: its 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.key_id = commit(secret, _COMMITMENT).hex()

    @staticmethod
    def draw(rng: Randomness) -> FileKey:
        """Return a new key."""
        return FileKey(rng.bytes(KEY_BYTES))

    def __repr__(self) -> str:
        return f"FileKey({self.key_id[:12]}, secret)"


def is_sealed(body: bytes) -> bool:
    """Return whether `body`, or its first `MAGIC_BYTES`, begin a sealed model."""
    return body.startswith(_MAGIC)


def seal_model(body: bytes, key: FileKey, *, model: str, trust: bytes | None = None) -> tuple[bytes, Head]:
    """Return a sealed file, and its head.

    Args:
        body: of a model file.
        key: drawn for this file.
        model: the name in the head; as `Head.model`.
        trust: the 32-byte public key that must have signed the model; None takes any signer, with a warning.

    Raises:
        ModelError: not a model that could be served.
        IntegrityError: another signer, or the file is incomplete or changed.
        MissingExtra: `onnx` is not installed.
    """
    if not _NAME.fullmatch(model):
        raise ModelError(f"Expected model={model!r} to be 1 to 64 letters, digits, '-', '_' and '.'")
    statement = decode(body, trust=trust).statement
    graph_sha256 = decode_statement(statement, trust=trust).graph_sha256.hex()
    head = msgspec.msgpack.encode(
        _Head(format=_FORMAT, model=model, graph_sha256=graph_sha256, key_id=key.key_id, statement=statement)
    )
    public = _MAGIC + len(head).to_bytes(4, "little") + head
    sealed = public + AESGCM(key.secret).encrypt(bytes(12), body, public)
    return sealed, Head(model, graph_sha256, key.key_id, statement, len(public))


def read_head(body: bytes, *, where: str = "the sealed model") -> Head:
    """Return what a sealed model says to everybody.

    Args:
        body: the file; may come from anybody. What is returned is as the sealer left it only once the file is opened.
        where: what the texts call it.

    Raises:
        ModelError: no sealed model, or one of another version.
        IntegrityError: incomplete, or the head does not agree with the owner's statement in it.
    """
    if not is_sealed(body):
        raise ModelError(f"Expected {where} to be a sealed model; make one with: confide seal MODEL.confide")
    length = int.from_bytes(body[len(_MAGIC) : _PREFIX_BYTES], "little")
    size_bytes = _PREFIX_BYTES + length
    if length > _LARGEST_HEAD_BYTES or len(body) < size_bytes + _TAG_BYTES:
        raise IntegrityError(f"Expected {where} to be complete; get the file again")
    found = _decoded(body[_PREFIX_BYTES:size_bytes], where)
    if not (_NAME.fullmatch(found.model) and _DIGEST.fullmatch(found.key_id)):
        raise IntegrityError(f"Expected {where} to have a name and the id of a key; get the file again")
    head = Head(found.model, found.graph_sha256, found.key_id, found.statement, size_bytes)
    if owner_of(head, where=where).graph_sha256.hex() != head.graph_sha256:
        raise IntegrityError(f"Expected {where} to name the model that its owner signed; get the file again")
    return head


def owner_of(head: Head, *, trust: bytes | None = None, where: str = "the sealed model") -> Statement:
    """Return what the model's owner signed.

    Raises:
        IntegrityError: nobody signed it, or not the holder of `trust`.
    """
    try:
        return decode_statement(head.statement, trust=trust, where=f"the statement in {where}")
    except ModelError as error:
        raise IntegrityError(str(error)) from None


def open_sealed(body: bytes, key: FileKey, *, where: str = "the sealed model") -> bytes:
    """Return the bytes of the model file, for `confide.model.artifact.decode`.

    Raises:
        ModelError, IntegrityError: as `read_head`.
        ProtocolError: the key is not this file's.
        IntegrityError: the file was changed.
    """
    head = read_head(body, where=where)
    if head.key_id != key.key_id:
        raise ProtocolError(f"Expected the key of {where}; this is another one")
    view = memoryview(body)
    try:
        opened = AESGCM(key.secret).decrypt(bytes(12), view[head.size_bytes :], view[: head.size_bytes])
    except (InvalidTag, ValueError):  # ValueError: too short for a tag
        raise IntegrityError(f"Expected {where} as it was sealed; get the file again") from None
    if not opened.startswith(head.statement):  # a sealer that shows one owner and encloses another's model
        raise IntegrityError(f"Expected {where} to hold the model that its head names; get the file again")
    return opened


def read_sealed(path: str | Path) -> bytes:
    """Return a sealed file's bytes. Raises ModelError if the file is absent, too large, or no sealed model."""
    place = Path(path)
    try:
        if not place.is_file():  # a pipe or a device would block or never end
            raise ModelError(f"Expected a sealed model at {place}; no such file")
        with place.open("rb") as file:
            body = file.read(len(_MAGIC))
            if not is_sealed(body):
                raise ModelError(f"Expected a sealed model at {place}; make one with: confide seal MODEL.confide")
            body += file.read(LARGEST_BYTES + 1 - len(body))
    except OSError as error:
        raise ModelError(f"Expected a readable sealed model at {place}; {error.strerror}") from None
    if len(body) > LARGEST_BYTES:
        raise ModelError(f"Expected a sealed model of at most {LARGEST_BYTES} bytes at {place}")
    return body


def _decoded(head: bytes, where: str) -> _Head:
    try:
        found: _Head = msgspec.msgpack.decode(head, type=known(_Head))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise IntegrityError(f"Expected {where} to have a well-formed head; get the file again") from None
    if found.format != _FORMAT:
        raise ModelError(f"Expected {where} in format {_FORMAT}, got format {found.format}; update confide")
    return found
