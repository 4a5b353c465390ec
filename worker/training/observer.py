"""The interface through which a job reports its progress. Must not know where progress is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from salem.records import LayerScore


class Observer(Protocol):
    """Receives the progress of a job."""

    def phase(self, name: str, progress: float) -> None: ...

    def saliency(self, scores: Sequence[LayerScore]) -> None: ...

    def figures(self, progress: float, figures: dict[str, float]) -> None: ...
