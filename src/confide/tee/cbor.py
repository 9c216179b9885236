"""The part of CBOR that attestation documents use; everything else is refused before it costs anything.

Read are integers of at most 64 bits, byte strings, texts, arrays, maps and null, of definite length. Tags, floats and
items of indefinite length are not, since a general decoder runs code that the sender chooses for some tags (a regular
expression, for one), and a document is read before its signature can be checked.

Paper: RFC 8949 (CBOR).
"""

from __future__ import annotations

from confide.errors import ProtocolError

MAX_BYTES = 1 << 15
#: Of one array or map; a Nitro document has up to 32 registers.
MAX_ITEMS = 64
#: Of arrays and maps in each other; a document's registers are two deep.
MAX_DEPTH = 4

UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP = range(6)
_NULL = 0xF6


def loads(body: bytes) -> object:
    """Return the one item in `body`: int, bytes, str, list, dict with keys that are int or str, or None.

    Raises:
        ProtocolError: more than `MAX_BYTES`, another item, a key twice, or bytes after the item.
    """
    if len(body) > MAX_BYTES:
        raise ProtocolError(f"Expected a document in CBOR of at most {MAX_BYTES} bytes")
    try:
        reader = _Reader(body)
        item = reader.item(0)
        reader.end()
    except ValueError:
        raise ProtocolError("Expected a document in CBOR, without tags, floats or indefinite lengths") from None
    return item


def head(kind: int, size: int) -> bytes:
    """Return how an item of `kind` begins: its size, or its value, in the fewest bytes."""
    if size < 24:
        return bytes([kind << 5 | size])
    step = next(step for step in range(4) if size < 1 << (8 << step))
    return bytes([kind << 5 | 24 + step]) + size.to_bytes(1 << step, "big")


class _Reader:
    """What is left of a body. Every method raises ValueError at what it does not expect."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def end(self) -> None:
        """Expect that nothing is left."""
        if self._at != len(self._body):
            raise ValueError

    def item(self, depth: int) -> object:
        """Return the next item, which lies within `depth` arrays and maps."""
        first = self._take(1)[0]
        if first == _NULL:
            return None
        kind, size = first >> 5, self._size(first & 31)
        if kind == UNSIGNED:
            return size
        if kind == NEGATIVE:
            return -1 - size
        if kind == BYTES:
            return self._take(size)
        if kind == TEXT:
            return self._take(size).decode("utf-8")
        if kind not in (ARRAY, MAP) or depth == MAX_DEPTH or size > MAX_ITEMS:
            raise ValueError
        return [self.item(depth + 1) for _ in range(size)] if kind == ARRAY else self._map(size, depth + 1)

    def _map(self, size: int, depth: int) -> dict[int | str, object]:
        found: dict[int | str, object] = {}
        for _ in range(size):
            key = self.item(depth)
            if not isinstance(key, int | str) or key in found:
                raise ValueError
            found[key] = self.item(depth)
        return found

    def _size(self, low: int) -> int:
        if low < 24:
            return low
        if low > 27:  # reserved, or of indefinite length
            raise ValueError
        return int.from_bytes(self._take(1 << low - 24), "big")

    def _take(self, count: int) -> bytes:
        if count > len(self._body) - self._at:
            raise ValueError
        part = self._body[self._at : self._at + count]
        self._at += count
        return part
