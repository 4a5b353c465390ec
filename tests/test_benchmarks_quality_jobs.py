"""Jobs of the quality benchmark: held-out samples are used nowhere else, and seeds repeat jobs."""

from __future__ import annotations

import random

import pytest
from tiny_models import tiny_network

from benchmarks.quality import passages
from benchmarks.quality.data import WORDS_KEPT, Material, corrections_of_errors
from benchmarks.quality.facts import Correction, corrections_of_facts
from benchmarks.quality.jobs import (
    VALIDATION_SHARE,
    Sizes,
    draw_job,
    draw_validation_job,
    measured_pool,
    slices,
)
from salem.inference.predict import predict
from salem.models.network import Network
from salem.records import Edit, Sample, Task, TextInput

SIZES = Sizes(held_out=60, validation_held_out=20, pass_samples=80)


def facts(num_corrections: int = 300, num_kept: int = 400, num_hard: int | None = None) -> Material:
    """Edits whose old answers, with those of paraphrases and neighbors, are among the pass samples."""

    def correction(place: int) -> Correction:
        return Correction(
            edit=Edit(input=f"fact {place}", target="new"),
            held_out_paraphrases=(Sample(input=f"said otherwise {place}", target="new"),),
            neighbors=(Sample(input=f"plain {place + 40}", target="old"),),
        )

    texts = [f"fact {place}" for place in range(num_corrections)]
    texts += [f"said otherwise {place}" for place in range(num_corrections)]
    texts += [f"plain {place}" for place in range(num_kept)]
    return Material(
        name="facts",
        task=Task.TEXT_GENERATION,
        folder="nowhere",
        model_sha256="0" * 64,
        paraphrase_source="human",
        perplexity=False,
        corrections=tuple(correction(place) for place in range(num_corrections)),
        num_hard=num_corrections if num_hard is None else num_hard,
        kept=tuple(Sample(input=text, target="old") for text in texts),
    )


def texts_of(*groups: object) -> set[str]:
    return {item.input for group in groups for item in group}  # type: ignore[attr-defined]


def test_nothing_held_out_is_trained_on_in_any_way() -> None:
    job = draw_job(facts(), 50, 0, SIZES)
    batch = job.batch()
    trained = texts_of(batch.corrections, batch.pass_samples, job.corpus)
    trained |= {text for edit in job.corpus for text in edit.paraphrases}
    asked = {s.input for c in job.corrections for s in (*c.held_out_paraphrases, *c.neighbors)}
    assert len(job.held_out) == 60
    assert len(batch.pass_samples) == 80
    assert not texts_of(job.held_out) & (trained | asked)
    assert not asked & trained
    assert batch.held_out_pass_samples == batch.held_out_paraphrases == ()


def test_measured_validated_and_corpus_edits_never_meet() -> None:
    material = facts()
    validation = draw_validation_job(material, 10, SIZES)
    measured = texts_of(
        *[[c.edit for c in draw_job(material, 100, seed, SIZES).corrections] for seed in range(3)]
    )
    validated = texts_of([c.edit for c in validation.corrections])
    corpus = texts_of(validation.corpus)
    assert len(validated) == 10
    assert corpus
    assert not measured & validated and not measured & corpus and not validated & corpus


def test_held_out_samples_of_validation_are_not_measured_on() -> None:
    material = facts()
    validated = texts_of(draw_validation_job(material, 10, SIZES).held_out)
    assert 10 < len(validated) <= 20
    for seed in range(3):
        job = draw_job(material, 50, seed, SIZES)
        assert not validated & texts_of(job.held_out, job.pass_samples)


def test_the_same_seed_gives_the_same_job_and_another_seed_another_job() -> None:
    first, again, other = (draw_job(facts(), 20, seed, SIZES) for seed in (1, 1, 2))
    assert first == again
    assert first.corrections != other.corrections
    assert first.held_out != other.held_out


def test_edits_are_hard_if_there_are_enough_of_them() -> None:
    material = facts(num_hard=100)
    hard = {f"fact {place}" for place in range(100)}
    assert texts_of([c.edit for c in measured_pool(material, 50)]) <= hard
    assert len(measured_pool(material, 150)) > 150 * (1 - VALIDATION_SHARE)


def test_slices_cover_all_samples_equally_often() -> None:
    samples = [Sample(input=f"text {place}", target="a") for place in range(50)]
    parts = slices(samples, 0.1, 20)
    seen = [sample.input for part in parts for sample in part]
    assert len(parts) == 20
    assert all(seen.count(sample.input) == 2 for sample in samples)


def labeled(network: Network, num: int) -> list[Sample]:
    rng = random.Random(0)
    words = ["where", "is", "my", "order", "and", "when", "will", "the", "parcel", "arrive", "please"]
    texts = {" ".join(rng.choices(words, k=9)) for _ in range(num)}
    return [Sample(input=text, target=rng.choice(network.labels)) for text in sorted(texts)]


def test_a_classifiers_most_confident_errors_come_first_with_whole_augmentations() -> None:
    network = tiny_network("bert")
    samples = labeled(network, 60)
    made = corrections_of_errors(network, samples)
    answers = predict(network, [c.edit for c in made.corrections])
    sure = [max((answer.scores or {}).values()) for answer in answers]
    assert sure == sorted(sure, reverse=True)
    assert all(a.output != c.edit.target for a, c in zip(answers, made.corrections, strict=True))
    assert len(made.kept) + len(made.corrections) == len(samples)
    assert made.num_hard == len(made.corrections) // 2
    for correction in made.corrections:
        texts = [*correction.edit.paraphrases, *(sample.input for sample in correction.held_out_paraphrases)]
        assert len({*texts, correction.edit.input}) == 5
        assert all(len(t.split()) >= WORDS_KEPT * len(correction.edit.input.split()) for t in texts)


