"""Losses and margins against naive loops, and what a margin promises about greedy decoding."""

from __future__ import annotations

import math

import pytest
import torch
from test_salem_answers import greedy_ids
from test_worker_gradients import some_samples
from tiny_models import tiny_network
from torch import Tensor

from salem.encoding import IGNORED, Answers, Batch, answers_of, encode, forward
from salem.records import TextInput
from worker.losses import (
    kl_per_sample,
    margin_loss_per_sample,
    margins,
    nll_per_sample,
    worst_margin_per_sample,
)

NETWORKS = ["bert", "t5", "gpt2"]


def naive_rows(logits: Tensor, targets: Tensor) -> list[list[tuple[list[float], int]]]:
    """Per sample: the logits and target of each of its answer positions, as plain numbers."""
    shaped = logits.unsqueeze(1) if logits.dim() == 2 else logits
    return [
        [(row.tolist(), int(target)) for row, target in zip(rows, wanted, strict=True) if target != IGNORED]
        for rows, wanted in zip(shaped, targets, strict=True)
    ]


def log_shares(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(value - top) for value in row)) + top
    return [value - total for value in row]


def lead(row: list[float], target: int) -> float:
    return row[target] - max(value for index, value in enumerate(row) if index != target)


def logits_of(architecture: str) -> tuple[Tensor, Tensor]:
    network = tiny_network(architecture)
    batch = encode(network, some_samples(network))
    with torch.no_grad():
        return network.model(**batch.inputs).logits, batch.targets


@pytest.mark.parametrize("architecture", NETWORKS)
def test_likelihood_is_the_mean_over_a_samples_answer_positions(architecture: str) -> None:
    logits, targets = logits_of(architecture)
    expected = [
        -sum(log_shares(row)[target] for row, target in rows) / len(rows)
        for rows in naive_rows(logits, targets)
    ]
    assert nll_per_sample(answers_of(logits, targets)).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_divergence_is_from_before_to_after(architecture: str) -> None:
    after, targets = logits_of(architecture)
    before = after + torch.randn(after.shape, generator=torch.Generator().manual_seed(0))
    expected = []
    for olds, news in zip(naive_rows(before, targets), naive_rows(after, targets), strict=True):
        pairs = [(log_shares(old), log_shares(new)) for (old, _), (new, _) in zip(olds, news, strict=True)]
        each = [sum(math.exp(p) * (p - q) for p, q in zip(*pair, strict=True)) for pair in pairs]
        expected.append(sum(each) / len(each))
    told = answers_of(before, targets).logits.log_softmax(-1)
    found = kl_per_sample(told, answers_of(after, targets))
    assert found.tolist() == pytest.approx(expected, rel=1e-3)
    assert kl_per_sample(told, answers_of(before, targets)).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", NETWORKS)
def test_margins_are_leads_over_the_best_other_class(architecture: str) -> None:
    logits, targets = logits_of(architecture)
    answers = answers_of(logits, targets)
    leads = [[lead(row, target) for row, target in rows] for rows in naive_rows(logits, targets)]
    assert margins(answers).tolist() == pytest.approx([value for rows in leads for value in rows], abs=1e-4)
    assert worst_margin_per_sample(answers).tolist() == pytest.approx([min(rows) for rows in leads], abs=1e-4)
    expected = [sum(math.log1p(math.exp(2.0 - value)) for value in rows) for rows in leads]
    assert margin_loss_per_sample(answers, 2.0).tolist() == pytest.approx(expected, rel=1e-4)


def test_an_answer_that_holds_with_room_stops_pulling() -> None:
    logits = torch.tensor([[20.0, 0.0], [0.0, 0.0]], requires_grad=True)
    margin_loss_per_sample(answers_of(logits, torch.tensor([[0], [0]])), 2.0).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().max() < 1e-6 < 0.5 < logits.grad[1].abs().max()


def asked_to_write(prompt: list[int], answer: list[int]) -> Batch:
    targets = [IGNORED] * (len(prompt) - 1) + answer + [IGNORED]
    return Batch({"input_ids": torch.tensor([prompt + answer])}, torch.tensor([targets]))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_all_margins_are_positive_exactly_when_greedy_decoding_writes_the_answer(architecture: str) -> None:
    network = tiny_network(architecture)
    text = TextInput(input="where is my order")
    prompt = network.tokenizer(text.input)["input_ids"]
    written = greedy_ids(network, text, 5)
    assert len(written) > 1

    def worst(answer: list[int]) -> float:
        with torch.no_grad():
            return float(worst_margin_per_sample(forward(network, asked_to_write(prompt, answer))))

    assert worst(written) > 0
    for place in range(len(written)):
        for token in (3, 50, 120):
            other = [*written[:place], token, *written[place + 1 :]]
            assert (worst(other) > 0) is (other == written)


def test_values_stay_with_their_samples() -> None:
    answers = Answers(
        logits=torch.tensor([[3.0, 1.0], [0.0, 1.0], [5.0, 0.0]]),
        targets=torch.tensor([0, 0, 0]),
        sample=torch.tensor([1, 1, 0]),
        num_samples=2,
    )
    assert worst_margin_per_sample(answers).tolist() == [5.0, -1.0]
    assert answers.mean_per_sample(torch.tensor([1.0, 2.0, 4.0])).tolist() == [4.0, 1.5]
