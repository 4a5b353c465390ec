"""The default recipe: one entry per edit, which acts only inside its scope.

Must not know storage or jobs. Start with `recipe.ScopedRecipe`.
"""
