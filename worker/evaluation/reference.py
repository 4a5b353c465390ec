"""Answers a reference set with the base once, when a model is registered: this finds its pass samples.

Must not know jobs, SQL, or blobs.
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

SLICE = 512  # samples between two progress reports
MAX_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class ReferenceAnswers:
    """A reference set with the base's answers."""

    reference: tuple[ReferenceSample, ...]
    accuracy: Proportion | None
    num_pass_samples: int
    num_held_out: int


def answer_reference(
    network: Network,
    samples: Sequence[Edit],
    progress: Callable[[float], None],
    *,
    max_new_tokens: int = MAX_ANSWER_TOKENS,
) -> ReferenceAnswers:
    """Answer every reference sample with the base; those with a correct answer are its pass samples.

    A correct answer may be cut off by the end of the model's window. It counts toward the accuracy, but the
    sample is not a pass sample, because it cannot be trained on.

    Raises:
        InvalidRequest: a label is not one of the model's, or a sample exceeds the model's limit.
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
        texts = enumerate(sample.paraphrase_samples)
        places += [(f"/reference/{index}/paraphrases/{number}", text) for number, text in texts]
    lengths = count_tokens(network.tokenizer, [text for _, text in places])
    most = network.max_input_tokens
    errors += [
        Pointer(pointer, f"{length} tokens; the model takes at most {most}")
        for (pointer, _), length in zip(places, lengths, strict=True)
        if length > most
    ]
    if errors:
        first = errors[0]
        raise InvalidRequest(
            f"{len(errors)} reference samples do not fit the model; "
            f"the first: {first.pointer}: {first.detail}.",
            remedy="Correct these samples or leave them out, and register again.",
            errors=errors,
        )
