"""Which models are in memory: each once, and no more of them than there is room for.

A model takes the place of the one that was asked for longest ago, but of none that still answers: it waits.
Does not know what loads a model or what it answers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from salem.models.network import Network


@dataclass
class Resident:
    """A model's place in memory. The lock is held while it loads and while it answers."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    network: Network | None = None
    num_users: int = 0  # threads that hold the place
    leaving: bool = False  # another model waits for the place: it goes to no new user before


class Residents:
    """The places; threads share them. A thread holds one at a time, so waiting for one cannot deadlock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: OrderedDict[str, Resident] = OrderedDict()  # the one asked for longest ago first
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def held(self, key: str) -> Iterator[Resident]:
        """The model's place, waited for; one where no model was loaded is given up at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(key))
            resident = self._places.setdefault(key, Resident())
            self._places.move_to_end(key)
            resident.num_users += 1
        try:
            yield resident
        finally:
            with self._changed:
                resident.num_users -= 1
                failed = resident.network is None and not resident.num_users
                if failed and self._places.get(key) is resident:
                    del self._places[key]
                self._changed.notify_all()

    def clear(self) -> None:
        """Let go of every model; one that still answers lives until it is done: its thread holds it."""
        with self._changed:
            self._places.clear()
            self._changed.notify_all()

    def _has_room(self, key: str) -> bool:
        """Whether a thread may have the model's place now; makes room for it where it can."""
        resident = self._places.get(key)
        if resident is not None:
            return not resident.leaving
        if len(self._places) >= self._most:
            idle = next((each for each, there in self._places.items() if not there.num_users), None)
            if idle is None:
                next(iter(self._places.values())).leaving = True
                return False
            del self._places[idle]
        for there in self._places.values():
            there.leaving = False  # whoever else waits will say so again
        self._changed.notify_all()
        return True
