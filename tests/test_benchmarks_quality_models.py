"""Models that the quality benchmark trains: once, and again if the recipe or samples change."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny, tiny_model

from benchmarks.quality import models
from benchmarks.quality.measures import forced
from benchmarks.quality.models import ClassifierRecipe, WriterRecipe, classifier_folder, writer_folder
from salem.inference.predict import predict
from salem.models.batching import encode
from salem.models.folders import weights_sha256
from salem.models.loading import load
from salem.records import Sample, Task

PORTABLY = models.portably
WRITER = WriterRecipe(vocabulary=300, width=16, blocks=2, heads=2, window=16, epochs=2, batch=4)
TEXT = "\n".join(["the parcel is at the door and the order is on its way to the door"] * 60)
CLASSIFIER = ClassifierRecipe(epochs=12, batch=8, learning_rate=1e-2, frozen_blocks=1)
SAMPLES = [
    Sample(input=f"{text} {end}", target=label)
    for text, label in (("where is my order", "delivery"), ("i want my money back", "refund"))
    for end in ("now", "today", "please", "and", "in", "at", "the", "my")
]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(models, "portably", lambda make, folder: make(folder))
    torch.set_num_threads(1)


def test_a_generating_model_learns_its_text_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = writer_folder("text", TEXT, WRITER)
    network = load(folder, Task.TEXT_GENERATION, device="cpu")
    sample = Sample(input="the parcel is", target="at the door")
    found = forced(network, lambda inputs, batch=None: torch.no_grad(), [sample])[0]
    assert found.nll / found.num_text_tokens < math.log(network.model.config.vocab_size) - 1
    assert encode(network, [sample]).targets.max() < 300

    def refuse(*arguments: object) -> None:
        raise AssertionError("it is there already")

    monkeypatch.setattr(models, "_train_writer", refuse)
    assert writer_folder("text", TEXT, WRITER) == folder
    with pytest.raises(AssertionError, match="there already"):
        writer_folder("text", TEXT, replace(WRITER, epochs=1))


def test_a_classifier_learns_its_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "bert")
    tiny_model("bert").base_model.save_pretrained(base)  # a bare encoder: the head is new
    monkeypatch.setattr(models, "base_model", lambda: str(base))
    folder = classifier_folder("desk", SAMPLES, CLASSIFIER)
    network = load(folder, Task.SEQUENCE_CLASSIFICATION, device="cpu")
    answers = predict(network, SAMPLES)
    right = sum(a.output == s.target for a, s in zip(answers, SAMPLES, strict=True))
    assert network.labels == ("delivery", "refund")
    assert right >= len(SAMPLES) - 1
    assert classifier_folder("desk", SAMPLES[1:], CLASSIFIER) != folder


def test_the_same_recipe_makes_the_same_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "portably", PORTABLY)
    first = weights_sha256(writer_folder("text", TEXT, WRITER))
    monkeypatch.setattr(models, "CACHE", tmp_path / "elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert weights_sha256(writer_folder("text", TEXT, WRITER)) == first


def test_training_uses_only_portable_cpu_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    PORTABLY(_told, tmp_path / "told")
    threads, *instructions = (tmp_path / "told").read_text().split()
    assert threads == "1"
    assert instructions == ["avx2", "COMPATIBLE", "AVX2"]
    assert "MKL_CBWR" not in os.environ


def _told(path: Path) -> None:
    named = [os.environ[name] for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")]
    path.write_text(f"{torch.get_num_threads()} {' '.join(named)}")


def test_a_folder_appears_only_when_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*arguments: object) -> None:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patched:
        patched.setattr(models, "_train_writer", break_off)
        with pytest.raises(RuntimeError):
            writer_folder("text", TEXT, WRITER)
    assert (writer_folder("text", TEXT, WRITER) / "model.safetensors").is_file()
