"""How long the phases of an edit job take, so that its progress and the time left are true.

The last job of the same model and recipe tells, scaled by the number of corrections. For the first such job,
measured ratios between phases stand in. What ended phases took corrects the speed of those to come. Must not
know what phases do, or where results are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from salem.records import EditResult

PHASES = ("loading", "predicting", "saliency", "training", "evaluating", "writing")
Seconds = Mapping[str, float]  # by phase

_TRUST = 0.2  # weight of the expected speed, as a share of the whole job, against that of ended phases
_GROWS = frozenset({"predicting", "training", "evaluating"})  # with the number of corrections


def expected_first(num: int, most_saliency: int, *, generates: bool) -> Seconds:
    """Phases of a model's first job, measured on a chat model with 30 blocks and on the demo's classifier.

    Only their ratios matter much.

    Args:
        num: corrections, which are edits and their paraphrases.
        most_saliency: those that saliency is averaged over, at most.
        generates: whether the model writes texts.
    """
    num_saliency = min(num, most_saliency)
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


def expected_after(last: EditResult, num: int, most_saliency: int) -> Seconds:
    """Phases of a job like an earlier one with another number of corrections.

    Args:
        most_saliency: corrections that saliency is averaged over, at most.
    """
    before = num_corrections(last)
    factors = dict.fromkeys(_GROWS, num / before)
    factors["saliency"] = min(num, most_saliency) / min(before, most_saliency)
    return {phase: seconds * factors.get(phase, 1.0) for phase, seconds in last.phase_seconds.items()}


def num_corrections(result: EditResult) -> int:
    """The edits and trained paraphrases of a job."""
    return max(1, sum(share.count for share in (result.edit_accuracy, result.adapt_accuracy) if share))


@dataclass(frozen=True)
class Pace:
    """The expected phases of a running job."""

    expected: Seconds

    def time_left_s(self, ended: Seconds, phase: str, in_phase_s: float) -> float:
        """Seconds until the job ends.

        Args:
            ended: what each ended phase took.
            phase: the present one.
            in_phase_s: seconds since it began.
        """
        whole = sum(self.expected.values())
        known = sum(self.expected.get(each, 0.0) for each in ended)
        speed = (sum(ended.values()) + _TRUST * whole) / (known + _TRUST * whole)
        later = [each for each in PHASES if each not in ended and each != phase]
        here = max(self.expected.get(phase, 0.0) * speed - in_phase_s, 0.1 * in_phase_s)
        return here + speed * sum(self.expected.get(each, 0.0) for each in later)
