"""The metrics of a version from known answers, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from salem.records import DetailedMetrics, EditBatch, Proportion, Sample, TextInput
from worker.evaluation.metrics import AnswerLikelihood, evaluate


def sample(text: str, target: str) -> Sample:
    return Sample(input=text, target=target)


EDITED = (sample("e0", "A"), sample("e1", "B"))
KEPT = tuple(sample(f"p{number}", "C") for number in range(5))
BATCH = EditBatch(
    edit_samples=EDITED,
    adapt_samples=((1, sample("e1 again", "B")),),
    pass_samples=(sample("trained on", "C"),),
    held_out_paraphrases=((0, sample("e0 otherwise", "A")), (1, sample("e1 otherwise", "B"))),
    held_out_pass_samples=KEPT,
)
BEFORE = {"p3": "D", "p4": "D"}  # all others are answered with C
AFTER = {
    "e0": "A",
    "e1 again": " B\n",
    "e0 otherwise": "A",
    "e1 otherwise": "B",
    "p0": "X",
    "p3": "C",
    "p4": "E",
}


@dataclass(frozen=True)
class Answering:
    """A version with given answers; it answers all other inputs with C."""

    known: Mapping[str, str]
    rank: float = 1.0

    def answers(self, inputs: Sequence[TextInput]) -> list[str]:
        return [self.known.get(item.input, "C") for item in inputs]

    def may_differ(self, inputs: Sequence[TextInput]) -> list[bool]:
        return [True] * len(inputs)

    def answer_likelihoods(self, samples: Sequence[Sample]) -> list[AnswerLikelihood]:
        """Each sample is a little less likely than the last."""
        return [AnswerLikelihood(self.rank + place, 1 / (self.rank + place)) for place in range(len(samples))]


def measured(batch: EditBatch = BATCH, *, generates: bool = False) -> DetailedMetrics:
    before, after = Answering(BEFORE), Answering(AFTER, rank=2.0)
    return evaluate(batch, before, after, generates=generates, notes=("a warning",))


def figure(found: Proportion | None) -> tuple[float, int]:
    assert found is not None
    return round(found.value, 6), found.count


def test_each_accuracy_counts_its_own_kind_of_sample() -> None:
    metrics = measured()
    assert figure(metrics.edit_accuracy) == (0.5, 2)
    assert figure(metrics.adapt_accuracy) == (1.0, 1)
    assert figure(metrics.generalization) == (1.0, 2)
    assert figure(metrics.drawdown) == (0.0, 5)  # p0 lost, p3 won
    assert figure(metrics.locality) == (0.4, 5)  # p1 and p2


def test_flips_list_what_changed_and_what_broke() -> None:
    flips = measured().flips
    assert [(flip.input, flip.before, flip.after, flip.broken) for flip in flips] == [
        ("p0", "C", "X", True),
        ("p3", "D", "C", False),
        ("p4", "D", "E", False),
    ]


def test_outcomes_list_every_edit_and_paraphrase_before_and_after() -> None:
    outcomes = measured().outcomes
    assert [(item.edit, item.kind, item.input, item.before, item.correct) for item in outcomes] == [
        (0, "edit", "e0", "C", True),
        (1, "edit", "e1", "C", False),
        (1, "adapt", "e1 again", "C", True),
        (0, "held_out_paraphrase", "e0 otherwise", "C", True),
        (1, "held_out_paraphrase", "e1 otherwise", "C", True),
    ]


def test_any_answer_but_the_forgotten_one_is_correct() -> None:
    edits = (sample("e0", "A"), Sample(input="p4", forget="D"), Sample(input="e2", forget=" C "))
    batch = BATCH.model_copy(
        update={
            "edit_samples": edits,
            "adapt_samples": ((2, Sample(input="p3", forget="C")),),
            "held_out_paraphrases": (),
        }
    )
    metrics = measured(batch)
    assert [(o.input, o.target, o.forget, o.before, o.after, o.correct) for o in metrics.outcomes] == [
        ("e0", "A", None, "C", "A", True),
        ("p4", None, "D", "D", "E", True),
        ("e2", None, " C ", "C", "C", False),
        ("p3", None, "C", "D", "C", False),
    ]
    assert figure(metrics.edit_accuracy) == (round(2 / 3, 6), 3)
    ranks = [o.extent and (o.extent.rank_before, o.extent.rank_after) for o in metrics.outcomes]
    assert ranks == [None, (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    found = metrics.forgetting
    assert found is not None and found.adapt is not None and found.held_out_paraphrase is None
    assert (found.edit.count, found.edit.rank_before, found.edit.rank_after) == (2, 1.5, 2.5)
    assert found.edit.probability_before == 0.75
    assert found.edit.probability_after == pytest.approx(5 / 12, abs=1e-5)
    assert found.adapt.count == 1 and found.adapt.rank_after == 4.0
    assert measured().forgetting is None


@pytest.mark.parametrize(("generates", "protocol"), [(False, "argmax"), (True, "free generation")])
def test_the_protocol_is_named(generates: bool, protocol: str) -> None:
    assert measured(generates=generates).protocol == protocol


def test_a_missing_metric_is_none_and_has_a_note() -> None:
    assert measured().notes == ("a warning",)
    bare = EditBatch(
        edit_samples=EDITED,
        adapt_samples=(),
        pass_samples=(),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
    )
    metrics = measured(bare)
    assert metrics.adapt_accuracy is metrics.generalization is metrics.drawdown is metrics.locality is None
    assert metrics.flips == ()
    assert [note.split(" was")[0] for note in metrics.notes[:2]] == ["generalization", "drawdown"]
    assert len(metrics.notes) == 3 and metrics.notes[-1] == "a warning"
