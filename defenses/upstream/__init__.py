"""Defenses that run their authors' own code: ``backend: upstream`` in an entry of the matrix.

One public class per module, named after the native defense; ``_NAME_driver.py`` beside it runs in
the authors' process (:mod:`bench.upstream.child`).
"""
