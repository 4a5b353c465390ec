"""Wordings: which words an input has, what is exchanged between two of them, and what a scope makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_salem_scopes import TEXTS, metric_of, scoped_delta
from tiny_models import tiny_network
from torch import Tensor

from salem import asking
from salem import wordings as module
from salem.gates import fire
from salem.hosting import Network, tokenize
from salem.metric_files import pack_metric, unpack_metric
from salem.records import TextInput
from salem.tensor_files import read, write
from salem.wordings import KEPT, NOTHING, Wordings, steadiness, unworded, wordings

WEIGHTS = torch.tensor([0.1, 1.0, 0.5, 0.25, 1.0, 0.8, 0.0, 1.0])


def worded(*rows: list[float]) -> Wordings:
    width = max(len(row) for row in rows)
    return Wordings(torch.tensor([row + [NOTHING] * (width - len(row)) for row in rows]))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([0, 1, 2], [0, 1, 2], 0.0),
        ([0, 1, 2, 3], [0, 1, 2], 0.0),  # added
        ([0, 1], [0, 1, 2, 3], 0.0),  # left out
        ([0, 1, 2], [0, 1, 3], 0.25),  # the lighter of the two
        ([1, 4], [2, 3], 0.75),
        ([1, 4], [6], 0.0),  # what stands there instead tells nothing
        ([1], [9], 1.0),  # a word of the second text is another word
        ([9], [9], 0.0),
    ],
)
def test_words_are_exchanged_where_both_have_their_own(
    one: list[float], other: list[float], expected: float
) -> None:
    for first, second in ((one, other), (other, one)):
        found = worded(first).exchanged(worded(second), WEIGHTS)
        assert found.tolist() == pytest.approx([expected])
    assert worded(one).exchanged(worded([*other, 7]), WEIGHTS)[0] >= expected, "one more of its own"


def test_pairs_are_compared_row_by_row() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = [sorted(set(torch.randint(16, (6,), generator=draw).tolist())) for _ in range(40)]
    one, other = worded(*map(list, rows[:20])), worded(*map(list, rows[20:]))
    found = one.exchanged(other, WEIGHTS)
    for row in range(20):
        own, its = set(rows[row]), set(rows[20 + row])
        sums = [sum(float(WEIGHTS[word % 8]) for word in words) for words in (own - its, its - own)]
        assert float(found[row]) == pytest.approx(min(sums), abs=1e-6)


def test_the_heaviest_words_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = worded([0, 1, 2, 3, 4], [6, 3, 0])
    assert whole.heaviest(WEIGHTS) is whole
    monkeypatch.setattr(module, "KEPT", 2)
    few = whole.heaviest(WEIGHTS)
    assert few.words[0].tolist() == [1, 4] and 3 in few.words[1].tolist()
    assert (
        unworded(3, torch.device("cpu")).exchanged(whole.rows(torch.tensor([0, 1, 0])), WEIGHTS).tolist()
        == [0.0] * 3
    )


def test_what_a_cut_key_has_lost_is_not_taken_for_new() -> None:
    """A long key keeps its heaviest words; an input that leaves one of them out has exchanged nothing."""
    weights = torch.linspace(0.01, 1.0, 200)
    whole = worded([float(word) for word in range(200)])
    key = whole.heaviest(weights)
    assert key.words.shape == (1, KEPT) and bool(key.full)
    shorter = worded([float(word) for word in range(199)])
    assert shorter.exchanged(whole, weights).tolist() == [0.0]
    assert shorter.exchanged(key, weights).tolist() == [0.0]
    twin = worded([*(float(word) for word in range(199)), 399.0])  # as heavy a word, of the second text
    assert float(twin.exchanged(key, weights)) == pytest.approx(1.0)


def test_wordings_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = tiny_network("bert"), []

    def watched(network: Network, inputs: list[TextInput]) -> Wordings:
        asked.append([item.input for item in inputs])
        return wordings(network, inputs)

    monkeypatch.setattr(asking, "wordings", watched)
    ask = asking.Asking(network, TEXTS)
    first, second = ask.words(torch.tensor([1, 0])), ask.words(torch.tensor([0, 1]))
    assert asked == [[TEXTS[1].input, TEXTS[0].input]]
    assert torch.equal(first.words[[1, 0]], second.words)


def test_a_wording_is_the_set_of_tokens_and_the_second_text_has_its_own() -> None:
    network = tiny_network("bert")
    size = network.model.get_input_embeddings().num_embeddings
    pair = TextInput(input=TEXTS[0].input, text_pair=TEXTS[0].input)
    found = wordings(network, [TEXTS[0], pair])
    ids = set(tokenize(network.tokenizer, [TEXTS[0]])["input_ids"][0])
    assert {int(word) for word in found.words[0] if word != NOTHING} == ids
    both = {int(word) for word in found.words[1] if word != NOTHING}
    assert ids < both and all(word >= size for word in both - ids)
    again = TextInput(input=f"{TEXTS[0].input} {TEXTS[0].input}")
    assert found.rows(torch.tensor([0])).exchanged(wordings(network, [again]), torch.ones(size)).tolist() == [
        0
    ]


def test_no_inputs_have_no_words() -> None:
    assert wordings(tiny_network("gpt2"), []).words.shape == (0, 0)


def test_words_that_equivalents_keep_are_steady() -> None:
    network = tiny_network("bert")
    texts = [("the order and the parcel", "my order and my parcel"), ("the order", "my order now")]
    pairs = [(TextInput(input=one), TextInput(input=other)) for one, other in texts]
    found = steadiness(network, pairs)

    def of(word: str) -> float:
        number = tokenize(network.tokenizer, [TextInput(input=word)])["input_ids"][0][1]
        return float(found[number])

    assert of("order") == of("parcel") == of("and") == 1.0
    assert of("the") == of("my") == pytest.approx(1 / 3)
    assert of("now") == 0.5 and of("money") == 1.0, "never seen: as good as its word"
    assert torch.equal(steadiness(network, []), torch.ones_like(found))


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


def test_a_metric_that_was_written_before_words_counted_takes_all_as_steady() -> None:
    metric = metric_of(tiny_network("bert"))
    header, tensors = read(pack_metric(metric), noun="scope metric")
    del tensors["steadiness"]
    kept = {name: header[name] for name in ("stack", "block", "paired")}
    found = unpack_metric(write(tensors, kept))
    assert torch.equal(found.steadiness, torch.ones_like(metric.reading.rarity))
    assert torch.equal(found.weights, found.reading.rarity)
