"""Passages of running text as samples: a beginning, and what follows it.

Edits are completions of ten tokens, as in MEND's Wikitext generation (Mitchell et al., ICLR 2022, section 5);
their rewordings are beginnings cut shorter at the front, as there. Does not know models' answers or methods.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from salem.models.network import Network
from salem.models.tokens import continuation_ids
from salem.records import Sample

WORDS = 24  # of a passage
BEGINNING = 10  # words that are given
COMPLETION_TOKENS = 10
UNKNOWN = "<unk"  # how the corpus writes a rare word: a strange thing to be corrected to


def passages(network: Network, text: str, limit: int | None) -> list[Sample]:
    """Consecutive passages of `WORDS` words within lines; headings and too long passages are left out."""
    found: list[Sample] = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] in ([], ["="]):
            continue
        for start in range(0, len(words) - WORDS + 1, WORDS):
            piece = words[start : start + WORDS]
            found.append(Sample(input=" ".join(piece[:BEGINNING]), target=" ".join(piece[BEGINNING:])))
    fitting = [sample for sample in found if _num_tokens(network, sample) <= network.max_input_tokens]
    return fitting[:limit]


def halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """A third from which edits are made and two thirds that are kept, taken in turns from distinct inputs."""
    distinct = list({sample.input: sample for sample in samples}.values())
    edited = [sample for place, sample in enumerate(distinct) if place % 3 == 0]
    return edited, [sample for place, sample in enumerate(distinct) if place % 3]


def completions(network: Network, samples: Sequence[Sample]) -> list[Sample]:
    """The same beginnings with the next `COMPLETION_TOKENS` tokens alone, where they hold words only
    and read back as they were."""
    found = []
    for sample in samples:
        prompt, following = continuation_ids(network, sample)
        cut = following[:COMPLETION_TOKENS]
        short = sample.model_copy(update={"target": network.tokenizer.decode(cut).strip()})
        whole = short.target and UNKNOWN not in short.target
        if whole and continuation_ids(network, short) == (prompt, [*cut, *following[-1:]]):
            found.append(short)
    return found


def shortened(sample: Sample) -> Sample:
    """The sample with up to half of its beginning's words gone at the front, drawn from its own text."""
    words = sample.input.split()
    gone = random.Random(sample.content_hash).randint(1, max(1, len(words) // 2))
    return sample.model_copy(update={"input": " ".join(words[gone:]) or sample.input})


def _num_tokens(network: Network, sample: Sample) -> int:
    prompt, following = continuation_ids(network, sample)
    return len(prompt) + len(following)
