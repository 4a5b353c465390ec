"""The two objectives and the margin, as functions of logits at answer positions.

Likelihood of the right answer on edit and adapt samples; divergence of the output on pass samples (SaLEM,
section 3; MEND, equation 3). All values are per sample, so that callers choose how to weigh them.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from salem.encoding import Answers


def nll_per_sample(answers: Answers) -> Tensor:
    """Mean negative log-likelihood of each sample's answer, in nats -> [n]."""
    losses = F.cross_entropy(answers.logits.float(), answers.targets, reduction="none")
    return answers.mean_per_sample(losses)


def kl_per_sample(before: Tensor, answers: Answers) -> Tensor:
    """KL(before || after) at each sample's answer positions, averaged over them, in nats -> [n].

    `before` holds the base's log-probabilities [a, c].
    """
    after = answers.logits.float().log_softmax(-1)
    divergence = F.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    return answers.mean_per_sample(divergence)


def margins(answers: Answers) -> Tensor:
    """Logit of the right class minus that of the best other one, at each answer position -> [a].

    Greedy decoding writes a sample's answer exactly when all its margins are positive.
    """
    right = answers.logits.gather(-1, answers.targets.unsqueeze(-1))
    others = answers.logits.scatter(-1, answers.targets.unsqueeze(-1), float("-inf"))
    return (right.squeeze(-1) - others.amax(-1)).float()


def margin_loss_per_sample(answers: Answers, margin: float) -> Tensor:
    """softplus(margin - m) summed over a sample's answer positions -> [n]: near zero once the answer holds
    with room.

    A sample that holds stops pulling, so the divergence on pass samples decides the rest.
    """
    losses = F.softplus(margin - margins(answers))
    total = losses.new_zeros(answers.num_samples)
    return total.index_add(0, answers.sample, losses)


def worst_margin_per_sample(answers: Answers) -> Tensor:
    """The smallest margin among each sample's answer positions -> [n]; positive means answered rightly."""
    worst = answers.logits.new_full((answers.num_samples,), float("inf")).float()
    return worst.scatter_reduce(0, answers.sample, margins(answers), reduce="amin")
