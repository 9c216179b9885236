"""Who shares masks and seeds with whom: everybody with everybody, or the neighbours in a public random graph.

In a graph of degree k a client works for k peers instead of n - 1. The graph follows from the session's context, so
nobody chooses it; and nothing rests on its being drawn well, since clients check what they need: that the graph over
the survivors stays in one piece without any c of them (`Neighbours.hold_together`).

    symbol   here                   meaning
    n, k     clients, degree        vertices and edges per vertex
    L        _laplacian             degrees on the diagonal, -1 for each edge
    l2       hold_together          second smallest eigenvalue of L
    kappa                           vertices whose removal takes the graph apart, at least

Paper: Bell et al., CCS 2020, for the idea that k about log n suffices; Fiedler 1973 for l2 <= kappa.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from confide.crypto.masks import add_mask

#: Up to so many clients a complete graph is cheaper than what a sparse one must send and sign beyond it.
LARGEST_COMPLETE = 60

_TRIES = 64  # swaps that are tried to avoid an edge that is there already; such an edge is left out after that


def degree_for(clients: int) -> int:
    """Return how many neighbours a client has if nobody says: all of up to `LARGEST_COMPLETE`, else 2 log2(n) + 15.

    So many that seeds, which open with half of the neighbours, are lost in fewer than one session in a million when
    10 % drop out at random, in fewer than one in fifty at 20 % (up to 10,000 clients; a test computes it).
    """
    if clients <= LARGEST_COMPLETE:
        return max(0, clients - 1)
    return 2 * (clients - 1).bit_length() + 15


class Neighbours:
    """A graph over the clients of a session; public, and the same at every party.

    Args:
        clients: the cohort's, in its order.
        degree: k; from len(clients) - 1 on the graph is complete.
        seed: 32 public bytes that the graph follows from.

    A sparse graph is the union of k / 2 random cycles through all clients, and of random pairs for an odd k; so every
    client has k neighbours, or a few less where two cycles share an edge that no swap avoids.
    """

    def __init__(self, clients: Sequence[str], degree: int, seed: bytes) -> None:
        self._clients = tuple(clients)
        self.complete = degree >= len(self._clients) - 1
        self._index = {name: index for index, name in enumerate(self._clients)}
        self._edges = np.ones((0, 0), np.bool_) if self.complete else _random_graph(len(self._clients), degree, seed)
        self._of: dict[str, tuple[str, ...]] = {}
        self._checked: dict[tuple[frozenset[str], int], bool] = {}

    def of(self, name: str) -> tuple[str, ...]:
        """Return the neighbours of `name`, in the cohort's order, without `name`."""
        if name not in self._of:
            if self.complete:
                self._of[name] = tuple(other for other in self._clients if other != name)
            else:
                found = np.flatnonzero(self._edges[self._index[name]]).tolist()
                self._of[name] = tuple(self._clients[index] for index in found)
        return self._of[name]

    def hold_together(self, names: Iterable[str], without: int) -> bool:
        """Return True if the graph over `names` is sure to stay connected when any `without` of them leave.

        It is where l2 > `without`, since l2 <= kappa in a graph that is not complete. A graph may hold together and
        fail this test, never the other way round.
        """
        key = frozenset(names), without
        if key not in self._checked:
            count = len(key[0])
            if self.complete:
                self._checked[key] = count > without
            else:
                places = sorted(self._index[name] for name in key[0])
                self._checked[key] = _connectivity_exceeds(self._edges[np.ix_(places, places)], without)
        return self._checked[key]


def _laplacian(edges: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.diag(edges.sum(axis=1).astype(np.float64)) - edges


def _connectivity_exceeds(edges: NDArray[np.bool_], bound: int) -> bool:
    """Return True if l2 > `bound`: then L with the all-ones vector lifted out of the way, less `bound`, is positive
    definite, which Cholesky's factorisation decides (in n^3 / 3 operations, without any eigenvalue).
    """
    count = len(edges)
    if count < 2:
        return count > bound
    lifted = _laplacian(edges) + 1.0 - (bound + 1e-6) * np.eye(count)
    try:
        np.linalg.cholesky(lifted)
    except np.linalg.LinAlgError:
        return False
    return True


class _Draws:
    """Public pseudo-random numbers from a seed: the key stream of masks, which no library's next release changes."""

    def __init__(self, seed: bytes, count: int) -> None:
        self._words = np.zeros(count, np.uint64)
        add_mask(self._words, seed)
        self._at = 0

    def permutation(self, count: int) -> list[int]:
        """Return 0 to count - 1 in random order."""
        keys = self._words[self._at : self._at + count]
        self._at += count
        return np.argsort(keys, kind="stable").tolist()

    def below(self, count: int) -> int:
        """Return an integer below `count`; the bias of 2^-40 and less changes no graph's quality."""
        self._at = (self._at + 1) % len(self._words)
        return int(self._words[self._at]) % count


def _random_graph(count: int, degree: int, seed: bytes) -> NDArray[np.bool_]:
    """Return the symmetric adjacency matrix of a random graph with `degree` neighbours each, less a few repeats."""
    edges = np.zeros((count, count), np.bool_)
    draws = _Draws(seed, count * (degree // 2 + 1) + 4096)
    for _ in range(degree // 2):
        _add(edges, draws, step=1)
    if degree % 2:
        _add(edges, draws, step=2)
    return edges


def _add(edges: NDArray[np.bool_], draws: _Draws, *, step: int) -> None:
    """Add a random cycle (step 1), or random pairs (step 2), with as few edges that are there already as swaps find."""
    count = len(edges)
    order = draws.permutation(count)
    starts = range(0, count if step == 1 else count - 1, step)

    def taken(position: int) -> bool:
        one, other = order[position % count], order[(position + 1) % count]
        return bool(edges[one, other])

    def around(position: int) -> set[int]:
        """Return the edges that touch a position of the order."""
        near = {(position - 1) % count, position % count}
        return {start for start in near if start % step == 0 and start in starts}

    for start in [start for start in starts if taken(start)]:
        place = (start + 1) % count
        for _ in range(_TRIES):
            if not taken(start):
                break
            other = draws.below(count)
            touched = around(place) | around(other)
            before = sum(map(taken, touched))
            order[place], order[other] = order[other], order[place]
            if sum(map(taken, touched)) >= before:
                order[place], order[other] = order[other], order[place]
    ends = np.array([(order[start], order[(start + 1) % count]) for start in starts])
    edges[ends[:, 0], ends[:, 1]] = edges[ends[:, 1], ends[:, 0]] = True
