"""Training on shares: rows are shared to two servers, and nobody sees a row, a gradient or a weight."""
