"""Which should I take? Measured figures, each beside its guarantee, attacks, advice, one report."""
