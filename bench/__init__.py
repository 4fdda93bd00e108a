"""Benchmarks: `python -m bench kernels`. Every figure in a table of this repository comes from a record they write."""
