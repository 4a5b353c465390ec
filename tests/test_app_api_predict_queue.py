"""POST /predict when a model is slow: its queue is bounded, and other models answer as usual."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from api_service import Stage, serving

from app.serving.engine import Engine
from app.serving.prediction_queues import THREADS_PER_MODEL
from salem.records import HostedModel
from salem.settings import Settings
from salem.storage.registry import Registry


def test_a_slow_model_refuses_what_it_cannot_queue_and_does_not_delay_others(
    settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage.of(settings, registry)
    stage.host("slow", "bert")
    stage.host("fast", "bert")
    go_on, started = threading.Event(), threading.Semaphore(0)
    released: list[bool] = []
    predict = Engine.predict

    def waiting(self: Engine, model: HostedModel, *given: Any, **options: Any) -> Any:
        if model.name == "slow":
            started.release()
            released.append(go_on.wait(60))
        return predict(self, model, *given, **options)

    monkeypatch.setattr(Engine, "predict", waiting)
    with serving(settings.model_copy(update={"max_queued_predictions": 0})) as client:

        def ask(name: str) -> Any:
            return client.post("/predict", json={"model": name, "inputs": [{"input": "where is my order"}]})

        with ThreadPoolExecutor(THREADS_PER_MODEL) as pool:
            asked = [pool.submit(ask, "slow") for _ in range(THREADS_PER_MODEL)]
            for _ in asked:
                assert started.acquire(timeout=60)
            refused, answered = ask("slow"), ask("fast")
            go_on.set()
            assert [future.result().status_code for future in asked] == [200] * THREADS_PER_MODEL
    assert released == [True] * THREADS_PER_MODEL
    assert refused.status_code == 429 and refused.json()["code"] == "too_many_requests"
    assert refused.headers["Retry-After"] == "1"
    assert answered.status_code == 200
