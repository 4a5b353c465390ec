"""Files of named tensors: what is read back, and how messages name the file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from salem.errors import DeltaRejected
from salem.models.tensor_files import FORMAT_VERSION, read, read_header, write

TENSORS = {"one": torch.tensor([0.1, -0.0, 1e-45]), "two": torch.ones(2, 3).T}


def test_tensors_and_header_are_read_back_and_the_order_does_not_matter() -> None:
    data = write(TENSORS, {"color": "red", "age": "3"})
    assert data == write(dict(reversed(TENSORS.items())), {"age": "3", "color": "red"})
    header, tensors = read(data, noun="file")
    assert {key: header[key] for key in ("color", "age")} == {"color": "red", "age": "3"}
    assert header["format_version"] == FORMAT_VERSION
    assert read_header(data) == header
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and torch.equal(load(data)[name], tensor)


@pytest.mark.parametrize("place", [3, 30, -1])
def test_messages_name_the_kind_of_file(place: int) -> None:
    data = bytearray(write(TENSORS, {"color": "red"}))
    data[place] ^= 1
    with pytest.raises(DeltaRejected, match="The atlas"):
        read(bytes(data), noun="atlas")


def test_another_format_is_refused() -> None:
    with pytest.raises(DeltaRejected, match=f"The atlas has format 1; this server reads {FORMAT_VERSION}"):
        read(save({"one": torch.ones(1)}, {"format_version": "1"}), noun="atlas")


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(DeltaRejected, match="one holds values that are not finite"):
        read(write({"one": torch.tensor([float("nan")])}, {}), noun="atlas")
