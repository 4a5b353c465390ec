"""Makes a term for one layer from prepared samples: the training loop and the closed form.

Must not know recipes, storage, or how the layer was chosen. Start with `loop.train`.
"""
