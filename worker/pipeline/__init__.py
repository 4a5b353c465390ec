"""The steps from an edit request to a published version.

The steps are load, dataset, budget, predict, layer, make, measure, requirements, and publish.

Each step is a function from one frozen context to the next. The steps predict, layer, make, and measure need
no storage: benchmarks call them on an `EditContext`. Must not know the queue or HTTP. Start with `context`.
"""
