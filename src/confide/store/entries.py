"""What every store on disk takes: the bounds of keys and values, the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping

from confide.errors import StoreError, UsageError

LARGEST_KEY_BYTES = 1024
#: Well below what SQLite (10^9 bytes) and PostgreSQL (2^30 bytes for a message and for a value) can hold.
LARGEST_VALUE_BYTES = 256 << 20


def encode_key(key: str) -> bytes:
    """Return a key as UTF-8. Raises UsageError for one that some store cannot hold; the text does not repeat it."""
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise UsageError("Expected a key of Unicode characters; half a surrogate pair is none") from None
    if b"\0" in encoded or len(encoded) > LARGEST_KEY_BYTES:
        raise UsageError(f"Expected a key without NUL of at most {LARGEST_KEY_BYTES} bytes, got {len(encoded)}")
    return encoded


def check_changes(changes: Mapping[str, bytes | None]) -> int:
    """Check what a commit brings, before anything of it is written.

    Returns:
        The bytes of its values.

    Raises:
        UsageError: a key that some store cannot hold.
        StoreError: a value of more than `LARGEST_VALUE_BYTES`.
    """
    total = 0
    for key, value in changes.items():
        encode_key(key)
        if value is not None:
            if len(value) > LARGEST_VALUE_BYTES:
                raise StoreError(
                    f"Expected values of at most {LARGEST_VALUE_BYTES} bytes, got one of {len(value)}; nothing was "
                    "written. Train a smaller model, or compress its updates"
                )
            total += len(value)
    return total
