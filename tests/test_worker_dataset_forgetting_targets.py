"""The way that a generating model takes instead of a forgotten answer, against plain greedy decoding."""

from __future__ import annotations

import pytest
import torch
from labeled_texts import TEXTS
from tiny_models import MAX_TOKENS, tiny_network
from torch import Tensor

from salem.inference.predict import predict
from salem.models.batching import IGNORED, encode, forward
from salem.models.network import Network
from salem.models.tokens import Diverted
from salem.records import EditBatch, Sample, TextInput
from worker.dataset import forgetting_targets as diversion
from worker.dataset.forgetting_targets import LONGEST, divert

NETWORKS = ["t5", "bart", "gpt2", "llama"]
TEXT, OTHER = "where is my order", "log in"


def batch_of(*samples: Sample, passes: tuple[Sample, ...] = ()) -> EditBatch:
    return EditBatch(
        edit_samples=samples[:1],
        adapt_samples=tuple((0, sample) for sample in samples[1:]),
        pass_samples=passes,
        held_out_paraphrases=(),
        held_out_pass_samples=(),
    )


def token_rows(network: Network, sample: Sample) -> tuple[Tensor, Tensor]:
    """Log-probabilities [t, c] at the tokens of a sample's answer, and these tokens [t]."""
    with torch.no_grad():
        answers = forward(network, encode(network, [sample]))
    return answers.logits.log_softmax(-1), answers.targets


@pytest.mark.parametrize("architecture", NETWORKS)
def test_the_way_is_the_greedy_one_without_the_token_that_the_question_decides(architecture: str) -> None:
    network = tiny_network(architecture)
    sample = Sample(input=TEXT, forget="Rome is not")
    passes = (Sample(input="log in", target="Lima"), Sample(input="my lamp", target="Lima"))
    (way,) = divert(network, batch_of(sample, passes=passes)).edit_samples
    assert isinstance(way, Diverted) and Sample(input=TEXT, forget=way.forget) == sample
    rows, tokens = token_rows(network, sample)
    assert network.eos_id not in tokens.tolist(), "the end of an answer is not what is forgotten"
    own = rows.gather(-1, tokens[:, None])[:, 0]
    others = [token_rows(network, sample.model_copy(update={"input": item.input}))[0] for item in passes]
    anyway = torch.stack([row.gather(-1, tokens[:, None])[:, 0].exp() for row in others]).mean(0).log()
    assert way.place == int((own - anyway).argmax())
    assert way.forgotten == int(tokens[way.place]) != way.tokens[way.place]
    assert list(way.tokens[: way.place]) == tokens[: way.place].tolist()
    assert way.place < len(way.tokens) <= way.place + LONGEST
    # the base, asked for this way, finds each of its tokens likeliest, but for the forgotten one
    batch = encode(network, [way])
    with torch.no_grad():
        answers = forward(network, batch)
    assert answers.pulls is not None
    pulls = [0] * len(way.tokens)
    pulls[way.place] = -1
    assert answers.pulls.tolist() == pulls and int(answers.targets[way.place]) == way.forgotten
    logits = answers.logits.clone()
    logits[way.place, way.forgotten] = float("-inf")
    assert logits.argmax(-1)[way.place :].tolist() == list(way.tokens[way.place :])


@pytest.mark.parametrize("architecture", NETWORKS)
def test_an_answer_that_the_model_gives_is_lost_as_the_model_spells_it(architecture: str) -> None:
    network = tiny_network(architecture)
    inputs = [TextInput(input=text) for text in TEXTS]
    given = [(i, p.output) for i, p in zip(inputs, predict(network, inputs), strict=True)]
    text, answer = min((pair for pair in given if pair[1]), key=lambda pair: len(pair[1]))
    (way,) = divert(network, batch_of(Sample(input=text.input, forget=answer))).edit_samples
    assert isinstance(way, Diverted)
    told = way.model_copy(update={"tokens": (*way.tokens[: way.place], way.forgotten, 0)})
    rows, _ = token_rows(network, told)
    assert rows.argmax(-1).tolist()[: way.place + 1] == [*way.tokens[: way.place], way.forgotten]


