"""What a generating model writes instead of a forgotten answer, against plain greedy decoding."""

from __future__ import annotations

import pytest
import torch
from labeled_texts import TEXTS
from tiny_models import MAX_TOKENS, tiny_network
from torch import Tensor

from salem.inference.predict import predict
from salem.models.batching import IGNORED, encode, forward
from salem.models.network import Network
from salem.models.tokens import ForgettingSample
from salem.records import EditBatch, Sample, TextInput
from worker.dataset import forgetting_targets
from worker.dataset.forgetting_targets import MAX_CONTINUATION_TOKENS, add_forgetting_targets

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
def test_the_continuation_is_greedy_without_the_token_that_the_question_determines(architecture: str) -> None:
    network = tiny_network(architecture)
    sample = Sample(input=TEXT, forget="Rome is not")
    passes = (Sample(input="log in", target="Lima"), Sample(input="my lamp", target="Lima"))
    (found,) = add_forgetting_targets(network, batch_of(sample, passes=passes)).edit_samples
    assert isinstance(found, ForgettingSample) and Sample(input=TEXT, forget=found.forget) == sample
    rows, tokens = token_rows(network, sample)
    assert network.eos_id not in tokens.tolist(), "the end of an answer is not what is forgotten"
    own = rows.gather(-1, tokens[:, None])[:, 0]
    others = [token_rows(network, sample.model_copy(update={"input": item.input}))[0] for item in passes]
    anyway = torch.stack([row.gather(-1, tokens[:, None])[:, 0].exp() for row in others]).mean(0).log()
    assert found.branch == int((own - anyway).argmax())
    assert found.forgotten == int(tokens[found.branch]) != found.tokens[found.branch]
    assert list(found.tokens[: found.branch]) == tokens[: found.branch].tolist()
    assert found.branch < len(found.tokens) <= found.branch + MAX_CONTINUATION_TOKENS
    # each token is the base's likeliest next one, except for the forgotten token
    batch = encode(network, [found])
    with torch.no_grad():
        answers = forward(network, batch)
    assert answers.directions is not None
    directions = [0] * len(found.tokens)
    directions[found.branch] = -1
    assert answers.directions.tolist() == directions and int(answers.targets[found.branch]) == found.forgotten
    logits = answers.logits.clone()
    logits[found.branch, found.forgotten] = float("-inf")
    assert logits.argmax(-1)[found.branch :].tolist() == list(found.tokens[found.branch :])


@pytest.mark.parametrize("architecture", NETWORKS)
def test_the_tokens_to_forget_are_those_that_the_model_writes(architecture: str) -> None:
    network = tiny_network(architecture)
    inputs = [TextInput(input=text) for text in TEXTS]
    given = [(i, p.output) for i, p in zip(inputs, predict(network, inputs), strict=True)]
    text, answer = min((pair for pair in given if pair[1]), key=lambda pair: len(pair[1]))
    (found,) = add_forgetting_targets(network, batch_of(Sample(input=text.input, forget=answer))).edit_samples
    assert isinstance(found, ForgettingSample)
    told = found.model_copy(update={"tokens": (*found.tokens[: found.branch], found.forgotten, 0)})
    rows, _ = token_rows(network, told)
    assert rows.argmax(-1).tolist()[: found.branch + 1] == [*found.tokens[: found.branch], found.forgotten]


