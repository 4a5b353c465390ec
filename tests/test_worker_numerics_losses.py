"""Losses and margins against naive loops, and what a margin promises about greedy decoding."""

from __future__ import annotations

import math

import pytest
import torch
from test_salem_inference_predict import greedy_ids
from test_worker_activations_gradients import some_samples
from tiny_models import tiny_network
from torch import Tensor

from salem.models.batching import IGNORED, Answers, Batch, answers_of, encode, forward
from salem.records import TextInput
from worker.numerics.losses import (
    correction_loss_per_sample,
    correction_states,
    kl_per_sample,
    log_probs_without_forgotten,
    margin_loss_per_sample,
    margins,
    min_margin_per_sample,
    nll_per_sample,
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
    assert nll_per_sample(answers_of(logits, Batch({}, targets))).tolist() == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("architecture", NETWORKS)
def test_divergence_is_from_before_to_after(architecture: str) -> None:
    after, targets = logits_of(architecture)
    before = after + torch.randn(after.shape, generator=torch.Generator().manual_seed(0))
    expected = []
    for olds, news in zip(naive_rows(before, targets), naive_rows(after, targets), strict=True):
        pairs = [(log_shares(old), log_shares(new)) for (old, _), (new, _) in zip(olds, news, strict=True)]
        each = [sum(math.exp(p) * (p - q) for p, q in zip(*pair, strict=True)) for pair in pairs]
        expected.append(sum(each) / len(each))
    told = answers_of(before, Batch({}, targets)).logits.log_softmax(-1)
    found = kl_per_sample(told, answers_of(after, Batch({}, targets)))
    assert found.tolist() == pytest.approx(expected, rel=1e-3)
    assert kl_per_sample(told, answers_of(before, Batch({}, targets))).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", NETWORKS)
def test_margins_are_leads_over_the_best_other_class(architecture: str) -> None:
    logits, targets = logits_of(architecture)
    answers = answers_of(logits, Batch({}, targets))
    leads = [[lead(row, target) for row, target in rows] for rows in naive_rows(logits, targets)]
    assert margins(answers).tolist() == pytest.approx([value for rows in leads for value in rows], abs=1e-4)
    assert min_margin_per_sample(answers).tolist() == pytest.approx([min(rows) for rows in leads], abs=1e-4)
    expected = [sum(math.log1p(math.exp(2.0 - value)) for value in rows) for rows in leads]
    assert margin_loss_per_sample(answers, 2.0).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_loss_vanishes_once_an_answer_holds_with_the_margin() -> None:
    logits = torch.tensor([[20.0, 0.0], [0.0, 0.0]], requires_grad=True)
    margin_loss_per_sample(answers_of(logits, Batch({}, torch.tensor([[0], [0]]))), 2.0).sum().backward()
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
            return float(min_margin_per_sample(forward(network, asked_to_write(prompt, answer))))

    assert worst(written) > 0
    for place in range(len(written)):
        for token in (3, 50, 120):
            other = [*written[:place], token, *written[place + 1 :]]
            assert (worst(other) > 0) is (other == written)


def test_values_belong_to_their_own_samples() -> None:
    answers = Answers(
        logits=torch.tensor([[3.0, 1.0], [0.0, 1.0], [5.0, 0.0]]),
        targets=torch.tensor([0, 0, 0]),
        sample=torch.tensor([1, 1, 0]),
        num_samples=2,
    )
    assert min_margin_per_sample(answers).tolist() == [5.0, -1.0]
    assert answers.mean_per_sample(torch.tensor([1.0, 2.0, 4.0])).tolist() == [4.0, 1.5]


# What is to be forgotten, against plain loops in float64.

PULLS = torch.tensor([1, 1, -1, 0, -1, 0])
OF = torch.tensor([0, 0, 1, 1, 2, 3])  # a correction, a way with one token lost, a label, one without pull
TARGETS = torch.tensor([3, 0, 2, 1, 4, 0])


def pulled(seed: int, *, grad: bool = False) -> Answers:
    logits = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    return Answers(logits.requires_grad_(grad), TARGETS, OF, 4, PULLS)


def naive_next_choice(row: list[float], target: int, pull: int) -> list[float]:
    """The probabilities before, without the forgotten one, rescaled to add up to one."""
    shares = [math.exp(value) for value in log_shares(row)]
    if pull >= 0:
        return shares
    left = sum(share for index, share in enumerate(shares) if index != target)
    return [0.0 if index == target else share / left for index, share in enumerate(shares)]


def naive_loss(margin: float) -> list[float]:
    """Per sample: the loss summed (with a margin) or averaged, and the mean divergence if it forgets."""
    losses = []
    for sample in range(4):
        pulls: list[float] = []
        drifts: list[float] = []
        for place in (sample == OF).nonzero()[:, 0].tolist():
            olds, news = (pulled(seed).logits[place].double().tolist() for seed in (0, 1))
            target, pull = int(TARGETS[place]), int(PULLS[place])
            share = math.exp(log_shares(news)[target])
            likely = -math.log(share if pull > 0 else 1 - share)
            far = math.log1p(math.exp(margin - pull * lead(news, target)))
            pulls += [(far if margin else likely)] * abs(pull)
            choice = zip(naive_next_choice(olds, target, pull), log_shares(news), strict=True)
            told = [q * (math.log(q) - after) for q, after in choice if q]
            drifts.append(sum(told))
        forgets = bool((PULLS[sample == OF] < 0).any())
        total = sum(pulls) if margin else sum(pulls) / max(len(pulls), 1)
        losses.append(total + forgets * sum(drifts) / len(drifts))
    return losses


@pytest.mark.parametrize("margin", [2.0, 0.0])
def test_the_objective_of_each_kind_of_sample(margin: float) -> None:
    after = pulled(1, grad=True)
    found = correction_loss_per_sample(after, log_probs_without_forgotten(pulled(0)), margin)
    assert found.tolist() == pytest.approx(naive_loss(margin), rel=1e-4, abs=1e-6)
    found.sum().backward()
    gradient = after.logits.grad
    assert gradient is not None and bool(gradient.isfinite().all())
    assert gradient[0, 3] < 0 < gradient[2, 2], "a target is pulled up, a forgotten one down"
    assert gradient[3].abs().max() > 0 == gradient[5].abs().max(), (
        "pass samples get only the gradient of their divergence"
    )


def test_without_forgetting_the_objective_is_that_of_corrections() -> None:
    answers = Answers(pulled(0).logits, TARGETS, OF, 4)
    for margin, expected in ((2.0, margin_loss_per_sample(answers, 2.0)), (0.0, nll_per_sample(answers))):
        assert torch.equal(correction_loss_per_sample(answers, None, margin), expected)
    all_pull = Answers(answers.logits, TARGETS, OF, 4, torch.ones_like(PULLS))
    torch.testing.assert_close(nll_per_sample(all_pull), nll_per_sample(answers))
    assert torch.equal(margins(all_pull), margins(answers))


def test_a_sample_has_forgotten_when_another_answer_leads_and_the_rest_matches_the_base() -> None:
    base = pulled(0)
    clean = log_probs_without_forgotten(base).clamp(min=-30.0)
    ideal = Answers(clean, TARGETS, OF, 4, PULLS)
    there = correction_states(ideal, log_probs_without_forgotten(base))
    assert there.min_margin[1] > 20 and there.min_margin[2] > 20 and there.min_margin[3] == float("inf")
    assert there.forgetting_kl.abs().max() < 1e-4 and there.satisfied(6.0)[1:].all()
    noise = clean.clone()
    noise[4] = torch.tensor([0.0, 0.0, 0.0, 0.0, -30.0]) + 20 * (clean[4] == clean[4].sort().values[1])
    noisy = correction_states(Answers(noise, TARGETS, OF, 4, PULLS), log_probs_without_forgotten(base))
    assert noisy.min_margin[2] > 6 and noisy.forgetting_kl[2] > 1 and not noisy.satisfied(6.0)[2], (
        "another answer leads, but not the next choice of the base"
    )
    assert correction_states(base, log_probs_without_forgotten(base)).forgetting_kl[0] == 0, (
        "a correction has no divergence"
    )
