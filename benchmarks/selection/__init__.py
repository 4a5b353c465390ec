"""The benchmark of layer selection: what it costs, and how good its choices are against editing every layer.

Start with `__main__` (the command). `choices` edits every layer and ranks the layers in every way; `costs`
compares time and memory with plain passes; `report` writes the tables of docs/results.
"""
