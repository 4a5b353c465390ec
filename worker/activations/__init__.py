"""What the frozen model computes from samples: trunk states, gradients, scope features; kept between jobs.

Must not know objectives or recipes. Start with `trunk_sets.prepare`.
"""
