"""The memory estimate: above what jobs take, but not far above. A job that cannot fit is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from recipe_cases import bare_recipe

from salem.errors import OverBudget
from worker.recipes.memory import (
    ALLOCATOR,
    Estimate,
    ModelShape,
    TokenCounts,
    Training,
    check_estimate,
    inference_bytes,
    sample_bytes,
    step_bytes,
)
from worker.training.loop import CHUNK

TESTS = Path(__file__).resolve().parent
MIB = 2**20
SHAPE = ModelShape(
    weight_bytes=4_000, number_bytes=4, width=8, inner_width=32, num_blocks=4, num_outputs=3, generates=False
)
WRITER = replace(SHAPE, generates=True, num_outputs=50_000)
OWN, KEPT = TokenCounts((16,) * 4, (1,) * 4), TokenCounts((32,) * 100, (1,) * 100)
TRAINING = Training(OWN, KEPT, blocks_above=1, in_one_pass=4)


def measured(where: str, num_pass: int, num_words: int) -> dict[str, float]:
    command = [sys.executable, "peak_of_training.py", where, str(num_pass), str(num_words)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts resident memory as Linux tells it")
def test_the_estimate_bounds_the_peak_of_a_made_up_model() -> None:
    found = measured("tiny", 300, 30)
    assert found["peak"] <= found["estimate"] <= 2 * found["peak"], found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts resident memory as Linux tells it")
def test_the_estimate_bounds_the_peak_of_a_real_model() -> None:
    folder = Path(os.environ.get("SALEM_SHARED", TESTS.parent.parent / "shared")) / "models" / "minilm-nli"
    if not folder.is_dir():
        pytest.skip("SALEM_SHARED names no folder with models/minilm-nli")
    found = measured(str(folder.resolve()), 200, 25)
    assert found["peak"] <= found["estimate"] <= 2 * found["peak"], found


def test_samples_are_padded_to_the_longest_of_their_chunk() -> None:
    assert KEPT.num_padded == 3_200
    assert TokenCounts((16,) * CHUNK + (160,), (1,) * (CHUNK + 1)).num_padded == CHUNK * 160 + 16
    assert OWN.longest(2).tokens == (16, 16) and (OWN + KEPT).longest(1).tokens == (32,)


def test_more_samples_and_lower_layers_take_more() -> None:
    assert sample_bytes(SHAPE, KEPT) < sample_bytes(SHAPE, KEPT + OWN)
    lower = replace(TRAINING, blocks_above=2)
    assert step_bytes(SHAPE, TRAINING) < step_bytes(SHAPE, lower)
    assert step_bytes(SHAPE, replace(lower, blocks_above=3)) - step_bytes(SHAPE, lower) == step_bytes(
        SHAPE, lower
    ) - step_bytes(SHAPE, TRAINING)
    assert inference_bytes(SHAPE, 300) == 10 * inference_bytes(SHAPE, 30)


def test_a_step_that_can_be_split_holds_one_chunk() -> None:
    many = replace(TRAINING, corrections=TokenCounts((16,) * 1_000, (1,) * 1_000), in_one_pass=1_000)
    assert step_bytes(SHAPE, replace(many, in_one_pass=CHUNK)) < step_bytes(SHAPE, many) / 10


def test_a_generating_model_is_charged_for_its_vocabulary_and_its_cache() -> None:
    answers = TokenCounts(KEPT.tokens, (5,) * 100)
    assert sample_bytes(WRITER, answers) - sample_bytes(SHAPE, answers) > 4 * 49_000 * 500
    assert step_bytes(WRITER, TRAINING) > step_bytes(SHAPE, TRAINING) + 4 * 50_000 * CHUNK
    assert inference_bytes(WRITER, 30) > inference_bytes(SHAPE, 30) + 64 * 30 * 4 * 2 * 4 * 8
    verbose = replace(WRITER, all_logits=True)
    assert sample_bytes(verbose, answers) > 5 * sample_bytes(WRITER, answers)
    assert inference_bytes(verbose, 30) > 5 * inference_bytes(WRITER, 30)


def test_the_memory_of_preparation_depends_on_the_recipe() -> None:
    wide = replace(SHAPE, width=768, inner_width=3_072)
    mend = bare_recipe("mend").preparation_bytes(wide, 4, 100)
    assert mend > 3_072**2 * 8, "eigenvectors in float64"
    ahead = bare_recipe("mend", editor="editor-" + "0" * 20)
    assert ahead.preparation_bytes(wide, 4, 100) < mend / 10
    scoped = bare_recipe("scoped")
    assert scoped.preparation_bytes(wide, 4, 100) < scoped.preparation_bytes(wide, 4, 200)


def test_the_peak_is_the_lasting_memory_plus_the_largest_temporary_part() -> None:
    parts = Estimate(weights=100, samples=900, step=5_000, inference=60, preparation=70, trials=5_900)
    assert parts.num_bytes == round(ALLOCATOR * 6_000)
    assert replace(parts, trials=10_000).num_bytes == round(ALLOCATOR * 10_100)
    assert parts.largest == "trials" and replace(parts, trials=0).largest == "step"


def test_a_job_that_does_not_fit_is_refused_with_numbers_and_advice() -> None:
    needed = Estimate(weights=10 * MIB, samples=500 * MIB)
    check_estimate(needed, needed.num_bytes)
    check_estimate(needed, None)
    with pytest.raises(OverBudget) as refused:
        check_estimate(needed, 300 * MIB)
    assert refused.value.code == "over_budget" and refused.value.status == 422
    for words in ("663 MiB", "500 MiB of it for the samples", "limit is 300 MiB"):
        assert words in refused.value.message
    assert "options.max_pass_samples" in str(refused.value.remedy)


@pytest.mark.parametrize("name", [field.name for field in fields(Estimate)])
def test_every_part_has_its_advice(name: str) -> None:
    parts = dict.fromkeys((field.name for field in fields(Estimate)), 0) | {name: 10}
    with pytest.raises(OverBudget) as refused:
        check_estimate(Estimate(**parts), 1)
    assert refused.value.remedy
