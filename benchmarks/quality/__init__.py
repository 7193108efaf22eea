"""Candidate generation against its alternatives on the next day of the same logs: docs/benchmarks.md.

`folds`, `measure`, `tuning` and `peers/` run in the peers' environment and import NumPy and the peer alone;
`data`, `ours` and `__main__` run in the project's. What passes between the two are npy and JSON files.
"""
