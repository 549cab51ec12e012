"""``bench scan``: somebody's encoder through the detectors, without an attack."""
