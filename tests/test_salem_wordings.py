"""Wordings: which words an input has, what is exchanged between two of them, and what a scope makes of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_salem_scopes import TEXTS, metric_of, scoped_delta
from tiny_models import tiny_network
from torch import Tensor

from salem.asking import Asking
from salem.gates import fire
from salem.metric_files import pack_metric, unpack_metric
from salem.records import TextInput
from salem.tensor_files import read, write
from salem.wordings import KEPT, NUMBERS, Wording, packed, unpacked, word_weights

ALIKE = torch.ones(NUMBERS)


def worded(text: str, pair: str | None = None) -> Wording:
    return Wording.of(TextInput(input=text, text_pair=pair))


def exchanged(one: str, other: str, weights: Tensor = ALIKE) -> float:
    """Both ways, which are the same for wordings that were not shortened."""
    found = worded(one).exchanged(worded(other), weights)
    assert worded(other).exchanged(worded(one), weights) == pytest.approx(found)
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
def test_words_are_exchanged_where_both_have_their_own(one: str, other: str, expected: float) -> None:
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
def test_a_misspelling_is_the_word_that_was_meant(one: str, other: str, is_one_word: bool) -> None:
    assert exchanged(f"the {one} here", f"the {other} here") == (0 if is_one_word else 1)


def test_a_misspelling_stands_for_one_word_once() -> None:
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
    ],
)
def test_a_negation_turns_a_request_round(one: str, other: str, expected: float) -> None:
    assert exchanged(one, other) == expected
    weightless = torch.zeros(NUMBERS)
    difference = abs(worded(one).negations - worded(other).negations)
    assert exchanged(one, other, weightless) == difference, "negations count whatever else does"


def test_a_word_of_the_second_text_is_another_word() -> None:
    one, other = worded("the lamp", "a stamp"), worded("the stamp", "a lamp")
    assert one.exchanged(other, ALIKE) == 2
    assert one.exchanged(worded("the lamp", "a stmap"), ALIKE) == 0
    assert worded("it is", "it was not").exchanged(worded("it is", "it was"), ALIKE) == 1


def test_the_lighter_side_counts() -> None:
    weights = word_weights([TextInput(input="of the lamp of the stamp of the desk of the")], [])
    heavy = exchanged("lamp", "stamp", weights)
    light = exchanged("of", "stamp", weights)
    assert 0 < light < heavy
    assert exchanged("of the", "lamp", weights) == pytest.approx(min(2 * light, heavy), rel=0.5)


def test_wordings_come_back_from_their_bytes() -> None:
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["Straße", "order", "注文", "b-12", "isn't", "?"], k=size))
        for size in range(1, 9)
    ]
    wordings = [worded(text, text[::-1] if len(text) % 2 else None) for text in texts]
    rows = packed(wordings)
    assert rows.dtype == torch.uint8 and len(rows) == len(texts)
    assert [unpacked(row) for row in rows] == wordings
    assert packed([]).shape == (0, 0) and packed([worded("?")]).shape == (1, 0)
    assert unpacked(torch.tensor([255, 32, 97], dtype=torch.uint8)).words["a"] == 1, "no text, no error"


def test_a_long_key_keeps_what_tells_most_and_loses_nothing_new() -> None:
    """An input that leaves a word of a shortened key out has exchanged nothing; a twin has."""
    words = [f"w{number}" for number in range(2 * KEPT)]
    weights = word_weights(
        [TextInput(input=" ".join([*words, *words[KEPT:]]))], []
    )  # the first half is rarer
    whole = worded(" ".join([*words, "not"]))
    key = whole.heaviest(weights)
    assert len(key.words) == KEPT and set(key.words) <= {*words[:KEPT], "not"} and key.negations == 1
    assert key.heaviest(weights) is key
    rare = float(weights[_place(words[0])])
    assert worded(" ".join([*words[1:], "not"])).exchanged(key, weights) == 0
    assert worded(" ".join([*words[1:], "other", "not"])).exchanged(key, weights) == pytest.approx(rare)
    assert worded(" ".join(words)).exchanged(key, weights) == 1, "the negation is gone"


def test_words_that_equivalents_keep_tell_more() -> None:
    texts = [
        ("the order and the parcel", "my order and my parcel"),
        ("the order", "my order now"),
        ("a received letter", "a recieved letter"),
    ]
    pairs = [(TextInput(input=one), TextInput(input=other)) for one, other in texts]
    weights = word_weights([], pairs)

    def of(word: str) -> float:
        return float(weights[_place(word)])

    assert of("order") == of("and") == of("received") == 1.0, "a misspelling is no exchange"
    assert of("the") == pytest.approx((1 / 4) ** 2)
    assert of("now") == 0.25
    assert of("money") == 1.0, "never seen: as good as its word"
    assert torch.equal(word_weights([], []), ALIKE)
    rare = word_weights([TextInput(input="the " * 50 + "lamp")], [])
    assert float(rare[_place("the")]) < float(rare[_place("lamp")]) < float(rare[_place("money")]) == 1.0


def _place(word: str) -> int:
    """The number of a word, by the only text that gives it a weight of its own."""
    return int(word_weights([TextInput(input=word)], []).argmin())


def twin_scope(toll: float) -> tuple[Tensor, Tensor]:
    """Likeness of the edit's own text, a twin of it and a rewording, and the radius; by words alone."""
    network = tiny_network("bert")
    texts = [TextInput(input=f"where is my order {word}") for word in ("now", "today", "now please")]
    delta = scoped_delta(network, network.layers[-1], texts[:1])
    assert delta.scoped is not None
    term = replace(
        delta.scoped, radii=torch.tensor([-1.1]), doubts=torch.zeros(1), tolls=torch.tensor([toll])
    )
    (firing,) = fire(network, texts, [replace(delta, terms=(term,))])
    assert firing is not None
    return firing.inside, metric_of(network).read(network, texts) @ term.keys[0]


def test_a_twin_pays_for_its_word_and_a_rewording_does_not() -> None:
    free, cosines = twin_scope(0.0)
    dear, _ = twin_scope(3.0)
    torch.testing.assert_close(free, cosines + 1.1, rtol=0, atol=1e-5)
    assert dear[0] == free[0] and dear[2] == free[2]
    assert dear[1] < free[1]


def test_one_is_asked_about_the_words_of_rows_in_their_order() -> None:
    ask = Asking(tiny_network("bert"), TEXTS)
    assert ask.words(torch.tensor([1, 0, 1])) == [Wording.of(TEXTS[row]) for row in (1, 0, 1)]
    assert Wording.of(TEXTS[0]).words == Counter(TEXTS[0].input.lower().replace("?", "").split())


def test_a_metric_that_was_written_before_words_counted_takes_all_as_rare() -> None:
    metric = metric_of(tiny_network("bert"))
    header, tensors = read(pack_metric(metric), noun="scope metric")
    del tensors["words"]
    kept = {name: header[name] for name in ("stack", "block", "paired")}
    assert torch.equal(unpack_metric(write(tensors, kept)).words, ALIKE)
