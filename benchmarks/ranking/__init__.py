"""Ranking against its alternatives on the next days of the same logs: docs/benchmarks.md.

`folds`, `measure`, `tuning` and `peers/` run in the peers' environment and import NumPy, the peer and the one
module of the project that computes the metrics, which needs NumPy alone; `data`, `ours`, `speed` and `__main__`
run in the project's. What passes between the two are npy and JSON files.
"""
