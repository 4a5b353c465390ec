"""Remembers what the modules of the edited block return before the edited matrix acts.

The trunk stops at the block. In the block, attention, the first feed-forward matrix, and the edited matrix's
own product with its input do not depend on what is trained. A `BlockMemory` keeps what these modules returned
when a batch first passed and replays it whenever the batch passes again, so a step runs only what comes
after the edited matrix. Hooks act as always: an addition to a remembered matrix still sees its input. Some
blocks add to such a tensor in place; then nothing is remembered.

Must not know samples, objectives, what is added, or any particular architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from salem.models.network import Network
from salem.records import Layer

Forward = Callable[..., Any]
# path of a module, what it returned, and the number of in-place writes to it until then
_Returned = tuple[str, Any, int]


class MemoryBudget:
    """Bytes left for the memories that share this budget."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def take(self, num_bytes: int) -> bool:
        if num_bytes > self.num_bytes:
            return False
        self.num_bytes -= num_bytes
        return True


class BlockMemory:
    """What the modules of a block returned for one batch: empty before its first pass, or over budget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._outputs: dict[str, Any] = {}  # path in the block -> a tensor, or a tuple with tensors
        self._writes = 0  # in-place writes to these tensors when they were returned

    @contextmanager
    def passing(self, network: Network, layer: Layer) -> Iterator[None]:
        """Wrap one forward pass of the batch: remember the first, and save later ones the same work."""
        block = network.module(f"{layer.stack}.{layer.block}")
        done: list[_Returned] = []
        with ExitStack() as stack:
            for path, module in _inner(block):
                if path in self._outputs:
                    forward = _replaying_once(self._outputs[path], module.forward)
                elif not self._outputs and self._budget.num_bytes > 0:
                    forward = _recording(path, module.forward, done, layer.matrix)
                else:
                    continue
                stack.enter_context(_forward_replaced(module, forward))
            yield
        if self._outputs and _num_writes(self._outputs) != self._writes:
            self.forget()
        if done and done[-1][0] == layer.matrix:
            outputs = _outermost(done)
            writes = {path: count for path, _, count in done}
            self._writes = sum(writes[path] for path in outputs)
            if self._writes == _num_writes(outputs) and self._budget.take(_num_bytes(outputs)):
                self._outputs = outputs

    @property
    def num_bytes(self) -> int:
        return _num_bytes(self._outputs)

    def forget(self) -> None:
        """Free the memory and keep it empty from now on."""
        self._outputs = {}
        self._budget = MemoryBudget(0)


def _recording(path: str, forward: Forward, done: list[_Returned], last: str) -> Forward:
    """Record in `done` what a module returns, until the module at `last` has returned."""

    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if not done or done[-1][0] != last:
            done.append((path, output, _num_writes(output)))
        return output

    return recorded


def _replaying_once(output: Any, forward: Forward) -> Forward:
    """Return `output` the first time; a module may be used again after the edited matrix."""
    left = [output]

    def replayed(*args: Any, **kwargs: Any) -> Any:
        return left.pop() if left else forward(*args, **kwargs)

    return replayed


@contextmanager
def _forward_replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Replace the module's own forward by `forward`; its hooks still run."""
    before = vars(module).get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before  # type: ignore[method-assign]


def _inner(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules inside a block that have a forward of their own, by path."""
    for path, module in block.named_modules():
        if path and not isinstance(module, nn.ModuleList):
            yield path, module


def _outermost(done: list[_Returned]) -> dict[str, Any]:
    """Outputs of modules that ran exactly once and lie inside no other such module."""
    runs = Counter(path for path, _, _ in done)
    once = {path: output for path, output, _ in done if runs[path] == 1}
    return {
        path: output
        for path, output in once.items()
        if not any(path.startswith(f"{other}.") for other in once) and any(True for _ in _tensors(output))
    }


def _num_bytes(outputs: dict[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in _tensors(outputs))


def _num_writes(output: Any) -> int:
    """In-place writes to the tensors of an output, by torch's own counters."""
    return sum(tensor._version for tensor in _tensors(output))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | dict):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)
