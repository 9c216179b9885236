"""What server and client agree on beside the Open Inference Protocol: the client's kit and the form of a refusal."""

from __future__ import annotations

import hashlib
import re

import msgspec

from confide.errors import ProtocolError, ServiceError
from confide.guarantee import Guarantee, PrivacyLabel
from confide.structs import known
from confide.wire import decode

#: Version of the kit's format and of the endpoints `kit` and `keys`.
FORMAT = 1

#: Largest kit that a client reads.
MAX_KIT_BYTES = 64 << 20

#: Room that the JSON part of a request may take beside the message.
JSON_BYTES = 4096

KEY_ID = re.compile(r"[0-9a-f]{64}")


class ClientKit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a client needs to ask one model under one backend; public, fetched once.

    Args:
        format: `FORMAT` of the server.
        model, backend: names; the backend is also the model's version in the Open Inference Protocol.
        kit: the backend's client kit, for `Backend.decode_kit`.
        preprocess: the model's public preprocessing as bytes; empty if the model takes features as they are.
        label: what the training promised, as the server states it.
        guarantee: what asking promises, as the server states it.
        features, outputs: columns of x and of y.
        classes: names of the outcomes; may be empty.
        needs_keys: True if public keys must be uploaded before the first question.
        max_rows: rows that one question may carry.
        max_query_bytes, max_keys_bytes: sizes beyond which the server refuses a body.
        link: what an output is; see `confide.model.links`.
        statement: the head of the model file with its owner's signature (`confide.serve.signed`); empty if the
            server shows none.
    """

    format: int = FORMAT
    model: str
    backend: str
    kit: bytes
    preprocess: bytes
    label: PrivacyLabel
    guarantee: Guarantee
    features: int
    outputs: int
    classes: tuple[str, ...]
    needs_keys: bool
    max_rows: int
    max_query_bytes: int
    max_keys_bytes: int
    link: str = ""
    statement: bytes = b""

    def encode(self) -> bytes:
        """Return the kit as MessagePack: the same bytes for the same kit, so that it can be pinned."""
        plain = msgspec.to_builtins(self, builtin_types=(bytes,))
        plain["guarantee"]["claims"].sort(key=repr)  # a set has no order of its own
        return msgspec.msgpack.encode(plain)

    @staticmethod
    def decode(body: bytes) -> ClientKit:
        """Return the kit in `body`. Raises ProtocolError on anything else."""
        kit = decode(body, ClientKit, max_bytes=MAX_KIT_BYTES)
        if kit.format != FORMAT:
            raise ProtocolError(
                f"Expected a kit of format={FORMAT}; install the version of confide that the server runs"
            )
        if kit.features < 1 or kit.outputs < 1 or kit.max_rows < 1:
            raise ProtocolError("Expected a kit with features, outputs and rows")
        return kit


def digest(body: bytes) -> str:
    """Return hex SHA-256 of `body`: how kits are pinned and keys are named."""
    return hashlib.sha256(body).hexdigest()


class Refusal(ServiceError):
    """A server's refusal as it crosses the wire: raised in the server, sent as JSON, raised again in the client.

    Args:
        status: the HTTP status, 400 to 599.
        code: one word for programs: "unknown_key", "too_large", "quota" ...
        text: one line for people; never an input.
        retry_after_seconds: when it is worth asking again; None if asking again changes nothing.
        request_id: names the request in the server's log.
    """

    def __init__(
        self, status: int, code: str, text: str, *, retry_after_seconds: int | None = None, request_id: str = ""
    ) -> None:
        super().__init__(status, f"{text} [{code}, request {request_id}]" if request_id else text)
        self.code = code
        self.text = text
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id

    def body(self, request_id: str) -> bytes:
        """Return the JSON body of this refusal."""
        return msgspec.json.encode(_Refusal(self.text, self.code, request_id))

    @staticmethod
    def parse(status: int, body: bytes, retry_after: str | None) -> Refusal:
        """Return the refusal in an answer with an error status; any body will do."""
        seconds = int(retry_after) if retry_after and re.fullmatch(r"\d{1,6}", retry_after) else None
        try:
            wire = msgspec.json.decode(body, type=known(_Refusal))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Refusal(status, "unknown", "no reason given", retry_after_seconds=seconds)
        text = re.sub(r"[^\x20-\x7e]", "?", wire.error)[:500]  # a server's words end up in a terminal
        code = wire.code if re.fullmatch(r"[a-z_]{1,40}", wire.code) else "unknown"
        request_id = wire.request_id if re.fullmatch(r"[0-9a-f]{0,32}", wire.request_id) else ""
        return Refusal(status, code, text, retry_after_seconds=seconds, request_id=request_id)


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    code: str = "unknown"
    request_id: str = ""
