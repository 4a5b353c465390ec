"""A corpus for the tiny classifier: texts with labels that it does not give, and pass samples."""

from __future__ import annotations

from functools import cache

from labeled_texts import TEXTS, other_label
from tiny_models import tiny_network

from salem.inference.predict import predict
from salem.records import Edit, EditorOptions, Sample, TextInput

NUM_EDITS = 48
NUM_NEW = 12  # texts that are neither in the corpus nor kept
LAYER = "bert.encoder.layer.1.output.dense"
# Few at once, large steps: random weights have no structure that would let many edits live together.
QUICK = EditorOptions(layer=LAYER, num_together=4, num_steps=60, learning_rate=0.01, kl_weight=0.3)


@cache
def own_labels() -> dict[str, str]:
    """What the tiny classifier answers."""
    asked = [TextInput(input=text) for text in TEXTS]
    found = predict(tiny_network("bert"), asked)
    return {text: answer.output for text, answer in zip(TEXTS, found, strict=True)}


def corpus(num_right: int = 0) -> tuple[Edit, ...]:
    """Edits of the first texts. The targets of the first `num_right` are what the model already answers."""
    return tuple(
        Edit(
            input=text,
            target=own_labels()[text] if place < num_right else other_label(own_labels()[text]),
            paraphrases=(f"{text} please",),
        )
        for place, text in enumerate(TEXTS[:NUM_EDITS])
    )


def kept() -> tuple[Sample, ...]:
    """The other texts with the model's own answers."""
    return tuple(Sample(input=text, target=own_labels()[text]) for text in TEXTS[NUM_EDITS:-NUM_NEW])


def new_edits(num: int = 2) -> tuple[Edit, ...]:
    """At most `NUM_NEW` edits of texts that are neither in the corpus nor kept."""
    return tuple(
        Edit(input=text, target=other_label(own_labels()[text]), paraphrases=(f"well {text}", f"{text} ok"))
        for text in TEXTS[-num:]
    )
