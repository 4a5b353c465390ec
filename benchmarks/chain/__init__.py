"""The benchmark of long chains: what a thousand one-edit versions cost to serve, keep, sweep, and poll.

Start with `__main__` (the command). `service` builds a hosted model and publishes versions. `entries` makes
random entries. `figures` measures seconds, memory, and response sizes.
"""
