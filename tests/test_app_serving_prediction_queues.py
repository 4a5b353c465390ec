"""Prediction queues: a slow model does not delay others, and a full queue refuses immediately."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from app.serving.prediction_queues import THREADS_PER_MODEL, PredictionQueues
from salem.errors import TooManyRequests


def test_a_slow_model_refuses_what_it_cannot_queue_and_does_not_delay_others() -> None:
    go_on, answered, refused = threading.Event(), [], []

    async def ask(queues: PredictionQueues) -> None:
        try:
            answered.append(await queues.run("slow", lambda: go_on.wait(30)))
        except TooManyRequests as error:
            refused.append(error)

    async def scene() -> float:
        queues = PredictionQueues(max_waiting=6)
        async with anyio.create_task_group() as group:
            for _ in range(THREADS_PER_MODEL + 8):
                group.start_soon(ask, queues)
            await anyio.sleep(0.05)
            began = time.monotonic()
            assert await queues.run("fast", lambda: "answer") == "answer"
            took = time.monotonic() - began
            go_on.set()
        assert len(queues) == 0
        return took

    assert anyio.run(scene) < 5
    assert answered == [True] * (THREADS_PER_MODEL + 6)
    assert len(refused) == 2 and refused[0].status == 429 and refused[0].retry_after_s == 1


def test_a_queue_is_usable_again_after_a_failure() -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    async def scene() -> str:
        queues = PredictionQueues(max_waiting=0)
        for _ in range(2 * THREADS_PER_MODEL):
            with pytest.raises(RuntimeError, match="broken"):
                await queues.run("m", fail)
        return await queues.run("m", lambda: "answer")

    assert anyio.run(scene) == "answer"
