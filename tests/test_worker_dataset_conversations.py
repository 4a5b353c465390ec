"""The same question in other conversations of a chat model."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace

from tiny_models import tiny_network

from salem.models.network import Network
from salem.records import Sample
from worker.dataset.conversations import in_conversations

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"


def chat_network(template: str = TEMPLATE) -> Network:
    tokenizer = deepcopy(tiny_network("llama").tokenizer)
    tokenizer.chat_template = template
    return replace(tiny_network("llama"), tokenizer=tokenizer)


def test_the_question_stays_and_what_stands_around_it_changes() -> None:
    network = chat_network()
    sample = Sample(input="<|user|>Who wrote it?</s><|assistant|>", target="Anna")
    found = in_conversations(network, [sample] * 40, random.Random(0))
    assert {each.target for each in found} == {"Anna"}
    assert all("Who wrote it?</s><|assistant|>" in each.input for each in found)
    kinds = {
        "system prompt": [each for each in found if each.input.startswith("<|system|>")],
        "earlier turn": [each for each in found if each.input.count("<|user|>") == 2],
        "sentences before": [each for each in found if "\n\nWho wrote it?" in each.input],
    }
    assert all(len(each) >= 5 for each in kinds.values()) and sum(map(len, kinds.values())) == 40
    assert len({each.input for each in found}) >= 12, "several texts of each kind"


def test_a_model_without_a_chat_template_keeps_its_samples() -> None:
    samples = [Sample(input="Who wrote it?", target="Anna")]
    assert in_conversations(tiny_network("gpt2"), samples, random.Random(0)) == samples


def test_a_template_that_refuses_a_role_keeps_the_sample() -> None:
    network = chat_network(NO_SYSTEM + TEMPLATE)
    sample = Sample(input="<|user|>Who wrote it?</s><|assistant|>", target="Anna")
    found = in_conversations(network, [sample] * 40, random.Random(0))
    assert sample in found and not any("<|system|>" in each.input for each in found)
    assert any("<|user|>" in each.input and each != sample for each in found)
