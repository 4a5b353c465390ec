"""Which texts and samples fit in the model's window, and augmentations that do.

An augmentation may be longer than its sample. If it does not fit, the sample replaces it, so that all other
random draws stay the same. Must not know what texts, samples, and augmentations are for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence, Set

from salem.models.network import Network
from salem.models.tokens import prompt_lengths, sample_lengths
from salem.records import Sample, TextInput
from worker.dataset.augmentation import Rule, augment_all

Fit = Callable[[Network, Sequence[Sample]], list[bool]]


def prompts_fit(network: Network, inputs: Sequence[TextInput], spare: int = 0) -> list[bool]:
    """Whether each input fits in the window and leaves `spare` tokens free."""
    return [length + spare <= network.max_input_tokens for length in prompt_lengths(network, inputs)]


def samples_fit(network: Network, samples: Sequence[Sample]) -> list[bool]:
    """Whether each sample fits in the window with its answer."""
    return [length <= network.max_input_tokens for length in sample_lengths(network, samples)]


def replace_too_long(
    network: Network, samples: Sequence[Sample], others: Sequence[Sample], fit: Fit = samples_fit
) -> list[Sample]:
    """Each of the others if it fits, else the sample at the same index."""
    rows = zip(samples, others, fit(network, others), strict=True)
    return [other if fits else sample for sample, other, fits in rows]


def augmented(
    network: Network,
    samples: Sequence[Sample],
    rng: random.Random,
    rules: Sequence[Rule] | None = None,
    *,
    fit: Fit = samples_fit,
    held_out: Set[str] = frozenset(),
) -> list[Sample]:
    """One augmentation of each sample as `augment_all` draws it.

    The sample itself replaces an augmentation that does not fit, or whose `words_hash` is in `held_out`:
    rules may happen to produce a held-out text.
    """
    pairs = zip(samples, augment_all(samples, rng, rules, network.turns), strict=True)
    allowed = [one if other.words_hash in held_out else other for one, other in pairs]
    return replace_too_long(network, samples, allowed, fit)
