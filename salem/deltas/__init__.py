"""What a version adds to the output of layers, and the files that hold it.

Must not know how a delta is trained or which version it belongs to. Start with `terms`: a delta is a sum of
terms (low-rank, dense, or scoped). `chain` joins the deltas of a version; `files` packs and checks them.
"""
