"""The kernel: what the API and the worker share.

Rooms, top first. A room imports only from rooms below it (`.importlinter` holds the rule):

    inference    answers an input as any version
    deltas       what a version adds to one layer, and its file
    scope        where an edit applies
    models       loads a hosted model, finds its layers, turns text into batches
    storage      SQL and blobs: the system of record
    queue        carries job ids to workers through Redis
    records      every noun of the system as one frozen record

Must not know HTTP or how an edit is made. Start with `salem/records`: it is the glossary.
"""

__version__ = "0.1.0"
