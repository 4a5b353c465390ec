"""Deltas and their files: what they add, what is stored, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from scope_readers import reads_states
from tiny_models import ARCHITECTURES, tiny_network
from torch import Tensor

from salem.deltas.files import pack, term_tensors, unpack
from salem.deltas.terms import Dense, LayerDelta, LowRank, Scoped, Term, adding, applied
from salem.errors import DeltaRejected
from salem.models.tensor_files import FORMAT_VERSION, read_header
from salem.records import Layer
from salem.scope.features import FeatureSpec
from salem.scope.lexical import WORD_BUCKETS
from salem.scope.metric import Metric
from salem.scope.metric_files import named
from salem.scope.state_scope import StateScope

BASE = "ab" * 32
LAYER = Layer(
    path="model.layers.1.mlp.down_proj",
    stack="model.layers",
    block=1,
    matrix="mlp.down_proj",
    d_in=6,
    d_out=4,
    transposed=False,
)
HEADER = {"parent": 2, "method": "mend", "rank": 2, "seed": 7, "metrics": {"edit_accuracy": 0.975}}


def low_rank(seed: int = 0, rank: int = 2) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, 6, generator=draw), torch.randn(4, rank, generator=draw))


def dense(seed: int = 1) -> Dense:
    return Dense(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)))


def packed(*terms: Term, **header: Any) -> bytes:
    return pack(LayerDelta(LAYER.path, terms), base_sha256=BASE, **(header or HEADER))


def read(data: bytes) -> LayerDelta:
    return unpack(data, base_sha256=BASE, layers=[LAYER])


def fields(delta: LayerDelta) -> list[dict[str, Tensor]]:
    return [term_tensors(term) for term in delta.terms]


def assert_identical(found: LayerDelta, expected: LayerDelta) -> None:
    assert found.layer == expected.layer
    assert [type(term) for term in found.terms] == [type(term) for term in expected.terms]
    for one, other in zip(fields(found), fields(expected), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].numpy().tobytes() == other[name].numpy().tobytes()


def forged(tensors: dict[str, Tensor], **changes: str | None) -> bytes:
    """A file with a correct checksum but possibly wrong content, written without the module under test."""
    metadata: dict[str, str | None] = {"format_version": "2", "base_sha256": BASE, "layer": LAYER.path}
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    plain = save(tensors)
    size = struct.unpack("<Q", plain[:8])[0]
    described = {**json.loads(plain[8 : 8 + size]), "__metadata__": metadata}
    body = plain[8 + size :]
    checksum = hashlib.sha256(json.dumps(described, sort_keys=True).encode() + body).hexdigest()
    described["__metadata__"] = {**metadata, "content_sha256": checksum}
    header = json.dumps(described).encode()
    return struct.pack("<Q", len(header)) + header + body


# What a delta adds.


@pytest.mark.parametrize("term", [low_rank(), dense()], ids=["low_rank", "dense"])
def test_a_term_is_its_dense_matrix(term: Term) -> None:
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(term(x), x @ term.dense().T, atol=1e-6, rtol=1e-5)
    assert term.fits(LAYER)
    assert term.rank == (2 if isinstance(term, LowRank) else None)


def test_terms_add_up() -> None:
    delta = LayerDelta(LAYER.path, (low_rank(), dense(), low_rank(3, rank=1)))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(5))
    expected = sum((term.dense() for term in delta.terms), start=torch.zeros(4, 6))
    torch.testing.assert_close(delta.addition()(x), x @ expected.T, atol=1e-6, rtol=1e-5)


def test_moving_a_delta_changes_the_type_of_every_term() -> None:
    delta = LayerDelta(LAYER.path, (low_rank(), dense())).to(torch.device("cpu"), torch.bfloat16)
    assert {tensor.dtype for term in fields(delta) for tensor in term.values()} == {torch.bfloat16}
    assert [type(term) for term in delta.terms] == [LowRank, Dense]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_base_weights_are_not_written(architecture: str) -> None:
    network = tiny_network(architecture)

    def fingerprint() -> str:
        digest = hashlib.sha256()
        for name, weight in sorted(network.model.state_dict().items()):
            digest.update(name.encode() + weight.numpy().tobytes())
        return digest.hexdigest()

    before = fingerprint()
    deltas = [
        LayerDelta(layer.path, (Dense(torch.ones(layer.d_out, layer.d_in)),)) for layer in network.layers
    ]
    ids = torch.tensor([[5, 6, 7, 2]])
    given = {"decoder_input_ids": ids} if network.model.config.is_encoder_decoder else {}
    base = network.model(ids, **given).logits
    with applied(network.model, deltas):
        assert fingerprint() == before
        assert not torch.equal(network.model(ids, **given).logits, base)
    assert fingerprint() == before
    assert torch.equal(network.model(ids, **given).logits, base), (
        "bit by bit: nothing was added and taken off"
    )


@torch.no_grad()
def test_deltas_are_removed_after_a_failure() -> None:
    network = tiny_network("bert")
    layer = network.layers[0]
    module = network.module(layer.path)
    x = torch.ones(1, layer.d_in)
    before = module(x)
    with pytest.raises(RuntimeError, match="halfway"), adding(module, lambda _: torch.ones(layer.d_out)):
        torch.testing.assert_close(module(x), before + 1)
        raise RuntimeError("halfway")
    assert torch.equal(module(x), before)
    unknown = LayerDelta("bert.encoder.layer.99", (dense(),))
    known = LayerDelta(layer.path, (Dense(torch.ones(layer.d_out, layer.d_in)),))
    with pytest.raises(AttributeError), applied(network.model, [known, unknown]):
        raise AssertionError("not reached")
    assert torch.equal(module(x), before), "the first was removed when the second failed"


# What is stored.


@pytest.mark.parametrize(
    "terms",
    [
        (low_rank(),),
        (dense(),),
        (low_rank(), dense(), low_rank(2)),
        tuple(low_rank(seed) for seed in range(12)),
    ],
    ids=["low_rank", "dense", "mixed", "twelve"],
)
def test_a_file_is_read_back_bit_for_bit(terms: tuple[Term, ...]) -> None:
    assert_identical(read(packed(*terms)), LayerDelta(LAYER.path, terms))


def test_extreme_but_finite_values_are_read_back() -> None:
    strange = torch.tensor([[-0.0, 1e-45, 3.4e38, -3.4e38, 1e-38, 0.1]]).repeat(4, 1)
    assert_identical(read(packed(Dense(strange))), LayerDelta(LAYER.path, (Dense(strange),)))


def test_views_of_one_tensor_are_stored_apart() -> None:
    both = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    terms = (Dense(both[:, :6]), Dense(both[:, 6:]), Dense(both[:, :6]), Dense(both.T[:6].T))
    assert_identical(read(packed(*terms)), LayerDelta(LAYER.path, terms))


def test_other_types_are_stored_as_float32_without_their_graph() -> None:
    term = Dense(dense().weight.bfloat16().requires_grad_())
    found = read(packed(term)).terms[0].dense()
    assert found.dtype is torch.float32
    assert torch.equal(found, term.weight.detach().float())


def some_metric() -> Metric:
    reading = FeatureSpec(stack="model.layers", block=1, paired=False, rarity=torch.ones(5))
    return named(
        Metric(reading, torch.zeros(3), torch.ones(3), torch.eye(2, 3), *torch.ones(2, WORD_BUCKETS))
    )


def some_scoped(metric: Metric) -> Scoped:
    zeros = torch.zeros
    weights = {
        "radii": zeros(1),
        "owners": zeros(1),
        "first_token_weights": zeros(1),
        "lexical_weights": zeros(1),
    }
    tokens = {"token_ids": zeros(1, 3), "token_probabilities": zeros(1, 3)}
    scope = StateScope(metric, zeros(1, 2), **weights, **tokens, words=zeros(1, 2, dtype=torch.uint8))
    return Scoped(scope, values=zeros(1, 1, 4), down=zeros(1, 0, 6), up=zeros(1, 0, 4))


def test_a_scoped_term_names_its_metric_and_does_not_contain_it() -> None:
    metric = some_metric()
    scoped = some_scoped(metric)
    data = packed(scoped, dense())
    assert read_header(data)["metric"] == metric.sha256
    assert {key.split(".")[2] for key in load(data) if key.startswith("terms.0")} == set(
        fields(LayerDelta(LAYER.path, (scoped,)))[0]
    )
    asked: list[str] = []

    def known(sha256: str) -> Metric:
        asked.append(sha256)
        return metric

    found = unpack(data, base_sha256=BASE, layers=[LAYER], readers=reads_states(known))
    assert_identical(found, LayerDelta(LAYER.path, (scoped, dense())))
    assert asked == [metric.sha256]
    assert found.scoped is not None and found.scoped.scope.metric is metric
    assert "metric" not in read_header(packed(dense()))


def test_a_scoped_term_is_refused_where_its_metric_is_not_known() -> None:
    scoped = some_scoped(some_metric())
    with pytest.raises(DeltaRejected, match="does not name what its scopes compare"):
        read(packed(scoped))
    unnamed = {f"terms.0.{name}": value for name, value in term_tensors(scoped).items()}
    with pytest.raises(DeltaRejected, match="does not name what its scopes compare"):
        unpack(forged(unnamed), base_sha256=BASE, layers=[LAYER], readers=reads_states(scoped.scope.metric))


def test_a_second_scoped_term_is_refused() -> None:
    metric = some_metric()
    scoped = some_scoped(metric)
    with pytest.raises(DeltaRejected, match="more than one scoped term"):
        unpack(packed(scoped, scoped), base_sha256=BASE, layers=[LAYER], readers=reads_states(metric))


def test_the_same_delta_is_the_same_bytes() -> None:
    reversed_header = dict(reversed(HEADER.items()))
    files = {packed(low_rank(), dense(), **header) for header in [HEADER, reversed_header] * 10}
    assert len(files) == 1


def test_the_header_ties_the_file_to_its_base_and_layer() -> None:
    header = read_header(packed(low_rank()))
    checksum = header.pop("content_sha256")
    assert len(checksum) == 64
    assert header.pop("format_version") == FORMAT_VERSION
    assert header.pop("base_sha256") == BASE
    assert header.pop("layer") == LAYER.path
    assert {key: json.loads(value) for key, value in header.items()} == HEADER


def test_a_header_value_cannot_replace_a_fixed_one() -> None:
    data = packed(low_rank(), layer="elsewhere", format_version="9", content_sha256="none")
    assert read(data).layer == LAYER.path


def test_the_file_is_plain_safetensors() -> None:
    tensors = load(packed(low_rank(), dense()))
    assert set(tensors) == {"terms.0.a", "terms.0.b", "terms.1.weight"}
    assert torch.equal(tensors["terms.1.weight"], dense().weight)


def test_the_checksum_is_the_documented_one() -> None:
    assert_identical(read(forged({"terms.0.weight": dense().weight})), LayerDelta(LAYER.path, (dense(),)))


# Every way a file can be wrong.


def a_b(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"terms.0.a": a, "terms.0.b": b}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "not numbered from 0"),
        ({"terms.1.weight": torch.zeros(4, 6)}, "not numbered from 0"),
        ({"terms.0.weight": torch.zeros(4, 6), "terms.2.weight": torch.zeros(4, 6)}, "without gaps"),
        ({"terms.0.weight": torch.zeros(4, 6), "terms.00.weight": torch.ones(4, 6)}, '"terms.00.weight"'),
        ({"terms.\u0660.weight": torch.zeros(4, 6)}, "unexpected tensor"),
        ({f"terms.{'9' * 5000}.weight": torch.zeros(4, 6)}, "unexpected tensor"),
        ({"terms.-1.weight": torch.zeros(4, 6)}, "unexpected tensor"),
        ({"terms.0.": torch.zeros(4, 6)}, "unexpected tensor"),
        ({"terms.weight": torch.zeros(4, 6)}, "unexpected tensor"),
        ({"weight": torch.zeros(4, 6)}, 'unexpected tensor "weight"'),
        ({"terms.0.weight": torch.zeros(4, 6), "extra": torch.zeros(1)}, 'unexpected tensor "extra"'),
        ({"terms.0.a": torch.zeros(2, 6)}, r"fields \['a'\] is of no known kind"),
        ({**a_b(torch.zeros(2, 6), torch.zeros(4, 2)), "terms.0.c": torch.zeros(1, 1)}, "no known kind"),
        ({**a_b(torch.zeros(2, 6), torch.zeros(4, 2)), "terms.0.weight": torch.zeros(4, 6)}, "no known kind"),
        ({"terms.0.value": torch.zeros(4, 6)}, "no known kind"),
        ({"terms.0.weight": torch.zeros(24)}, "no known kind"),
        ({"terms.0.weight": torch.zeros(1, 4, 6)}, "no known kind"),
        ({"terms.0.weight": torch.zeros(6, 4)}, r"shape does not fit .* \[4, 6\]"),
        ({"terms.0.weight": torch.zeros(0, 6)}, "shape does not fit"),
        (a_b(torch.zeros(2, 6), torch.zeros(4, 3)), "shape does not fit"),
        (a_b(torch.zeros(6, 2), torch.zeros(2, 4)), "shape does not fit"),
        (a_b(torch.zeros(0, 6), torch.zeros(4, 0)), "shape does not fit"),
        ({"terms.0.weight": torch.zeros(4, 6, dtype=torch.float64)}, "float64 instead of torch.float32"),
        ({"terms.0.weight": torch.zeros(4, 6, dtype=torch.bfloat16)}, "torch.bfloat16"),
        ({"terms.0.weight": torch.zeros(4, 6, dtype=torch.int32)}, "torch.int32"),
        ({"terms.0.weight": torch.zeros(4, 6, dtype=torch.uint8)}, "torch.uint8"),
        ({"terms.0.weight": torch.zeros(4, 6, dtype=torch.float8_e4m3fn)}, "torch.float8"),
        ({"terms.0.weight": torch.full((4, 6), float("nan"))}, "0.weight holds values that are not finite"),
        (a_b(torch.zeros(2, 6), torch.full((4, 2), float("inf"))), "0.b holds values that are not finite"),
        (a_b(torch.full((2, 6), -float("inf")), torch.zeros(4, 2)), "0.a holds values that are not finite"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_this_layer_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DeltaRejected, match=message):
        read(forged(tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_sha256": "cd" * 32}, "made for other base weights"),
        ({"base_sha256": BASE.upper()}, "made for other base weights"),
        ({"base_sha256": None}, "made for other base weights"),
        ({"layer": "model.layers.7.mlp.down_proj"}, "does not have: model.layers.7.mlp.down_proj"),
        ({"layer": "model.layers.1"}, "does not have"),
        ({"layer": None}, "does not have"),
        ({"format_version": "1"}, "The delta has format 1; this server reads 2"),
        ({"format_version": "2.0"}, "has format 2.0"),
        ({"format_version": None}, "of no version"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(DeltaRejected, match=message):
        read(forged({"terms.0.weight": dense().weight}, **changes))


def test_a_file_without_a_checksum_is_refused() -> None:
    metadata = {"format_version": "2", "base_sha256": BASE, "layer": LAYER.path}
    with pytest.raises(DeltaRejected, match="checksum"):
        read(save({"terms.0.weight": dense().weight}, metadata))


def test_a_file_without_any_header_is_refused() -> None:
    with pytest.raises(DeltaRejected, match="format"):
        read(save({"terms.0.weight": dense().weight}))


def test_a_file_cut_off_anywhere_is_refused() -> None:
    data = packed(low_rank(), dense())
    for length in range(len(data)):
        with pytest.raises(DeltaRejected):
            read(data[:length])


def test_a_file_with_extra_bytes_is_refused() -> None:
    data = packed(low_rank())
    for more in (b"\0", b" " * 8, data):
        with pytest.raises(DeltaRejected):
            read(data + more)


def test_every_flipped_byte_is_noticed() -> None:
    """Every byte of the length, the header, and the tensors gets a few random values."""
    data = packed(low_rank(), dense())
    expected, header = read(data), read_header(data)
    draw = random.Random(0)
    refused = 0
    for place in range(len(data)):
        for value in {data[place] ^ 1, draw.randrange(256), ord(" "), ord('"')} - {data[place]}:
            broken = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                found = read(broken)
            except DeltaRejected:
                refused += 1
                continue
            assert_identical(found, expected)
            assert read_header(broken) == header
    assert refused > 3 * len(data)


def refusals(data: bytes) -> list[str]:
    """The messages of the readers that refuse these bytes."""
    messages = []
    for reader in (read, read_header):
        try:
            reader(data)
        except DeltaRejected as error:
            messages.append(error.message)
    return messages


def test_a_corrupted_file_raises_only_delta_rejected() -> None:
    data = packed(low_rank(), dense())
    draw = random.Random(1)
    messages: list[str] = []
    for _ in range(500):
        broken = bytearray(data)
        for _ in range(draw.randrange(1, 20)):
            start = draw.randrange(len(broken))
            action = draw.choice(["flip", "drop", "repeat"])
            if action == "flip":
                broken[start] = draw.randrange(256)
            elif action == "drop":
                del broken[start : start + draw.randrange(1, 9)]
            else:
                broken[start:start] = broken[start : start + draw.randrange(1, 9)]
        messages += refusals(bytes(broken))
    assert len(messages) > 900 and all(messages)


def with_header(content: str | bytes) -> bytes:
    header = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"not a delta at all",
        b"PK\x03\x04 a pickle in a zip",
        struct.pack("<Q", 2**63) + b"{}",
        with_header("[]"),
        with_header("null"),
        with_header("7"),
        with_header('{"__metadata__": 5}'),
        with_header('{"__metadata__": ["format_version"]}'),
        with_header('{"__metadata__": {"format_version": 1}}'),
        with_header('{"__metadata__": {"format_version": {"a": "b"}}}'),
        with_header("[" * 100_000),
        with_header('{"a":' * 100_000),
        with_header(b"\xff\xfe{}"),
        with_header('{"__metadata__": {"format_version": "' + "1" * 5_000 + '"}}'),
    ],
    ids=range(17),
)
def test_a_file_that_is_not_safetensors_is_refused(data: bytes) -> None:
    with pytest.raises(DeltaRejected) as caught:
        read(data)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("reader", [read, read_header], ids=["unpack", "read_header"])
@pytest.mark.parametrize(
    "data", [b"", with_header("[]"), with_header('{"__metadata__": 5}'), with_header("[" * 10**5)]
)
def test_both_readers_refuse_with_the_same_message(reader: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(DeltaRejected, match="not a readable safetensors file"):
        reader(data)


def test_wrong_tensor_descriptions_are_refused() -> None:
    data = packed(dense())
    size = struct.unpack("<Q", data[:8])[0]
    for lie in (
        {"shape": [6, 4, 2]},
        {"dtype": "F64"},
        {"dtype": "X9"},
        {"data_offsets": [8, 104]},
        {"shape": "4"},
    ):
        described = json.loads(data[8 : 8 + size])
        described["terms.0.weight"] |= lie
        described["__metadata__"].pop("content_sha256")
        text = json.dumps(described, sort_keys=True).encode()
        checksum = hashlib.sha256(text + data[8 + size :]).hexdigest()
        described["__metadata__"]["content_sha256"] = checksum
        header = json.dumps(described).encode()
        with pytest.raises(DeltaRejected, match="not a readable safetensors file"):
            read(struct.pack("<Q", len(header)) + header + data[8 + size :])
