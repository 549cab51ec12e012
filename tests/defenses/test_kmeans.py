"""k-means gives the same bits, however many threads there are and whichever ends first."""

from __future__ import annotations

import os
import subprocess
import sys

FIT = """
import hashlib
import numpy as np
from threadpoolctl import threadpool_limits
from defenses._kmeans import kmeans
points = np.random.default_rng(0).normal(size=(3000, 24))
for wide in (2, 8, 8, 8, 8):
    with threadpool_limits(wide):
        centres = kmeans(points, 20, restarts=2, seed=2**40 + 1).cluster_centers_
    print(hashlib.sha256(centres.tobytes()).hexdigest())
"""


def test_equal_bits_on_any_number_of_threads():
    found = {
        line
        for variable in ({}, {"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "8"})
        for line in subprocess.run(
            [sys.executable, "-c", FIT],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variable},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    }
    assert len(found) == 1
