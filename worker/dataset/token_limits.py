"""What the model's window holds: texts that are asked, samples with their answers, and rewordings of them.

A rewording may be longer than what it was made of. Where the window does not hold it, the sample itself takes
its place, so that everything else is drawn as it would have been. Knows how many tokens a network makes of a
text. Does not know what texts, samples and rewordings are for.
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
    """Whether each input can be asked and leaves so many tokens of the window free."""
    return [length + spare <= network.max_input_tokens for length in prompt_lengths(network, inputs)]


def samples_fit(network: Network, samples: Sequence[Sample]) -> list[bool]:
    """Whether each sample can be encoded with its answer."""
    return [length <= network.max_input_tokens for length in sample_lengths(network, samples)]


def replace_too_long(
    network: Network, samples: Sequence[Sample], others: Sequence[Sample], fit: Fit = samples_fit
) -> list[Sample]:
    """Each of the others where it fits, else the sample in its place."""
    rows = zip(samples, others, fit(network, others), strict=True)
    return [other if fits else sample for sample, other, fits in rows]


def augmented(
    network: Network,
    samples: Sequence[Sample],
    rng: random.Random,
    rules: Sequence[Rule] | None = None,
    *,
    fit: Fit = samples_fit,
    apart: Set[str] = frozenset(),
) -> list[Sample]:
    """One rewording of each sample as `augment_all` draws it, where it fits; else the sample itself.

    So, too, where it has the words (`words_hash`) of a sample that is held out, which rules may hit upon.
    """
    made = augment_all(samples, rng, rules)
    seen = [one if other.words_hash in apart else other for one, other in zip(samples, made, strict=True)]
    return replace_too_long(network, samples, seen, fit)
