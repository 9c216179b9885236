"""Primitives: randomness, fixed point, secret sharing, masks, keys. No I/O, no models, no settings."""
