"""Recipes: each turns an edit dataset and a layer into a term. You add a recipe by adding one file.

Must not know storage, jobs, or how the layer was chosen. Start with `base`.
"""
