"""The interface between the quality benchmark and a method: what a method gets and what it returns.

Every method gets the same base weights and samples, and answers through the same network. Must not know
specific methods, data sets, or how answers are scored.
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

Result = TypeVar("Result")


class EditedNetwork(Protocol):
    """A network that a method has edited."""

    @property
    def layer(self) -> str | None:
        """Path of the edited layer, if there is exactly one."""

    @property
    def delta_bytes(self) -> int:
        """Bytes to store, with all tensors as float32."""

    def answering(
        self, inputs: Sequence[TextInput], batch: Batch | None = None
    ) -> AbstractContextManager[None]:
        """While active, `network.model` answers these inputs as edited; the base is untouched afterward.

        `batch` holds the encoded inputs with their targets under teacher forcing; otherwise it is None.

        The inputs form one padded batch in this order, for a forward pass or for generation with a cache.
        Sort them with `in_buckets` before you call `salem.inference.predict.predict`.
        """


@dataclass(frozen=True)
class SharedWork:
    """Work that does not depend on the edits. The first editing of a row does it; others reuse it.

    Jobs of one hosted model do the same. Without it, twenty single edits would prepare the same data twenty
    times.
    """

    cache: SampleCache | None = None  # base-model activations of pass samples
    results: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Result]) -> Result:
        """The result stored under this name; calls `make` if there is none. Callers must not change it."""
        if name not in self.results:
            self.results[name] = make()
        result: Result = self.results[name]
        return result


@dataclass(frozen=True)
class Editing:
    """The input of a method. When the method returns, the base weights must be bit-identical to before."""

    network: Network
    batch: EditBatch  # without held-out samples
    corpus: tuple[Edit, ...]  # other edits of the same kind, never measured; may be empty
    seed: int
    setting: float  # the value of the searched hyperparameter, from the method's grid
    before: EditedNetwork | None = None  # the result of earlier batches, which this one extends
    shared_work: SharedWork = field(default_factory=SharedWork)

    @property
    def cache(self) -> SampleCache | None:
        """The cache of base-model activations; None if earlier batches have changed the network."""
        return None if self.before else self.shared_work.cache


@dataclass(frozen=True)
class Method:
    """A method under test, with its one searched hyperparameter and at least three values to try."""

    name: str
    setting_name: str
    grid: tuple[float, ...]  # of equally good values, the search takes the first
    largest: int  # the largest number of edits to measure
    edit: Callable[[Editing], EditedNetwork]
    source: str  # paper and section
    sequential: bool = False  # whether it accepts `before`
    num_seeds: int = 1  # seeds to measure, starting at 0
    fresh: bool = False  # whether to measure it also on draws that were not used to choose defaults
