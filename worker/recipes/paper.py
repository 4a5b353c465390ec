"""The `paper` recipe: SaLEM as published (Findings of EACL 2024, section 3), and nothing else.

The layer has the highest mean |gradient| of all layers. MEND trains with plain likelihood on edit and adapt
samples, and with the divergence on pass samples.
"""

from __future__ import annotations

from salem.models.network import Network
from salem.records import EditBatch, Layer, SharedOptions
from worker.hypernetworks.mend_learner import EditorTraining, MendTraining
from worker.recipes.base import EditTask, Recipe, Trained, advice_to_train
from worker.recipes.memory import Footprint
from worker.recipes.mend import editor_footprint, mend_term


class PaperOptions(EditorTraining, SharedOptions):
    """Options of `paper`."""


class PaperRecipe(Recipe):
    """MEND with the two published objectives: no margin, no projection, no trial edits."""

    name = "paper"
    summary = "SaLEM as published: the most salient layer, MEND, and plain likelihood; for comparison."
    Options = PaperOptions
    trains_editor = True

    options: PaperOptions

    def candidate_layers(self, network: Network) -> tuple[Layer, ...]:
        return network.layers

    def make(self, task: EditTask) -> Trained:
        own = self.options.model_dump(include=set(EditorTraining.model_fields))
        return Trained(mend_term(task, MendTraining(**own, margin=0.0, null_space_rank=0)))

    def advice(self) -> str:
        return advice_to_train(self.options)

    def footprint(self, network: Network, batch: EditBatch) -> Footprint:
        return editor_footprint(network, self.options.editor_rank)
