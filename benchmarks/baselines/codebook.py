"""GRACE's codebook: keys, each with a radius and a label, and the rule for adding an edit.

Hartvigsen et al., "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors", NeurIPS
2023, section 3.2 and algorithm 1. Must not know values, layers, or networks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_APART = 1e-5  # keeps two balls that meet halfway from overlapping


@dataclass(frozen=True)
class Codebook:
    """`c` entries. An input inside a ball gets the value of the nearest key."""

    keys: Tensor  # [c, d]
    radii: Tensor  # [c] deferral radii, Euclidean
    labels: tuple[str, ...]  # the answer of each entry

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The distance to the nearest key and its index, for points [n, d] -> [n], [n]."""
        distances = torch.cdist(points, self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.min(-1)
        return nearest.values, nearest.indices

    def entries(self, points: Tensor) -> Tensor:
        """The index of the entry that contains each point [n, d], or -1 outside every ball -> [n]."""
        if not len(self.keys):
            return torch.full((len(points),), -1, device=points.device)
        distances, nearest = self.nearest(points)
        return torch.where(distances <= self.radii[nearest], nearest, -1)

    def with_edit(self, point: Tensor, label: str, radius: float) -> Codebook:
        """The codebook after an edit at `point` [d].

        Far from all balls, the edit becomes a new entry. Near a ball with the same label, that ball grows to
        contain the point. Near a ball with another label, the edit becomes a new entry, and both radii become
        half the distance.
        """
        if not len(self.keys):
            return self._with_entry(point, label, radius)
        distances, indices = self.nearest(point.unsqueeze(0))
        distance, index = float(distances), int(indices)
        if distance > float(self.radii[index]) + radius:
            return self._with_entry(point, label, radius)
        if self.labels[index] == label:
            return self._with_radius(index, max(float(self.radii[index]), distance))
        return self._with_radius(index, distance / 2 - _APART)._with_entry(point, label, distance / 2)

    def _with_entry(self, point: Tensor, label: str, radius: float) -> Codebook:
        keys = torch.cat([self.keys, point.unsqueeze(0)])
        radii = torch.cat([self.radii, self.radii.new_tensor([radius])])
        return Codebook(keys, radii, (*self.labels, label))

    def _with_radius(self, index: int, radius: float) -> Codebook:
        radii = self.radii.clone()
        radii[index] = radius
        return replace(self, radii=radii)


def empty_codebook(d: int, device: torch.device) -> Codebook:
    """An empty codebook for keys of `d` dimensions."""
    return Codebook(torch.zeros(0, d, device=device), torch.zeros(0, device=device), ())
