"""Editing methods that are only compared with, a file each, written from the papers. Not part of the product.

`contract` says what a method is given and hands back; `added`, `weights`, `one_layer` and `together` are
what several methods stand on. Does not know data sets, measures, storage or jobs.
"""
