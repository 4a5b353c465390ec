"""The memory estimate: above what jobs take, but not far above. A job that cannot fit is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from salem.errors import OverBudget
from worker.recipes.memory import ALLOCATOR, Estimate, check_estimate

TESTS = Path(__file__).resolve().parent
MODELS = Path(os.environ.get("SALEM_SHARED", TESTS.parent.parent / "shared")).resolve() / "models"
MIB = 2**20

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="counts resident memory as Linux tells it"
)


def measured(recipe: str, task: str, where: str, num_pass: int, num_words: int) -> dict[str, float]:
    """The estimate and the peak of one edit in a process of its own."""
    arguments = [recipe, task, where, str(num_pass), str(num_words)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, "peak_of_training.py", *arguments],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_estimate_bounds_the_peak_of_a_made_up_model() -> None:
    found = measured("scoped", "sequence-classification", "tiny", 300, 30)
    assert found["peak"] <= found["estimate"] <= 3 * found["peak"], found


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["scoped", "mend"])
@pytest.mark.parametrize(
    ("name", "task"),
    [("minilm-nli", "sequence-classification"), ("gpt-facts", "text-generation")],
)
def test_the_estimate_bounds_the_peak_of_a_real_model(name: str, task: str, recipe: str) -> None:
    if not (MODELS / name).is_dir():
        pytest.skip(f"SALEM_SHARED names no folder with models/{name}")
    found = measured(recipe, task, str(MODELS / name), 200, 12)
    assert found["peak"] <= found["estimate"] <= 3 * found["peak"], found


def test_the_peak_is_the_lasting_memory_plus_the_largest_temporary_part() -> None:
    parts = Estimate(weights=100, samples=900, step=5_000, inference=60, preparation=70, trials=5_900)
    assert parts.num_bytes == round(ALLOCATOR * 6_900)
    assert replace(parts, trials=0).num_bytes == round(ALLOCATOR * 6_000)
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