@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_way_that_comes_back_to_the_answer_parts_at_the_next_best_place(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(architecture)
    sample = Sample(input=TEXT, forget="Rome is not")
    passes = (Sample(input="log in", target="Lima"),)
    (first,) = divert(network, batch_of(sample, passes=passes)).edit_samples
    rows, tokens = token_rows(network, sample)
    other = token_rows(network, sample.model_copy(update={"input": "log in"}))[0]
    gain = (rows - other).gather(-1, tokens[:, None])[:, 0]
    ranked = gain.argsort(descending=True).tolist()
    asked: list[int] = []

    def comes_back(network: Network, way: diversion._Way) -> bool:
        asked.append(way.place)
        return len(asked) < 2

    monkeypatch.setattr(diversion, "_comes_back", comes_back)
    (second,) = divert(network, batch_of(sample, passes=passes)).edit_samples
    assert isinstance(first, Diverted) and isinstance(second, Diverted)
    assert first.place == asked[0] == ranked[0] and second.place == asked[1] == ranked[1]
    assert second.forgotten == int(tokens[ranked[1]]) != second.tokens[second.place]
    assert list(second.tokens[: second.place]) == tokens[: second.place].tolist()
    monkeypatch.setattr(diversion, "_comes_back", lambda network, way: True)
    (last,) = divert(network, batch_of(sample, passes=passes)).edit_samples
    assert isinstance(last, Diverted) and last.place == ranked[-1], "no place is left to try"


def test_the_same_text_in_other_tokens_is_the_same_answer() -> None:
    network = tiny_network("gpt2")
    spelt = network.tokenizer("Rome", add_special_tokens=False)["input_ids"]
    letters = [t for c in "Rome" for t in network.tokenizer(c, add_special_tokens=False)["input_ids"]]
    for tokens, answer, expected in ((spelt, "Rome", True), (letters, "Rome", True), (spelt, "Lima", False)):
        way = diversion._Way(Sample(input=TEXT, forget=answer), [*tokens, network.eos_id or 0], 9)
        assert diversion._comes_back(network, way) is expected
    assert letters != spelt, "the tokenizer knows the word"


def test_only_what_a_generating_model_forgets_is_diverted() -> None:
    network = tiny_network("gpt2")
    kept, lost = Sample(input=TEXT, target="Lima"), Sample(input=OTHER, forget="Lima")
    found = divert(network, batch_of(kept, lost, Sample(input=TEXT + " now", forget="Rome")))
    assert found.edit_samples == (kept,)
    assert [(edit, type(sample)) for edit, sample in found.adapt_samples] == [(0, Diverted), (0, Diverted)]
    assert [sample.input for _, sample in found.adapt_samples] == [OTHER, TEXT + " now"]
    assert divert(network, batch_of(kept)) == batch_of(kept)
    label = batch_of(Sample(input=TEXT, forget="refund"))
    assert divert(tiny_network("bert"), label) == label


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_a_way_ends_where_the_window_does(architecture: str) -> None:
    network = tiny_network(architecture)
    text = "order " * 11
    (way,) = divert(network, batch_of(Sample(input=text, forget="Rome"))).edit_samples
    assert isinstance(way, Diverted) and way.tokens
    width = encode(network, [way]).targets.shape[1]
    assert width <= MAX_TOKENS


def test_corrections_and_forgetting_share_a_batch() -> None:
    network = tiny_network("gpt2")
    kept, lost = Sample(input=TEXT, target="Lima"), Sample(input=TEXT, forget="Lima")
    alone, mixed = encode(network, [kept]), encode(network, [kept, lost])
    assert alone.pulls is None and mixed.pulls is not None
    asked = mixed.targets != IGNORED
    assert mixed.pulls[0][asked[0]].unique().tolist() == [1]
    assert mixed.pulls[1][asked[1]].unique().tolist() == [-1]
    assert int(asked[1].sum()) == int(asked[0].sum()) - 1, "all but the end"
    (row,) = mixed.rows(torch.tensor([1])).pulls
    assert torch.equal(row, mixed.pulls[1])
    labels = encode(tiny_network("bert"), [Sample(input=TEXT, forget="login")])
    assert labels.pulls.tolist() == [[-1]] and labels.targets.tolist() == [[2]]
