"""Benchmarks over the real processes: ``python -m benchmarks [NAME…]``, see README.md.

Invariant: a figure is only reported for work that was seen to be done. A run that delivered nothing,
or whose counts do not add up, fails and writes no result.
"""
