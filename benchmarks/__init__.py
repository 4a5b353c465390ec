"""Benchmarks: what is claimed of Salem, measured; docs/results.md holds what they printed."""
