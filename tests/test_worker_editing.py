"""One edit from samples to a measured delta: what is said when nothing holds."""

from __future__ import annotations

import pytest
from test_worker_recipes import Case, case, hyper

from benchmarks.baselines.product import Quiet
from salem.answers import predict
from salem.errors import EditFailed
from salem.records import Recipe, Sample
from worker.editing import make_edit

IDLE = {"max_steps": 1, "entry_rank": 0, "trial_edits": 0, "max_new_tokens": 32}


def forgetting(of: Case) -> Case:
    """The same inputs, each to lose the answer that is given."""
    edits = of.batch.edit_samples[:2]
    answers = predict(of.network, edits, max_new_tokens=32)
    lost = tuple(Sample(input=e.input, forget=a.output) for e, a in zip(edits, answers, strict=True))
    return Case(of.network, of.batch.model_copy(update={"edit_samples": lost, "adapt_samples": ()}))


@pytest.mark.parametrize("forgets", [False, True])
def test_where_nothing_holds_the_remedy_is_one_that_helps(forgets: bool) -> None:
    of = forgetting(case("bert")) if forgets else case("bert")
    idle = hyper(Recipe.SCOPED, **IDLE).model_copy(update={"learning_rate": 1e-12})
    with pytest.raises(EditFailed) as failed:
        make_edit(of.network, (), of.batch, idle, Quiet())
    assert failed.value.remedy is not None and "Raise max_steps" in failed.value.remedy
    if forgets:
        assert "None of the 2 answers is forgotten" in failed.value.message
        assert "a target that is to be given instead" in failed.value.remedy
        assert "kl_weight" not in failed.value.remedy
    else:
        assert "None of the 3 edits holds" in failed.value.message
        assert "kl_weight" in failed.value.remedy


def test_values_that_were_not_trained_are_not_to_be_trained_longer() -> None:
    of = case("gpt2")
    untrained = hyper(Recipe.SCOPED, trial_edits=0, entry_values="closed_form")
    with pytest.raises(EditFailed, match="by values that were not trained") as failed:
        make_edit(of.network, (), of.batch, untrained, Quiet())
    assert failed.value.remedy is not None and "max_steps" not in failed.value.remedy
