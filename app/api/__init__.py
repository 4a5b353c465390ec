"""The HTTP routes: each module is one resource, with thin functions that check a request and answer it.

Must not know how an edit is made or how a model answers. Start with `edits`.
A new route is one module here with a `router`, and one line in `app/main.py`.
"""
