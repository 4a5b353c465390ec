"""Finds every recipe in this package. To add a recipe, add one module with a subclass of `Recipe`.

Must not know any recipe.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from pydantic import ValidationError

from salem.errors import InvalidRequest
from salem.records import RecipeOptions
from worker import recipes
from worker.recipes.base import Recipe

DEFAULT = "scoped"


@cache
def recipe_classes() -> dict[str, type[Recipe]]:
    """Every recipe by its name: the default first, then in alphabetical order."""
    found: dict[str, type[Recipe]] = {}
    for module in pkgutil.walk_packages(recipes.__path__, f"{recipes.__name__}."):
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(member, Recipe) and member.__module__ == module.name and "name" in vars(member):
                assert member.name not in found, f"two recipes have the name {member.name}"
                found[member.name] = member
    return {name: found[name] for name in sorted(found, key=lambda name: (name != DEFAULT, name))}


def recipe_of(chosen: RecipeOptions) -> Recipe:
    """The recipe that a stored request names, with its options.

    Raises:
        InvalidRequest: this worker does not have the recipe, or the recipe does not take the options.
    """
    known = recipe_classes()
    if chosen.recipe not in known:
        raise InvalidRequest(
            f"This worker has no recipe {chosen.recipe}; it has {', '.join(known)}.",
            remedy="Run the same release of Salem for the API and all workers.",
        )
    found = known[chosen.recipe]
    try:
        return found(found.Options.model_validate(chosen.model_extra))
    except ValidationError as error:
        places = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise InvalidRequest(
            f"The recipe {chosen.recipe} does not take these options: {places}.",
            remedy="Run the same release of Salem for the API and all workers.",
        ) from error
