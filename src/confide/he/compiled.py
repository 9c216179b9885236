"""The compiled half of this room, or what does without it.

`confide._native` works on ciphertexts, encoded weights and public keys; without a compiler, or with the environment
variable CONFIDE_NATIVE=0, everything runs on Microsoft SEAL and numpy instead, with the same results.
"""

from __future__ import annotations

import os
from typing import Any

try:
    import confide._native as _native
except ImportError:
    _native = None

#: The module, or None.
NATIVE: Any = None if os.environ.get("CONFIDE_NATIVE") == "0" else _native
