"""One pass of an editor: the update against the formula by hand in float64, and how texts count."""

from __future__ import annotations

import pytest
import torch
from baseline_cases import EDIT_TEXTS, wrong_for
from tiny_models import tiny_network
from torch import Tensor

from salem.deltas.terms import Dense, LowRank
from salem.errors import EditFailed
from salem.models.batching import encode
from salem.models.network import Network
from salem.records import EditBatch, Layer
from worker.activations.gradients import token_gradients
from worker.hypernetworks import one_pass
from worker.hypernetworks.mend import MendEditor
from worker.hypernetworks.one_pass import one_pass_term, text_weights


def some_editor(layer: Layer, seed: int = 0) -> MendEditor:
    """An editor in which every parameter has an effect."""
    generator = torch.Generator().manual_seed(seed)
    editor = MendEditor(layer.d_in, layer.d_out, 3, generator)
    with torch.no_grad():
        for name, value in editor.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.1 if name == "scale" else 0.3 * noise)
    return editor


def some_batch(network: Network) -> EditBatch:
    """Two edits, the first with two adapt samples."""
    first, second = (edit.sample for edit in wrong_for(network, EDIT_TEXTS))
    reworded = [first.model_copy(update={"input": f"{first.input} {word}"}) for word in ("now", "please")]
    return EditBatch(
        edit_samples=(first, second),
        adapt_samples=tuple((0, sample) for sample in reworded),
        pass_samples=(),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
    )


def by_hand(network: Network, layer: Layer, editor: MendEditor, batch: EditBatch) -> Tensor:
    """-step * sum over edits of the mean over its texts of ṽᵀũ (MEND, equation 5), dense and in float64."""
    state = {name: value.double() for name, value in editor.state_dict().items()}
    shares = [1 / 3, 1.0, 1 / 3, 1 / 3]
    total = torch.zeros(layer.d_out, layer.d_in, dtype=torch.float64)
    for sample, share in zip(batch.corrections, shares, strict=True):
        found = token_gradients(network, encode(network, [sample]), [layer])[layer.path]
        for u, v in zip(found.u[0].double(), found.v[0].double(), strict=True):
            if not v.any():
                continue
            z = (torch.cat([u, v]) - state["mean"]) / state["scale"]
            for block in ("blocks.0", "blocks.1"):
                inner = state[f"{block}.up"] @ (state[f"{block}.down"] @ z) + state[f"{block}.bias"]
                z = z + inner.clamp(min=0)
            z = z * state["scale"] + state["mean"]
            total -= share * state["log_step"].exp() * torch.outer(z[layer.d_in :], z[: layer.d_in])
    return total


@pytest.mark.parametrize("chunk", [32, 2])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_the_update_is_the_formula(architecture: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass, "CHUNK", chunk)
    network = tiny_network(architecture)
    layer = network.layers[1]
    editor, batch = some_editor(layer), some_batch(network)
    term = one_pass_term(network, layer, editor, batch)
    expected = by_hand(network, layer, editor, batch)
    assert not term.dense().requires_grad
    torch.testing.assert_close(
        term.dense().double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


def test_an_edit_counts_once_however_many_paraphrases_it_has() -> None:
    batch = some_batch(tiny_network("bert"))
    assert text_weights(batch).tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])


def test_factors_are_kept_if_they_take_fewer_numbers() -> None:
    network = tiny_network("bert")
    layer = network.layers[1]
    wide = layer.model_copy(update={"d_in": 10_000, "d_out": 10_000})
    editor, batch = some_editor(layer), some_batch(network)
    many = one_pass_term(network, layer, editor, batch)
    few = one_pass_term(network, wide, editor, batch)
    assert isinstance(many, Dense) and isinstance(few, LowRank)
    torch.testing.assert_close(many.dense(), few.dense())


def test_edits_without_a_gradient_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("bert")
    monkeypatch.setattr(one_pass, "row_updates", lambda *arguments: iter([{}]))
    with pytest.raises(EditFailed, match="no gradient"):
        one_pass_term(network, network.layers[1], some_editor(network.layers[1]), some_batch(network))
