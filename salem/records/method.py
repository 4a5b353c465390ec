"""Where and how a model is edited: layers with their saliency, recipes, and all that shapes a delta."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from salem.records.base import Record

MOST_NEW_TOKENS = 512  # that an answer may be allowed to take


class Layer(Record):
    """A candidate for editing: one weight matrix inside one block of one stack.

    `path` is the module path from the model's root, e.g. `bert.encoder.layer.2.output.dense`.
    A Conv1D (GPT-2) stores its weight as [d_in, d_out]; `transposed` says so. Deltas are [d_out, d_in].
    """

    path: str
    stack: str  # path of the list of blocks: "bert.encoder.layer", "decoder.block"
    block: int
    matrix: str  # path inside the block: "output.dense"
    d_in: int
    d_out: int
    transposed: bool


class LayerScore(Record):
    """The saliency of one layer: mean |gradient| over its parameters and over samples (SaLEM, section 3)."""

    layer: str
    block: int
    matrix: str
    score: float
    chosen: bool = False


class Recipe(StrEnum):
    """How a delta is made from an edit dataset; docs/recipes.md says when to take which."""

    SCOPED = "scoped"  # an entry per edit that acts only inside its scope
    MEND = "mend"  # salient layer, MEND, many pass samples, null-space projection
    RIDGE = "ridge"  # salient layer, closed form: no training
    PAPER = "paper"  # mean |gradient| layer, MEND, two objectives, nothing else

    @property
    def forgets(self) -> bool:
        """Whether it can hold what takes the place of a forgotten answer to the base's next choice."""
        return self in (Recipe.SCOPED, Recipe.MEND)


class Hyperparameters(Record):
    """Everything that shapes a delta besides the samples; stored with the version that it made."""

    model_config = ConfigDict(allow_inf_nan=False)

    recipe: Recipe = Recipe.SCOPED
    editor: str | None = Field(default=None, max_length=64)  # id; None: none trained ahead
    layer: str | None = None  # None: saliency chooses
    candidates: Literal["recipe", "middle", "all"] = "recipe"  # blocks to choose from; the paper: all
    trial_edits: int = Field(default=3, ge=0, le=64)  # most salient layers compared by editing them; 0: none
    seed: int = Field(default=0, ge=0, lt=2**31)
    max_steps: int = Field(default=50, ge=1, le=5_000)
    max_pass_samples: int = Field(default=2_000, ge=1, le=100_000)
    max_held_out: int = Field(default=2_000, ge=1, le=100_000)  # pass samples that drawdown is measured on
    neighbors: int = Field(default=0, ge=0, le=8)  # counterfactual ones of each edit, kept as pass samples
    kl_weight: float | None = Field(default=None, ge=0)  # None: the recipe's own
    margin: float = Field(default=6.0, ge=0)  # nats by which an answer is to lead; 0: plain likelihood
    rest_when_held: bool = True  # whether a correction rests once it leads by the margin
    gradient_batch: int = Field(default=10, ge=1, le=1_000)  # samples whose gradients are added up for MEND
    learning_rate: float | None = Field(default=None, gt=0)  # None: the recipe's own
    scope_budget: float = Field(default=0.005, ge=0, le=1)  # share of pass samples inside any scope
    scope_budget_per_edit: float = Field(default=0.0002, ge=0, le=1)  # per edit; the smaller counts
    first_token_weight: float = Field(default=0.5, ge=0, le=2)  # of a cosine; 0: the base is not asked
    lexical_weight: float = Field(default=0.05, ge=0, le=2)  # of a key's reach; 0: words do not count
    metric_width: int = Field(default=96, ge=2, le=1_024)
    entry_values: Literal["trained", "closed_form", "editor"] = "trained"  # how an entry's values are found
    entry_rank: int | None = Field(default=None, ge=0, le=64)  # of a term beside a value; None: where needed
    augmentations: int = Field(default=1, ge=0, le=8)  # of each edit and paraphrase, that train its value
    anchor_samples: int = Field(default=4, ge=0, le=64)  # of each edit: what else may lie inside its scope
    editor_rank: int = Field(default=64, ge=1, le=1_024)
    null_space_rank: int = Field(default=200, ge=0, le=4_096)  # leading directions of pass inputs; 0: none
    max_new_tokens: int = Field(default=32, ge=32, le=MOST_NEW_TOKENS)  # no fewer than registration asks with

    @model_validator(mode="after")
    def _ranks_are_trained(self) -> Hyperparameters:
        if self.entry_rank and self.entry_values != "trained":
            raise ValueError("entry_rank is of a trained term: leave it out, or leave out entry_values")
        return self


class EditorOptions(Record):
    """Everything that shapes an editor trained ahead besides its corpus; stored with it."""

    model_config = ConfigDict(allow_inf_nan=False)

    layer: str | None = None  # None: saliency chooses
    candidates: Literal["middle", "all"] = "middle"  # blocks to choose from
    seed: int = Field(default=0, ge=0, lt=2**31)
    num_together: int = Field(default=10, ge=1, le=32)  # edits that it learns to apply at once
    num_steps: int = Field(default=200, ge=1, le=20_000)
    kl_weight: float = Field(default=3.0, ge=0)  # of the divergence on pass samples
    learning_rate: float = Field(default=1e-3, gt=0)
    editor_rank: int = Field(default=64, ge=1, le=1_024)
    max_pass_samples: int = Field(default=1_000, ge=1, le=100_000)
    max_held_out: int = Field(default=2_000, ge=1, le=100_000)  # pass samples that drawdown is measured on
    max_new_tokens: int = Field(default=32, ge=32, le=MOST_NEW_TOKENS)
