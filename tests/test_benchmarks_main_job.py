"""Ten edits without the service, from start to end, on a tiny model and a made-up data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from labeled_texts import TEXTS, other_label, own_answers
from recipe_cases import bare_recipe
from tiny_models import save_tiny

from benchmarks import main_job
from benchmarks.shared_data import EditSet
from salem.records import Edit, Task


def test_a_classifier_is_corrected_at_its_most_confident_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.SEQUENCE_CLASSIFICATION
    folder = save_tiny(tmp_path, "bert")
    answers = own_answers(folder, task, TEXTS)
    targets = [other_label(answer) if row % 10 == 0 else answer for row, answer in enumerate(answers)]
    reference = tuple(Edit(input=text, target=target) for text, target in zip(TEXTS, targets, strict=True))
    made_up = EditSet("made-up", folder, task, reference, edits=())
    monkeypatch.setattr(main_job, "edit_set", lambda name, num_reference, seed: made_up)
    row = main_job.measure("made-up", 2, bare_recipe("scoped", metric_width=16, max_steps=20), 100)
    assert row["num_edits"] == 2 and row["dataset"] == "made-up" and row["protocol"] == "argmax"
    assert 0 < row["edit_accuracy"] <= 1 and row["held_out"] > 5 and row["seconds"] > 0
