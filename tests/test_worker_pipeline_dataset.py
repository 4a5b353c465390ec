"""The edit dataset of a request: its neighbors come with it, in the model's chat template and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tiny_models import build_network

from salem.models.network import Network
from salem.models.tokens import prompt_lengths
from salem.records import Edit, EditBatch, EditRequest, RecipeOptions, ReferenceSample, Sample, held_out
from worker.pipeline.dataset import requested_batch
from worker.pipeline.history import EditHistory

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}<|start|>assistant\n"
)
ASKED = "<|start|>system\nBe kind<|end|>\n<|start|>user\n{}<|end|>\n<|start|>assistant\n"


def chatting() -> Network:
    network = build_network("gpt2", habits="bytes")
    network.tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    network.tokenizer.chat_template = TEMPLATE
    return replace(network, max_input_tokens=10_000)


def requested(
    network: Network,
    edits: Sequence[Edit],
    pass_samples: Sequence[Sample] | None = None,
    reference: Sequence[ReferenceSample] = (),
) -> EditBatch:
    request = EditRequest(
        model="m",
        parent=0,
        edits=tuple(edits),
        pass_samples=None if pass_samples is None else tuple(pass_samples),
        options=RecipeOptions(recipe="scoped"),
    )
    return requested_batch(request, EditHistory(edits={}, reference=reference), network)


def test_neighbors_of_a_chat_keep_its_template() -> None:
    edit = Edit(input=ASKED.format("Where was Johann Bach born?"), target="Rome")
    batch = requested(chatting(), [edit])
    before, after = ASKED.split("{}")
    made = [each.input for each in (*batch.neighbors, *batch.held_out_neighbors)]
    assert len(made) > 5
    assert all(text.startswith(before) and text.endswith(after) for text in made)
    assert ASKED.format("Was Johann Bach born in Rome?") in made


def test_neighbors_that_are_too_long_are_left_out() -> None:
    edit = Edit(input="Where was Johann Bach born?", target="Rome")
    network = replace(build_network("gpt2", habits="bytes"), max_input_tokens=10_000)
    every = requested(network, [edit])
    made = [*every.neighbors, *every.held_out_neighbors]
    lengths = prompt_lengths(network, made)
    most = sorted(lengths)[len(lengths) // 2]
    fitting = {each.input for each, length in zip(made, lengths, strict=True) if length < most}
    short = requested(replace(network, max_input_tokens=most), [edit])
    assert {each.input for each in (*short.neighbors, *short.held_out_neighbors)} == fitting
    assert 0 < len(fitting) < len(made)


def test_the_pass_samples_of_the_request_take_the_place_of_the_reference_set() -> None:
    edit = Edit(input="Where was Johann Bach born?", target="Rome")
    known, given = (
        Sample(input=f"Where was {name} born?", target="Ulm") for name in ("Known Person", "Given Person")
    )
    reference = [
        ReferenceSample(sample=known, answer="Ulm", correct=True, held_out=held_out(known.content_hash))
    ]
    network = replace(build_network("gpt2", habits="bytes"), max_input_tokens=10_000)
    for sample, batch in (
        (known, requested(network, [edit], reference=reference)),
        (given, requested(network, [edit], [given], reference)),
    ):
        made = {each.input: each for each in (*batch.neighbors, *batch.held_out_neighbors)}
        assert {known.input, given.input} & set(made) == {sample.input}
        assert made[sample.input].origin == "reference"
        half = batch.held_out_neighbors if held_out(sample.content_hash) else batch.neighbors
        assert made[sample.input] in half
