"""The demo behind `make demo`: corrects a support desk's classifier, a real model, over HTTP.

Must not use anything of the service but its HTTP API. Start with `run.main`.
"""
