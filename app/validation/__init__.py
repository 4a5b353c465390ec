"""Rules that a request must meet, as pure functions. Each reports every problem at once, with JSON pointers.

Must not know HTTP, storage, or loaded models. Start with `edits.check_edit_request`.
"""
