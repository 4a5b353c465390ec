"""Checks a model once before it is hosted: loads it, describes it, and asks it the whole reference set.

Does not know jobs, SQL or blobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from salem.errors import InvalidRequest, Pointer
from salem.inference.predict import is_right, predict
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import Edit, Proportion, ReferenceSample, held_out
from worker.dataset.token_limits import samples_fit
from worker.numerics.intervals import proportion

SLICE = 512  # samples between two reports of progress
ANSWER_TOKENS = 32  # most of an answer


@dataclass(frozen=True)
class ReferenceAnswers:
    """A reference set as the base answers it."""

    reference: tuple[ReferenceSample, ...]
    accuracy: Proportion | None
    num_pass_samples: int
    num_held_out: int


def answer_reference(
    network: Network,
    samples: Sequence[Edit],
    progress: Callable[[float], None],
    *,
    max_new_tokens: int = ANSWER_TOKENS,
) -> ReferenceAnswers:
    """Ask the base every reference sample; those answered rightly are its pool of pass samples.

    An answer may be right that the window cuts off before its end. It counts towards the accuracy, but
    nothing could be trained on its sample, which is no pass sample therefore.

    Raises:
        InvalidRequest: a label that the model does not have, or a sample longer than it takes.
    """
    _check(network, samples)
    reference: list[ReferenceSample] = []
    for start in range(0, len(samples), SLICE):
        part = samples[start : start + SLICE]
        answers = predict(network, part, max_new_tokens=max_new_tokens)
        rows = zip(part, answers, samples_fit(network, part), strict=True)
        reference += [_answered(sample, answer.output, fits=fits) for sample, answer, fits in rows]
        progress((start + len(part)) / len(samples))
    kept = [item for item in reference if item.passes]
    return ReferenceAnswers(
        reference=tuple(reference),
        accuracy=proportion([item.correct for item in reference]),
        num_pass_samples=len(kept),
        num_held_out=sum(item.held_out for item in kept),
    )


def _answered(sample: Edit, answer: str, *, fits: bool) -> ReferenceSample:
    return ReferenceSample(
        sample=sample.sample,
        paraphrases=sample.paraphrases,
        answer=answer,
        correct=is_right(answer, sample),
        held_out=held_out(sample.content_hash),
        fits=fits,
    )


def _check(network: Network, samples: Sequence[Edit]) -> None:
    errors: list[Pointer] = []
    for index, sample in enumerate(samples):
        if network.labels and sample.answer not in network.labels:
            known = f"the model's {len(network.labels)} labels"
            errors.append(Pointer(f"/reference/{index}/target", f'"{sample.answer}" is not one of {known}'))
    places = [(f"/reference/{index}/input", sample.sample) for index, sample in enumerate(samples)]
    for index, sample in enumerate(samples):
        reworded = enumerate(sample.paraphrase_samples)
        places += [(f"/reference/{index}/paraphrases/{place}", text) for place, text in reworded]
    lengths = count_tokens(network.tokenizer, [text for _, text in places])
    most = network.max_input_tokens
    errors += [
        Pointer(pointer, f"{length} tokens; the model takes {most}")
        for (pointer, _), length in zip(places, lengths, strict=True)
        if length > most
    ]
    if errors:
        first = errors[0]
        raise InvalidRequest(
            f"{len(errors)} reference samples do not fit the model; "
            f"the first: {first.pointer}: {first.detail}.",
            remedy="Correct or leave out these samples and register again.",
            errors=errors,
        )
