"""The training benchmark on a tiny model: both kinds of step agree, and bounds are checked."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from test_worker_recipes_terms import case

from app.api.schemas import EditsIn, ModelIn
from benchmarks.training import (
    WAYS,
    Factors,
    Steps,
    edit_body,
    holds,
    layer_row,
    model_body,
    split,
    step_figures,
)
from salem.deltas.terms import LowRank
from salem.inference.predict import predict
from salem.records import Edit, Sample
from worker.training.loop import prepare_dataset

OPTIONS = Namespace(rounds=1, steps=3)


def samples() -> list[Sample]:
    batch = case("bert").batch
    return [*batch.edit_samples, *batch.pass_samples]


def steps(block: int) -> Steps:
    of = case("bert")
    layer = of.network.layers[block]
    return Steps(of.network, prepare_dataset(of.network, of.batch.edit_samples, of.batch.pass_samples, layer))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_step_of_the_whole_model_has_the_loss_of_a_step_from_the_block_up(block: int, way: str) -> None:
    both = steps(block)
    draw = torch.Generator().manual_seed(0)
    layer = both.prepared.layer
    term = LowRank(
        torch.randn(8, layer.d_in, generator=draw), torch.randn(layer.d_out, 8, generator=draw) / 10
    )
    own, whole = (float(loss) for loss in (both.suffix(term), both.whole(term, way)))
    assert own == pytest.approx(whole, rel=1e-4)
    still = LowRank(term.a, torch.zeros_like(term.b))
    assert own != pytest.approx(float(both.suffix(still)), rel=1e-2)


def test_losses_of_a_row_agree_and_the_model_stays_frozen() -> None:
    of = case("bert")
    wrong, right = split(of.network, samples())
    row = layer_row(of.network, of.network.layers[1], wrong, right * 3, OPTIONS)
    assert row["max_loss_difference"] <= 1e-4
    assert all(row[f"over_{way}"] > 0 for way in WAYS)
    assert not any(
        weight.requires_grad or weight.grad is not None for weight in of.network.model.parameters()
    )


def test_training_lowers_the_loss() -> None:
    both = steps(1)
    factors = Factors(both.prepared.layer)
    losses = [factors.step(both.suffix) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_samples_are_classified_and_the_most_confident_error_comes_first() -> None:
    of = case("bert")
    wrong, right = split(of.network, samples())
    assert set(wrong) == set(of.batch.edit_samples) and set(right) == set(of.batch.pass_samples)
    scores = [max((answer.scores or {}).values()) for answer in predict(of.network, wrong)]
    assert scores == sorted(scores, reverse=True)


def test_the_headline_leaves_out_the_last_block() -> None:
    curve = [
        {
            "block": block,
            "over_frozen": speed,
            "over_published": 2 * speed,
            "over_ordinary": 3 * speed,
            "max_loss_difference": 1e-6 * block,
        }
        for block, speed in enumerate((1.0, 1.5, 2.0, 9.0))
    ]
    figures = step_figures(curve)
    assert figures["suffix_speedup"] == 2.0 and figures["suffix_speedup_block"] == 2
    assert figures["middle_block"] == {"frozen": 2.0, "published": 4.0, "ordinary": 6.0, "block": 2}
    assert figures["max_loss_difference"] == 3e-6


def test_bounds_are_judged_only_if_they_were_measured() -> None:
    good = {"suffix_speedup": 3.0, "max_loss_difference": 1e-4, "job_s": 20, "second_job_over_first": 0.34}
    assert all(holds(good).values()) and len(holds(good)) == 4
    bad = {"suffix_speedup": 2.9, "max_loss_difference": 2e-4, "job_s": 21, "second_job_over_first": 0.35}
    assert not any(holds(bad).values())
    assert holds({"suffix_speedup": 3.1}) == {"suffix_speedup": True}


def test_a_job_makes_ten_edits_on_the_base() -> None:
    body = edit_body(samples()[:10])
    assert body["model"] == "nli:0" and body["options"]["max_pass_samples"] == 1_800
    assert {"input", "target"} <= set(body["edits"][0])


def test_the_request_bodies_are_valid() -> None:
    samples = [Edit(input="where is my order", text_pair="late", target="refund")] * 2
    hosted = ModelIn.model_validate(model_body("minilm", samples))
    assert hosted.reference is not None and len(hosted.reference) == 1
    assert EditsIn.model_validate(edit_body(samples[:1])).edits[0].target == "refund"
