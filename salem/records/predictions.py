"""Predictions, and references to the model version that makes them."""

from __future__ import annotations

import re

from salem.records.base import NAME_PATTERN, Name, Record


class Prediction(Record):
    """One answer. A classifier also gives one score per label."""

    output: str
    scores: dict[str, float] | None = None


class Match(Record):
    """The edit that answered an input, and how far inside its scope the input lies."""

    edit_id: str
    margin: float  # cosine to the nearest key, minus that key's radius


class ExplainedPrediction(Prediction):
    """An answer with the edit that matched its input. `match` is None if no scope matched."""

    match: Match | None


class ModelReference(Record):
    """How a client names a version: `intents`, `intents:3`, or `intents@production`.

    A bare name means the base, `intents:0`.
    """

    model: Name
    number: int | None = None
    alias: Name | None = None

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Parse a reference.

        Raises:
            ValueError: the text has none of the three forms. The message shows them, but not the text.
        """
        match = re.fullmatch(r"([^:@]+)(?::([0-9]{1,9})|@([^:@]+))?", text)
        parts = match.groups() if match else ()
        names = [part for part in (parts[0], parts[2]) if part] if parts else []
        if not names or not all(re.fullmatch(NAME_PATTERN, name) for name in names):
            raise ValueError('not a model reference: write "name", "name:3" or "name@alias"')
        return cls(model=parts[0], number=int(parts[1]) if parts[1] else None, alias=parts[2])