@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_continuation_that_spells_the_answer_branches_off_at_the_next_best_token(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(architecture)
    sample = Sample(input=TEXT, forget="Rome is not")
    passes = (Sample(input="log in", target="Lima"),)
    (first,) = add_forgetting_targets(network, batch_of(sample, passes=passes)).edit_samples
    rows, tokens = token_rows(network, sample)
    other = token_rows(network, sample.model_copy(update={"input": "log in"}))[0]
    gain = (rows - other).gather(-1, tokens[:, None])[:, 0]
    ranked = gain.argsort(descending=True).tolist()
    asked: list[int] = []

    def is_answer(network: Network, found: forgetting_targets._Continuation) -> bool:
        asked.append(found.branch)
        return len(asked) < 2

    monkeypatch.setattr(forgetting_targets, "_is_answer", is_answer)
    (second,) = add_forgetting_targets(network, batch_of(sample, passes=passes)).edit_samples
    assert isinstance(first, ForgettingSample) and isinstance(second, ForgettingSample)
    assert first.branch == asked[0] == ranked[0] and second.branch == asked[1] == ranked[1]
    assert second.forgotten == int(tokens[ranked[1]]) != second.tokens[second.branch]
    assert list(second.tokens[: second.branch]) == tokens[: second.branch].tolist()
    monkeypatch.setattr(forgetting_targets, "_is_answer", lambda network, found: True)
    (last,) = add_forgetting_targets(network, batch_of(sample, passes=passes)).edit_samples
    assert isinstance(last, ForgettingSample) and last.branch == ranked[-1], "no branch is left to try"


def test_the_same_text_in_other_tokens_is_the_same_answer() -> None:
    network = tiny_network("gpt2")
    spelled = network.tokenizer("Rome", add_special_tokens=False)["input_ids"]
    letters = [t for c in "Rome" for t in network.tokenizer(c, add_special_tokens=False)["input_ids"]]
    for tokens, answer, expected in (
        (spelled, "Rome", True),
        (letters, "Rome", True),
        (spelled, "Lima", False),
    ):
        found = forgetting_targets._Continuation(
            Sample(input=TEXT, forget=answer), [*tokens, network.eos_id or 0], 9
        )
        assert forgetting_targets._is_answer(network, found) is expected
    assert letters != spelled, "the tokenizer knows the word"


def test_only_samples_that_a_generating_model_forgets_are_changed() -> None:
    network = tiny_network("gpt2")
    kept, lost = Sample(input=TEXT, target="Lima"), Sample(input=OTHER, forget="Lima")
    found = add_forgetting_targets(network, batch_of(kept, lost, Sample(input=TEXT + " now", forget="Rome")))
    assert found.edit_samples == (kept,)
    assert [(edit, type(sample)) for edit, sample in found.adapt_samples] == [
        (0, ForgettingSample),
        (0, ForgettingSample),
    ]
    assert [sample.input for _, sample in found.adapt_samples] == [OTHER, TEXT + " now"]
    assert add_forgetting_targets(network, batch_of(kept)) == batch_of(kept)
    label = batch_of(Sample(input=TEXT, forget="refund"))
    assert add_forgetting_targets(tiny_network("bert"), label) == label


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_a_continuation_fits_in_the_window(architecture: str) -> None:
    network = tiny_network(architecture)
    text = "order " * 11
    (found,) = add_forgetting_targets(network, batch_of(Sample(input=text, forget="Rome"))).edit_samples
    assert isinstance(found, ForgettingSample) and found.tokens
    width = encode(network, [found]).targets.shape[1]
    assert width <= MAX_TOKENS


def test_corrections_and_forgetting_share_a_batch() -> None:
    network = tiny_network("gpt2")
    kept, lost = Sample(input=TEXT, target="Lima"), Sample(input=TEXT, forget="Lima")
    alone, mixed = encode(network, [kept]), encode(network, [kept, lost])
    assert alone.directions is None and mixed.directions is not None
    asked = mixed.targets != IGNORED
    assert mixed.directions[0][asked[0]].unique().tolist() == [1]
    assert mixed.directions[1][asked[1]].unique().tolist() == [-1]
    assert int(asked[1].sum()) == int(asked[0].sum()) - 1, "all but the end"
    (row,) = mixed.rows(torch.tensor([1])).directions
    assert torch.equal(row, mixed.directions[1])
    labels = encode(tiny_network("bert"), [Sample(input=TEXT, forget="login")])
    assert labels.directions.tolist() == [[-1]] and labels.targets.tolist() == [[2]]
