"""The estimate of a job's memory against what jobs take, and the refusal of what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from recipe_cases import bare_recipe
from tiny_models import tiny_network

from salem.errors import OverBudget
from worker.recipes.memory import (
    Estimate,
    Lengths,
    ModelShape,
    check_estimate,
    estimate,
    shape_of,
    trial_bytes,
)
from worker.selection.saliency import BATCH

TESTS = Path(__file__).resolve().parent
SHAPE = ModelShape(
    num_parameters=1_000, num_blocks=4, width=8, inner_width=32, num_classes=3, generates=False
)
LENGTHS = Lengths(corrections=[10] * 4, pass_samples=[20] * 100, held_out=[30] * 50)


def measured(where: str, num_pass: int, num_words: int) -> dict[str, float]:
    command = [sys.executable, "peak_of_training.py", where, str(num_pass), str(num_words)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return found


def assert_near(found: dict[str, float]) -> None:
    assert 1 / 1.5 <= found["peak"] / found["estimate"] <= 1.5, found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts resident memory as Linux tells it")
def test_the_estimate_is_near_the_peak_of_a_made_up_model() -> None:
    assert_near(measured("tiny", 300, 30))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts resident memory as Linux tells it")
def test_the_estimate_is_near_the_peak_of_a_real_model() -> None:
    folder = Path(os.environ.get("SALEM_SHARED", TESTS.parent.parent / "shared")) / "models" / "minilm-nli"
    if not folder.is_dir():
        pytest.skip("SALEM_SHARED names no folder with models/minilm-nli")
    assert_near(measured(str(folder.resolve()), 200, 25))


def part(
    name: str, *, lengths: Lengths = LENGTHS, shape: ModelShape = SHAPE, block: int = 2, n: int = 100
) -> int:
    return int(getattr(estimate(shape, lengths, 0, lowest_block=block, num_trained_on=n), name))


def test_parts_grow_with_what_they_depend_on() -> None:
    assert part("trunks") == 4 * 8 * (4 * 16 + 100 * 32)  # lengths are padded to multiples of 16
    assert part("trunks", n=50) == 4 * 8 * (4 * 16 + 50 * 32)
    assert part("answers") == 4 * 3 * 104
    assert part("weights", shape=replace(SHAPE, bytes_per_weight=2)) == 2_000
    lowest, next_one, third = (part("step", block=block) for block in range(3))
    assert lowest - next_one == next_one - third > third / 2
    longer = replace(LENGTHS, held_out=[30] * 49 + [300])
    assert part("inference", lengths=longer) == 304 / 32 * part("inference")
    assert part("trunks", lengths=longer) == part("trunks") and part("step", lengths=longer) == part("step")


def test_a_step_holds_every_correction_at_the_length_of_its_chunk() -> None:
    per_token = 4 * (8 * 8 + 2 * 32 + 2 * 8)  # one block above that of the matrix
    assert part("step") == per_token * (4 * 16 + 32 * 32)
    many = replace(LENGTHS, corrections=[*[90] * 32, *[10] * 32])
    assert part("step", lengths=many) == per_token * (32 * 96 + 32 * 16 + 32 * 32)


def test_choosing_the_layer_takes_its_backward_through_all_blocks() -> None:
    many = replace(LENGTHS, corrections=[90] * 100)
    own = 4 * 2 * 8 * 32 * 96  # of the highest block's own step: what enters and leaves the matrix
    assert part("step", lengths=many, block=3, n=0) == 4 * 4 * (8 * 8 + 2 * 32) * BATCH * 96 > own


def test_a_step_that_can_be_cut_holds_one_chunk() -> None:
    many = replace(LENGTHS, corrections=[10] * 1_000)
    whole, cut = (
        estimate(SHAPE, many, 0, lowest_block=2, num_trained_on=100, cuts_steps=cuts)
        for cuts in (False, True)
    )
    assert cut.step == 4 * (8 * 8 + 2 * 32 + 2 * 8) * 32 * 32 < whole.step / 16
    assert replace(cut, step=whole.step) == whole


def test_states_are_as_wide_as_weights() -> None:
    halved = replace(SHAPE, bytes_per_weight=2)
    for name in ("weights", "trunks", "block", "step", "inference"):
        assert 2 * part(name, shape=halved) == part(name)
    assert part("answers", shape=halved) == part("answers")


def test_a_generating_model_is_charged_for_its_vocabulary() -> None:
    writer = replace(SHAPE, generates=True, num_classes=50_000)
    assert part("step", shape=writer) > part("step") + 4 * 50_000 * 32
    assert part("answers", shape=writer) > 100 * part("answers")


def test_a_model_that_writes_keeps_keys_and_values_of_every_block() -> None:
    """Of whatever size a vocabulary is: an answer is as long as its sample here."""
    verbose = replace(SHAPE, generates=True, answers_alone=False)
    cached = part("inference", shape=verbose) - part("inference") - 4 * 3 * 64 * 32
    assert cached == 4 * 64 * 32 * 2 * 4 * 8
    halved = replace(verbose, num_blocks=2)
    assert part("inference", shape=verbose) - part("inference", shape=halved) == cached / 2


def test_trial_edits_keep_answers_and_a_trunk_at_every_layer() -> None:
    few, more = (trial_bytes(SHAPE, LENGTHS, num_layers=number) for number in (2, 3))
    trunks = 4 * 8 * (2 * 4 * 16 + 100 * 32)
    assert more - few == trunks + 4 * 32 * 32 * 32 + 4 * 4 * 32**2  # inputs of one batch; a moment per part
    assert trial_bytes(replace(SHAPE, num_classes=4), LENGTHS, num_layers=2) - few == 4 * 108
    writer = replace(SHAPE, generates=True, num_classes=50_000)
    assert trial_bytes(writer, LENGTHS, num_layers=2) > few + 4 * 50_000 * 100
    found = estimate(SHAPE, LENGTHS, 0, lowest_block=2, num_trained_on=100)
    assert replace(found, trials=1).num_bytes == found.num_bytes < replace(found, trials=10**9).num_bytes


def test_only_answers_have_logits_where_a_model_can_be_told() -> None:
    writer = replace(SHAPE, generates=True, num_classes=50_000)
    verbose = replace(writer, answers_alone=False)
    lengths = replace(LENGTHS, answer_share=0.25, longest_answer=4)
    for name in ("step", "inference"):
        assert part(name, lengths=lengths, shape=verbose) > 1.5 * part(name, lengths=lengths, shape=writer)
    assert part("answers", lengths=lengths, shape=writer) == part("answers", lengths=lengths, shape=verbose)
    assert 2 * part("answers", lengths=lengths, shape=writer) == part("answers", shape=writer)


def test_the_recipe_decides_what_preparation_takes() -> None:
    wide = replace(SHAPE, width=768, inner_width=3_072)
    scoped, mend = (bare_recipe(name).preparation_bytes(wide, LENGTHS) for name in ("scoped", "mend"))
    num_own = len(LENGTHS.corrections)
    tables = 100 * num_own + (3 * num_own + 2 * 100) ** 2
    assert scoped == 4 * ((100 + num_own) * 5 * 768 * 5 + 6 * tables)
    assert mend > 3_072**2 * 8


def test_the_peak_is_what_lasts_and_the_largest_of_what_does_not() -> None:
    parts = Estimate(
        weights=100, trunks=200, answers=300, block=400, step=5_000, inference=60, preparation=70
    )
    assert parts.num_bytes == round(1.15 * 6_000)
    assert parts.largest == "step"


def test_shapes_are_read_off_the_layers() -> None:
    for architecture in ("bert", "t5", "gpt2", "llama"):
        network = tiny_network(architecture)
        shape = shape_of(network.layers, 7, 4, generates=network.task.generates)
        blocks = 2 if architecture == "t5" else 3
        assert (shape.num_blocks, shape.width, shape.inner_width) == (blocks, 16, 24)


def test_a_job_that_does_not_fit_is_refused_with_numbers_and_advice() -> None:
    mib = 2**20
    needed = Estimate(
        weights=10 * mib, trunks=500 * mib, answers=0, block=0, step=0, inference=0, preparation=0
    )
    check_estimate(needed, needed.num_bytes)
    with pytest.raises(OverBudget) as refused:
        check_estimate(needed, 300 * mib)
    assert refused.value.code == "over_budget" and refused.value.status == 422
    for words in ("586 MiB", "500 MiB of it for the samples' states", "may take 300 MiB"):
        assert words in refused.value.message
    assert "options.max_pass_samples" in str(refused.value.remedy)


@pytest.mark.parametrize(
    "name", ["weights", "trunks", "answers", "block", "step", "inference", "preparation"]
)
def test_every_part_has_its_advice(name: str) -> None:
    parts = dict.fromkeys(vars(Estimate(0, 0, 0, 0, 0, 0, 0)), 0) | {name: 10}
    with pytest.raises(OverBudget) as refused:
        check_estimate(Estimate(**parts), 1)
    assert refused.value.remedy
