"""Token ids of texts and samples, unpadded: the prompt as the model reads it, the answer as it writes it.

Knows tokenizers and what each task puts around a text. Must not know padding, tensors, or layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from salem.models.network import Network
from salem.records import Sample, Task, TextInput

_COUNTED_TOGETHER = 64  # texts: a tokenizer returns thirty or more bytes for each byte that it reads


class ForgettingSample(Sample):
    """A sample that forgets, with the text that a generating model writes instead of the answer.

    Both texts start the same. At the branch, training makes the answer's token unlikely and keeps the
    probabilities of all other tokens.
    """

    tokens: tuple[int, ...]  # ids of the text that is written instead, including the common beginning
    branch: int  # index of the first token that differs from the answer
    forgotten: int  # the answer's token there


def count_tokens(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[TextInput]) -> list[int]:
    """Number of tokens of each input as the model would see it, special tokens included."""
    starts = range(0, len(inputs), _COUNTED_TOGETHER)
    parts = (inputs[start : start + _COUNTED_TOGETHER] for start in starts)
    return [len(ids) for part in parts for ids in tokenize(tokenizer, part)["input_ids"]]


def tokenize(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[TextInput]) -> dict[str, list[list[int]]]:
    """Unpadded token ids (and token types, if the tokenizer makes them) of each input.

    An empty `text_pair` counts as none, as in `TextInput.content_hash`; tokenizers are inconsistent about it.
    """
    paired = [item for item in inputs if item.text_pair]
    if paired and len(paired) < len(inputs):
        rows = [tokenize(tokenizer, [item]) for item in inputs]
        return {key: [row[key][0] for row in rows] for key in rows[0]}
    first = [item.input for item in inputs]
    second = [item.text_pair for item in paired] if paired else None
    encoded = tokenizer(first, second, padding=False, truncation=False, verbose=False)
    return {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}


def prompt_lengths(network: Network, inputs: Sequence[TextInput]) -> list[int]:
    """Number of tokens of each input as `encode_inputs` makes them."""
    if not inputs:
        return []
    return [len(prompt_ids(network, ids)) for ids in tokenize(network.tokenizer, inputs)["input_ids"]]


def sample_lengths(network: Network, samples: Sequence[Sample]) -> list[int]:
    """Number of tokens of the longest row that `encode` makes of each sample."""
    if network.task is Task.TEXT_GENERATION:
        return [len(prompt + answer) for prompt, answer in (continuation_ids(network, s) for s in samples)]
    lengths = prompt_lengths(network, samples)
    if not network.task.generates or not samples:
        return lengths
    answers = answer_ids(network, samples)
    return [max(length, len(answer)) for length, answer in zip(lengths, answers, strict=True)]


def prompt_ids(network: Network, ids: list[int]) -> list[int]:
    """Token ids as the model reads them: with an end mark for an encoder-decoder, without for a decoder."""
    eos = network.eos_id
    if network.task is Task.TEXT2TEXT_GENERATION and eos is not None and ids[-1:] != [eos]:
        return [*ids, eos]
    if network.task is Task.TEXT_GENERATION and len(ids) > 1 and ids[-1] == eos:
        return ids[:-1]
    # A tokenizer may drop every character of a text, but a model needs at least one token.
    return ids or [network.start_id]


def answer_ids(network: Network, samples: Sequence[Sample]) -> list[list[int]]:
    """Token ids of each answer as an encoder-decoder writes it, including the end mark."""
    texts = network.tokenizer(text_target=[sample.answer for sample in samples], verbose=False)["input_ids"]
    return [
        list(sample.tokens) if isinstance(sample, ForgettingSample) else prompt_ids(network, list(ids))
        for sample, ids in zip(samples, texts, strict=True)
    ]


def continuation_ids(network: Network, sample: Sample) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, and of its answer with the end of sequence, as the model would write them.

    The two are tokenized together and cut where the prompt ends, because some tokenizers (SentencePiece) mark
    the start of a text. If the cut does not fall between tokens, the answer is tokenized alone.
    """
    last = sample.text_pair or sample.input  # the text that the answer continues
    space = "" if sample.answer[:1].isspace() or last[-1:].isspace() else " "
    written = last + space + sample.answer
    together = (
        TextInput(input=sample.input, text_pair=written) if sample.text_pair else TextInput(input=written)
    )
    prompt = prompt_ids(network, tokenize(network.tokenizer, [sample])["input_ids"][0])
    whole = prompt_ids(network, tokenize(network.tokenizer, [together])["input_ids"][0])
    cuts = whole[: len(prompt)] == prompt and len(whole) > len(prompt)
    if isinstance(sample, ForgettingSample):
        return prompt, list(sample.tokens)
    answer = whole[len(prompt) :] if cuts else _ids_alone(network, prompt, space, sample.answer)
    return prompt, [*answer, *([network.eos_id] if network.eos_id is not None else [])]


def _ids_alone(network: Network, prompt: list[int], space: str, target: str) -> list[int]:
    """Token ids of an answer that is tokenized without its prompt.

    A space comes before the answer, unless the tokenizer adds one.
    """
    tokenizer = network.tokenizer
    expected = tokenizer.decode(prompt) + space + target
    texts = [space + target, target]
    with_space, without = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    found: list[int] = without if tokenizer.decode(prompt + without) == expected else with_space
    return found
