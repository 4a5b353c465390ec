"""The ablation: its lines are valid options of a job, and its table says what was run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_worker_training_ridge import pass_samples, wrong_samples
from tiny_models import save_tiny, tiny_network

from benchmarks import ablation
from benchmarks.ablation import LINES, ablated, ablation_report, put
from benchmarks.quality.data import Material
from benchmarks.quality.facts import Correction
from benchmarks.quality.jobs import Sizes
from salem.records import Edit, EditBatch
from worker.recipes.scoped.recipe import ScopedRecipe


def test_every_line_differs_from_the_default_in_options_or_training_data() -> None:
    empty = EditBatch(
        edit_samples=(),
        adapt_samples=(),
        pass_samples=tuple(pass_samples(tiny_network("bert"))) * 40,
        held_out_paraphrases=(),
        held_out_pass_samples=(),
        equivalents=((Edit(input="a", target="b"), Edit(input="c", target="b")),),
    )
    for name, line in LINES.items():
        changed = line.recipe.Options.model_validate(line.options) != line.recipe.Options()
        other = changed or line.recipe is not ScopedRecipe or line.reduce(empty) != empty
        assert other == (name != "the default recipe"), name


def test_a_row_replaces_an_earlier_row_of_the_same_line(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    named = {"dataset": "nli", "num_edits": 10, "seed": 0}
    for line, drawdown in (("mend", 0.2), ("the default recipe", 0.1), ("mend", 0.3)):
        put({"line": line, **named, "drawdown": drawdown}, path)
    put({"line": "mend", **named, "seed": 1, "drawdown": 0.4}, path)
    found = [(row["line"], row["seed"], row["drawdown"]) for row in json.loads(path.read_text())]
    assert found == [("the default recipe", 0, 0.1), ("mend", 0, 0.3), ("mend", 1, 0.4)]
    assert [file.name for file in tmp_path.iterdir()] == ["ablation.json"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """Data for a tiny model, under the name of every data set."""
    network = tiny_network("bert")
    corrections = tuple(
        Correction(edit=Edit(**sample.model_dump()), held_out_paraphrases=(sample,))
        for sample in wrong_samples(network)
    )
    found = Material(
        name="some", task=network.task, folder=str(save_tiny(tmp_path / "model", "bert")), model_sha256="",
        paraphrase_source="rules", perplexity=False, corrections=corrections, num_hard=len(corrections),
        kept=tuple(pass_samples(network)),
    )  # fmt: skip
    monkeypatch.setattr(ablation, "material", lambda name, limit: found)
    return Sizes(held_out=6, validation_held_out=2, pass_samples=10)


@pytest.mark.parametrize("name", ["the default recipe", "ridge"])
def test_a_line_is_edited_and_measured(name: str, small: Sizes) -> None:
    row = ablated(name, "nli", 2, 0, small)
    assert 0 <= row["edit_accuracy"] <= 1 and -1 <= row["drawdown"] <= 1
    assert row["delta_bytes"] > 0 and row["neighborhood"] is None
    text = ablation_report(
        [row, {"line": "mend", "dataset": "nli", "error": "It failed.", "num_edits": 2, "seed": 0}]
    )
    assert f"| {name} | {row['edit_accuracy']:.3f} |" in text
    assert "| mend | It failed. |" in text and "| paper | not run |" in text
