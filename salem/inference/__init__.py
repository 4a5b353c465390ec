"""Answers inputs as the base plus any version's deltas.

Must not know where versions are stored or how deltas are made. Start with `predict.predict`; `gate.gated`
decides which entry acts on which input.
"""
