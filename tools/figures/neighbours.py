"""The training images whose features lie nearest to those of a query (paper, Figure 4, right)."""

import numpy as np
from numpy.typing import NDArray

NUM_NEAREST = 6


class Nearest:
    """The nearest of all features added so far, for each query, in memory that does not grow.

    queries: float32 (Q, F). Euclidean distance, as the paper has it; of equal ones the lower row.
    """

    def __init__(self, queries: NDArray[np.float32], count: int = NUM_NEAREST) -> None:
        self._queries, self._count = queries, count
        self.rows = np.empty((len(queries), 0), np.int64)  # (query, rank), nearest first
        self.distances = np.empty((len(queries), 0))  # the same, not squared

    def add(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Takes in the features (N, F) of the images `rows` (N,)."""
        # By differences: the expanded square would lose the small distances in rounding.
        found = np.stack([
            np.square(query - features, dtype=np.float64).sum(1) for query in self._queries
        ]) if len(self._queries) else np.empty((0, len(rows)))  # fmt: skip
        distances = np.concatenate([self.distances, np.sqrt(found)], 1)
        there = np.broadcast_to(rows, found.shape)
        candidates = np.concatenate([self.rows, there], 1)
        order = np.lexsort((candidates, distances), axis=1)[:, : self._count]
        self.rows = np.take_along_axis(candidates, order, 1)
        self.distances = np.take_along_axis(distances, order, 1)
