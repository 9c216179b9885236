"""Multi-party computation: predictions and training on secret shares over the ring Z_2^64."""
