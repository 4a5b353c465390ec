"""Splits the corpus of an editor into edits to train on and edits to measure with.

Only edits that the base answers wrongly are held out: an edit that it already answers correctly would hold
whatever the editor does. Pure functions on samples. Must not know models, tensors, or storage.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from salem.errors import EditFailed
from salem.records import Edit, EditBatch, Sample

HELD_OUT_SHARE = 0.25  # of the edits that the base answers wrongly
MIN_WRONG = 16  # edits that the base answers wrongly: fewer do not suffice to train and to measure


@dataclass(frozen=True)
class Corpus:
    """The parts of a corpus."""

    training: tuple[Edit, ...]
    held_out: tuple[Edit, ...]  # never seen in training or in the choice of the layer
    pass_samples: tuple[Sample, ...]
    held_out_pass_samples: tuple[Sample, ...]
    num_right: int = 0  # edits whose target the base already gives; all are used for training

    def as_batch(self) -> EditBatch:
        """The parts as an edit dataset, with the held-out edits as held-out paraphrases."""
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
        batch: an edit dataset of the corpus; it provides the pass samples.

    Raises:
        EditFailed: too few edits are answered wrongly.
    """
    wrong_ones = [index for index, is_wrong in enumerate(wrong) if is_wrong]
    if len(wrong_ones) < MIN_WRONG:
        right = [index for index, is_wrong in enumerate(wrong) if not is_wrong]
        such = f" (such as /edits/{right[0]})" if right else ""
        raise EditFailed(
            f"The model already gives the target of {len(right)} of the corpus' {len(edits)} edits{such}. "
            f"{len(wrong_ones)} edits are left for training and measuring; {MIN_WRONG} are needed.",
            remedy="Send more edits whose targets differ from the model's answers.",
        )
    random.Random(seed).shuffle(wrong_ones)
    held_out = set(wrong_ones[: int(len(wrong_ones) * HELD_OUT_SHARE)])
    return Corpus(
        training=tuple(edit for index, edit in enumerate(edits) if index not in held_out),
        held_out=tuple(edit for index, edit in enumerate(edits) if index in held_out),
        pass_samples=batch.pass_samples,
        held_out_pass_samples=batch.held_out_pass_samples,
        num_right=len(edits) - len(wrong_ones),
    )
