"""The steps from an edit request to a measured version, in order.

Must not know the queue or HTTP. Start with `steps`.
"""
