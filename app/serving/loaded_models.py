"""Loaded models: each hosted model is in memory once, and no more models than there is room for.

A new model takes the place of the one used longest ago. It never takes the place of a model that still
answers: it waits. Must not know what loads a model or what it answers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from salem.models.network import Network


@dataclass
class LoadedModel:
    """A model's place in memory. Hold the lock while it loads and while it answers."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    network: Network | None = None
    num_users: int = 0  # threads that use the place
    leaving: bool = False  # another model waits for this place, so it takes no new users before that


class LoadedModels:
    """The places. Threads share them; a thread uses one at a time, so waiting for one cannot deadlock."""

    def __init__(self, max_models: int) -> None:
        self._max_models = max_models
        self._places: OrderedDict[str, LoadedModel] = OrderedDict()  # the one used longest ago first
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def use(self, key: str) -> Iterator[LoadedModel]:
        """Wait for the model's place and use it. If no model was loaded, the place is given up at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(key))
            place = self._places.setdefault(key, LoadedModel())
            self._places.move_to_end(key)
            place.num_users += 1
        try:
            yield place
        finally:
            with self._changed:
                place.num_users -= 1
                failed = place.network is None and not place.num_users
                if failed and self._places.get(key) is place:
                    del self._places[key]
                self._changed.notify_all()

    def clear(self) -> None:
        """Drop every model. One that still answers lives until it is done, because its thread holds it."""
        with self._changed:
            self._places.clear()
            self._changed.notify_all()

    def _has_room(self, key: str) -> bool:
        """Whether a thread may use the model's place now; makes room for it if possible."""
        place = self._places.get(key)
        if place is not None:
            return not place.leaving
        if len(self._places) >= self._max_models:
            idle = next((each for each, there in self._places.items() if not there.num_users), None)
            if idle is None:
                next(iter(self._places.values())).leaving = True
                return False
            del self._places[idle]
        for there in self._places.values():
            there.leaving = False  # other waiting threads will set it again
        self._changed.notify_all()
        return True
