"""The training objectives and the answer margin, as functions of logits at answer positions.

Likelihood of the correct answer on edit and adapt samples; divergence of the output on pass samples (SaLEM,
section 3; MEND, equation 3). All values are per sample, so that callers choose how to weigh them.

Each answer position has a direction: toward its target, away from it (a sample that forgets), or neither.
Likelihood and margin measure what is wanted: the target, or any other answer. So forgetting uses the same two
functions. Its loss, minus the log-likelihood of any other answer, falls to zero and no lower: gradient ascent
with a bound (unlikelihood; Welleck et al., ICLR 2020, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from salem.models.batching import Answers

# nats from the distribution it is held to: below this, a sample that forgets needs no more training
MAX_FORGETTING_KL = 0.1


def nll_per_sample(answers: Answers) -> Tensor:
    """Mean negative log-likelihood of what each sample wants, in nats -> [n].

    Positions without a direction do not count.
    """
    losses = F.cross_entropy(answers.logits.float(), answers.targets, reduction="none")
    if answers.directions is None:
        return answers.mean_per_sample(losses)
    any_other = _without_targets(answers.logits.float().log_softmax(-1), answers).logsumexp(-1)
    counted = (answers.directions != 0).float()
    mean = answers.mean_per_sample(counted * torch.where(answers.directions < 0, -any_other, losses))
    return mean / answers.mean_per_sample(counted).clamp(min=torch.finfo(mean.dtype).tiny)


def kl_per_sample(before: Tensor, answers: Answers) -> Tensor:
    """KL(before || after), averaged over each sample's answer positions, in nats -> [n].

    Args:
        before: [a, c] log-probabilities of the base.
    """
    after = answers.logits.float().log_softmax(-1)
    divergence = F.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    return answers.mean_per_sample(divergence)


def margins(answers: Answers) -> Tensor:
    """How far each position is from another answer, in nats -> [a].

    The logit of the target minus the best other logit, or the opposite for an answer to forget;
    infinite without a direction. If all margins of a sample are positive, greedy decoding writes its
    answer, or an answer other than the one to forget.
    """
    own = answers.logits.gather(-1, answers.targets.unsqueeze(-1)).squeeze(-1)
    lead = (own - _without_targets(answers.logits, answers).amax(-1)).float()
    if answers.directions is None:
        return lead
    return torch.where(answers.directions == 0, float("inf"), lead * answers.directions)


def _without_targets(values: Tensor, answers: Answers) -> Tensor:
    """[a, c] with minus infinity at each position's target."""
    return values.scatter(-1, answers.targets.unsqueeze(-1), float("-inf"))


def margin_loss_per_sample(answers: Answers, margin: float) -> Tensor:
    """softplus(margin - m) summed over a sample's answer positions -> [n].

    Near zero once the answer holds with the margin: from then on, the divergence on pass samples decides.
    """
    losses = F.softplus(margin - margins(answers))
    total = losses.new_zeros(answers.num_samples)
    return total.index_add(0, answers.sample, losses)


def min_margin_per_sample(answers: Answers) -> Tensor:
    """The smallest margin among each sample's answer positions -> [n]; positive means a correct answer."""
    smallest = answers.logits.new_full((answers.num_samples,), float("inf")).float()
    return smallest.scatter_reduce(0, answers.sample, margins(answers), reduce="amin")


def log_probs_without_forgotten(answers: Answers) -> Tensor:
    """Log-probabilities, without the target at positions that forget it -> [a, c].

    The other classes share its probability in proportion. Training holds a sample that forgets to this
    distribution: the base's next choice replaces the answer, and positions without a direction stay.
    """
    before = answers.logits.float().log_softmax(-1)
    if answers.directions is None:
        return before
    others = _without_targets(before, answers).log_softmax(-1)
    # Finite, because zero times minus infinity is not a number in a divergence.
    others = others.clamp(min=torch.finfo(others.dtype).min)
    return torch.where((answers.directions < 0).unsqueeze(-1), others, before)


def forgetting_kl_per_sample(reference: Tensor | None, answers: Answers) -> Tensor:
    """KL of each sample that forgets from its reference, in nats -> [n]; 0 for a correction.

    Diverging from a distribution without the answer also measures how much of the answer is left:
    KL(q || p) = KL(q || p without the answer) - log(1 - p(answer)).

    Args:
        reference: [a, c] as of `log_probs_without_forgotten`.
    """
    if answers.directions is None or reference is None:
        return answers.logits.new_zeros(answers.num_samples).float()
    forgets = answers.mean_per_sample((answers.directions < 0).float()) > 0
    return torch.where(forgets, kl_per_sample(reference, answers), 0.0)


@dataclass(frozen=True)
class CorrectionStates:
    """How far corrections have come."""

    min_margin: Tensor  # [n] positive means a correct answer
    forgetting_kl: Tensor  # [n] nats; 0 for samples that do not forget

    def satisfied(self, margin: float) -> Tensor:
        """Which samples need no more training -> [n] bool."""
        return (self.min_margin > margin) & (self.forgetting_kl <= MAX_FORGETTING_KL)


@torch.no_grad()
def correction_states(answers: Answers, reference: Tensor | None) -> CorrectionStates:
    """The states of the samples that gave these answers.

    Args:
        reference: [a, c] as of `log_probs_without_forgotten`.
    """
    return CorrectionStates(min_margin_per_sample(answers), forgetting_kl_per_sample(reference, answers))


def correction_loss_per_sample(answers: Answers, reference: Tensor | None, margin: float) -> Tensor:
    """The loss of each edit or adapt sample, in nats -> [n].

    It asks the answer to lead by the margin, or to be likely if `margin` is 0. A sample that forgets also
    stays close to its reference [a, c], see `log_probs_without_forgotten`.
    """
    loss = margin_loss_per_sample(answers, margin) if margin > 0 else nll_per_sample(answers)
    return loss + forgetting_kl_per_sample(reference, answers)
