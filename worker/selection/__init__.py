"""Chooses the layer to edit: gradient saliency ranks the layers, and trial edits may decide among the best.

Must not know recipes, jobs, or storage. Start with `saliency`.
"""
