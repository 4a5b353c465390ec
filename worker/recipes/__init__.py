"""The recipes: each makes a delta from an edit dataset at a layer. A recipe is one file or folder here.

To add a recipe, write a subclass of `base.Recipe` in a new module, then run `make recipes`. Must not know
storage or jobs. Start with `base`.
"""
