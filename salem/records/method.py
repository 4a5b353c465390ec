"""Where and how a model is edited: layers and their saliency scores, and the options of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, JsonValue

from salem.records.base import Record

MAX_NEW_TOKENS = 512  # upper limit of `max_new_tokens`


class Layer(Record):
    """A layer that can be edited: one weight matrix in one block of one stack.

    `path` is the module path from the model's root, such as `bert.encoder.layer.2.output.dense`.
    `transposed` is true for a Conv1D (GPT-2), which stores its weight as [d_in, d_out]. Deltas are always
    [d_out, d_in].
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


class SharedOptions(Record):
    """The options that all recipes share. Each recipe adds its own (`worker/recipes`)."""

    model_config = ConfigDict(allow_inf_nan=False)

    layer: str | None = Field(
        default=None,
        description="Path of the layer to edit. By default, saliency chooses. `GET /models/{name}` lists "
        "the paths",
    )
    saliency_samples: int = Field(
        default=32,
        ge=1,
        le=100_000,
        description="Maximum number of corrections that the saliency of layers is averaged over, drawn at "
        "random. The SaLEM paper averages over all",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Random seed")
    max_pass_samples: int = Field(
        default=2_000, ge=1, le=100_000, description="Maximum number of pass samples to train on"
    )
    max_held_out: int = Field(
        default=2_000,
        ge=1,
        le=100_000,
        description="Maximum number of held-out pass samples to measure drawdown on",
    )
    max_new_tokens: int = Field(
        default=32,
        ge=32,  # registration generates this many, and its answers are reused
        le=MAX_NEW_TOKENS,
        description="Maximum number of tokens, including the end of the answer, that a model generates while "
        "it is measured. An edit with a longer answer is refused",
    )


class RecipeOptions(Record):
    """A recipe and its options, as stored with a request and a version.

    The record knows only the recipe's name. The API and the worker check the options against the recipe.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue]

    recipe: str


class EditorOptions(SharedOptions):
    """The options to train an editor ahead of time. They are stored with the editor."""

    candidates: Literal["middle", "all"] = Field(
        default="middle", description="Blocks that saliency chooses from"
    )
    num_together: int = Field(
        default=10, ge=1, le=32, description="Edits that the editor learns to apply at once"
    )
    num_steps: int = Field(default=200, ge=1, le=20_000, description="Training steps")
    kl_weight: float = Field(default=3.0, ge=0, description="Weight of the divergence on pass samples")
    learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate of the optimizer")
    editor_rank: int = Field(default=64, ge=1, le=1_024, description="Rank of the editor's blocks")
    max_pass_samples: int = Field(
        default=1_000, ge=1, le=100_000, description="Maximum number of pass samples to train on"
    )
