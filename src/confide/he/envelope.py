"""Envelopes: a question is its keys' owner's, and a reply answers that very question.

With its public keys a client sends a random 32-byte key, which never travels again. Questions and replies carry tags
under it, one direction with one key:

    K_q, K_r   HKDF-SHA256 of the key, bound to the kit (model shape, parameters, layout) and the id of the public keys
    t_q        HMAC(K_q, nonce, rows, SHA-256 of the ciphertexts)      with 16 fresh random bytes as nonce
    t_r        HMAC(K_r, t_q, SHA-256 of the reply)

The server checks t_q before it looks at ciphertexts or keys, the client t_r before it decrypts. What that is good for:
whoever knows no more than a key id cannot ask under it or have its owner's quota used up in vain; replies that were
altered on the way (by a proxy that ends TLS, a cache, a load balancer), belong to another question, or come from a
server that was never given these keys are refused. What it is not: a proxy that sees the upload itself learns the key;
the server holds it as well, so that a tag proves nothing to third parties; and a question that is sent twice is
answered twice, to its owner alone.

Ciphertexts are malleable by design, so without tags anybody on the way could change what a question asks. The client
never says whether a reply decrypted or what its error was.
"""

from __future__ import annotations

import hashlib

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from confide.crypto.keys import derive, label
from confide.errors import ProtocolError

NONCE_BYTES = 16


class SealedQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question: which keys, how many rows, their encryptions, and the tag over all."""

    key_id: str
    rows: int
    nonce: bytes
    body: bytes
    tag: bytes


class SealedReply(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer, and the tag that ties it to its question."""

    body: bytes
    tag: bytes


class Channel:
    """Both directions between a client and a server that share a key.

    Args:
        authentication: the shared key, 32 bytes.
        kit: the client kit's bytes.
        key_id: of the public keys.
    """

    __slots__ = ("_query", "_reply")

    def __init__(self, authentication: bytes, *, kit: bytes, key_id: str) -> None:
        context = hashlib.sha256(kit).digest()
        self._query = derive(authentication, label("confide he query v1", context, key_id))
        self._reply = derive(authentication, label("confide he reply v1", context, key_id))

    def __repr__(self) -> str:
        return "Channel()"

    def query(self, key_id: str, rows: int, body: bytes, nonce: bytes) -> SealedQuery:
        """Return a question under a fresh `nonce`."""
        tag = _tag(self._query, _asked(rows, body, nonce))
        return SealedQuery(key_id=key_id, rows=rows, nonce=nonce, body=body, tag=tag)

    def opened(self, query: SealedQuery) -> bytes:
        """Return the body of a question. Raises ProtocolError if the owner of the keys did not ask it."""
        if len(query.nonce) != NONCE_BYTES or not 0 < query.rows < 1 << 32:
            raise ProtocolError(f"Expected a nonce of {NONCE_BYTES} bytes and a number of rows")
        _verify(self._query, _asked(query.rows, query.body, query.nonce), query.tag)
        return query.body

    def reply(self, query: SealedQuery, body: bytes) -> SealedReply:
        """Return the reply to a question that was opened."""
        return SealedReply(body=body, tag=_tag(self._reply, _answered(query, body)))

    def answer(self, query: SealedQuery, reply: SealedReply) -> bytes:
        """Return the body of a reply. Raises ProtocolError if it does not answer `query`, or nobody honest sent it."""
        _verify(self._reply, _answered(query, reply.body), reply.tag)
        return reply.body


def _asked(rows: int, body: bytes, nonce: bytes) -> bytes:
    return nonce + rows.to_bytes(8, "little") + hashlib.sha256(body).digest()


def _answered(query: SealedQuery, body: bytes) -> bytes:
    return query.tag + hashlib.sha256(body).digest()


def _tag(key: bytes, content: bytes) -> bytes:
    made = HMAC(key, SHA256())
    made.update(content)
    return made.finalize()


def _verify(key: bytes, content: bytes, tag: bytes) -> None:
    made = HMAC(key, SHA256())
    made.update(content)
    try:
        made.verify(tag)
    except InvalidSignature:
        raise ProtocolError("Expected a tag of whoever holds the keys of this question") from None
