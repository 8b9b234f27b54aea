"""Twins in NumPy: the same sums on blocks that stay in a core's cache, shared among threads."""
