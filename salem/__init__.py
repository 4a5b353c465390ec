"""Salem's kernel: the words, tensors and machines that the API and the worker both stand on.

Floors, lowest first (imports only point down):
  1 words     records, settings, errors
  2 tensors   hosting, trunk, deltas
  4 machines  registry, queue, blobs
"""

__version__ = "0.1.0"
