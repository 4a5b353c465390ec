"""Outcomes and metrics of the quality benchmark, on networks with answers that the test sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from tiny_models import LABELS, build_network

from benchmarks.quality.facts import Correction
from benchmarks.quality.measures import CHUNK, Forced, Outcomes, figures, forced, measure, outputs
from salem.inference.predict import predict
from salem.models.batching import Batch, encode
from salem.models.network import Network
from salem.records import Edit, Sample, TextInput

TEXTS = (
    "where is my order",
    "i want my money back",
    "the password does not work",
    "send a refund now please",
)


@dataclass
class Told:
    """A classifier with given answers to some inputs; it answers all others like the base."""

    network: Network
    answers: dict[str, str]
    layer: str | None = None
    delta_bytes: int = 12
    asked: list[list[TextInput]] = field(default_factory=list)

    @contextmanager
    def answering(self, inputs: Sequence[TextInput], batch: Batch | None = None) -> Iterator[None]:
        self.asked.append(list(inputs))

        def tell(module: Any, args: Any, output: Any) -> Any:
            logits = output.logits.clone()
            for row, item in enumerate(inputs):
                if item.input in self.answers:
                    logits[row, self.network.labels.index(self.answers[item.input])] = 1e4
            output.logits = logits
            return output

        handle = self.network.model.register_forward_hook(tell)
        try:
            yield
        finally:
            handle.remove()


@dataclass
class Shouting:
    """A generating model whose output layer repeats one token forever."""

    network: Network
    token: int
    layer: str | None = None
    delta_bytes: int = 0

    @contextmanager
    def answering(self, inputs: Sequence[TextInput], batch: Batch | None = None) -> Iterator[None]:
        def shout(module: Any, args: Any, output: Any) -> Any:
            output.logits = torch.zeros_like(output.logits)
            output.logits[..., self.token] = 9.0
            return output

        handle = self.network.model.register_forward_hook(shout)
        try:
            yield
        finally:
            handle.remove()


def other(label: str) -> str:
    return next(name for name in LABELS if name != label)


def test_a_classifier_is_asked_everything_and_keeps_its_order() -> None:
    network = build_network("bert")
    base = [answer.output for answer in predict(network, [TextInput(input=text) for text in TEXTS])]
    edit = Edit(input=TEXTS[0], target=other(base[0]))
    near = Sample(input=TEXTS[2], target="ignored")
    correction = Correction(
        edit=edit,
        held_out_paraphrases=(
            Sample(input="order my is where", target=edit.target),
            Sample(input="where", target=edit.target),
        ),
        neighbors=(near, Sample(input=TEXTS[0], target="ignored")),
        portability=(Sample(input=TEXTS[3], target=other(base[3])),),
    )
    held_out = [Sample(input=text, target=label) for text, label in zip(TEXTS[1:], base[1:], strict=True)]
    told = Told(
        network,
        {
            TEXTS[0]: edit.target,
            "order my is where": edit.target,
            "where": other(edit.target),
            TEXTS[1]: other(base[1]),
        },
    )
    found = measure(network, told, [correction], held_out, perplexity=False)
    assert found.edits == [True]
    assert found.paraphrases == [[True, False]]
    assert found.kept == [False, True, True]
    assert found.neighbors == [True, False]
    assert found.portability == [False]
    row = figures(found, perplexity=False)
    assert row["drawdown"] == pytest.approx(1 / 3)
    assert row["generalization"] == 0.5
    assert row["edit_accuracy_forced"] is None


def test_a_method_gets_its_inputs_in_the_order_of_the_padded_batch() -> None:
    network = build_network("bert")
    texts = [" ".join(["order"] * (1 + place % 7)) for place in range(CHUNK + 5)]
    told = Told(network, {texts[3]: "login"})
    found = outputs(network, told.answering, [TextInput(input=text) for text in texts])
    assert [len(chunk) for chunk in told.asked] == [CHUNK, 5]
    assert all(output == "login" for output, text in zip(found, texts, strict=True) if text == texts[3])
    lengths = [len(item.input) for chunk in told.asked for item in chunk]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_a_generating_model_is_measured_freely_and_with_teacher_forcing(architecture: str) -> None:
    network = build_network(architecture)
    token = network.tokenizer("a")["input_ids"][0]
    edited = Shouting(network, token)
    text = outputs(network, edited.answering, [TextInput(input=TEXTS[0])])[0]
    edit = Edit(input=TEXTS[0], target=text)
    held_out = [Sample(input=TEXTS[1], target="Paris"), Sample(input=TEXTS[2], target="Lima Berlin")]
    found = measure(network, edited, [Correction(edit=edit)], held_out, perplexity=False)
    row = figures(found, perplexity=False)
    assert row["edit_accuracy"] == 1.0
    assert row["drawdown"] == 1.0
    # The end of sequence is a target token too, and it is never written here.
    targets = encode(network, [edit.sample]).targets
    expected = int((targets == token).sum()) / int((targets != -100).sum())
    assert row["edit_accuracy_forced"] == pytest.approx(expected)
    assert 0 < expected < 1
    assert row["generalization"] is None


def test_teacher_forcing_agrees_with_one_sample_at_a_time() -> None:
    network = build_network("gpt2")
    samples = [Sample(input=TEXTS[place], target=TEXTS[-place - 1]) for place in range(3)]
    together = forced(network, Told(network, {}).answering, samples)
    for sample, found in zip(samples, together, strict=True):
        batch = encode(network, [sample])
        logits = network.model(**batch.inputs).logits[0].double().log_softmax(-1)
        asked = [(place, t) for place, t in enumerate(batch.targets[0].tolist()) if t != -100]
        assert found.num_tokens == len(asked)
        assert found.right == sum(int(logits[place].argmax()) == t for place, t in asked)
        nll = -sum(float(logits[place, t]) for place, t in asked if t != network.eos_id)
        assert found.nll == pytest.approx(nll, rel=1e-5)
        assert found.num_text_tokens == len(asked) - 1


def test_perplexity_rises_by_the_mean_rise_of_the_likelihood() -> None:
    before = [Forced(0, 11, 10, 20.0), Forced(0, 31, 30, 60.0)]
    after = [replace(before[0], nll=22.0), replace(before[1], nll=62.0)]
    outcomes = Outcomes(edits=[True], before_forced=before, after_forced=after)
    row = figures(outcomes, perplexity=True)
    assert row["drawdown"] == pytest.approx(math.exp(80 / 40) ** -1 * math.exp(84 / 40) - 1)


def test_a_broken_model_gives_a_finite_row() -> None:
    network = build_network("gpt2")
    with torch.no_grad():
        network.model.get_output_embeddings().weight.fill_(float("nan"))
    found = forced(network, Told(network, {}).answering, [Sample(input=TEXTS[0], target="Rome")])
    assert math.isfinite(found[0].nll)


def test_outcomes_of_single_edits_are_joined_in_order() -> None:
    one = Outcomes(edits=[True], paraphrases=[[True, False]], kept=[True])
    two = Outcomes(edits=[False], paraphrases=[[]], kept=[False, True])
    joined = one.joined(two)
    assert joined.edits == [True, False]
    assert joined.paraphrases == [[True, False], []]
    assert figures(joined, perplexity=False)["drawdown"] == pytest.approx(1 / 3)
