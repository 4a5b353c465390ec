"""The file of an editor: it is read back bit for bit, and damaged or mismatched files are refused."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from salem.errors import DeltaRejected
from salem.models import tensor_files
from salem.records import Layer
from worker.hypernetworks.files import TrainedEditor, pack_editor, unpack_editor
from worker.hypernetworks.mend import Factors, MendEditor

LAYER = Layer(path="h.1.wo", stack="h", block=1, matrix="wo", d_in=5, d_out=3, transposed=False)
BASE = "a" * 64


def some_editor(seed: int = 0) -> TrainedEditor:
    generator = torch.Generator().manual_seed(seed)
    editor = MendEditor(LAYER.d_in, LAYER.d_out, 2, generator)
    with torch.no_grad():
        for value in editor.state_dict().values():
            value.add_(torch.randn(value.shape, generator=generator))
    return TrainedEditor(editor, LAYER, num_together=4)


def packed(seed: int = 0) -> bytes:
    return pack_editor(some_editor(seed), base_sha256=BASE, seed=7, corpus_size=64)


def test_an_editor_is_read_back_bit_for_bit() -> None:
    trained, data = some_editor(), packed()
    found = unpack_editor(data, base_sha256=BASE, layer=LAYER)
    assert (found.layer, found.num_together) == (LAYER, 4)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    state = trained.editor.state_dict()
    assert state.keys() == found.editor.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in found.editor.state_dict().items())
    factors = Factors(torch.randn(6, 5), torch.randn(6, 3))
    assert torch.equal(found.editor(factors).dense(), trained.editor(factors).dense())


def test_the_header_describes_the_editor() -> None:
    header = tensor_files.read_header(packed())
    assert (header["base_sha256"], header["layer"]) == (BASE, LAYER.path)
    assert [json.loads(header[name]) for name in ("seed", "corpus_size", "num_together")] == [7, 64, 4]
    assert packed() == packed() != packed(1)


@pytest.mark.parametrize(
    ("base", "changed", "message"),
    [
        ("b" * 64, {}, "other base weights"),
        (BASE, {"path": "h.2.wo"}, "another layer than h.2.wo"),
        (BASE, {"d_in": 6}, "do not fit h.1.wo"),
        (BASE, {"d_out": 4}, "do not fit h.1.wo"),
    ],
)
def test_an_editor_is_refused_on_another_base_or_layer(
    base: str, changed: dict[str, str | int], message: str
) -> None:
    with pytest.raises(DeltaRejected, match=message):
        unpack_editor(packed(), base_sha256=base, layer=LAYER.model_copy(update=changed))


def test_a_damaged_file_is_refused() -> None:
    data = packed()
    for length in range(0, len(data), 29):
        with pytest.raises(DeltaRejected, match="editor"):
            unpack_editor(data[:length], base_sha256=BASE, layer=LAYER)
    for place in range(len(data) - 60, len(data)):
        bad = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(DeltaRejected, match="editor"):
            unpack_editor(bad, base_sha256=BASE, layer=LAYER)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", None),
        ("mean", torch.zeros(7)),
        ("more", torch.zeros(8)),
        ("blocks.1.up", torch.zeros(8, 3)),
        ("blocks.0.down", None),
        ("blocks.0.down", torch.zeros(16)),
        ("blocks.0.down", torch.zeros(0, 8)),
    ],
)
def test_tensors_that_are_not_an_editor_are_refused(name: str, value: torch.Tensor | None) -> None:
    tensors = some_editor().editor.state_dict() | {name: value}
    kept = {each: found for each, found in tensors.items() if found is not None}
    header = {"base_sha256": BASE, "layer": LAYER.path, "num_together": "4"}
    with pytest.raises(DeltaRejected, match="editor"):
        unpack_editor(tensor_files.write(kept, header), base_sha256=BASE, layer=LAYER)


@pytest.mark.parametrize("said", [None, "many", "[]"])
def test_an_editor_says_how_many_edits_it_applies(said: str | None) -> None:
    header = {"base_sha256": BASE, "layer": LAYER.path} | ({"num_together": said} if said else {})
    data = tensor_files.write(some_editor().editor.state_dict(), header)
    with pytest.raises(DeltaRejected, match="how many edits"):
        unpack_editor(data, base_sha256=BASE, layer=LAYER)
