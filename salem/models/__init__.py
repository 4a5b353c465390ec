"""Hosted models: loads them from folders, finds their layers, and turns samples into batches.

Must not know deltas, versions, SQL, or HTTP. No code here is specific to one architecture.
Start with `network.Network`, then `batching.encode` and `trunk.capture`.
"""
