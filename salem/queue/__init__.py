"""Carries job ids from the API to workers: RQ on Redis, and the private Redis of one machine.

Must not know what a job does. SQL is the system of record, so an emptied queue can be refilled from it.
Start with `job_queue.JobQueue`.
"""
