"""The file of a metric: read back bit for bit, named by its content, and refused if damaged."""

from __future__ import annotations

import hashlib

import pytest
import torch
from test_salem_scope_state_scope import drawn
from torch import Tensor

from salem.errors import DeltaRejected
from salem.models import tensor_files
from salem.scope.features import FeatureSpec
from salem.scope.lexical import WORD_BUCKETS
from salem.scope.metric import Metric
from salem.scope.metric_files import named, pack_metric, unpack_metric


def some_metric(*, seed: int = 0, block: int = 2, paired: bool = True) -> Metric:
    reading = FeatureSpec("encoder.layer", block, paired, drawn(7, seed=seed).abs())
    spread, words = drawn(5, seed=seed + 2).abs() + 0.1, drawn(2, WORD_BUCKETS, seed=seed + 3).sigmoid()
    differing = {"exchange": 0.1 + seed / 3, "extent": 0.7}
    return Metric(reading, drawn(5, seed=seed + 1), spread, drawn(3, 5, seed=9), *words, **differing)


@pytest.mark.parametrize("paired", [False, True])
def test_a_metric_is_read_back_bit_for_bit(paired: bool) -> None:
    metric = some_metric(paired=paired)
    data = pack_metric(metric)
    found = unpack_metric(data)
    for name in ("center", "spread", "projection", "word_rarity", "word_steadiness"):
        assert torch.equal(getattr(found, name), getattr(metric, name))
    assert torch.equal(found.feature_spec.rarity, metric.feature_spec.rarity)
    assert (found.feature_spec.stack, found.feature_spec.block) == ("encoder.layer", 2)
    assert found.feature_spec.paired is paired
    assert (found.exchange, found.extent) == (metric.exchange, metric.extent)
    assert found.sha256 == hashlib.sha256(data).hexdigest() == named(metric).sha256
    assert pack_metric(found) == data, "the name is not part of the content"


def test_the_same_metric_gives_the_same_bytes_and_another_does_not() -> None:
    assert len({pack_metric(some_metric()) for _ in range(10)}) == 1
    others = [some_metric(), some_metric(seed=1), some_metric(block=3), some_metric(paired=False)]
    assert len({named(metric).sha256 for metric in others}) == 4


def test_a_damaged_file_is_refused() -> None:
    data = pack_metric(some_metric())
    for length in range(0, len(data), len(data) // 99):
        with pytest.raises(DeltaRejected, match="scope metric"):
            unpack_metric(data[:length])
    for place in range(len(data) - 100, len(data)):
        with pytest.raises(DeltaRejected, match="scope metric"):
            unpack_metric(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


SAID = {"stack": "blocks", "block": "1", "paired": "false", "exchange": "0.2", "extent": "1"}
HELD = {
    "rarity": (7,),
    "center": (5,),
    "spread": (5,),
    "projection": (3, 5),
    "word_rarity": (WORD_BUCKETS,),
} | {"word_steadiness": (WORD_BUCKETS,)}


@pytest.mark.parametrize(
    ("shapes", "said", "message"),
    [
        ({"center": (4,)}, {}, "do not fit together"),
        ({"spread": (4,)}, {}, "do not fit together"),
        ({"projection": (5, 3)}, {}, "do not fit together"),
        ({"word_rarity": (6,)}, {}, "do not fit together"),
        ({"word_steadiness": (6,)}, {}, "do not fit together"),
        ({"word_steadiness": None}, {}, "instead of"),
        ({"projection": (15,)}, {}, "instead of"),
        ({"center": None}, {}, "instead of"),
        ({"more": (1,)}, {}, "instead of"),
        ({}, {"block": None}, "does not say which states"),
        ({}, {"stack": None}, "does not say which states"),
        ({}, {"extent": None}, "extent is not a number"),
        ({}, {"paired": None}, "does not say which states"),
        ({}, {"block": "one"}, "does not say which states"),
        ({}, {"exchange": "much"}, "exchange is not a number"),
        ({}, {"exchange": "null"}, "exchange is not a number"),
        ({}, {"exchange": "0"}, "exchange is 0.0; it must be more than 0"),
        ({}, {"extent": "NaN"}, "extent is nan"),
        ({}, {"extent": "-1"}, "extent is -1.0"),
    ],
)
def test_fields_that_do_not_make_a_metric_are_refused(
    shapes: dict[str, tuple[int, ...] | None], said: dict[str, str | None], message: str
) -> None:
    tensors: dict[str, Tensor] = {
        name: torch.ones(shape) for name, shape in (HELD | shapes).items() if shape is not None
    }
    header = {key: value for key, value in (SAID | said).items() if value is not None}
    with pytest.raises(DeltaRejected, match=message):
        unpack_metric(tensor_files.write(tensors, header))
