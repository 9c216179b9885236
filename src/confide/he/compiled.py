"""The compiled loops of this room, or None where everything runs on Microsoft SEAL and numpy: the same results, slower.

`confide._native.ckks` works on ciphertexts, encoded weights and public keys. It is missing where confide was installed
without a compiler, and `CONFIDE_NATIVE=0` switches it off.
"""

from __future__ import annotations

from typing import Any

try:
    import confide._native as _native
except ImportError:
    _native = None

#: The submodule, or None.
NATIVE: Any = None if _native is None or _native.ckks.switched_off() else _native.ckks
