"""Metric files: packs a scope metric into a safetensors file, and reads it back with every check.

Every delta that uses a metric names its file by content. Must not know where files are kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace

from salem.errors import DeltaRejected
from salem.models import tensor_files
from salem.scope.features import FeatureSpec
from salem.scope.lexical import WORD_BUCKETS
from salem.scope.metric import Metric

_OF_WORDS = ("word_rarity", "word_steadiness")
_FIELDS = {"rarity": 1, "center": 1, "spread": 1, "projection": 2, "word_rarity": 1, "word_steadiness": 1}


def pack_metric(metric: Metric) -> bytes:
    """Pack a metric as a safetensors file. The deltas that name it say which base it is for."""
    spec = metric.feature_spec
    return tensor_files.write(
        {
            "rarity": spec.rarity,
            "center": metric.center,
            "spread": metric.spread,
            "projection": metric.projection,
            "word_rarity": metric.word_rarity,
            "word_steadiness": metric.word_steadiness,
        },
        {
            "stack": spec.stack,
            "block": json.dumps(spec.block),
            "paired": json.dumps(spec.paired),
            "exchange": json.dumps(metric.exchange),
            "extent": json.dumps(metric.extent),
        },
    )


def named(metric: Metric) -> Metric:
    """The metric together with the sha256 of its file."""
    return replace(metric, sha256=hashlib.sha256(pack_metric(metric)).hexdigest())


def unpack_metric(data: bytes) -> Metric:
    """Read a metric and check it.

    Raises:
        DeltaRejected: the file is damaged, or its fields do not fit together.
    """
    header, tensors = tensor_files.read(data, noun="scope metric")
    if {name: tensor.dim() for name, tensor in tensors.items()} != _FIELDS:
        raise DeltaRejected(f"The scope metric holds {sorted(tensors)} instead of {sorted(_FIELDS)}.")
    width = len(tensors["center"])
    fitting = len(tensors["spread"]) == tensors["projection"].shape[1] == width
    if not fitting or any(len(tensors[name]) != WORD_BUCKETS for name in _OF_WORDS):
        raise DeltaRejected("The shapes of the scope metric do not fit together.")
    try:
        stack, block, paired = (
            header["stack"],
            int(json.loads(header["block"])),
            bool(json.loads(header["paired"])),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DeltaRejected("The scope metric does not say which states it reads.") from error
    return Metric(
        feature_spec=FeatureSpec(stack, block, paired, tensors.pop("rarity")),
        exchange=_positive(header, "exchange"),
        extent=_positive(header, "extent"),
        sha256=hashlib.sha256(data).hexdigest(),
        **tensors,
    )


def _positive(header: Mapping[str, str], name: str) -> float:
    try:
        found = float(json.loads(header[name]))
    except (KeyError, ValueError, TypeError) as error:
        raise DeltaRejected(f"The scope metric's {name} is not a number.") from error
    if not 0 < found < math.inf:
        raise DeltaRejected(f"The scope metric's {name} is {found}; it must be more than 0.")
    return found
