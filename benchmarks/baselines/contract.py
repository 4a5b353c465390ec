"""The contract between the quality benchmark and a method: what an editing is given and what it hands back.

Every method sees the same base weights and the same samples, and answers through the same network. Does not
know any method, any data set, or how an answer is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from salem.models.batching import Batch
from salem.models.network import Network
from salem.records import Edit, EditBatch, TextInput
from worker.activations.cache import SampleCache

Made = TypeVar("Made")


class Edited(Protocol):
    """A network as one method has edited it."""

    @property
    def layer(self) -> str | None:
        """Path of the edited layer, where there is one."""

    @property
    def delta_bytes(self) -> int:
        """What has to be kept of it, in bytes of float32."""

    def answering(
        self, inputs: Sequence[TextInput], batch: Batch | None = None
    ) -> AbstractContextManager[None]:
        """While active, `network.model` answers these inputs as edited; the base is untouched afterwards.

        `batch` holds them with their targets, where those are given and not generated.

        The inputs are one padded batch in this order, for a plain forward or for generation with a cache:
        a caller of `salem.inference.predict.predict` sorts them first with `in_buckets`.
        """


@dataclass(frozen=True)
class Ahead:
    """What does not depend on the edits: the first editing of a row makes it, and the others find it.

    So it is with jobs of one hosted model, and twenty single edits need not be prepared twenty times.
    """

    cache: SampleCache | None = None  # of the base, for what is computed from pass samples
    made: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What was made under that name, or is made now; nobody may change it afterwards."""
        if name not in self.made:
            self.made[name] = make()
        found: Made = self.made[name]
        return found


@dataclass(frozen=True)
class Editing:
    """What a method is given. A method leaves the weights bit-identical when it returns."""

    network: Network
    batch: EditBatch  # only its training side is read: edit, adapt and pass samples
    corpus: tuple[Edit, ...]  # other edits of the same kind, none of them measured; may be empty
    seed: int
    setting: float  # the one searched hyperparameter, from the method's grid
    before: Edited | None = None  # the result of earlier batches, which this one is added to
    ahead: Ahead = field(default_factory=Ahead)

    @property
    def cache(self) -> SampleCache | None:
        """What is known of pass samples, where the network still answers as its base."""
        return None if self.before else self.ahead.cache


@dataclass(frozen=True)
class Method:
    """A method under test, with the one hyperparameter that is searched for it, over three values or more."""

    name: str
    setting_name: str
    grid: tuple[float, ...]  # of equals the search takes the first
    largest: int  # the most edits at once that it is run with
    edit: Callable[[Editing], Edited]
    source: str  # paper and section
    sequential: bool = False  # whether it accepts `before`
    num_seeds: int = 1  # it is measured with, from 0: seeds are cut before methods
    fresh: bool = False  # whether it is measured on draws that no default was chosen on, too
