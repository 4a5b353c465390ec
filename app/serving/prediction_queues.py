"""Prediction queues: one bounded queue per model, so that a slow model delays only its own callers.

Each model has threads of its own. If its queue is full, a request is refused at once, and the client learns
when to try again. Must not know HTTP, or what a prediction is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import anyio.to_thread

from salem.errors import TooManyRequests

Result = TypeVar("Result")
THREADS_PER_MODEL = 2  # one answers while the other reads a version or counts tokens


@dataclass
class _Queue:
    limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(THREADS_PER_MODEL))
    num_requests: int = 0  # running or waiting


class PredictionQueues:
    """Runs blocking calls in threads. Belongs to one event loop."""

    def __init__(self, max_waiting: int) -> None:
        self._max_requests = THREADS_PER_MODEL + max_waiting
        self._queues: dict[str, _Queue] = {}

    def __len__(self) -> int:
        return len(self._queues)

    async def run(self, model: str, call: Callable[[], Result]) -> Result:
        """Wait for a thread of the model, and run `call` in it.

        Raises:
            TooManyRequests: the model's queue is full.
        """
        queue = self._queues.setdefault(model, _Queue())
        if queue.num_requests >= self._max_requests:
            raise TooManyRequests(
                f"{queue.num_requests} predictions of this model are running or waiting",
                remedy="Try again later, or send several inputs in one request",
            )
        queue.num_requests += 1
        try:
            return await anyio.to_thread.run_sync(call, limiter=queue.limiter)
        finally:
            queue.num_requests -= 1
            if not queue.num_requests:
                del self._queues[model]
