"""Inside the edited block: what its modules return before the edited matrix acts is the same at every step.

The trunk stops at the block. Within it, attention, the first feed-forward matrix and even the edited matrix's
own product with its input do not depend on what is trained. A `BlockMemory` keeps what these modules returned
when a batch first passed, and lets them return it again whenever the same batch passes later: a step then
runs only what lies behind the edited matrix. Hooks act as they always do: an addition to a remembered matrix
still sees its input. Some blocks add to such a tensor in place; then nothing is remembered.

Knows a block's module tree and the order in which its modules ran, and no architecture. Does not know
samples, objectives or what is added.
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
# path of a module, what it returned, and how often that had been written into by then
_Returned = tuple[str, Any, int]


class Room:
    """How many more bytes the memories that share it may take."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def take(self, num_bytes: int) -> bool:
        if num_bytes > self.num_bytes:
            return False
        self.num_bytes -= num_bytes
        return True


class BlockMemory:
    """What the modules of a block returned for one batch: empty until it has passed, or for want of room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._outputs: dict[str, Any] = {}  # path in the block -> a tensor, or a tuple with tensors
        self._writes = 0  # that there had been into these tensors when they were returned

    @contextmanager
    def passing(self, network: Network, layer: Layer) -> Iterator[None]:
        """Around one forward of the batch: the first is remembered, later ones are spared the same work."""
        block = network.module(f"{layer.stack}.{layer.block}")
        done: list[_Returned] = []
        with ExitStack() as stack:
            for path, module in _inner(block):
                if path in self._outputs:
                    forward = _once(self._outputs[path], module.forward)
                elif not self._outputs and self._room.num_bytes > 0:
                    forward = _noting(path, module.forward, done, layer.matrix)
                else:
                    continue
                stack.enter_context(_forwarding(module, forward))
            yield
        if self._outputs and _num_writes(self._outputs) != self._writes:
            self.forget()
        if done and done[-1][0] == layer.matrix:
            outputs = _outermost(done)
            writes = {path: count for path, _, count in done}
            self._writes = sum(writes[path] for path in outputs)
            if self._writes == _num_writes(outputs) and self._room.take(_num_bytes(outputs)):
                self._outputs = outputs

    @property
    def num_bytes(self) -> int:
        return _num_bytes(self._outputs)

    def forget(self) -> None:
        """Give the memory back, for good: what forgets is short of room."""
        self._outputs = {}
        self._room = Room(0)


def _noting(path: str, forward: Forward, done: list[_Returned], last: str) -> Forward:
    """Note in `done` what a module returns, until the module at `last` has returned."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if not done or done[-1][0] != last:
            done.append((path, output, _num_writes(output)))
        return output

    return noted


def _once(output: Any, forward: Forward) -> Forward:
    """Return `output` the first time: a module may be used again behind the edited matrix."""
    left = [output]

    def remembered(*args: Any, **kwargs: Any) -> Any:
        return left.pop() if left else forward(*args, **kwargs)

    return remembered


@contextmanager
def _forwarding(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Run `forward` in place of the module's own; hooks stay around it."""
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
    """Of modules that ran once, those that lie in no other of them; a second run would get the first's."""
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
    """How often the tensors of an output were written into, as torch counts."""
    return sum(tensor._version for tensor in _tensors(output))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | dict):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)
