"""The benchmark of layer selection: what it costs, and how its choices compare with editing every layer.

Start with `__main__` (the command). `choices` edits every layer and ranks the layers by every selection
method. `gradient_sizes` has the methods that jobs do not use. `costs` compares time and memory with plain
passes. `report` writes the tables of docs/results.
"""
