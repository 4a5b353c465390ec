"""What a version adds to the output of one layer, and how that looks in a file.

Must not know how a delta is trained or which version it belongs to.
Start with `terms`: a delta is a sum of terms (low-rank, dense, or scoped). `files` packs and checks them.
"""
