"""Secure aggregation: the server learns a sum of vectors and not the addends."""

from confide.secagg.masked import Masked
from confide.secagg.masked_server import MaskedSums
from confide.secagg.roster import Roster

__all__ = ["Masked", "MaskedSums", "Roster"]
