"""The file of an editor: safetensors whose header names the base and the layer that it belongs to.

Must not know where files are stored.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salem.errors import DeltaRejected
from salem.models import tensor_files
from salem.records import Layer
from worker.hypernetworks.mend import MendEditor

_RANK_OF = "blocks.0.down"  # [rank, d_in + d_out]


@dataclass(frozen=True)
class TrainedEditor:
    """An editor and what it was trained for."""

    editor: MendEditor
    layer: Layer
    num_together: int  # edits that it was trained to apply at once
    sha256: str = ""  # of its file, if it has one

    def to(self, device: torch.device) -> TrainedEditor:
        return replace(self, editor=self.editor.to(device))


def pack_editor(trained: TrainedEditor, *, base_sha256: str, seed: int, corpus_size: int) -> bytes:
    """An editor as the bytes of a safetensors file of float32."""
    facts = {"num_together": trained.num_together, "seed": seed, "corpus_size": corpus_size}
    header = {name: json.dumps(value) for name, value in facts.items()}
    names = {"base_sha256": base_sha256, "layer": trained.layer.path}
    return tensor_files.write(trained.editor.state_dict(), header | names)


def unpack_editor(data: bytes, *, base_sha256: str, layer: Layer) -> TrainedEditor:
    """Read an editor and check that it fits the base and the layer.

    Raises:
        DeltaRejected: the file is damaged, belongs to another base or layer, or has the wrong tensors.
    """
    header, tensors = tensor_files.read(data, noun="editor")
    if header.get("base_sha256") != base_sha256:
        raise DeltaRejected("The editor was trained for other base weights.")
    if header.get("layer") != layer.path:
        raise DeltaRejected(f"The editor was trained for another layer than {layer.path}.")
    try:
        num_together = int(json.loads(header["num_together"]))
    except (KeyError, ValueError, TypeError) as error:
        raise DeltaRejected("The editor does not say how many edits it applies at once.") from error
    editor = _editor(tensors, layer)
    return TrainedEditor(editor, layer, num_together, hashlib.sha256(data).hexdigest())


def _editor(tensors: dict[str, Tensor], layer: Layer) -> MendEditor:
    down = tensors.get(_RANK_OF, torch.empty(0))
    if down.dim() != 2 or not len(down):
        raise DeltaRejected(
            f"The file has the tensors {sorted(tensors)[:8]}, which are not those of an editor."
        )
    editor = MendEditor(layer.d_in, layer.d_out, len(down), torch.Generator())
    expected = {name: value.shape for name, value in editor.state_dict().items()}
    if {name: value.shape for name, value in tensors.items()} != expected:
        raise DeltaRejected(
            f"The editor's tensors do not fit {layer.path} [{layer.d_out}, {layer.d_in}] and one another."
        )
    editor.load_state_dict(tensors)
    return editor
