"""The quality benchmark: every editing method on the same weights, edits, and held-out samples.

Start with `__main__` (the command) and `runs` (one run). A run works through `units`; a unit is one method
on one data set with one number of edits and one seed, and its result is one row of
`benchmarks/results/quality.json`. `data`, `facts`, `passages`, and `models` build what a unit edits, `jobs`
draws its samples, `unit_run` runs it, and `measures` scores it. `methods` lists the methods; their code is
in `benchmarks/baselines`. `report` writes docs/results from the rows, with `tables`, `resampling`,
`bounds`, and `plots`.
"""
