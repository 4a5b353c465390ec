"""Benchmarks: they measure the figures in the docs.

Each benchmark is one command, such as `python -m benchmarks.gates`: `quality` (every method on every data
set), `selection` (choosing a layer), `ablation` (what each part adds), `main_job` (ten edits on each model),
`training` (steps and jobs), `gates` and `text_scopes` (what state scopes and text scopes cost), `chain` (what
long chains cost), and `chat_quality` (a real chat model). They use Salem like any other caller; Salem must
not import them. Start with `command` (what all commands share) and `quality`.
docs/results.md shows the results.
"""
