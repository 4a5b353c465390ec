"""The worker process: an RQ worker that forks a work-horse per job.

Must not know what any kind of job does. Start with `work_horse.run_job`, which the queue names.
"""
