"""Secret sharing on the ring of integers mod 2^64, for prediction and training on shares, and its kernels."""
