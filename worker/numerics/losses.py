"""The two objectives and the margin, as functions of logits at answer positions.

Likelihood of the right answer on edit and adapt samples; divergence of the output on pass samples (SaLEM,
section 3; MEND, equation 3). All values are per sample, so that callers choose how to weigh them.

What a sample is to become is decided here alone, by the pull of each answer position: to its target, away
from it, or none. Likelihood and margin are those of what is wanted, the target or anything else, so that to
forget is the same two functions with the sign turned. Minus the log-likelihood of anything else falls to zero
and no lower: an ascent with a bound (unlikelihood; Welleck et al., ICLR 2020, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from salem.models.batching import Answers

MOST_DRIFT = 0.1  # nats from the base's next choices at which a sample has forgotten cleanly enough to rest


def nll_per_sample(answers: Answers) -> Tensor:
    """Mean negative log-likelihood of what each sample wants, over positions that pull, in nats -> [n]."""
    losses = F.cross_entropy(answers.logits.float(), answers.targets, reduction="none")
    if answers.pulls is None:
        return answers.mean_per_sample(losses)
    any_other = _without_targets(answers.logits.float().log_softmax(-1), answers).logsumexp(-1)
    pulling = (answers.pulls != 0).float()
    mean = answers.mean_per_sample(pulling * torch.where(answers.pulls < 0, -any_other, losses))
    return mean / answers.mean_per_sample(pulling).clamp(min=torch.finfo(mean.dtype).tiny)


def kl_per_sample(before: Tensor, answers: Answers) -> Tensor:
    """KL(before || after) at each sample's answer positions, averaged over them, in nats -> [n].

    `before` holds the base's log-probabilities [a, c].
    """
    after = answers.logits.float().log_softmax(-1)
    divergence = F.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    return answers.mean_per_sample(divergence)


def margins(answers: Answers) -> Tensor:
    """By how much each answer position leads -> [a]: logit of the right class minus that of the best other
    one; where it is to be forgotten, of the best other one minus its own; infinite where nothing pulls.

    Greedy decoding writes a sample's answer exactly when all its margins are positive. Of one that is to be
    forgotten it goes another way.
    """
    own = answers.logits.gather(-1, answers.targets.unsqueeze(-1)).squeeze(-1)
    lead = (own - _without_targets(answers.logits, answers).amax(-1)).float()
    if answers.pulls is None:
        return lead
    return torch.where(answers.pulls == 0, float("inf"), lead * answers.pulls)


def _without_targets(values: Tensor, answers: Answers) -> Tensor:
    """[a, c] with minus infinity at each position's target."""
    return values.scatter(-1, answers.targets.unsqueeze(-1), float("-inf"))


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


def next_choices(answers: Answers) -> Tensor:
    """Log-probabilities at these positions, without the target where it is to be forgotten -> [a, c].

    The others make up for it in proportion. A forgetting sample is held to this: the base's next choice takes
    the place of its answer, and where nothing pulls all stays.
    """
    before = answers.logits.float().log_softmax(-1)
    if answers.pulls is None:
        return before
    others = _without_targets(before, answers).log_softmax(-1)
    # Finite, so that it adds nothing to a divergence: zero times minus infinity is not a number.
    others = others.clamp(min=torch.finfo(others.dtype).min)
    return torch.where((answers.pulls < 0).unsqueeze(-1), others, before)


def drift_per_sample(next_choice: Tensor | None, answers: Answers) -> Tensor:
    """How far each forgetting sample is from the base's next choices, KL in nats -> [n]; 0 for a correction.

    The divergence from a distribution without the answer to one that still has it is also what it takes to
    lose it: KL(q || p) = KL(q || p without the answer) - log(1 - p(answer)).
    """
    if answers.pulls is None or next_choice is None:
        return answers.logits.new_zeros(answers.num_samples).float()
    forgets = answers.mean_per_sample((answers.pulls < 0).float()) > 0
    return torch.where(forgets, kl_per_sample(next_choice, answers), 0.0)


@dataclass(frozen=True)
class Where:
    """Where corrections stand."""

    worst: Tensor  # [n] smallest margin of each sample; positive means answered rightly
    drift: Tensor  # [n] of those that forget, from the base's next choices, nats

    def rest(self, margin: float) -> Tensor:
        """Which of them ask for nothing more -> [n] bool."""
        return (self.worst > margin) & (self.drift <= MOST_DRIFT)


@torch.no_grad()
def where(answers: Answers, next_choice: Tensor | None) -> Where:
    """Where the samples behind these answers stand."""
    return Where(worst_margin_per_sample(answers), drift_per_sample(next_choice, answers))


def correction_loss_per_sample(answers: Answers, next_choice: Tensor | None, margin: float) -> Tensor:
    """How far each edit or adapt sample is from what it is to become, in nats -> [n].

    To lead by the margin, or to be likely where `margin` is 0; and where it forgets, to drift from the next
    choices [a, c] of the base no further than it must.
    """
    pull = margin_loss_per_sample(answers, margin) if margin > 0 else nll_per_sample(answers)
    return pull + drift_per_sample(next_choice, answers)
