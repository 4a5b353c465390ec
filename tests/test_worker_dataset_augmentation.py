"""Augmentations: seeded, never empty, with the same answer."""

from __future__ import annotations

import random

import pytest

from salem.models.chat import TurnFinder
from salem.records import Sample
from salem.scope.lexical import WordCounts
from worker.dataset.augmentation import EVERY_RULE, TYPING, augment, augment_all
from worker.dataset.synonyms import SYNONYMS

TEXTS = (
    "Where is my order?",
    "a",
    "...",
    "the",
    "is it the",
    "Why has the parcel that you sent me on Monday not arrived at my door in Berlin by now?",
    "übergrößen über alles 你好 世界",
    "   ",
    " x\t y \n z ",
)


@pytest.mark.parametrize("text", TEXTS)
def test_an_augmentation_is_never_empty_and_keeps_the_answer(text: str) -> None:
    sample = Sample(input=text, text_pair="the parcel is here", target="delivery")
    for seed in range(200):
        found = augment(sample, random.Random(seed))
        assert found.input
        assert len(found.input.split()) >= min(1, len(text.split()))
        assert (found.text_pair, found.target) == (sample.text_pair, sample.target)


def test_only_the_last_user_turn_of_a_chat_changes() -> None:
    turns = TurnFinder("<|user|>", "<|end|>")
    before, after = "<|system|>Be very kind.<|end|><|user|>", "<|end|><|assistant|>"
    question = "where is my order and when will it arrive at my door"
    sample = Sample(input=before + question + after, target="x")
    texts = {augment_all([sample], random.Random(seed), turns=turns)[0].input for seed in range(20)}
    assert all(text.startswith(before) and text.endswith(after) for text in texts)
    assert len(texts) > 10


def test_the_same_seed_gives_the_same_augmentations() -> None:
    samples = [Sample(input=text, target="x") for text in TEXTS]
    one, two, other = (augment_all(samples, random.Random(seed)) for seed in (1, 1, 2))
    assert one == two != other
    assert len(one) == len(samples)


def test_augmentations_vary_and_mostly_differ_from_their_text() -> None:
    sample = Sample(input=TEXTS[5], target="x")
    found = {augment(sample, random.Random(seed)).input for seed in range(100)}
    assert len(found) > 60
    words = set(sample.input.lower().split())
    shared = [len(words & set(text.lower().split())) / len(words) for text in found]
    assert sum(shared) / len(shared) > 0.5, "a rewording that shares few words is another request"


def test_an_augmentation_has_the_negations_of_its_text() -> None:
    """Without its "not", a text means something else, and a single random change could drop it."""
    sample = Sample(input="my parcel has not come and nobody could tell me why it never does", target="late")
    singly = [augment(sample, random.Random(seed)) for seed in range(40)]
    own = WordCounts.of(sample)
    assert any(WordCounts.of(one).negation_difference(own) for one in singly)
    found = augment_all([sample] * 40, random.Random(0))
    assert not any(WordCounts.of(one).negation_difference(own) for one in found)
    assert sum(one != sample for one in found) > 30


def test_a_synonym_replaces_only_its_word() -> None:
    (synonymous,) = set(EVERY_RULE) - set(TYPING)
    words = ['"Will', "purchased", "a", "Movie,", "Bill's", "o'ill", "the", "film!", 'they"']
    found = {" ".join(synonymous(words, random.Random(seed))) for seed in range(20)}
    assert found == {
        "\"Will bought a Movie, Bill's o'ill the film! they\"",
        "\"Will purchased a Movie, Bill's o'ill the movie! they\"",
    }
    assert synonymous(["Will", "the", "order", "Kill"], random.Random(0)) == ["Will", "the", "order", "Kill"]


def test_only_the_rules_for_a_metric_use_synonyms() -> None:
    sample = Sample(input="why is the movie in the parcel not fixed", target="late")
    others = {"film", "package", "repaired"}
    assert any(others & set(one.input.split()) for one in augment_all([sample] * 40, random.Random(0)))
    singly = [augment(sample, random.Random(seed)) for seed in range(200)]
    assert not any(others & set(one.input.split()) for one in singly)


def test_the_lexicon_is_lower_case_and_symmetric() -> None:
    assert len(SYNONYMS) > 80
    for word, others in SYNONYMS.items():
        assert word.isalpha() and word.islower() and others and word not in others
        assert all(word in SYNONYMS[other] for other in others)
