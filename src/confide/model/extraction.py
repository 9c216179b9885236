"""How many answers determine a model: what no encryption hides, and what a query quota is chosen by."""

from __future__ import annotations

from dataclasses import dataclass

from confide.model.graph import Graph, Linear, Sigmoid


@dataclass(frozen=True, slots=True)
class Extraction:
    """What it takes to copy a model from its answers.

    Args:
        rows: answered rows.
        exact: True if these rows always suffice and, from exact answers, give every weight; False for an estimate.
    """

    rows: int
    exact: bool

    def sentence(self) -> str:
        """Return one sentence for people."""
        if self.exact:
            return f"{self.rows} answered rows determine this model, under every backend"
        return (
            f"about {self.rows} answered rows hold as many numbers as this model has parameters: an estimate of how "
            "many determine it, fewer may do, under every backend"
        )


def extraction(graph: Graph) -> Extraction:
    """Return how many answers determine `graph`.

    An affine model, with or without a sigmoid behind it, is determined by `features + 1` rows in general position: they
    give a linear system for each output. For other models it is the number of parameters over the outputs of a row,
    rounded up: from there on a system has as many equations as unknowns. Networks are known to be copied from about as
    many (Tramèr et al., USENIX Security 2016, section 4.1, for logistic models and networks), approximations from far
    fewer, and redundant parameters need no rows; so it is no bound below which a model is safe.
    """
    *body, last = graph.layers
    if all(isinstance(layer, Linear) for layer in body) and isinstance(last, Linear | Sigmoid):
        return Extraction(graph.features + 1, exact=True)
    return Extraction(-(-graph.parameters // graph.outputs), exact=False)
