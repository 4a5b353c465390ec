"""The options of the `scoped` recipe.

Must not know how they are used.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from salem.records import SharedOptions
from worker.recipes.base import LayerOptions
from worker.training.options import TrainingOptions


class ScopedOptions(TrainingOptions, LayerOptions, SharedOptions):
    """Options of `scoped`."""

    trial_edits: int = Field(
        default=0,
        ge=0,
        le=64,
        description="How many of the most salient layers get a trial edit; the best trial decides. 0 takes "
        "the most salient layer: scopes bound what a layer can break, so trials rarely choose another one",
    )
    kl_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the divergence on the nearest pass samples. Scopes protect the others, so the "
        "default is 0",
    )
    learning_rate: float = Field(
        default=0.2, gt=0, description="Learning rate of the values, in units of the layer's states"
    )
    scopes: Literal["auto", "text", "states"] = Field(
        default="auto",
        description="What scopes compare: the texts, by the scope encoder, or the hosted model's states. "
        "`auto` takes the texts unless the encoder does not fit the edits and their paraphrases",
    )
    scope_budget: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="Share of pass samples that may lie inside any scope of the version. Higher "
        "generalizes more and breaks more",
    )
    scope_budget_per_edit: float = Field(
        default=0.0002,
        ge=0,
        le=1,
        description="The same share per edit. The smaller of the two budgets counts",
    )
    first_token_weight: float = Field(
        default=0.5,
        ge=0,
        le=2,
        description="How much an input's score drops when the base starts its answer differently than at "
        "the key. 0 turns this off",
    )
    lexical_weight: float = Field(
        default=0.05,
        ge=0,
        le=2,
        description="How much an input's score drops when it exchanges as many words as paraphrases do on "
        "average. 0 turns this off",
    )
    metric_width: int = Field(
        default=96,
        ge=2,
        le=1_024,
        description="Dimensions of the scope metric. The model's first scoped job sets it for all later jobs",
    )
    entry_rank: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Rank of a low-rank term beside each entry's value. By default, entries whose value "
        "alone does not hold get rank 4",
    )
    augmentations: int = Field(
        default=1,
        ge=0,
        le=8,
        description="Augmented copies of each edit and paraphrase that train the entry's value",
    )
    anchor_samples: int = Field(
        default=4,
        ge=0,
        le=64,
        description="Pass samples per edit that teach a classifier's entry to answer anything inside its "
        "scope",
    )
