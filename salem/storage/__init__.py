"""The system of record: SQL tables and content-addressed blobs.

Must not know tensors (importing this room never loads torch), HTTP, or Redis.
Start with `registry.Registry`: each public method is one transaction. `rows/` holds the queries.
"""
