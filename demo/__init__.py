"""The demo of `make demo`: corrects a support desk's classifier, a real model, over HTTP.

Must use only the HTTP API of the service. Start with `run.main`.
"""
