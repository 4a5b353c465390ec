"""Applies editors that were trained ahead of time: turns the gradients of new edits into their update.

Mitchell et al., "Fast Model Editing at Scale", ICLR 2022, algorithm 2. Rows (u, v) go in token by token, as
in training. Must not know how an editor was trained or where it is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from salem.deltas.terms import Dense, LowRank
from salem.errors import EditFailed
from salem.models.batching import encode
from salem.models.network import Network
from salem.records import EditBatch, Layer, Sample
from worker.activations.gradients import token_gradients
from worker.hypernetworks.mend import Factors, MendEditor
from worker.numerics.low_rank import break_even_rank
from worker.training.loop import CHUNK


def one_pass_term(network: Network, layer: Layer, editor: MendEditor, batch: EditBatch) -> LowRank | Dense:
    """The update that corrects a batch: the sum over its edits of the mean over each edit's texts.

    In training an edit has one text, so a sum over many paraphrases would overshoot.

    Raises:
        EditFailed: no token carries a gradient at this layer.
    """
    return update_of(network, layer, editor, batch.corrections, text_weights(batch))


def text_weights(batch: EditBatch) -> Tensor:
    """The weight of each correction, so that each edit counts once -> [n]."""
    edits = [*range(len(batch.edit_samples)), *(index for index, _ in batch.adapt_samples)]
    texts = Counter(edits)
    return torch.tensor([1 / texts[index] for index in edits])


def update_of(
    network: Network, layer: Layer, editor: MendEditor, samples: Sequence[Sample], weights: Tensor
) -> LowRank | Dense:
    """The sum of the samples' updates, each times its weight [n]; as factors if they take fewer numbers.

    Raises:
        EditFailed: no token carries a gradient at this layer.
    """
    parts = [
        LowRank(update.a, update.b * weights.to(update.b)[samples_of_rows])
        for updates in row_updates(network, {layer.path: editor}, [layer], samples)
        for update, samples_of_rows in updates.values()
    ]
    if not parts:
        raise EditFailed("The edits have no gradient at the editor's layer.", remedy="Leave out the editor.")
    whole = LowRank(torch.cat([part.a for part in parts]), torch.cat([part.b for part in parts], dim=1))
    return Dense(whole.dense()) if whole.rank >= break_even_rank(layer) else whole


@torch.no_grad()
def row_updates(
    network: Network, editors: Mapping[str, MendEditor], layers: Sequence[Layer], samples: Sequence[Sample]
) -> Iterator[dict[str, tuple[LowRank, Tensor]]]:
    """The editors' updates for samples, with one forward and one backward pass per chunk.

    Yields:
        For each chunk, by layer path: the update, with one rank per token that carries a gradient, and the
        index of each such token's sample [k]. A layer at which no token carries a gradient is left out.
    """
    for start in range(0, len(samples), CHUNK):
        with torch.enable_grad():
            taken = token_gradients(network, encode(network, samples[start : start + CHUNK]), layers)
        found = {path: (*one.token_rows(), one.token_samples() + start) for path, one in taken.items()}
        yield {
            path: (editors[path](Factors(u.float(), v.float())), sample)
            for path, (u, v, sample) in found.items()
            if len(u)
        }
