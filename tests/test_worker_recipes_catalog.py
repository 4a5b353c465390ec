"""The catalog of recipes: what the worker has, what the API and the docs say, and what a worker refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_cases import RECIPES

from app.validation.recipes import catalog
from salem.errors import InvalidRequest
from salem.records import RecipeOptions
from worker.recipes.catalog import DEFAULT, recipe_classes, recipe_of
from worker.recipes.describe import as_json, as_page

ROOT = Path(__file__).resolve().parent.parent


def test_every_recipe_is_listed_with_the_default_first() -> None:
    assert set(recipe_classes()) == set(RECIPES) and next(iter(recipe_classes())) == DEFAULT


def test_the_api_knows_the_recipes_of_the_worker() -> None:
    assert (ROOT / "app" / "validation" / "recipes.json").read_text() == as_json(), "run `make recipes`"


def test_the_page_of_options_is_up_to_date() -> None:
    assert (ROOT / "docs" / "options.md").read_text() == as_page(), "run `make recipes`"


@pytest.mark.parametrize("name", RECIPES)
def test_traits_reach_the_api(name: str) -> None:
    kind, told = recipe_classes()[name], catalog()[name]
    assert (kind.scoped, kind.forgets) == (told.scoped, told.forgets)
    assert (kind.trains_editor, kind.takes_editor) == (told.trains_editor, told.takes_editor)
    assert told.takes_editor == ("editor" in kind.Options.model_fields)
    assert [option.name for option in told.options] == list(kind.Options.model_fields)


def test_stored_options_give_the_recipe_with_its_defaults() -> None:
    found = recipe_of(RecipeOptions(recipe="mend", seed=3, editor_rank=8))
    assert found.name == "mend" and found.options.seed == 3
    assert found.options == recipe_classes()["mend"].Options(seed=3, editor_rank=8)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (RecipeOptions(recipe="magic"), "no recipe magic; it has scoped, mend, paper, ridge"),
        (RecipeOptions(recipe="ridge", max_steps=5), "ridge does not take these options: max_steps"),
        (RecipeOptions(recipe="mend", editor_rank=0), "mend does not take these options: editor_rank"),
    ],
)
def test_a_worker_of_another_release_names_the_recipe_or_option_that_it_lacks(
    chosen: RecipeOptions, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        recipe_of(chosen)
    assert words in refused.value.message and "same release" in str(refused.value.remedy)
