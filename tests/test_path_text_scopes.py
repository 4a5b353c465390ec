"""Text scopes over HTTP: a paraphrase that the service never saw follows its edit, and neighbors do not.

Everything is real: `salem serve` with the scope encoder, its private Redis, and a worker.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from labeled_texts import other_label, save_labeled
from running_service import Service, running

from app.serving.engine import Engine
from salem.errors import EncoderMissing
from salem.records import ModelReference, Task, TextInput
from salem.scope.encoder_files import load_encoder
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.registry import Registry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary")

QUESTIONS = ("Where was Marie Curie born?", "Who leads Slovakia?")
UNSEEN = ("In which town was Marie Curie born?", "who is the leader of slovakia")
NEIGHBORS = ("When was Marie Curie born?", "Who leads Singapore?", "Translate to German: Who leads Slovakia?")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("t")
    with running(Settings(home=home, scope_encoder="package"), home / "serve.log") as service:
        yield service


def test_an_unseen_paraphrase_follows_its_edit_and_a_neighbor_keeps_the_answer_of_the_base(
    service: Service,
) -> None:
    root = service.settings.effective_models_root
    reference = save_labeled(root, "facts", "bert", Task.SEQUENCE_CLASSIFICATION)
    assert service.register("facts", Task.SEQUENCE_CLASSIFICATION, reference)["state"] == "succeeded"
    before = service.answers("facts", (*QUESTIONS, *UNSEEN, *NEIGHBORS))
    targets = [other_label(label) for label in before[:2]]
    edits = [{"input": text, "target": label} for text, label in zip(QUESTIONS, targets, strict=True)]
    options = {"max_steps": 40, "layer": "bert.encoder.layer.2.output.dense"}
    job = service.edit("facts", edits, options=options)
    assert job["state"] == "succeeded", job["error"]
    (delta,) = service.get("/models/facts/versions/1")["deltas"]
    encoder = load_encoder("package")
    assert encoder is not None and delta["encoder"] == encoder.sha256 and delta["metric"] is None

    asked = {"model": "facts:1", "inputs": [*QUESTIONS, *UNSEEN, *NEIGHBORS], "explain": True}
    found = service.post("/predict", asked)["predictions"]
    assert [each["match"] and each["match"]["edit_id"] for each in found] == ["1.0", "1.1"] * 2 + [None] * 3
    assert [each["output"] for each in found[:2]] == targets
    assert [each["output"] for each in found[4:]] == before[4:]

    removed = service.wait(service.post("/models/facts/versions/1/removals", {"edits": ["1.0"]})["id"])
    assert removed["state"] == "succeeded", removed["error"]
    again = service.post("/predict", asked | {"model": "facts:2"})["predictions"]
    assert [each["match"] and each["match"]["edit_id"] for each in again] == [None, "1.1"] * 2 + [None] * 3
    assert [again[place]["output"] for place in (0, 2)] == [before[0], before[2]]
    assert [again[place]["scores"] for place in (1, 3)] == [found[place]["scores"] for place in (1, 3)]


def test_a_version_is_not_served_without_its_encoder(service: Service) -> None:
    registry = Registry.connect(service.settings.effective_database_url)
    blobs = BlobStore.connect(service.settings.effective_blob_url)
    settings = service.settings.model_copy(update={"scope_encoder": "off", "device": "cpu"})
    engine = Engine(blobs, settings)
    model = registry.get_model("facts")
    asked = [TextInput(input="Who leads Slovakia?")]
    try:
        for number in (1, 2):
            version = registry.resolve(ModelReference(model="facts", number=number))
            with pytest.raises(EncoderMissing) as refused:
                engine.predict(model, version, asked, max_new_tokens=1)
            assert "SALEM_SCOPE_ENCODER" in str(refused.value.remedy)
        base = registry.resolve(ModelReference(model="facts", number=0))
        assert len(engine.predict(model, base, asked, max_new_tokens=1)) == 1
    finally:
        engine.close()
        registry.close()
