"""The interface between the quality benchmark and a method: what a method gets and what it returns.

Every method gets the same base weights and samples, and answers through the same network. Does not know any
method, any data set, or how answers are judged.
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
    """A network that a method has edited."""

    @property
    def layer(self) -> str | None:
        """Path of the edited layer, if there is exactly one."""

    @property
    def delta_bytes(self) -> int:
        """The size of what must be stored, in bytes of float32."""

    def answering(
        self, inputs: Sequence[TextInput], batch: Batch | None = None
    ) -> AbstractContextManager[None]:
        """While active, `network.model` answers these inputs as edited; the base is untouched afterwards.

        `batch` holds the inputs with their targets, unless the targets are generated.

        The inputs are one padded batch in this order, for a plain forward pass or for generation with a
        cache. Sort them with `in_buckets` before you call `salem.inference.predict.predict`.
        """


@dataclass(frozen=True)
class Ahead:
    """What does not depend on the edits: the first editing of a row computes it, and the others reuse it.

    Jobs of one hosted model do the same. Without it, twenty single edits would prepare the same data twenty
    times.
    """

    cache: SampleCache | None = None  # activations of pass samples in the base model
    made: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """The value stored under a name; makes it if it is missing. Callers must not change it."""
        if name not in self.made:
            self.made[name] = make()
        found: Made = self.made[name]
        return found


@dataclass(frozen=True)
class Editing:
    """The input of a method. When a method returns, the weights must be bit-identical to before."""

    network: Network
    batch: EditBatch  # methods read only the edit, adapt, and pass samples
    corpus: tuple[Edit, ...]  # other edits of the same kind that are never measured; may be empty
    seed: int
    setting: float  # the one searched hyperparameter, from the method's grid
    before: Edited | None = None  # the result of earlier batches, to which this one is added
    ahead: Ahead = field(default_factory=Ahead)

    @property
    def cache(self) -> SampleCache | None:
        """The cache of pass samples, as long as the network still answers as its base."""
        return None if self.before else self.ahead.cache


@dataclass(frozen=True)
class Method:
    """A method under test, with its one searched hyperparameter and at least three values for it."""

    name: str
    setting_name: str
    grid: tuple[float, ...]  # the search prefers the first of equally good values
    largest: int  # the most edits that it is measured with
    edit: Callable[[Editing], Edited]
    source: str  # paper and section
    sequential: bool = False  # whether it accepts `before`
    num_seeds: int = 1  # it is measured with the seeds from 0
    fresh: bool = False  # whether it is also measured on draws that no default was chosen on
