"""The options of the training loop. Recipes that train inherit them, with defaults of their own.

Must not know recipes.
"""

from __future__ import annotations

from pydantic import ConfigDict, Field

from salem.records import Record

MARGIN = 6.0  # nats


class LoopOptions(Record):
    """How long and how strongly to train."""

    model_config = ConfigDict(allow_inf_nan=False)

    max_steps: int = Field(
        default=50,
        ge=1,
        le=5_000,
        description="Maximum number of training rounds over the corrections. Training stops earlier when all "
        "corrections hold and nothing improves",
    )
    kl_weight: float = Field(
        default=3.0,
        ge=0,
        description="Weight of the divergence on pass samples, relative to the corrections",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate of the optimizer")


class TrainingOptions(LoopOptions):
    """The same, for a loss that asks each correction to lead by a margin."""

    margin: float = Field(
        default=MARGIN,
        ge=0,
        description="Nats by which a corrected answer must lead, or a forgotten one must trail. 0 trains for "
        "plain likelihood",
    )
    rest_when_held: bool = Field(
        default=True,
        description="Whether a correction takes no more steps while it leads by the margin",
    )
