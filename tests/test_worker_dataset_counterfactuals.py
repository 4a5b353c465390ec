"""Counterfactual neighbors: near an edit, about something else, and never measured."""

from __future__ import annotations

import random

import pytest
from test_worker_recipes_terms import case, hyper

from benchmarks.baselines.product import Quiet
from salem.inference.predict import predict
from salem.models.tokens import count_tokens
from salem.records import EditBatch, Recipe, Sample
from worker.dataset.counterfactuals import neighbors, with_neighbors
from worker.pipeline import steps
from worker.pipeline.budget import job_estimate
from worker.pipeline.steps import make_edit

CITIES = ("Peru", "Chile", "Ghana", "Nepal")


def asked(city: str, year: int = 1998) -> str:
    return f"What was the capital of {city} in {year}?"


def some_batch(*, paraphrase: str = "Name the capital of Peru.", apart: tuple[str, ...] = ()) -> EditBatch:
    passes = [
        *(Sample(input=asked(city, year), target="a") for city in CITIES[1:] for year in (2001, 2014)),
        *(Sample(input=f"what is the {word} of it", target="b") for word in ("size", "name", "use") * 30),
    ]
    return EditBatch(
        edit_samples=(Sample(input=asked("Peru"), text_pair="Peru, says he", target="Cusco"),),
        adapt_samples=((0, Sample(input=paraphrase, target="Cusco")),),
        pass_samples=tuple(passes),
        held_out_paraphrases=(),
        held_out_pass_samples=tuple(Sample(input=text, target="a") for text in apart),
    )


def test_the_word_that_the_edit_and_its_paraphrases_are_about_is_exchanged() -> None:
    found = neighbors(some_batch(), 2, random.Random(0))
    assert len(found) == 2 and {each.edit for each in found} == {0}
    for each in found:
        assert each.word == "Peru", "1998 is rarer, but the paraphrase does not have it"
        assert each.instead[0].isupper() and each.instead != "Peru"
        assert each.text.input == asked(each.instead)
        assert each.text.text_pair == f"{each.instead}, says he"
    assert found[0].answered("x") == Sample(**found[0].text.model_dump(), target="x")


def test_numbers_take_the_place_of_numbers() -> None:
    batch = some_batch().model_copy(update={"adapt_samples": ()})
    (found,) = neighbors(batch, 1, random.Random(1))
    assert found.word in ("1998", "Peru")
    numbered = some_batch(paraphrase="1998: the capital?")
    (found,) = neighbors(numbered, 1, random.Random(0))
    assert found.word == "1998" and found.instead in ("2001", "2014")


def test_there_are_as_many_as_there_are_words_and_none_is_in_the_batch() -> None:
    batch = some_batch()
    found = neighbors(batch, 8, random.Random(0))
    texts = [each.text.content_hash for each in found]
    assert len(set(texts)) == len(texts) < 8
    apart = tuple(each.text.input for each in found)
    pairless = batch.edit_samples[0].model_copy(update={"text_pair": None})
    held = some_batch(apart=apart).model_copy(update={"edit_samples": (pairless,)})
    assert neighbors(held, 8, random.Random(0)) == [], "what is held out stays unseen"


def test_the_same_seed_makes_the_same_ones() -> None:
    drawn = [neighbors(some_batch(), 1, random.Random(seed)) for seed in (3, 3, *range(9))]
    assert drawn[0] == drawn[1] and any(other != drawn[0] for other in drawn)


def test_an_edit_that_shares_no_word_with_its_paraphrases_has_none() -> None:
    assert neighbors(some_batch(paraphrase="same again?"), 2, random.Random(0)) == []


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_they_are_kept_as_they_are_answered_now(architecture: str) -> None:
    of = case(architecture)
    two = hyper(Recipe.MEND, neighbors=2)
    batch, (note,) = with_neighbors(of.network, (), of.batch, two)
    num = len(of.batch.pass_samples)
    assert batch.pass_samples[:num] == of.batch.pass_samples and batch.corrections == of.batch.corrections
    made = batch.pass_samples[num:]
    assert 0 < len(made) <= 2 * len(batch.edit_samples) and note.startswith(f"{len(made)} counterfactual")
    now = predict(of.network, made, max_new_tokens=two.max_new_tokens)
    assert [sample.target for sample in made] == [answer.output for answer in now]
    scoped = hyper(Recipe.SCOPED, neighbors=2)
    for unchanged in (hyper(Recipe.MEND), scoped):
        assert with_neighbors(of.network, (), of.batch, unchanged) == (of.batch, ())


def test_parts_of_contractions_and_negations_are_no_words_to_exchange() -> None:
    batch = some_batch().model_copy(update={"adapt_samples": ()})
    for text in (
        "I don't get it in Peru",
        "I cannot get it in Peru",
        "it is not in Peru",
        "wasn\N{RIGHT SINGLE QUOTATION MARK}t it in Peru",
    ):
        edit = Sample(input=text, target="a")
        (found,) = neighbors(batch.model_copy(update={"edit_samples": (edit,)}), 1, random.Random(0))
        assert found.word == "Peru" and found.text.input == text.replace("Peru", found.instead)


def test_what_does_not_fit_the_model_is_left_out() -> None:
    of = case("gpt2")
    texts = [Sample(input=" ".join(["order"] * size), target="refund") for size in range(1, 200)]
    lengths = count_tokens(of.network.tokenizer, texts)
    long = texts[lengths.index(of.network.max_input_tokens)]
    batch = of.batch.model_copy(update={"edit_samples": (long,), "adapt_samples": ()})
    found, (note,) = with_neighbors(of.network, (), batch, hyper(Recipe.MEND, neighbors=2))
    assert found == batch and note == "no counterfactual neighbor of the edits could be made"


def test_training_keeps_them_and_measuring_does_not_see_them(monkeypatch: pytest.MonkeyPatch) -> None:
    of, seen = case("bert"), []
    train = steps.train_term

    def watched(network: object, parent: object, batch: EditBatch, *rest: object) -> object:
        seen.append(batch)
        return train(network, parent, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(steps, "train_term", watched)
    plain, more = (hyper(Recipe.MEND, trial_edits=0, max_steps=3, neighbors=num) for num in (0, 2))
    made = [make_edit(of.network, (), of.batch, options, Quiet()) for options in (plain, more)]
    assert len(seen[1].pass_samples) > len(seen[0].pass_samples) == len(of.batch.pass_samples)
    assert made[0].metrics.drawdown.count == made[1].metrics.drawdown.count
    assert not any("neighbors" in note for note in made[0].metrics.notes)
    assert any("counterfactual neighbors" in note for note in made[1].metrics.notes)


def test_the_estimate_of_memory_counts_them() -> None:
    of = case("bert")
    few, many = (
        job_estimate(of.network, of.batch, hyper(Recipe.MEND, neighbors=num)).trunks for num in (0, 8)
    )
    assert many > few
