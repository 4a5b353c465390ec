"""What runs around the API: the supervisor of `salem serve`, the reconciler, and the doctor.

Must not know routes. Start with `supervisor.Supervisor`.
"""
