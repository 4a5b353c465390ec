"""Steps that run out of memory: smaller passes with the same gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_worker_recipes_terms import case
from torch import Tensor, nn

from salem.deltas.terms import LowRank, Term
from worker.activations.trunk_sets import Chunk
from worker.training.loop import Prepared, _keep_loss, edit_loss, prepare_dataset
from worker.training.micro_batches import MicroBatches, WeightedLoss, ran_out_of_memory

MARGIN = 2.0
ENDS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


class Small:
    """A host that runs out of memory above this number of samples per pass. It counts the passes."""

    def __init__(self, most: int, error: BaseException) -> None:
        self.most, self.error, self.passes = most, error, 0

    def loss(self, of_network: object, chunk: Chunk, term: Term) -> Tensor:
        self.passes += 1
        if len(chunk) > self.most:
            raise self.error
        return edit_loss(of_network, chunk, term, MARGIN)  # type: ignore[arg-type]


def prepared(architecture: str) -> Prepared:
    of = case(architecture)
    return prepare_dataset(of.network, of.batch.corrections, of.batch.pass_samples, of.network.layers[1])


def factors(ready: Prepared) -> tuple[nn.Parameter, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(2, ready.layer.d_in, generator=draw) / 4
    b = torch.randn(ready.layer.d_out, 2, generator=draw) / 4
    return nn.Parameter(a), nn.Parameter(b)


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2", "llama"])
@pytest.mark.parametrize("largest", [1, 2, 3])
def test_the_parts_add_up_to_the_whole(architecture: str, largest: int) -> None:
    network, ready = case(architecture).network, prepared(architecture)
    a, b = factors(ready)
    shares = [
        WeightedLoss(
            ready.corrections.chunks[0], 1.0, lambda chunk, term: edit_loss(network, chunk, term, MARGIN)
        ),
        WeightedLoss(ready.keep.chunks[0], 3.0, partial(_keep_loss, network)),
    ]
    whole, cut = MicroBatches(), MicroBatches()
    cut.largest = largest
    expected = whole.gradients(shares, lambda: LowRank(a, b), [a, b])
    for one, other in zip(cut.gradients(shares, lambda: LowRank(a, b), [a, b]), expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-6 * max(1.0, float(other.abs().max()))
        assert other.any()


@pytest.mark.parametrize("error", ENDS)
def test_a_pass_that_runs_out_of_memory_is_halved_until_it_fits(error: BaseException) -> None:
    network, ready = case("bert").network, prepared("bert")
    a, b = factors(ready)
    small, chunk = Small(1, error), ready.corrections.chunks[0]
    assert len(chunk) == 4
    passes = MicroBatches()
    shares = [WeightedLoss(chunk, 1.0, partial(small.loss, network))]
    found = passes.gradients(shares, lambda: LowRank(a, b), [a, b])
    assert passes.largest == 1 and small.passes == 1 + 1 + 4  # four at once, two at once, one by one
    small.passes = 0
    again = passes.gradients(shares, lambda: LowRank(a, b), [a, b])
    assert small.passes == 4
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    ready = prepared("bert")
    a, b = factors(ready)
    shares = [WeightedLoss(ready.corrections.chunks[0], 1.0, partial(Small(0, MemoryError()).loss, None))]
    with pytest.raises(MemoryError):
        MicroBatches().gradients(shares, lambda: LowRank(a, b), [a, b])


def test_other_errors_do_not_count_as_out_of_memory() -> None:
    ready = prepared("bert")
    a, b = factors(ready)
    wrong = Small(0, RuntimeError("shapes differ"))
    shares = [WeightedLoss(ready.corrections.chunks[0], 1.0, partial(wrong.loss, None))]
    with pytest.raises(RuntimeError, match="shapes differ"):
        MicroBatches().gradients(shares, lambda: LowRank(a, b), [a, b])
    assert wrong.passes == 1 and not ran_out_of_memory(wrong.error)


def test_an_unused_parameter_has_a_zero_gradient() -> None:
    network, ready = case("bert").network, prepared("bert")
    a, b = factors(ready)
    idle = nn.Parameter(torch.ones(3))
    shares = [
        WeightedLoss(
            ready.corrections.chunks[0], 1.0, lambda chunk, term: edit_loss(network, chunk, term, MARGIN)
        )
    ]
    found = MicroBatches().gradients(shares, lambda: LowRank(a, b), [a, b, idle])
    assert found[2].tolist() == [0, 0, 0]
