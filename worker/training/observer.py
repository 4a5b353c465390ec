"""Who is told how a job proceeds.

Must not know what a job is or where its progress is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from salem.records import LayerScore


class Observer(Protocol):
    """Who wants to know how an edit goes."""

    def phase(self, name: str, progress: float) -> None: ...

    def saliency(self, scores: Sequence[LayerScore]) -> None: ...

    def figures(self, progress: float, figures: dict[str, float]) -> None: ...
