"""One unit of the quality benchmark, run with a crude method: at once, one by one, and in sequence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import LABELS, build_network, save_tiny

from benchmarks.baselines.interface import Editing, Method
from benchmarks.quality import unit_run
from benchmarks.quality.data import Material
from benchmarks.quality.facts import Correction
from benchmarks.quality.jobs import Sizes, draw_job
from benchmarks.quality.unit_run import SINGLE_EDITS, SLICE, Work, run_apart, run_job
from benchmarks.quality.units import Unit, units_of
from salem.models.batching import Batch
from salem.models.network import Network
from salem.records import Edit, Sample, Task, TextInput

UNIT = Unit("measure", "tiny", "0" * 64, "shove", 10, 0, 0.5)
SIZES = Sizes(held_out=30, validation_held_out=10, pass_samples=40)


@dataclass(frozen=True)
class Shoved:
    """A classifier that gives all inputs the label of the last edit."""

    network: Network
    label: int
    num_batches: int
    layer: str | None = "classifier"

    @property
    def delta_bytes(self) -> int:
        return 4 * self.num_batches

    @contextmanager
    def answering(self, inputs: Sequence[TextInput], batch: Batch | None = None) -> Iterator[None]:
        def shove(module: Any, args: Any, output: Any) -> Any:
            output.logits = output.logits.clone()
            output.logits[:, self.label] = 1e4
            return output

        handle = self.network.model.register_forward_hook(shove)
        try:
            yield
        finally:
            handle.remove()


def shove(editing: Editing) -> Shoved:
    label = editing.network.labels.index(editing.batch.edit_samples[-1].target)
    before = editing.before
    return Shoved(editing.network, label, 1 + (before.num_batches if isinstance(before, Shoved) else 0))


def fail(editing: Editing) -> Shoved:
    raise RuntimeError("no such luck")


def vanish(editing: Editing) -> Shoved:
    os._exit(3)


def use(monkeypatch: pytest.MonkeyPatch, edit: Any) -> None:
    made = Method("shove", "rate", (0.1, 0.5, 0.9), 1_000, edit, "here", True)
    monkeypatch.setattr(unit_run, "method", {"shove": made}.__getitem__)


def tiny_material(folder: Path, num_corrections: int = 60) -> Material:
    """Every edit's target is the first label; every pass sample has the second."""
    return Material(
        name="tiny",
        task=Task.SEQUENCE_CLASSIFICATION,
        folder=str(folder),
        model_sha256="0" * 64,
        paraphrase_source="rules",
        perplexity=False,
        corrections=tuple(
            Correction(edit=Edit(input=f"parcel {n}", target=LABELS[0], paraphrases=(f"a parcel {n}",)))
            for n in range(num_corrections)
        ),
        num_hard=num_corrections,
        kept=tuple(Sample(input=f"order {n}", target=LABELS[1]) for n in range(100)),
    )


def test_edits_made_at_once_are_measured_on_all_held_out_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, shove)
    job = draw_job(tiny_material(Path()), 10, 0, SIZES)
    found = run_job(build_network("bert"), job, UNIT, tmp_path)
    assert found.outcomes.edits == [True] * 10
    assert found.outcomes.kept == [False] * 30
    assert found.delta_bytes == 4
    assert found.peak_bytes > 10**7


def test_single_edits_see_one_edit_each_and_share_the_held_out_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Editing] = []

    def spy(editing: Editing) -> Shoved:
        given.append(editing)
        return shove(editing)

    use(monkeypatch, spy)
    job = draw_job(tiny_material(Path()), SINGLE_EDITS, 0, SIZES)
    found = run_job(build_network("bert"), job, replace(UNIT, num_edits=1), tmp_path)
    assert [len(editing.batch.edit_samples) for editing in given] == [1] * SINGLE_EDITS
    assert [len(editing.batch.adapt_samples) for editing in given] == [1] * SINGLE_EDITS
    assert all(editing.before is None for editing in given)
    assert all(editing.shared_work is given[0].shared_work and editing.cache is not None for editing in given)
    assert len(found.outcomes.edits) == SINGLE_EDITS
    assert len(found.outcomes.kept) == SINGLE_EDITS * round(SLICE * 30)


def test_each_batch_of_a_sequence_builds_on_the_last_and_measures_all_edits_so_far(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, shove)
    monkeypatch.setattr(unit_run, "SEQUENTIAL_BATCH", 5)
    job = draw_job(tiny_material(Path()), 15, 0, SIZES)
    found = run_job(build_network("bert"), job, replace(UNIT, num_edits=1_000), tmp_path)
    assert [point["num_edits"] for point in found.curve] == [5, 10, 15]
    assert found.curve[-1]["edit_accuracy"] == 1.0 and found.curve[-1]["drawdown"] == 1.0
    assert len(found.outcomes.edits) == 15
    assert found.delta_bytes == 12


def row_of(edit: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """The row of one unit, run in its own process."""
    use(monkeypatch, edit)
    save_tiny(folder, "bert")
    made = tiny_material(folder)
    monkeypatch.setattr(unit_run, "material", lambda name, limit: made)
    row = run_apart(Work(UNIT, SIZES, None))
    assert units_of([row]) == {UNIT} and row["unit_seconds"] > 0
    return row


def test_a_unit_makes_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = row_of(shove, monkeypatch, tmp_path)
    assert row["edit_accuracy"] == 1.0 and row["drawdown"] == 1.0 and "generalization" not in row
    assert row["held_out"] == 30 and row["counts"]["edits"] == [10, 10] and "error" not in row


@pytest.mark.parametrize(
    ("edit", "error"),
    [(fail, "RuntimeError: no such luck"), (vanish, "ended without a result (exit code 3)")],
)
def test_a_unit_that_fails_makes_a_row_with_the_error(
    edit: Any, error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = row_of(edit, monkeypatch, tmp_path)
    assert error in row["error"]
    assert "edit_accuracy" not in row and "counts" not in row


def test_a_unit_does_not_change_the_threads_of_its_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, fail)
    monkeypatch.setattr(unit_run, "material", lambda name, limit: tiny_material(tmp_path))
    before = torch.get_num_threads()
    run_apart(Work(UNIT, SIZES, None))
    assert torch.get_num_threads() == before
