"""The `ridge` recipe: the closed form that changes the inputs of pass samples least. It trains nothing."""

from __future__ import annotations

from pydantic import Field

from salem.deltas.terms import applied
from salem.records import SharedOptions
from worker.recipes.base import EditTask, LayerOptions, Recipe, Trained
from worker.recipes.compression import smallest_that_holds
from worker.training.options import MARGIN
from worker.training.ridge import ridge_term


class RidgeOptions(LayerOptions, SharedOptions):
    """Options of `ridge`."""

    margin: float = Field(
        default=MARGIN,
        ge=0,
        description="Nats by which a corrected answer must lead. 0 means the default",
    )


class RidgeRecipe(Recipe):
    """Solves for the update in closed form."""

    name = "ridge"
    summary = "A closed-form change of the layer that acts on every input; takes seconds and trains nothing."
    Options = RidgeOptions

    options: RidgeOptions

    @property
    def margin(self) -> float:
        return self.options.margin

    def make(self, task: EditTask) -> Trained:
        with applied(task.network.model, task.plain):
            prepared = task.prepare()
            term, _ = ridge_term(task.network, prepared, self.margin)
            return Trained(smallest_that_holds(task.network, prepared, term, self.margin))
