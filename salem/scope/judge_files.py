"""Judge files: the low-rank updates that make a sentence encoder a cross-encoder.

A file is laid out as a delta's is: `a` and `b` of each updated matrix, and a header that names the base
weights they belong to. Matrices are float16 here, because the file ships with the package.
`judge.safetensors` in this folder is for all-MiniLM-L6-v2; `docs/scope-judge.md` is its model card, and
`worker.judge.train` makes it. Must not know how a judge is trained or used.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from salem.errors import DeltaRejected
from salem.models import tensor_files
from salem.scope.encoder import Judge

PACKAGED = Path(__file__).with_name("judge.safetensors")
_HEAD, _BIAS = "head", "bias"


def pack_judge(trained: Mapping[str, Tensor], bound: float, *, base_sha256: str) -> bytes:
    """Pack a judge.

    Args:
        trained: for each updated matrix, `<path>.a` [r, d_in] and `<path>.b` [d_out, r]; `head` [d] and
            `bias` [1].
        bound: the score above which two texts usually are the same question.
        base_sha256: of the encoder's weights.
    """
    halves = {name: value.half() for name, value in trained.items()}
    return tensor_files.write(halves, {"base_sha256": base_sha256, "bound": json.dumps(bound)})


def unpack_judge(data: bytes, encoder: nn.Module, *, base_sha256: str) -> Judge:
    """The judge of an encoder. It shares the encoder's embeddings and has blocks of its own.

    Raises:
        DeltaRejected: the file is damaged, or belongs to another encoder.
    """
    header, tensors = tensor_files.read(data, noun="scope judge", dtype=torch.float16)
    if header.get("base_sha256") != base_sha256:
        raise DeltaRejected("The scope judge was made for other encoder weights.")
    try:
        bound = float(json.loads(header["bound"]))
        head, bias = tensors.pop(_HEAD).float(), float(tensors.pop(_BIAS))
        shared = {id(value): value for value in encoder.get_input_embeddings().parameters()}  # type: ignore[operator, union-attr]
        model = copy.deepcopy(encoder, shared)
        for path in sorted({name.rpartition(".")[0] for name in tensors}):
            update = tensors[f"{path}.b"].float() @ tensors[f"{path}.a"].float()
            weight = model.get_submodule(path).get_parameter("weight")
            weight.data = weight.data + update
        if head.shape != encoder.get_input_embeddings().weight.shape[1:]:  # type: ignore[operator, union-attr]
            raise ValueError("the head has another width")
    except (KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise DeltaRejected("The scope judge's tensors do not fit the encoder.") from error
    if not math.isfinite(bound):
        raise DeltaRejected("The scope judge's bound is not a number.")
    return Judge(model, head, bias, bound)