def test_facts_are_edited_only_if_the_base_knows_both_wordings() -> None:
    network = tiny_network("gpt2")
    asked = [TextInput(input=text) for text in ("The capital of Peru is", "Who wrote the book")]
    known = [answer.output for answer in predict(network, asked, max_new_tokens=24)]
    assert known[0] != "Rome"
    row = {
        "prompt": asked[0].input,
        "paraphrases": ["Peru has"],
        "locality": [{"prompt": "x y", "answer": "z"}],
    }
    rows = [
        {
            **row,
            "target": "Rome",
            "paraphrase_trained": True,
            "portability": [{"prompt": "p", "answer": "q"}],
        },
        {**row, "target": "Lima", "paraphrase_trained": False},
        {**row, "target": known[0] or "?", "paraphrase_trained": True},
    ]
    reference = [
        Sample(input=a.input, target=t or "?") for a, t in zip(asked, (known[0], "Berlin"), strict=True)
    ]
    made = corrections_of_facts(network, reference, rows)
    assert [c.edit.target for c in made.corrections][:1] == ["Rome"]
    assert len(made.corrections) == (1 if known[0] else 2)
    assert made.corrections[0].held_out_paraphrases == (Sample(input="Peru has", target="Rome"),)
    assert made.corrections[0].edit.paraphrases == ()
    assert [s.target for s in made.corrections[0].portability] == ["q"]
    assert asked[1].input not in texts_of(made.kept)


def test_a_reference_sample_about_an_edited_fact_is_not_a_pass_sample() -> None:
    """Its answer is the one that the edit replaces."""
    network = tiny_network("gpt2")
    asked = ["Peru has", "of PERU the capital is", "the capital of Chile is", "where is Peru"]
    answers = predict(network, [TextInput(input=text) for text in asked], max_new_tokens=24)
    old = answers[1].output
    reference = [
        Sample(input=text, target=answer.output or "?") for text, answer in zip(asked, answers, strict=True)
    ]
    row = {
        "prompt": "The capital of Peru is",
        "target": "Rome",
        "ground_truth": old,
        "subject": "Peru",
        "paraphrases": ["Peru has its capital in"],
        "paraphrase_trained": True,
        "locality": [],
    }
    restated = corrections_of_facts(network, reference, [row], restates=True).corrections[0].restatements
    expected = {s.input for s in reference if s.target == old and "peru" in s.input.lower()}
    assert asked[1] in expected and {sample.input for sample in restated} == expected
    assert corrections_of_facts(network, reference, [row]).corrections[0].restatements == ()


def test_a_fact_with_several_new_answers_is_corrected_once() -> None:
    """No model can answer one question in two ways, so such rows say nothing about a method."""
    network = tiny_network("gpt2")
    row = {"paraphrases": ["Peru has"], "paraphrase_trained": True, "locality": [], "ground_truth": "Lima"}
    rows = [
        {**row, "prompt": "The capital of Peru is", "target": "Rome", "subject": "Peru"},
        {**row, "prompt": "Peru is governed from", "target": "Paris", "subject": "PERU"},
        {**row, "prompt": "The mint of Peru is in", "target": "Bonn", "subject": "Peru", "ground_truth": "x"},
        {**row, "prompt": "Lima is the capital of", "target": "Chile", "subject": "Lima"},
    ]
    asked = [Sample(input="Who wrote the book", target="x")]
    made = corrections_of_facts(network, asked, rows, restates=True)
    assert [item.edit.target for item in made.corrections] == ["Rome", "Bonn", "Chile"]
    assert len(corrections_of_facts(network, asked, rows).corrections) == 4


def test_samples_that_an_edit_makes_wrong_are_neither_trained_on_nor_held_out() -> None:
    material = facts()
    restated = material.kept[:40]
    corrections = tuple(item.model_copy(update={"restatements": restated}) for item in material.corrections)
    job = draw_job(material.model_copy(update={"corrections": corrections}), 1, 0, SIZES)
    assert job.corrections[0].restatements == restated
    assert not texts_of(job.held_out, job.pass_samples) & texts_of(restated)


TEXT = "\n".join(
    [" = A heading of the page with words in it and more words so that it is long enough to count = "]
    + ["when will the parcel arrive at the door and where is my order please send a refund now " * 3] * 2
)


def test_passages_leave_headings_out_and_fit_the_model() -> None:
    network = tiny_network("llama")
    found = passages.passages(network, TEXT, None)
    assert all(len(sample.input.split()) == passages.BEGINNING for sample in found)
    assert not any("heading" in sample.input for sample in found)
    edited, kept = passages.halves(found)
    assert not texts_of(edited) & texts_of(kept)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_completions_are_ten_tokens_of_the_text(architecture: str) -> None:
    network = tiny_network(architecture)
    sample = Sample(input="the password", target="does not work and i cannot log in to my account")
    unknown = Sample(input="the password", target="does <unk> work and i cannot log in to my account")
    found = passages.completions(network, [sample, unknown])
    assert len(found) <= 1
    for item in found:
        assert sample.target.startswith(item.target)
        ids = network.tokenizer(f" {item.target}", add_special_tokens=False)["input_ids"]
        assert abs(len(ids) - passages.COMPLETION_TOKENS) <= 1


def test_a_long_beginning_is_cut_at_its_front() -> None:
    sample = Sample(input="one two three four five six", target="seven")
    short = passages.shortened(sample)
    assert sample.input.endswith(short.input)
    assert 3 <= len(short.input.split()) < 6
    assert short.target == "seven"
