"""Measures a version on samples that training never saw.

Must not know how a delta is made or stored. Start with `metrics.evaluate`.
"""
