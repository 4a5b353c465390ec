"""Scopes: which entry fires, and what a scoped delta does to answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scope_readers import reads_states
from test_salem_inference_predict import greedy_ids
from tiny_models import LABELS, tiny_network
from torch import Tensor, nn

from salem.deltas.chain import Chain
from salem.deltas.files import pack, term_tensors, unpack
from salem.deltas.terms import TAIL, DecodingPosition, LayerDelta, Scoped
from salem.errors import DeltaRejected
from salem.inference.gate import fire
from salem.inference.predict import Answer, predict
from salem.models.batching import encode_inputs
from salem.models.network import Network
from salem.records import Layer, TextInput
from salem.scope.features import FeatureSpec, features, token_rarity
from salem.scope.firing import Firing
from salem.scope.first_token import FirstTokens, first_tokens, no_first_tokens
from salem.scope.lexical import WORD_BUCKETS, WordCounts, pack_words
from salem.scope.metric import Metric
from salem.scope.metric_files import named, pack_metric, unpack_metric
from salem.scope.state_scope import StateScope

SHORT, LONG = "where is my order", "the password does not work and i cannot log in to my account today"
TEXTS = [TextInput(input=text) for text in (SHORT, LONG, "lamp", "Who wrote the book? Anna")]
BASE = "0" * 64
DOUBT, TOLL = 0.2, 0.02


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reading_of(network: Network, block: int = 1, *, paired: bool = False) -> FeatureSpec:
    """The features of the first stack, which is the encoder if there is one."""
    return FeatureSpec(network.layers[0].stack, block, paired, token_rarity(network, TEXTS))


def metric_of(network: Network, block: int = 1, *, seed: int = 0) -> Metric:
    """A metric that standardizes and rotates."""
    reading = reading_of(network, block)
    pooled = features(network, TEXTS, reading)
    turn = drawn(16, pooled.shape[1], seed=seed) / pooled.shape[1] ** 0.5
    return named(Metric(reading, pooled.mean(0), pooled.std(0) + 1e-2, turn, *torch.ones(2, WORD_BUCKETS)))


def scoped_delta(
    network: Network,
    layer: Layer,
    inputs: list[TextInput],
    *,
    size: float = 50.0,
    rank: int = 1,
    seed: int = 0,
    num_positions: int = 1,
    metric: Metric | None = None,
) -> LayerDelta:
    """One entry for each input, with a key at that input."""
    metric, e = metric or metric_of(network), len(inputs)
    heard = first_tokens(network, inputs)
    scope = StateScope(
        metric=metric,
        keys=metric.embed(network, inputs),
        radii=torch.full((e,), 0.9),
        owners=torch.arange(e).float(),
        **vars(heard),
        first_token_weights=torch.full((e,), DOUBT),
        words=pack_words([WordCounts.of(item) for item in inputs]),
        lexical_weights=torch.full((e,), TOLL),
    )
    term = Scoped(
        scope,
        values=size * drawn(e, num_positions, layer.d_out, seed=seed),
        down=drawn(e, rank, layer.d_in, seed=seed + 1),
        up=drawn(e, rank, layer.d_out, seed=seed + 2),
    )
    return LayerDelta(layer.path, (term,))


def outputs(found: list[Answer]) -> list[str]:
    return [prediction.output for prediction in found]


def small_scope() -> StateScope:
    angles = torch.tensor([0.0, 0.4, 2.0])
    keys = torch.stack([angles.cos(), angles.sin()], dim=-1)
    radii, owners = torch.tensor([0.9, 0.97, 0.9]), torch.tensor([0.0, 1.0, 0.0])
    reading = FeatureSpec(stack="blocks", block=1, paired=False, rarity=torch.ones(5))
    metric = Metric(reading, torch.zeros(2), torch.ones(2), torch.eye(2), *torch.ones(2, WORD_BUCKETS))
    heard, unworded = no_first_tokens(3, keys.device), torch.zeros(3, 0, dtype=torch.uint8)
    silent = {"first_token_weights": torch.zeros(3), "lexical_weights": torch.zeros(3)}
    return StateScope(metric, keys, radii, owners, **vars(heard), words=unworded, **silent)


class Nobody:
    """Lookups that a scope must not use."""

    def words(self, rows: Tensor) -> list[WordCounts]:
        raise AssertionError("nobody needs to look at words")

    def first_tokens(self, rows: Tensor) -> FirstTokens:
        raise AssertionError("nobody needs to ask the base")


nobody = Nobody()


def test_the_key_farthest_inside_its_radius_decides() -> None:
    scope = small_scope()
    firing = scope.fire_at(
        torch.tensor([[1.0, 0.0], [0.92106, 0.38942], [-0.41615, 0.9093], [0.0, -3.0]]), nobody
    )
    assert firing.entry[:3].tolist() == [0, 1, 0]
    assert firing.margin[:3].tolist() == pytest.approx([0.1, 0.03, 0.1], abs=1e-3)
    assert firing.gate[:3].tolist() == [1.0, 1.0, 1.0]
    assert firing.margin[3] < 0 and firing.gate[3] == 0, "far outside, the base itself answers"
    angles = torch.linspace(0, 6.28, 200)
    around = torch.stack([angles.cos(), angles.sin()], dim=-1)
    depth = around @ scope.keys.T - scope.radii
    outside, depth = around[depth.amax(-1) < 0], depth[depth.amax(-1) < 0]
    found = scope.fire_at(outside, nobody)
    assert not found.gate.any() and len(set(found.entry.tolist())) > 1
    assert torch.equal(found.entry, scope.owners[depth.argmax(-1)].long()), "training pulls those nearby"
    picked = firing.rows(torch.tensor([2, 1]))
    assert picked.entry.tolist() == [0, 1] and torch.equal(picked.margin, firing.margin[[2, 1]])


def test_the_gate_is_open_inside_the_radius_and_shut_outside() -> None:
    scope = replace(small_scope(), keys=torch.tensor([[1.0, 0.0]]), radii=torch.tensor([0.8]))
    scope = replace(scope, owners=torch.zeros(1))
    scope = replace(scope, first_token_weights=torch.zeros(1), lexical_weights=torch.zeros(1))
    cosines = torch.linspace(0.5, 1.0, 41)
    firing = scope.fire_at(torch.stack([cosines, (1 - cosines.square()).sqrt()], dim=-1), nobody)
    assert firing.gate.tolist() == (cosines > 0.8).float().tolist()


def some_term(rank: int) -> Scoped:
    return Scoped(
        small_scope(),
        values=drawn(2, 1, 4),
        down=drawn(2, rank, 6, seed=1),
        up=drawn(2, rank, 4, seed=2),
    )


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_every_row_gets_its_own_entry_at_each_token(rank: int) -> None:
    term, x = some_term(rank), drawn(3, 5, 6, seed=3)
    firing = Firing(torch.tensor([1, 0, 1]), torch.zeros(3), torch.tensor([1.0, 0.5, 0.0]))
    found = term.act(x, firing)
    assert found.shape == (3, 5, 4)
    for row in range(3):
        entry = int(firing.entry[row])
        update = term.up[entry].T @ term.down[entry]  # [d_out, d_in]
        expected = firing.gate[row] * (term.values[entry, 0] + x[row] @ update.T)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
    flat = term.act(x.reshape(15, 6), firing)
    assert flat.shape == (15, 4)
    assert torch.equal(flat, found.reshape(15, 4)), "some models flatten samples and tokens"
    assert term.act(x.bfloat16(), firing).dtype == torch.bfloat16


def test_the_newest_entry_wins_if_several_scopes_contain_an_input() -> None:
    scope, point = (
        small_scope(),
        torch.tensor([[0.98007, 0.19867]]),
    )  # inside the first two, deeper in the first
    scope = replace(scope, radii=torch.tensor([0.9, 0.95, 0.9]))
    for ages, expected in (([0, 1, 2], 1), ([1, 0, 2], 0), ([0, 0, 0], 0)):
        firing = scope.fire_at(point, nobody, torch.tensor(ages))
        assert firing.entry.tolist() == [expected] and firing.gate.tolist() == [1]
    outside = torch.tensor([[0.0, -1.0]])
    found = scope.fire_at(outside, nobody, torch.tensor([0, 1, 2]))
    assert torch.equal(found.margin, scope.fire_at(outside, nobody).margin) and found.gate.tolist() == [0]


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "opt", "t5"])
def test_outside_all_scopes_answers_are_exactly_those_of_the_base(architecture: str) -> None:
    network = tiny_network(architecture)
    for layer in (network.layers[0], network.layers[-1]):
        deltas = [scoped_delta(network, layer, [TEXTS[0]])]
        firing = fire(network, TEXTS, deltas)
        assert firing is not None
        outside = firing.gate == 0
        assert firing.gate[0] > 0.5 and outside.any()
        base, edited = (predict(network, TEXTS, d, max_new_tokens=6) for d in ((), deltas))
        for row in outside.nonzero()[:, 0].tolist():
            assert base[row] == edited[row]
        assert base[0] != edited[0]


def test_a_scoped_delta_adds_the_values_of_its_entry() -> None:
    network = tiny_network("bert")
    layer = network.layers[1]
    delta = scoped_delta(network, layer, [TEXTS[0]], size=1.0, rank=0)
    firing = fire(network, [TEXTS[0]], [delta])
    fields = encode_inputs(network, [TEXTS[0]])
    matrix, term = network.module(layer.path), delta.scoped
    assert isinstance(matrix, nn.Linear) and term is not None and firing is not None
    with Chain.of([delta]).applied(network.model, lambda: firing), torch.no_grad():
        found = network.model(**fields).logits
    bias = matrix.bias.detach().clone()
    with torch.no_grad():
        matrix.bias.add_(firing.gate * term.values[0, 0])
        try:
            expected = network.model(**fields).logits
        finally:
            matrix.bias.copy_(bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_each_of_two_scoped_deltas_acts_on_its_own_inputs() -> None:
    network = tiny_network("bert")
    one = scoped_delta(network, network.layers[1], [TEXTS[0]], seed=1)
    two = scoped_delta(network, network.layers[0], [TEXTS[1]], seed=5)
    both = predict(network, TEXTS, [one, two])
    assert both[0] == predict(network, TEXTS, [one])[0]
    assert both[1].scores == predict(network, TEXTS, [two])[1].scores
    again = scoped_delta(network, network.layers[1], [TEXTS[0]], seed=9)
    assert predict(network, TEXTS, [one, again])[0].scores == predict(network, TEXTS, [again])[0].scores


def test_a_batch_gives_the_same_answers_as_each_input_alone() -> None:
    network = tiny_network("bert")
    deltas = [scoped_delta(network, network.layers[1], TEXTS[:2])]
    together = predict(network, TEXTS, deltas)
    assert outputs(together) == [outputs(predict(network, [text], deltas))[0] for text in TEXTS]
    assert set(outputs(together)) <= set(LABELS)


def test_each_token_of_an_answer_gets_the_value_of_its_position() -> None:
    term = replace(some_term(0), values=drawn(2, 3, 4), down=drawn(2, 0, 6), up=drawn(2, 0, 4))
    firing = Firing(torch.tensor([1, 0]), torch.zeros(2), torch.ones(2))
    values = term.values[firing.entry]
    given = term.act(drawn(2, 7, 6), replace(firing, answer_starts=torch.tensor([3, 1])))
    assert torch.equal(given[0], values[0, [0, 0, 0, 0, 1, 2, 2]])
    assert torch.equal(given[1], values[1, [0, 0, 1, 2, 2, 2, 2]]), "what comes later gets the last value"
    cached = DecodingPosition()
    passes = [term.act(drawn(2, width, 6), firing, cached) for width in (TAIL, 1, 1, 1)]
    assert torch.equal(torch.cat(passes, 1), values[:, [*[0] * TAIL, 1, 2, 2]])
    long = term.act(drawn(2, TAIL + 4, 6), replace(firing, answer_starts=torch.tensor([TAIL + 1] * 2)))
    assert torch.equal(long[:, 2:], values[:, [0] * TAIL + [1, 2]])
    assert not long[:, :2].any(), "the beginning of a prompt stays as it is"
    assert torch.equal(term.act(drawn(2, TAIL + 2, 6), firing, DecodingPosition()), long[:, : TAIL + 2])
    whole = DecodingPosition()
    for width, expected in ((2, [0, 0]), (3, [0, 0, 1]), (4, [0, 0, 1, 2])):
        assert torch.equal(term.act(drawn(2, width, 6), firing, whole), values[:, expected])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5", "bart"])
def test_teacher_forcing_matches_generation(architecture: str) -> None:
    network = tiny_network(architecture)
    deltas = [scoped_delta(network, network.layers[-1], TEXTS[:1], size=5.0, num_positions=3)]
    firing = fire(network, TEXTS[:1], deltas)
    assert firing is not None
    with Chain.of(deltas).applied(network.model, lambda: firing):
        written = greedy_ids(network, TEXTS[0], 5)
    assert len(written) == 5
    fields, answer = encode_inputs(network, TEXTS[:1]), torch.tensor([written])
    if network.model.config.is_encoder_decoder:
        start = 0
        begun = torch.cat([torch.tensor([[network.start_id]]), answer[:, :-1]], dim=1)
        given = {**fields, "decoder_input_ids": begun}
    else:
        prompt = fields["input_ids"][fields["attention_mask"] == 1][None]
        start = prompt.shape[1] - 1
        given = {"input_ids": torch.cat([prompt, answer[:, :-1]], dim=1)}
    known = replace(firing, answer_starts=torch.tensor([start]))
    with Chain.of(deltas).applied(network.model, lambda: known), torch.no_grad():
        logits = network.model(**given, use_cache=False).logits
    assert logits[0, start:].argmax(-1).tolist() == written


@pytest.mark.parametrize("num_positions", [1, 3])
@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama", "t5", "bart"])
def test_generation_is_the_same_with_and_without_a_cache(architecture: str, num_positions: int) -> None:
    network = tiny_network(architecture)
    layer = network.layers[-1]
    deltas = [scoped_delta(network, layer, TEXTS[:2], size=5.0, num_positions=num_positions)]
    found = outputs(predict(network, TEXTS, deltas, max_new_tokens=6))
    for text, output in zip(TEXTS, found, strict=True):
        firing = fire(network, [text], deltas)
        with Chain.of(deltas).applied(network.model, lambda firing=firing: firing):
            slow = greedy_ids(network, text, 6)
        assert network.tokenizer.decode(slow, skip_special_tokens=True).strip() == output
    assert found != outputs(predict(network, TEXTS, max_new_tokens=6))


def test_a_scoped_delta_and_its_metric_are_read_back_bit_for_bit() -> None:
    network = tiny_network("bert")
    delta = scoped_delta(network, network.layers[1], TEXTS[:2])
    assert delta.scoped is not None
    stored = {delta.scoped.scope.metric.sha256: pack_metric(delta.scoped.scope.metric)}
    again = unpack(
        pack(delta, base_sha256=BASE),
        base_sha256=BASE,
        layers=network.layers,
        readers=reads_states(lambda sha256: unpack_metric(stored[sha256])),
    )
    assert again.layer == delta.layer and again.scoped is not None
    expected, found = term_tensors(delta.scoped), term_tensors(again.scoped)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert predict(network, TEXTS, [again]) == predict(network, TEXTS, [delta])


@pytest.mark.parametrize(
    "change",
    [
        {"owners": torch.tensor([0.0, 2.0])},
        {"owners": torch.tensor([-1.0, 0.0])},
        {"owners": torch.tensor([0.5, 0.0])},
        {"owners": torch.tensor([0.0])},
        {"radii": torch.tensor([0.9])},
        {"keys": torch.zeros(2, 15)},
        {"keys": torch.zeros(0, 16), "radii": torch.zeros(0), "owners": torch.zeros(0)},
        {"token_ids": torch.zeros(2, 1)},
        {"token_probabilities": torch.zeros(1, 2)},
        {"first_token_weights": torch.zeros(1)},
        {"first_token_weights": torch.tensor([0.2, float("inf")])},
        {"first_token_weights": torch.tensor([0.2, -0.1])},
        {"lexical_weights": torch.zeros(1)},
        {"lexical_weights": torch.tensor([0.2, float("inf")])},
        {"lexical_weights": torch.tensor([0.2, -0.1])},
        {"words": torch.zeros(1, 4, dtype=torch.uint8)},
        {"words": torch.zeros(2, 4)},
        {"words": torch.zeros(2, 0, dtype=torch.uint8)},
        {"token_probabilities": torch.full((2, 4), -0.1)},
        {"token_ids": torch.zeros(2, 0), "token_probabilities": torch.zeros(2, 0)},
        {"values": torch.zeros(2, 1, 3)},
        {"values": torch.zeros(1, 1, 16)},
        {"values": torch.zeros(2, 0, 16)},
        {"values": torch.zeros(2, 3)},
        {"down": torch.zeros(2, 1, 3)},
        {"up": torch.zeros(2, 2, 16)},
        {"radii": torch.tensor([0.9, float("nan")])},
    ],
    ids=lambda change: ", ".join(f"{name}{list(value.shape)}" for name, value in change.items()),
)
def test_a_scoped_term_that_does_not_fit_is_refused(change: dict[str, Tensor]) -> None:
    network = tiny_network("bert")
    delta = scoped_delta(network, network.layers[1], TEXTS[:2])
    assert delta.scoped is not None
    of_scope = {name: value for name, value in change.items() if name in vars(delta.scoped.scope)}
    of_term = {name: value for name, value in change.items() if name not in of_scope}
    scope = replace(delta.scoped.scope, **of_scope)
    bad = LayerDelta(delta.layer, (replace(delta.scoped, scope=scope, **of_term),))
    metric = delta.scoped.scope.metric
    with pytest.raises(DeltaRejected):
        unpack(
            pack(bad, base_sha256=BASE), base_sha256=BASE, layers=network.layers, readers=reads_states(metric)
        )
    good = unpack(
        pack(delta, base_sha256=BASE), base_sha256=BASE, layers=network.layers, readers=reads_states(metric)
    )
    assert good.scoped is not None, "only the change is refused"


def test_the_gradient_of_values_does_not_depend_on_threads() -> None:
    before = torch.get_num_threads()
    values = drawn(6, 4, 256).requires_grad_()
    term = replace(some_term(0), values=values, down=drawn(6, 0, 8), up=drawn(6, 0, 256))
    firing = Firing(torch.arange(64) % 6, torch.zeros(64), torch.ones(64), answer_starts=torch.arange(64) % 5)
    x, weights = drawn(64, 40, 8), drawn(64, 40, 256)
    torch.set_num_threads(4)
    try:
        found = [torch.autograd.grad((term.act(x, firing) * weights).sum(), values)[0] for _ in range(10)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
