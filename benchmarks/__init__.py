"""Benchmarks: they measure the figures that the docs claim.

Each benchmark is one command, such as `python -m benchmarks.gates`: `quality` (every method on every data
set), `selection` (choosing a layer), `ablation` (what each piece adds), `main_job`, `training`, and `gates`.
They use Salem like any other caller; Salem never imports them. Start with `command` (what all commands share)
and `quality`. docs/results.md shows what they measured.
"""
