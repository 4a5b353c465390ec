"""One module per kind of job: edit, removal, registration, and training an editor.

A job reads its request, runs steps of the pipeline, and ends itself in one transaction.
Must not know how an attempt begins or fails. Start with `edit`.
"""
