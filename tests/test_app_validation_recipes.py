"""The options of POST /edits: the model of each recipe, and what is refused with which message."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.api.schemas import EditsIn
from app.validation.recipes import AnyOptions, OptionsIn, catalog

READER: TypeAdapter[OptionsIn] = TypeAdapter(AnyOptions)


def refused(options: Any) -> dict[str, str]:
    """Messages by their pointer inside the options."""
    with pytest.raises(ValidationError) as found:
        READER.validate_python(options)
    return {".".join(map(str, each["loc"])): each["msg"] for each in found.value.errors()}


def test_the_default_recipe_has_its_own_defaults() -> None:
    found = READER.validate_python({})
    assert found.recipe == catalog().default == "scoped" and found.traits.scoped
    expected = {option.name: option.default for option in found.traits.options}
    assert found.stored().model_dump() == {"recipe": "scoped", **expected}


@pytest.mark.parametrize("options", [{}, {"options": {}}, {"options": {"recipe": "mend"}}])
def test_a_request_serializes_its_options_without_a_warning(options: dict[str, Any]) -> None:
    body = {"model": "intents", "edits": [{"input": "lost parcel", "target": "delivery"}], **options}
    request = EditsIn.model_validate(body)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dumped = request.model_dump(mode="json")
    assert dumped["options"] == request.options.model_dump(mode="json")


def test_an_editor_names_its_recipe() -> None:
    found = READER.validate_python({"editor": "editor-1"})
    assert (found.recipe, found.editor_id) == ("mend", "editor-1")
    assert READER.validate_python({"recipe": "ridge"}).editor_id is None


def test_an_unknown_option_is_refused_with_a_list_of_options() -> None:
    found = refused({"recipe": "ridge", "max_steps": 500, "triel_edits": 2, "margin": -1})
    assert set(found) == {"ridge.max_steps", "ridge.triel_edits", "ridge.margin"}
    known = ", ".join(option.name for option in catalog()["ridge"].options)
    assert found["ridge.max_steps"].startswith('ridge has no option "max_steps"; ')
    assert found["ridge.max_steps"].endswith(f"it has {known}")
    assert 'did you mean "trial_edits"' in found["ridge.triel_edits"]
    assert "greater than or equal to 0" in found["ridge.margin"]


@pytest.mark.parametrize("name", ["magic", "scope", "", None, 7, ["mend"]])
def test_an_unknown_recipe_is_refused_with_a_list_of_recipes(name: object) -> None:
    found = refused({"recipe": name, "max_steps": 5})
    assert set(found) == {"recipe"} and "scoped, mend, paper, ridge" in found["recipe"]


@pytest.mark.parametrize("options", [7, "mend", ["mend"], None])
def test_options_must_be_an_object(options: object) -> None:
    assert set(refused(options)) == {""}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("scoped", {"seed": 2**31}),
        ("scoped", {"max_steps": 0}),
        ("scoped", {"scope_budget": 1.5}),
        ("scoped", {"candidates": "top"}),
        ("scoped", {"kl_weight": None}),
        ("scoped", {"learning_rate": 0}),
        ("scoped", {"learning_rate": float("inf")}),
        ("mend", {"editor": "e" * 65}),
        ("paper", {"trial_edits": 2}),
    ],
)
def test_each_recipe_has_its_own_bounds(recipe: str, options: dict[str, Any]) -> None:
    (name,) = options
    assert set(refused({"recipe": recipe, **options})) == {f"{recipe}.{name}"}


def test_every_option_may_be_left_out_or_given_its_default() -> None:
    for recipe in catalog().recipes:
        given = {option.name: option.default for option in recipe.options}
        left_out = READER.validate_python({"recipe": recipe.name})
        assert READER.validate_python({"recipe": recipe.name, **given}) == left_out
