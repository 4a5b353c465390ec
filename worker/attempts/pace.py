"""Estimates how long the phases of an edit job take, and so its progress and the time left.

The estimate is what they took in the last job of the same model and recipe, scaled by the number of
corrections. The first such job uses times measured elsewhere. Each phase that ends corrects the speed that is
expected of the others. Must not know what phases do, or where results are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from salem.records import EditResult

PHASES = ("loading", "predicting", "saliency", "training", "evaluating", "writing")
PhaseSeconds = Mapping[str, float]  # by name of the phase

_TRUST = 0.2  # weight of the expected times, as a share of the whole job, against those of ended phases
_GROWS = frozenset({"predicting", "training", "evaluating"})  # in proportion to the corrections


def expected_first(num: int, max_saliency: int, *, generates: bool) -> PhaseSeconds:
    """How long phases should take without an earlier job of the same model and recipe.

    Measured on a chat model with 30 blocks and on the demo's classifier. `Pace` corrects the speed, so
    the ratios between phases matter most.

    Args:
        num: number of corrections: edits and their trained paraphrases.
        max_saliency: most corrections that saliency is averaged over.
        generates: whether the model generates text.
    """
    num_saliency = min(num, max_saliency)
    if not generates:
        return {
            "loading": 2.0,
            "predicting": 0.5 + 0.01 * num,
            "saliency": 0.03 * num_saliency,
            "training": 25 + 0.18 * num,
            "evaluating": 4 + 0.1 * num,
            "writing": 0.5,
        }
    return {
        "loading": 2.5,
        "predicting": 3 + 0.4 * num,
        "saliency": 0.45 * num_saliency,
        "training": 5 + 1.7 * num,
        "evaluating": 1 + 0.2 * num,
        "writing": 0.5,
    }


def expected_after(last: EditResult, num: int, max_saliency: int) -> PhaseSeconds:
    """How long phases should take after an earlier job with another number of corrections.

    Args:
        num, max_saliency: as for `expected_first`.
    """
    before = num_corrections(last)
    factors = dict.fromkeys(_GROWS, num / before)
    factors["saliency"] = min(num, max_saliency) / min(before, max_saliency)
    return {phase: seconds * factors.get(phase, 1.0) for phase, seconds in last.phase_seconds.items()}


def num_corrections(result: EditResult) -> int:
    """The number of edits and trained paraphrases of a job, at least 1."""
    return max(1, sum(share.count for share in (result.edit_accuracy, result.adapt_accuracy) if share))


@dataclass(frozen=True)
class Pace:
    """The expected phases of a running job."""

    expected: PhaseSeconds

    def time_left_s(self, ended: PhaseSeconds, phase: str, in_phase_s: float) -> float:
        """Seconds until the job ends.

        Args:
            ended: how long each ended phase took.
            phase: the current one.
            in_phase_s: seconds since it began.
        """
        whole = sum(self.expected.values())
        planned = sum(self.expected.get(each, 0.0) for each in ended)
        slowdown = (sum(ended.values()) + _TRUST * whole) / (planned + _TRUST * whole)
        later = [each for each in PHASES if each not in ended and each != phase]
        here = max(self.expected.get(phase, 0.0) * slowdown - in_phase_s, 0.1 * in_phase_s)
        return here + slowdown * sum(self.expected.get(each, 0.0) for each in later)
