"""Attacks that run their authors' own code: ``backend: upstream`` in an entry of the matrix.

One public class per module, named after the native attack; ``_NAME_driver.py`` beside it runs in
the authors' process (:mod:`bench.upstream.child`).
"""
