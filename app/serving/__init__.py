"""Keeps hosted models in memory and answers as any of their versions.

Must not know HTTP. Start with `engine.Engine`.
"""
