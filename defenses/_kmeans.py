"""k-means that gives the same bits on every run."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

THREADS = 2


def kmeans(points: np.ndarray, clusters: int, *, restarts: int, seed: int) -> KMeans:
    """Fitted to float (N, D); the best of ``restarts``.

    scikit-learn adds up what its threads found in the order in which they finish: of two the order
    does not matter, of more it shows in the last digits, run by run.
    """
    with threadpool_limits(THREADS, "openmp"):
        return KMeans(clusters, n_init=restarts, random_state=seed % 2**32).fit(points)
