"""One attempt of one job: its lease, its progress reports, and what it reads from and writes to storage.

Must not know what the job does. Start with `attempt.Attempt`.
"""
