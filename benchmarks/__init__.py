"""Benchmarks: what is claimed of Salem, measured. Each module is a command; docs/results.md holds what they printed."""
