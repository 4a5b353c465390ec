"""Queries, one module per noun. Each function works inside its caller's transaction.

Must not know when to commit, and must not open a database. Start with `versions`.
"""
