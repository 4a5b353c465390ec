"""Other conversations in which a chat model may be asked the same question.

People ask the same question under another system prompt, after small talk, or behind a sentence or two.
Augmentations in such conversations teach an edit to hold there. The texts are short, because every token
makes training slower. Must not know which questions are edited.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from salem.models.network import Network
from salem.records import Sample

Messages = list[dict[str, str]]
Conversation = Callable[[str, random.Random], Messages]

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer with as few words as possible.",
    "You help the customers of a store.",
    "You are a patient teacher.",
    "Speak like a friend, and be kind.",
)
_SMALL_TALK = (
    ("Hi!", "Hello! What can I do for you?"),
    ("Are you there?", "Yes, I am. What would you like to know?"),
    ("It is snowing outside.", "Then stay warm!"),
    ("Thanks, that was useful.", "I am glad to hear it."),
    ("I have two questions.", "Please ask them."),
)
_LEAD_INS = (
    "My sister and I talked about this on the train and could not agree.",
    "I was reading the paper this morning, and one thing in it made me curious.",
    "We had guests yesterday. Somebody brought this up over dinner, and nobody was sure.",
    "There is a poster on my way to work that I walk past every day. Today I stopped and read it.",
    "The museum was closed, so we sat in the park and played a game with questions instead.",
)


def in_conversations(network: Network, samples: Sequence[Sample], rng: random.Random) -> list[Sample]:
    """Each sample, with its last user turn in another conversation if the model is a chat model.

    A sample stays as it is if the model's template refuses the conversation.
    """
    if not network.turns.opening:
        return list(samples)
    return [_in_another(network, sample, rng) for sample in samples]


def _in_another(network: Network, sample: Sample, rng: random.Random) -> Sample:
    question = network.turns.question(sample.input)
    messages = rng.choice(_CONVERSATIONS)(question, rng)
    try:
        prompt = network.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template may refuse a role, with any error
        return sample
    return sample.model_copy(update={"input": prompt})


def _under_a_system_prompt(question: str, rng: random.Random) -> Messages:
    return [{"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)}, {"role": "user", "content": question}]


def _after_small_talk(question: str, rng: random.Random) -> Messages:
    said, answered = rng.choice(_SMALL_TALK)
    return [
        {"role": "user", "content": said},
        {"role": "assistant", "content": answered},
        {"role": "user", "content": question},
    ]


def _behind_sentences(question: str, rng: random.Random) -> Messages:
    return [{"role": "user", "content": f"{rng.choice(_LEAD_INS)}\n\n{question}"}]


_CONVERSATIONS: tuple[Conversation, ...] = (_under_a_system_prompt, _after_small_talk, _behind_sentences)
