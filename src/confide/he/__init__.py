"""Homomorphic encryption: predictions on encrypted inputs, sums of encrypted vectors (Microsoft SEAL); Paillier's."""

from confide.he.aggregate import EncryptedSum, EncryptedSums
from confide.he.backend import Homomorphic
from confide.he.outsourced import Outsourced
from confide.he.paillier import Paillier

__all__ = ["EncryptedSum", "EncryptedSums", "Homomorphic", "Outsourced", "Paillier"]
