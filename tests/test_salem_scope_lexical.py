"""Words: which ones an input has, which ones two inputs exchange, and the effect on scopes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from test_salem_scope_state_scope import TEXTS, metric_of, scoped_delta
from tiny_models import tiny_network
from torch import Tensor

from salem.inference.gate import fire
from salem.records import TextInput
from salem.scope import lexical
from salem.scope.lexical import (
    MOST_STORED,
    WORD_BUCKETS,
    WordCounts,
    is_text,
    pack_words,
    split_words,
    unpack_words,
    word_buckets,
    word_rarity,
    word_steadiness,
)
from salem.scope.lookups import BatchLookups

ALIKE = [1.0] * WORD_BUCKETS


def worded(text: str, pair: str | None = None) -> WordCounts:
    return WordCounts.of(TextInput(input=text, text_pair=pair))


def exchanged(one: str, other: str, weights: Sequence[float] = ALIKE) -> float:
    """In both directions, which give the same for word counts that were not truncated."""
    found = worded(one).exchanged_weight(worded(other), weights)
    assert worded(other).exchanged_weight(worded(one), weights) == pytest.approx(found)
    return found


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Where is my order?", "where is my order", 0),
        ("please, where is my order now", "where is my order", 0),
        ("where order", "where is my order", 0),
        ("order my is where", "where is my order", 0),
        ("founded in 1998", "founded in 1999", 1),
        ("founded in 1998 in Rome", "founded in 1999 in Oslo", 2),
        ("filmed in 1998, shown in 1998", "filmed in 1998, shown in 1999", 1),
        ("the red red lamp", "the red blue lamp", 1),
        ("Ünïcode naïve", "ünïcode NAÏVE", 0),
        ("...", "where is my order", 0),
        ("?!", "!", 0),
    ],
)
def test_words_are_exchanged_only_if_both_texts_have_their_own(one: str, other: str, expected: float) -> None:
    assert exchanged(one, other) == expected


@pytest.mark.parametrize(
    ("one", "other", "is_one_word"),
    [
        ("recived", "received", True),
        ("recieved", "received", True),
        ("parcells", "parcels", True),
        ("delivry", "delivery", True),
        ("order", "orders", True),
        ("eceived", "received", False),  # who leaves the first letter out makes another word more often
        ("typical", "atypical", False),
        ("marie", "maria", False),  # another letter makes another name
        ("rcvd", "received", False),
        ("cat", "cats", False),  # too short to tell
        ("b1023", "b1032", False),
        ("10234", "1023", False),
        ("lamp", "lmap", True),
        ("abcd", "badc", False),
    ],
)
def test_a_misspelling_counts_as_the_intended_word(one: str, other: str, is_one_word: bool) -> None:
    assert exchanged(f"the {one} here", f"the {other} here") == (0 if is_one_word else 1)


def test_a_misspelling_matches_a_word_only_once() -> None:
    assert exchanged("parcel parcel", "parcels stamp") == 1


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("It is not a city", "It is a city", 1),
        ("It isn't a city", "it is not a city", 0),
        ("it isn’t a city", "it is a city", 1),  # noqa: RUF001
        ("I cannot pay", "I can not pay", 0),
        ("nobody has it", "it never was", 1),  # as often negated, in other words
        ("no no", "yes yes", 2),
        ("i dont want it, it wasnt me", "I don't want it; it was not me", 0),
        ("I can't", "i cannot", 0),
        ("you won’t", "you will not", 0),  # noqa: RUF001
        ("withot a lamp", "without a lamp", 0),
        ("order no. 5", "order number 5", 0),
        ("I want no 5 of it", "I want 5 of it", 1),
    ],
)
def test_a_negation_reverses_a_request(one: str, other: str, expected: float) -> None:
    assert exchanged(one, other) == expected
    turned = worded(one).negation_difference(worded(other))
    assert exchanged(one, other, [0.0] * WORD_BUCKETS) == turned, "negations count even if no other word does"


def test_a_negation_is_counted_in_each_text_of_a_pair() -> None:
    one, other = worded("it is not a city", "it is a city"), worded("it is a city", "it is not a city")
    assert one.exchanged_weight(other, ALIKE) == one.negation_difference(other) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("我不要退款", ["我", "not", "要", "退", "款"]),
        ("カメラ x", ["カ", "メ", "ラ", "x"]),
        ("cafe\u0301 ZÜRICH", ["café", "zürich"]),
        ("ＡＢＣ １２", ["abc", "12"]),  # noqa: RUF001
    ],
)
def test_words_of_other_scripts_are_split(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert unpack_words(pack_words([worded(text)])) == [worded(text)]


def test_a_character_of_a_script_without_spaces_is_not_a_misspelling() -> None:
    assert exchanged("我要退款", "我要换货") == 2


def test_a_word_of_the_second_text_is_a_different_word() -> None:
    one, other = worded("the lamp", "a stamp"), worded("the stamp", "a lamp")
    assert one.exchanged_weight(other, ALIKE) == 2
    assert one.exchanged_weight(worded("the lamp", "a stmap"), ALIKE) == 0
    assert worded("it is", "it was not").exchanged_weight(worded("it is", "it was"), ALIKE) == 1


def weights_where(**told: float) -> list[float]:
    found = [1.0] * WORD_BUCKETS
    for place, weight in zip(word_buckets(told), told.values(), strict=True):
        found[place] = weight
    return found


def test_the_side_with_less_weight_counts() -> None:
    weights = weights_where(of=0.1, the=0.2)
    assert exchanged("lamp", "stamp", weights) == 1
    assert exchanged("of", "stamp", weights) == pytest.approx(0.1)
    assert exchanged("of the", "lamp", weights) == pytest.approx(0.3)
    assert exchanged("of of", "lamp", weights) == pytest.approx(0.2)


def test_the_order_of_words_does_not_matter() -> None:
    draw = random.Random(0)
    one = ["orders", "ordre", "order", "parcel", "parcels", "lamp", "lmap", "lamps"]
    other = ["order", "orders", "oredr", "parcels", "pracel", "lamp", "lapm"]
    found = {exchanged(" ".join(draw.sample(one, 8)), " ".join(draw.sample(other, 7))) for _ in range(50)}
    assert len(found) == 1


def test_word_counts_are_read_back_from_bytes() -> None:
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["Straße", "order", "注文", "b-12", "isn't", "?"], k=size))
        for size in range(1, 9)
    ]
    wordings = [worded(text, text[::-1] if len(text) % 2 else None) for text in texts]
    rows = pack_words(wordings)
    assert rows.dtype == torch.uint8 and len(rows) == len(texts) and is_text(rows)
    assert unpack_words(rows) == wordings
    assert pack_words([]).shape == (0, 1) and unpack_words(pack_words([worded("?!")])) == [worded("...")]
    (strange,) = unpack_words(torch.tensor([[43, 32, 43]], dtype=torch.uint8))
    assert worded("a").exchanged_weight(strange, ALIKE) == 0, "cut down to nothing"
    assert not is_text(torch.tensor([[97, 255, 97]], dtype=torch.uint8))


@pytest.mark.parametrize("negation", ["not", "never"])
def test_a_long_key_keeps_its_most_important_words_and_still_tells_twins_apart(negation: str) -> None:
    """An input without some words of a truncated key has exchanged nothing; a twin has."""
    words = [f"w{number}" for number in range(2 * MOST_STORED)]
    light = {word: 0.1 for word in words[MOST_STORED:]} | {word: 0.5 for word in words[:MOST_STORED]}
    weights = weights_where(**light, **{negation: 0.02})
    whole = worded(" ".join([*words, negation]))
    key = whole.truncated(weights)
    assert (
        len(key.counts) == MOST_STORED
        and set(key.counts) <= {*words[:MOST_STORED], negation}
        and key.is_truncated
    )
    assert key.truncated(weights) is key and unpack_words(pack_words([key])) == [key]
    assert worded(" ".join([*words[5:], negation])).exchanged_weight(key, weights) == 0
    assert worded(" ".join([*words[1:], "other", negation])).exchanged_weight(key, weights) == 0.5
    assert worded(" ".join(words)).exchanged_weight(key, weights) == 1, "the negation is gone"
    exactly = worded(" ".join(words[:MOST_STORED]))
    assert exactly.truncated(weights) is exactly and not exactly.is_truncated


def test_words_that_paraphrases_keep_are_steady() -> None:
    texts = [
        ("the order and the parcel", "my order and my parcel"),
        ("the order", "my order now"),
        ("a received letter", "a recieved letter"),
    ]
    found = word_steadiness([(TextInput(input=one), TextInput(input=other)) for one, other in texts])

    def of(word: str) -> float:
        return float(found[word_buckets([word])[0]])

    assert of("order") == of("and") == of("received") == 1.0, "a misspelling is no exchange"
    assert of("the") == 1 / 4 and of("now") == 1 / 2
    assert of("money") == 1.0, "a word that was never seen is steady"
    assert torch.equal(word_steadiness([]), torch.ones(WORD_BUCKETS))


def test_frequent_words_are_not_rare() -> None:
    found = word_rarity([TextInput(input="the " * 50 + "lamp")])
    the, lamp, money = (float(found[place]) for place in word_buckets(["the", "lamp", "money"]))
    assert the < lamp < money == 1.0


def test_only_words_with_the_same_beginning_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, compared = random.Random(0), []

    def watched(one: str, other: str) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(lexical, "_misspelled", watched)
    long, other = (
        worded(" ".join("".join(draw.choices("abcdefghij", k=7)) for _ in range(300))) for _ in range(2)
    )
    assert long.exchanged_weight(other, ALIKE) > 250
    assert 0 < len(compared) < 300 * 300 / 8


def twin_scope(weight: float) -> tuple[Tensor, Tensor]:
    """Similarity of the edit's own text, a twin, and a rewording, and the radius, from words alone."""
    network = tiny_network("bert")
    texts = [TextInput(input=f"where is my order {word}") for word in ("now", "today", "now please")]
    delta = scoped_delta(network, network.layers[-1], texts[:1])
    assert delta.scoped is not None
    weights = {"first_token_weights": torch.zeros(1), "lexical_weights": torch.tensor([weight])}
    scope = replace(delta.scoped.scope, radii=torch.tensor([-1.1]), **weights)
    firing = fire(network, texts, [replace(delta, terms=(replace(delta.scoped, scope=scope),))])
    assert firing is not None
    return firing.margin, metric_of(network).embed(network, texts) @ scope.keys[0]


def test_a_twin_is_penalized_for_its_word_and_a_rewording_is_not() -> None:
    free, cosines = twin_scope(0.0)
    dear, _ = twin_scope(3.0)
    torch.testing.assert_close(free, cosines + 1.1, rtol=0, atol=1e-5)
    assert dear[0] == free[0] and dear[2] == free[2]
    assert dear[1] < free[1]


def test_words_are_looked_up_in_the_order_of_the_rows() -> None:
    ask = BatchLookups(tiny_network("bert"), TEXTS)
    assert ask.words(torch.tensor([1, 0, 1])) == [WordCounts.of(TEXTS[row]) for row in (1, 0, 1)]
    assert WordCounts.of(TEXTS[0]).counts == Counter(TEXTS[0].input.lower().replace("?", "").split())
