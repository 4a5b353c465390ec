"""The editing methods that the quality benchmark compares. They are not part of the product.

All but Salem's own are written from their papers. `interface` defines what a method gets and returns.
`weight_deltas`, `temporary_weights`, `one_layer`, and `multi_layer_training` hold what several methods share.
Most methods have a file of their own; Salem's are in `salem_recipes`. Must not know data sets, metrics,
storage, or jobs.
"""
