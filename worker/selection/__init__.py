"""Chooses the layer to edit: gradient saliency makes a shortlist, and trial edits decide.

Must not know recipes, jobs, or storage. Start with `saliency`.
"""
