"""`make bench-train`: how fast candidate generation trains, beside what people would use instead, in the same run.

Every contender is a process of its own that keeps its model and waits; `__main__` lets one after another run a few steps,
round after round, so that whatever else the machine does meets all of them. Ratios are of medians over rounds.
"""
