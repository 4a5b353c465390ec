"""Groups texts into chunks that stay the same when other texts of the set change.

What a model computes for a text depends, in its last bits, on the texts that share its forward pass. So the
unit of reuse is a chunk, and a chunk must not depend on the rest of the set. Texts of one padded length form
a tree by the bits of their hashes: a changed text changes the chunks of one leaf, and all other leaves stay.

Must not know models or tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from salem.models.batching import LENGTH_BUCKET
from salem.records import TextInput

CHUNKS_PER_LEAF = 4  # more fill chunks better; fewer let a changed text change fewer chunks
_HASH_BITS = 256


def stable_chunks(inputs: Sequence[TextInput], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of texts in chunks of at most `size`: one padded length per chunk, the longest first.

    Args:
        lengths: tokens of each text.
    """
    keys = [int(text.content_hash, 16) for text in inputs]
    buckets: defaultdict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(inputs)), key=lambda index: (keys[index], index)):
        buckets[-(-lengths[index] // LENGTH_BUCKET)].append(index)
    for _, rows in sorted(buckets.items(), reverse=True):
        for leaf in _leaves(rows, keys, CHUNKS_PER_LEAF * size, _HASH_BITS):
            num_chunks = -(-len(leaf) // size)
            for chunk in range(num_chunks):
                yield leaf[len(leaf) * chunk // num_chunks : len(leaf) * (chunk + 1) // num_chunks]


def _leaves(rows: list[int], keys: Sequence[int], most: int, num_bits: int) -> Iterator[list[int]]:
    """Split rows by their keys' highest remaining bit until at most `most` are together."""
    if len(rows) <= most or not num_bits:
        yield rows
        return
    for bit in (0, 1):
        part = [row for row in rows if keys[row] >> (num_bits - 1) & 1 == bit]
        yield from _leaves(part, keys, most, num_bits - 1)
