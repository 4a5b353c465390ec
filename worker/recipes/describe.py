"""Describes all recipes and their options: as JSON for the API, and as a page of the docs.

    python -m worker.recipes.describe json > app/validation/recipes.json
    python -m worker.recipes.describe page > docs/options.md

`make recipes` runs both. The API reads a file because it never imports the worker. Must not know any recipe.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from worker.recipes.base import Recipe
from worker.recipes.catalog import DEFAULT, recipe_classes

_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "maxLength")
_SIGNS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_TRAITS = ("scoped", "forgets", "trains_editor", "takes_editor")
_INTRODUCTION = """# Options of recipes

This page is generated from the code (`make recipes`). It lists the `options` of `POST /edits`.
`options.recipe` names the recipe; by default it is `scoped`. A recipe refuses options that it does not have.
[Recipes](recipes.md) explains what the recipes do."""


def described() -> dict[str, Any]:
    """All recipes with their traits and options, as the API reads them."""
    return {
        "default": DEFAULT,
        "recipes": [
            {
                "name": name,
                "summary": recipe.summary,
                **{trait: getattr(recipe, trait) for trait in _TRAITS},
                "options": _options(recipe),
            }
            for name, recipe in recipe_classes().items()
        ],
    }


def _options(recipe: type[Recipe]) -> list[dict[str, Any]]:
    properties = recipe.Options.model_json_schema()["properties"]
    return [_option(name, schema) for name, schema in properties.items()]


def _option(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """One option: its name, type, default, bounds, choices, and description."""
    kinds = schema.get("anyOf", [schema])
    kind = next(each for each in kinds if each["type"] != "null")
    option = {"name": name, "type": kind["type"], "nullable": len(kinds) > 1, "default": schema["default"]}
    option |= {bound: kind[bound] for bound in _BOUNDS if bound in kind}
    if "enum" in kind:
        option["choices"] = kind["enum"]
    return option | {"description": schema["description"]}


def as_json() -> str:
    """What `app.validation.recipes` reads."""
    return json.dumps(described(), indent=1) + "\n"


def as_page() -> str:
    """The page of the docs: a table of options for each recipe."""
    sections = [_section(recipe) for recipe in described()["recipes"]]
    return "\n\n".join([_INTRODUCTION, *sections]) + "\n"


def _section(recipe: dict[str, Any]) -> str:
    rows = [_row(option) for option in recipe["options"]]
    head = ["| option | default | values | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## `{recipe['name']}`", "", recipe["summary"], "", *head, *rows])


def _row(option: dict[str, Any]) -> str:
    default = "none" if option["default"] is None else f"`{json.dumps(option['default']).strip(chr(34))}`"
    values = [f"{words} {option[bound]:,}" for bound, words in _SIGNS.items() if bound in option]
    shown = ", ".join(f"`{choice}`" for choice in option.get("choices", ())) or ", ".join(
        [option["type"], *values]
    )
    return f"| `{option['name']}` | {default} | {shown} | {option['description']} |"


if __name__ == "__main__":
    sys.stdout.write({"json": as_json, "page": as_page}[sys.argv[1]]())
