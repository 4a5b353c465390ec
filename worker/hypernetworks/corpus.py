"""Splits the corpus of an editor: what it is trained on, and the edits that measure it.

Held out are only edits that the base answers wrongly: one that it answers rightly already would hold
whatever the editor does. Pure functions on samples; does not know models, tensors or storage.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from salem.errors import EditFailed
from salem.messages import quoted
from salem.records import Edit, EditBatch, Sample

HELD_OUT_SHARE = 0.25  # of the corpus' edits that the base answers wrongly
FEWEST_WRONG = 16  # of them, below which too few are left to train on and to measure with


@dataclass(frozen=True)
class Corpus:
    """A corpus in its parts."""

    training: tuple[Edit, ...]
    held_out: tuple[Edit, ...]  # never seen in training or in the choice of the layer
    pass_samples: tuple[Sample, ...]
    held_out_pass_samples: tuple[Sample, ...]
    num_right: int = 0  # edits whose target is the base's answer already; all are trained on

    def as_batch(self) -> EditBatch:
        """The parts as an edit dataset: trained on are the edits, measured are other edits."""
        return EditBatch(
            edit_samples=tuple(edit.sample for edit in self.training),
            adapt_samples=(),
            pass_samples=self.pass_samples,
            held_out_paraphrases=tuple(enumerate(texts_of(self.held_out))),
            held_out_pass_samples=self.held_out_pass_samples,
        )


def texts_of(edits: Sequence[Edit]) -> list[Sample]:
    """Edits and their paraphrases."""
    return [sample for edit in edits for sample in (edit.sample, *edit.paraphrase_samples)]


def split_corpus(edits: Sequence[Edit], wrong: Sequence[bool], batch: EditBatch, seed: int) -> Corpus:
    """Hold out a share of the edits that the base answers wrongly, chosen by `seed`.

    Args:
        wrong: for each edit, whether the base answers it wrongly.
        batch: an edit dataset of the corpus, for its pass samples: none of them is one of its texts.

    Raises:
        EditFailed: too few edits are answered wrongly.
    """
    places = [place for place, is_wrong in enumerate(wrong) if is_wrong]
    if len(places) < FEWEST_WRONG:
        right = [edit.input for edit, is_wrong in zip(edits, wrong, strict=True) if not is_wrong]
        such = f" (such as {quoted(right[0])})" if right else ""
        raise EditFailed(
            f"The model already gives the target of {len(right)} of the corpus' {len(edits)} edits{such}. "
            f"{len(places)} are left to learn from and to measure with; {FEWEST_WRONG} are needed.",
            remedy="Give more edits whose targets are not the model's answers.",
        )
    random.Random(seed).shuffle(places)
    apart = set(places[: int(len(places) * HELD_OUT_SHARE)])
    return Corpus(
        training=tuple(edit for place, edit in enumerate(edits) if place not in apart),
        held_out=tuple(edit for place, edit in enumerate(edits) if place in apart),
        pass_samples=batch.pass_samples,
        held_out_pass_samples=batch.held_out_pass_samples,
        num_right=len(edits) - len(places),
    )
