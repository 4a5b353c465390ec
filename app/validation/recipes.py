"""The recipes as the API knows them: their traits, and a model of the options of each.

`recipes.json` comes from the worker (`make recipes`), because the API never imports it. Must not know how a
recipe works.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationError, create_model, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from app.validation.texts import did_you_mean
from salem.messages import quote
from salem.records import RecipeOptions, Record, SharedOptions

_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool}


class RecipeOption(Record):
    """One option of a recipe."""

    name: str
    type: Literal["string", "integer", "number", "boolean"]
    nullable: bool
    default: str | bool | int | float | None
    description: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = Field(None, serialization_alias="ge")
    exclusiveMinimum: float | None = Field(None, serialization_alias="gt")
    maximum: float | None = Field(None, serialization_alias="le")
    exclusiveMaximum: float | None = Field(None, serialization_alias="lt")
    maxLength: int | None = Field(None, serialization_alias="max_length")

    def as_field(self) -> tuple[Any, Any]:
        """Its type and its field, as `create_model` takes them."""
        bounds = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "maxLength"}
        limits = self.model_dump(include=bounds, by_alias=True, exclude_none=True)
        kind = Literal[self.choices] if self.choices else _TYPES[self.type]
        limited = Annotated[kind, Field(**limits)] if limits else kind
        whole = limited | None if self.nullable else limited
        return whole, Field(self.default, description=self.description)


class RecipeTraits(Record):
    """What a recipe is and can do."""

    name: str
    summary: str
    scoped: bool  # its edits act only inside scopes, so later ones override earlier ones
    forgets: bool  # it can move away from an answer without a new target
    trains_editor: bool
    takes_editor: bool  # it can use an editor trained ahead (option `editor`)
    options: tuple[RecipeOption, ...]


class RecipeCatalog(Record):
    """All recipes."""

    default: str
    recipes: tuple[RecipeTraits, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.recipes)

    def __getitem__(self, name: str) -> RecipeTraits:
        return next(each for each in self.recipes if each.name == name)


@cache
def catalog() -> RecipeCatalog:
    """The recipes of this release."""
    return RecipeCatalog.model_validate_json(files("app.validation").joinpath("recipes.json").read_bytes())


class OptionsIn(SharedOptions):
    """The options of `POST /edits` for one recipe; `option_models` makes a subclass for each."""

    recipe: str

    @property
    def traits(self) -> RecipeTraits:
        """Of the recipe."""
        return catalog()[self.recipe]

    @property
    def editor_id(self) -> str | None:
        """The editor that the options name."""
        found: str | None = getattr(self, "editor", None)
        return found

    def stored(self) -> RecipeOptions:
        """As a request and a version keep them, with every default."""
        return RecipeOptions(**self.model_dump(mode="json"))

    @model_validator(mode="wrap")
    @classmethod
    def _names_known_options(cls, data: Any, handler: ModelWrapValidatorHandler[OptionsIn]) -> OptionsIn:
        try:
            return handler(data)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [*map(cls._explained, error.errors())]
            ) from None

    @classmethod
    def _explained(cls, error: Any) -> InitErrorDetails:
        """One problem; that of an unknown option lists the options that there are."""
        name = str(error["loc"][-1]) if error["loc"] else ""
        message = str(error["msg"])
        if error["type"] == "extra_forbidden":
            known = [option for option in cls.model_fields if option != "recipe"]
            recipe = cls.model_fields["recipe"].annotation.__args__[0]  # type: ignore[union-attr]
            message = (
                f"{recipe} has no option {quote(name)}{did_you_mean(name, known)}; it has {', '.join(known)}"
            )
        return _problem(error["loc"], message, error["input"])


def _problem(location: tuple[int | str, ...], message: str, given: Any) -> InitErrorDetails:
    kind = PydanticCustomError("invalid_option", "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=location, input=given)


@cache  # one class per recipe: pydantic warns when it serializes options of another class with the same name
def option_models(recipes: RecipeCatalog) -> tuple[type[OptionsIn], ...]:
    """A model of the options of each recipe."""
    found = []
    for recipe in recipes.recipes:
        name: Any = Literal[recipe.name]
        default = recipe.name if recipe.name == recipes.default else ...
        fields: dict[str, Any] = {option.name: option.as_field() for option in recipe.options}
        fields = {"recipe": (name, Field(default, description=recipe.summary)), **fields}
        title = f"{recipe.name.replace('_', ' ').title().replace(' ', '')}Options"
        found.append(create_model(title, __base__=OptionsIn, __doc__=recipe.summary, **fields))
    return tuple(found)


class _ByRecipe:
    """Validates options as those of the recipe that they name."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        models = zip(catalog().names, option_models(catalog()), strict=True)
        choices = {name: handler.generate_schema(model) for name, model in models}
        union = core_schema.tagged_union_schema(choices, discriminator="recipe")
        return core_schema.no_info_before_validator_function(_with_recipe, union)


def _with_recipe(options: Any) -> Any:
    """Options that name their recipe: the default, or the one that takes an editor if they name an editor."""
    if not isinstance(options, dict):
        return options
    recipes = catalog()
    name = options.get("recipe")
    if "recipe" not in options:
        takes = [each.name for each in recipes.recipes if each.takes_editor]
        name = takes[0] if options.get("editor") is not None and takes else recipes.default
    elif name not in recipes.names:
        shown = quote(name) if isinstance(name, str) else "this value"
        hint = did_you_mean(str(name), recipes.names)
        message = f"{shown} is not a recipe{hint}; the recipes are {', '.join(recipes.names)}"
        raise ValidationError.from_exception_data("options", [_problem(("recipe",), message, name)])
    return {**options, "recipe": name}


def default_options() -> OptionsIn:
    """The default recipe with its defaults."""
    return TypeAdapter(AnyOptions).validate_python({})


AnyOptions = Annotated[OptionsIn, _ByRecipe()]
"""The options of any recipe."""
