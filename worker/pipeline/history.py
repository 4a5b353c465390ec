"""What earlier jobs of a hosted model trained on: the edits of every version, and the reference set.

Must not know how a delta is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from salem.models.chat import TurnFinder
from salem.records import Edit, EditId, HostedModel, ReferenceSample, Sample, Sha256, Version
from worker.attempts.attempt import Attempt
from worker.dataset.near_samples import NearSamples
from worker.recipes.base import Exposure


@dataclass(frozen=True)
class EditHistory:
    """The edits and the reference set of a hosted model."""

    edits: Mapping[int, Sequence[Edit]]  # by the number of the version that introduced them
    reference: Sequence[ReferenceSample]
    _near: dict[TurnFinder, NearSamples] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, attempt: Attempt, model: HostedModel) -> EditHistory:
        """Read both from storage."""
        return cls(attempt.registry.entries.edits(model.name), attempt.reference(model))

    def near_samples(self, finder: TurnFinder) -> NearSamples:
        """The reference set, searched by the words of its questions. All requests of a chain share it."""
        if finder not in self._near:
            self._near[finder] = NearSamples(self.reference, finder.last_user_turn)
        return self._near[finder]

    def chain(self, version: Version) -> tuple[Edit, ...]:
        """The edits of a version's deltas, including removed ones."""
        numbers = [delta.version for delta in version.deltas if delta.version is not None]
        return tuple(edit for number in numbers for edit in self.edits.get(number, ()))

    def active_edits(self, version: Version) -> dict[str, Sample]:
        """Every active edit of a version by its id, newest first."""
        return {
            str(EditId(number, place)): edit.sample
            for number, removed in reversed([(d.version, d.removed) for d in version.deltas])
            if number is not None
            for place, edit in enumerate(self.edits.get(number, ()))
            if place not in removed
        }

    def exposure(self, chain: Sequence[Edit], metric: Sha256 | None, before: int | None = None) -> Exposure:
        """The edits that influence a job on top of this chain that starts from this metric.

        Args:
            chain: the edits of the deltas below.
            before: for a replay, the number of the version that the job made.
        """
        if metric is None:
            return Exposure(chain)
        numbers = [number for number in self.edits if before is None or number < before]
        return Exposure(chain, [edit for n in numbers for edit in self.edits[n]], self.reference)
