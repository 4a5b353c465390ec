"""Serving: keeps hosted models in memory and answers as any of their versions.

Must not know HTTP. Start with `engine.Engine`. `loaded_models`, `loaded_versions`, and `tokenizers` are its
caches; `prediction_queues` bounds how many requests wait for each model.
"""
