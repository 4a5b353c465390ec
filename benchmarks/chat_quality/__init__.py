"""The chat benchmark: edits of a real chat model under the protocol that the field respects.

A question alone in the chat template, greedy free generation until the model ends its turn, and both
normalized exact match and containment; no teacher forcing. Start with `__main__` (the command) and
`unit_run` (one row). `facts` draws the edits, `questions` builds what is asked about them from `relations`,
`edits` are what is sent, `methods` lists what is measured, `scoring` and `figures` count, and `report`
writes tables. All questions are written for this benchmark: nothing that a scope learns from may be used
here, and nothing here for learning.
"""
