"""Plain mathematics on tensors and counts: losses, intervals, low-rank factors, projections.

Must not know models, jobs, or samples' texts. Start with `losses`.
"""
