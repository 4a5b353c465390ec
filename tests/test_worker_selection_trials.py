"""Trial edits: prepared for several layers at once as for each alone, and compared by their scores."""

from __future__ import annotations

import pytest
import torch
from test_worker_training_ridge import pass_samples, wrong_samples
from tiny_models import ARCHITECTURES, tiny_network

from salem.models.network import Network
from salem.models.trunk import resume
from salem.records import EditBatch, Layer
from worker.activations.trunk_sets import Chunk, TrunkSet, prepare_with_answers
from worker.selection.trials import Decision, Trial, prepare_layers, trial_edits
from worker.training.options import MARGIN


def batch_for(network: Network) -> EditBatch:
    return EditBatch(
        edit_samples=tuple(wrong_samples(network)),
        adapt_samples=(),
        pass_samples=tuple(pass_samples(network)),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
    )


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def by_sample(prepared: TrunkSet) -> list[Chunk]:
    """A chunk for each sample, in the order of the samples."""
    single = {
        int(chunk.samples[row]): chunk.rows(torch.tensor([row]))
        for chunk in prepared.chunks
        for row in range(len(chunk))
    }
    return [single[index] for index in sorted(single)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_forward_prepares_every_layer(architecture: str) -> None:
    network = tiny_network(architecture)
    samples = pass_samples(network)[:9]
    together = prepare_layers(network, samples, network.layers)
    for layer in network.layers:
        alone, moment = prepare_with_answers(network, samples, layer, chunk_size=32)
        found, its_moment = together[layer.path]
        torch.testing.assert_close(its_moment, moment, rtol=1e-3, atol=1e-4)
        for mine, other in zip(by_sample(found), by_sample(alone), strict=True):
            assert mine.before is not None and other.before is not None
            torch.testing.assert_close(mine.before, other.before, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(
                resume(network, mine.trunk).logits, resume(network, other.trunk).logits, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_the_winner_has_the_best_score(architecture: str) -> None:
    network = tiny_network(architecture)
    decision = trial_edits(network, batch_for(network), network.layers[:3], MARGIN, drawn())
    assert [trial.layer for trial in decision.trials] == list(network.layers[:3])
    assert decision.best.score == max(trial.score for trial in decision.trials)
    # Random decoders have no direction that pass inputs leave free, so only the classifier is corrected.
    assert (max(trial.held for trial in decision.trials) > 0.5) is not network.task.generates
    again = trial_edits(network, batch_for(network), network.layers[:3], MARGIN, drawn())
    assert again == decision


def layer_of(block: int) -> Layer:
    path = f"layers.{block}.down"
    return Layer(path=path, stack="layers", block=block, matrix="down", d_in=2, d_out=2, transposed=False)


def test_a_trial_score_is_success_minus_loss() -> None:
    assert Trial(layer_of(0), held=1.0, augmented=0.5, lost=0.25, divergence=9.0).score == 0.5


def test_the_reason_names_the_winner_its_metrics_and_the_others() -> None:
    trials = (
        Trial(layer_of(0), held=0.5, augmented=0.5, lost=0.0, divergence=0.1),
        Trial(layer_of(3), held=1.0, augmented=0.75, lost=0.0123, divergence=0.1),
    )
    reason = Decision(trials, trials[1]).reason
    for part in ("layers.3.down was chosen", "100%", "75%", "1.2%", "layers.0.down 0.500", "of 2 at"):
        assert part in reason
    assert reason.count(". ") == 0 and reason.endswith(".")
    assert "against" not in Decision(trials[:1], trials[0]).reason
