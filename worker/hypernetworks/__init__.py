"""Editors: small networks that turn an edit's gradients into a weight update (MEND, ICLR 2022).

An editor is trained on one job's samples, or ahead of time on a corpus so that later edits take one pass.
Must not know storage or jobs. Start with `mend.MendEditor`.
"""
