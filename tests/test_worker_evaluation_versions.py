"""Versions under evaluation: no input is answered twice, and inputs outside new scopes are answered below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_cases import bare_recipe, edit_context, measured
from test_salem_scope_state_scope import TEXTS, scoped_delta
from test_worker_training_ridge import pass_samples, wrong_samples
from tiny_models import tiny_network

from salem.deltas.terms import Dense, LayerDelta
from salem.inference.gate import fire
from salem.inference.predict import predict
from salem.records import EditBatch, TextInput
from salem.scope.metric import Metric
from worker.activations.cache import SampleCache
from worker.evaluation import versions
from worker.evaluation.versions import EditedModel, OverlaidModel, on_top


def watch(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collects the texts of every batch that a model really runs."""
    asked: list[list[str]] = []

    def watched(network: Any, inputs: Sequence[TextInput], *given: Any, **named: Any) -> Any:
        asked.append([item.input for item in inputs])
        return predict(network, inputs, *given, **named)

    monkeypatch.setattr(versions, "predict", watched)
    return asked


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_entries_on_top_answer_like_the_whole_version(architecture: str) -> None:
    network = tiny_network(architecture)
    lower = scoped_delta(network, network.layers[-1], TEXTS[1:2], seed=4, size=5.0)
    upper = scoped_delta(network, network.layers[-1], TEXTS[:2], size=5.0)
    plain = LayerDelta(
        network.layers[1].path, (Dense(torch.eye(network.layers[1].d_out, network.layers[1].d_in)),)
    )
    for below in ((), (lower,), (plain, lower)):
        after = on_top(EditedModel(network, below, 6), upper)
        assert isinstance(after, OverlaidModel)
        expected = predict(network, TEXTS, [*below, upper], max_new_tokens=6)
        assert after.answers(TEXTS) == [answer.output for answer in expected]


def test_points_of_inputs_are_read_once_for_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("bert")
    cache = SampleCache(tmp_path, 10**6, "model")
    deltas = [scoped_delta(network, network.layers[-1], TEXTS[num : num + 1], size=5.0) for num in (0, 1)]
    bare = [on_top(EditedModel(network, (), 6), delta).answers(TEXTS) for delta in deltas]
    first = on_top(EditedModel(network, (), 6), deltas[0], cache)
    assert isinstance(first, OverlaidModel) and first.answers(TEXTS) == bare[0]
    monkeypatch.setattr(Metric, "embed", lambda *_: pytest.fail("they have been read"))
    assert on_top(EditedModel(network, (), 6), deltas[1], cache).answers(TEXTS) == bare[1]
    assert first.answers([]) == []


def test_only_inputs_inside_a_scope_are_answered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("bert")
    delta = scoped_delta(network, network.layers[-1], TEXTS[:1])
    firing = fire(network, TEXTS, [delta])
    assert firing is not None
    inside = [text.input for text, acts in zip(TEXTS, firing.gate.tolist(), strict=True) if acts]
    assert 0 < len(inside) < len(TEXTS)
    asked = watch(monkeypatch)
    before = EditedModel(network, (), 6)
    after = on_top(before, delta)
    before.answers(TEXTS)
    after.answers(TEXTS)
    assert asked == [[text.input for text in TEXTS], [], inside]


def test_a_known_answer_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("bert")
    before = EditedModel(network, (), 6, {TEXTS[0].content_hash: "as registered"})
    asked = watch(monkeypatch)
    found = before.answers([TEXTS[1], TEXTS[0], TEXTS[1]])
    assert asked == [[TEXTS[1].input]] and found[1] == "as registered" and found[0] == found[2]


def test_a_plain_delta_answers_every_input_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("bert")
    layer = network.layers[-1]
    before = EditedModel(network, (), 6, {TEXTS[0].content_hash: "as registered"})
    after = on_top(before, LayerDelta(layer.path, (Dense(torch.zeros(layer.d_out, layer.d_in)),)))
    asked = watch(monkeypatch)
    assert "as registered" not in after.answers(TEXTS)
    assert asked == [[text.input for text in TEXTS]]


@pytest.mark.parametrize(
    ("name", "with_parent", "taken"),
    [("scoped", False, True), ("scoped", True, False), ("ridge", False, False)],
)
def test_registered_answers_of_the_base_are_used_if_only_entries_can_differ(
    name: str, with_parent: bool, taken: bool
) -> None:
    """The registered answers are made up, so that the test can recognize them."""
    network = tiny_network("bert")
    wrong, kept = wrong_samples(network)[:2], pass_samples(network)
    batch = EditBatch(
        edit_samples=tuple(wrong),
        adapt_samples=(),
        pass_samples=tuple(kept),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
    )
    own = bare_recipe(name, margin=0.1, layer=network.layers[-1].path)
    parent = [scoped_delta(network, network.layers[-1], TEXTS[2:3], seed=3)] if with_parent else []
    registered = {sample.content_hash: "as registered" for sample in wrong}
    start = edit_context(network, batch, own, parent=tuple(parent), base_answers=registered)
    assert {outcome.before == "as registered" for outcome in measured(start).metrics.outcomes} == {taken}
