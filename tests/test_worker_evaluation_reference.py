"""The reference set with the base's answers: what is correct, held out, or too long."""

from __future__ import annotations

import pytest
from labeled_texts import TEXTS, other_label
from tiny_models import MAX_TOKENS, tiny_network

from salem.errors import EditFailed, InvalidRequest
from salem.inference.predict import predict
from salem.messages import quote
from salem.models.batching import encode
from salem.models.tokens import count_tokens
from salem.records import Edit, ReferenceSample, TextInput, held_out
from worker.dataset.split import build_edit_batch
from worker.evaluation import reference as registration
from worker.evaluation.reference import answer_reference


def own(texts: tuple[str, ...], architecture: str = "bert") -> list[Edit]:
    """Texts with the model's answers."""
    answers = predict(tiny_network(architecture), [TextInput(input=text) for text in texts])
    return [
        Edit(input=text, target=answer.output)
        for text, answer in zip(texts, answers, strict=True)
        if answer.output
    ]


def test_samples_with_correct_answers_are_the_pass_samples() -> None:
    samples = own(TEXTS)
    wrong = samples[0].model_copy(update={"target": other_label(samples[0].target)})
    answered = answer_reference(tiny_network("bert"), [wrong, *samples[1:]], lambda share: None)
    assert answered.num_pass_samples == len(samples) - 1
    assert answered.accuracy is not None and answered.accuracy.count == len(samples)
    assert answered.accuracy.value == pytest.approx((len(samples) - 1) / len(samples))
    first, *rest = answered.reference
    assert not first.correct and first.answer == samples[0].target
    assert all(item.correct for item in rest)
    assert [item.held_out for item in rest] == [held_out(sample.content_hash) for sample in samples[1:]]
    assert answered.num_held_out == sum(item.held_out for item in rest)


def test_generated_answers_are_compared_as_texts() -> None:
    samples = own(TEXTS[:12], "t5")
    wrong = samples[0].model_copy(update={"target": samples[0].target + " more"})
    answered = answer_reference(tiny_network("t5"), [wrong, *samples[1:]], lambda share: None)
    assert [item.correct for item in answered.reference] == [False] + [True] * (len(samples) - 1)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_sample_that_does_not_fit_with_its_target_is_not_a_pass_sample(architecture: str) -> None:
    """The answer is cut off at the end of the window but is correct up to there."""
    network = tiny_network(architecture)
    texts = [TextInput(input=" ".join(["a"] * size)) for size in range(1, MAX_TOKENS)]
    texts = [text for text in texts if count_tokens(network.tokenizer, [text])[0] <= MAX_TOKENS]
    answers = [predict(network, [text], max_new_tokens=3)[0].output for text in texts]
    samples = [Edit(input=t.input, target=a) for t, a in zip(texts, answers, strict=True) if a]
    found: list[ReferenceSample] = []
    for sample in samples:
        answered = answer_reference(network, [sample], lambda share: None, max_new_tokens=3)
        found += answered.reference
        assert answered.accuracy is not None and answered.accuracy.value == 1
        assert answered.num_pass_samples == answered.reference[0].passes
    kept, unfit = ([item.sample for item in found if item.passes is passes] for passes in (True, False))
    assert kept and unfit, "some fit and some do not"
    assert len(encode(network, kept)) == len(kept)
    for sample in unfit:
        with pytest.raises(EditFailed, match="tokens with its target; the model takes") as refused:
            encode(network, [kept[0], sample])
        assert quote(sample.input) in refused.value.message
    batch = build_edit_batch(
        [Edit(input="x", target="y")], found, None, max_pass_samples=100, max_held_out=100, seed=0
    )
    assert {*batch.pass_samples, *batch.held_out_pass_samples} == set(kept)


def test_progress_is_reported_for_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "SLICE", 50)
    shares: list[float] = []
    answer_reference(tiny_network("bert"), own(TEXTS), shares.append)
    assert shares == pytest.approx([50 / len(TEXTS), 100 / len(TEXTS), 1])


def test_every_sample_that_does_not_fit_is_pointed_at() -> None:
    samples = own(TEXTS[:3])
    strange = Edit(input="where", target="strange")
    long = Edit(input="parcel " * MAX_TOKENS, target=samples[0].target)
    with pytest.raises(InvalidRequest) as caught:
        answer_reference(tiny_network("bert"), [samples[0], strange, long], lambda share: None)
    assert [error.pointer for error in caught.value.errors] == ["/reference/1/target", "/reference/2/input"]
    assert "/reference/1/target" in caught.value.message and caught.value.remedy


def test_an_empty_set_has_no_accuracy() -> None:
    answered = answer_reference(tiny_network("bert"), [], lambda share: None)
    assert answered.accuracy is None and answered.num_pass_samples == answered.num_held_out == 0


def test_paraphrases_are_kept_and_must_fit_too() -> None:
    (sample,) = own(TEXTS[:1])
    known = sample.model_copy(update={"paraphrases": ("the same in other words",)})
    answered = answer_reference(tiny_network("bert"), [known], lambda share: None)
    assert answered.reference[0].paraphrases == ("the same in other words",)
    assert answered.reference[0].sample == sample.sample
    long = sample.model_copy(update={"paraphrases": ("short", "parcel " * MAX_TOKENS)})
    with pytest.raises(InvalidRequest) as caught:
        answer_reference(tiny_network("bert"), [long], lambda share: None)
    assert [error.pointer for error in caught.value.errors] == ["/reference/0/paraphrases/1"]
