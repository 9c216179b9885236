"""Points of P-256 under a secret factor, by their x coordinates: a blinding that commutes.

A text becomes a point by hashing it to x coordinates until one is on the curve; OpenSSL says whether, by decoding it as
a compressed point. Multiplying by a secret a is what ECDH does, and it returns x(a P). Since x(a P) = x(-a P), either
of the two points with an x gives the same result, so

    x(a x(b P)) = x(b x(a P)) = x(a b P),

which is all that is used. P-256 has prime order: no small subgroup, and nothing decodes but the points of that one
group. On Curve25519 every x is on the curve or on its twist; multiplication keeps which, a bit that tells.

Source: Meadows (1986), Huberman, Franklin, Hogg (1999) for the blinding; try and increment is from Boneh, Lynn,
Shacham (2001), section 3.3.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec

from confide.crypto.random import Randomness
from confide.errors import ProtocolError

#: Of an x coordinate, big-endian.
POINT_BYTES = 32

#: Of the group: SEC 2, section 2.4.2.
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

_EVEN = b"\x02"  # either point with an x will do

#: About half of all x are on the curve, so a text fails with chance 2^-256.
_TRIES = 256


class BlindingKey:
    """A secret factor of points, drawn for one session.

    Args:
        rng: where it comes from.
    """

    def __init__(self, rng: Randomness) -> None:
        self._key = ec.derive_private_key(1 + rng.below(_ORDER - 1), ec.SECP256R1())

    def of_text(self, text: bytes) -> bytes:
        """Return the blinded point of a text: x(a H(text)), 32 bytes.

        How often hashing is tried shows in the time it takes, which whoever computes it alone can measure.
        """
        for number in range(_TRIES):
            try:
                return self._times(hashlib.sha256(bytes([number]) + text).digest())
            except ValueError:
                continue
        raise ProtocolError("Expected a text that hashes to a point; take another session")

    def of_point(self, x: bytes) -> bytes:
        """Return x(a P) for a point P with this x, 32 bytes.

        Raises:
            ProtocolError: there is none, or x has another length.
        """
        try:
            if len(x) != POINT_BYTES:
                raise ValueError
            return self._times(x)
        except ValueError:
            raise ProtocolError("Expected the x coordinate of a point of P-256") from None

    def _times(self, x: bytes) -> bytes:
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), _EVEN + x)
        return self._key.exchange(ec.ECDH(), point)

    def __repr__(self) -> str:
        return "BlindingKey(secret)"
