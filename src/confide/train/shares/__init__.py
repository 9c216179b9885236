"""Training on shares: rows are shared to two servers, and nobody sees a row, a gradient or a weight."""

from confide.train.shares.rows import Rows, load_rows
from confide.train.shares.run import Finished, Prepared, prepare

__all__ = ["Finished", "Prepared", "Rows", "load_rows", "prepare"]
