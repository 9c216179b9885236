"""Predictions on encrypted inputs: homomorphic encryption (Microsoft SEAL), and Paillier's for linear models."""

from confide.he.backend import Homomorphic
from confide.he.paillier import Paillier

__all__ = ["Homomorphic", "Paillier"]
