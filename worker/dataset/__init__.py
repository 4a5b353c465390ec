"""The edit dataset of a job: edit, adapt, and pass samples, near neighbors, what is held out, and rule-made
augmentations.

Must not know jobs, storage, or how a delta is made. Start with `split.build_edit_batch`, then `neighbors`.
"""
