"""`make bench-scale`: how time, memory and disk grow with the logs, the vocabulary and the number of workers."""
