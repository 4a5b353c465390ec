"""Calibrated scopes of a job: their budget, the edits that they contain, and their warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from recipe_cases import edit_task
from tiny_models import LABELS, tiny_network
from torch import Tensor

from salem.deltas.terms import LayerDelta
from salem.models.network import Network
from salem.records import Edit, EditBatch, Sample, TextInput
from salem.scope import lookups
from salem.scope.first_token import FirstTokens
from salem.scope.lexical import WORD_BUCKETS
from salem.scope.lookups import BatchLookups
from salem.scope.metric import UNMEASURED_EXCHANGE
from worker.dataset.split import build_edit_batch
from worker.recipes.base import Artifacts
from worker.recipes.scoped import state_scopes as scoping
from worker.recipes.scoped.job_metric import JobMetric
from worker.recipes.scoped.learner import empty_entries
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.scoping import Scoping
from worker.recipes.scoped.state_scopes import REACH, calibrated_radii, draw_state_scopes, widest_radii

SUBJECTS = ("order", "parcel", "lamp", "password", "account", "book", "door", "money", "refund", "capital")
SHAPES = (
    "where is my {}",
    "i want the {} now",
    "who wrote {} in Rome",
    "please send a {} to Anna",
    "the {} is broken",
    "does the {} work today",
)
OPTIONS = ScopedOptions(metric_width=16)


def pass_samples(count: int) -> tuple[Sample, ...]:
    texts = [shape.format(subject) for shape in SHAPES for subject in SUBJECTS]
    return tuple(Sample(input=text, target="other") for text in texts[:count])


EDITS = (
    Edit(input="when will Berlin arrive at Madrid", target=LABELS[0], paraphrases=("Berlin to Madrid when",)),
    Edit(input="log in to France with Peru", target=LABELS[1]),
)


def batch_of(num_pass: int, edits: tuple[Edit, ...] = EDITS) -> EditBatch:
    batch = build_edit_batch(edits, (), (), max_pass_samples=1, max_held_out=1, seed=0)
    return batch.model_copy(update={"pass_samples": pass_samples(num_pass)})


def drawn(batch: EditBatch, *, options: ScopedOptions = OPTIONS, seed: int = 0) -> Scoping:
    network = tiny_network("bert")
    return draw_state_scopes(edit_task(network, batch, network.layers[1], seed=seed), options)


@pytest.mark.parametrize("num_pass", [0, 1, 5, 60])
def test_every_edit_and_adapt_sample_fires_its_own_entry(num_pass: int) -> None:
    batch = batch_of(num_pass)
    scoping = drawn(batch)
    network = tiny_network("bert")
    points = scoping.scope.metric.embed(network, batch.corrections)
    firing = scoping.scope.fire_at(points, BatchLookups(network, batch.corrections))
    assert firing.entry.tolist() == [0, 1, 0]
    assert (firing.gate == 1).all(), "the gate is open or shut"
    torch.testing.assert_close(scoping.corrections.gate, firing.gate, rtol=1e-3, atol=1e-3)
    assert scoping.scope.owners.tolist() == [0, 1, 0]
    assert torch.isfinite(scoping.scope.keys).all() and torch.isfinite(scoping.scope.radii).all()
    assert len(scoping.kept.entry) == len(scoping.calibration) == num_pass
    assert set(scoping.kept.gate.tolist()) <= {0.0, 1.0}
    assert [[key.text for key in entry.keys] for entry in scoping.entries] == [
        ["when will Berlin arrive at Madrid", "Berlin to Madrid when"],
        ["log in to France with Peru"],
    ]


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.4])
def test_the_budget_is_kept_on_the_calibration_part(budget: float) -> None:
    budgets = {"scope_budget": budget, "scope_budget_per_edit": 1.0}
    scoping = drawn(batch_of(60), options=OPTIONS.model_copy(update=budgets))
    assert scoping.calibration.sum() > 10
    inside = scoping.kept.margin[scoping.calibration] > 0
    assert float(inside.float().mean()) <= budget
    assert not any("cannot be told" in warning for warning in scoping.warnings)


def radii_of(others: Tensor, calibration: Tensor, budget: float) -> Tensor:
    """Where what is token_ids of the crowd and of the twins comes from the same two parts."""
    return calibrated_radii(widest_radii(others), calibration, torch.cat([others, calibration]), budget)


def some_likeness(num_pass: int, num_keys: int, *, top: float) -> Tensor:
    return torch.rand(num_pass, num_keys, generator=torch.Generator().manual_seed(0)) * top


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("num_calibration", [1, 7, 40])
def test_radii_move_together_until_the_budget_is_spent(budget: float, num_calibration: int) -> None:
    likeness = some_likeness(100, 6, top=0.85)
    calibration, others = likeness[:num_calibration], likeness[num_calibration:]
    radii = radii_of(others, calibration, budget)
    inside = (calibration > radii + 1e-6).any(-1).sum()
    assert inside <= budget * num_calibration
    assert radii.shape == (6,) and (radii > 0).all() and (radii < 1).all()


def test_a_larger_budget_never_narrows_a_scope() -> None:
    likeness = some_likeness(100, 6, top=0.85)
    widths = [radii_of(likeness[40:], likeness[:40], budget) for budget in (0.0, 0.1, 0.5)]
    assert (widths[0] >= widths[1]).all() and (widths[1] >= widths[2]).all()


def test_a_key_among_many_pass_samples_gets_a_narrower_scope() -> None:
    likeness = some_likeness(100, 2, top=0.5)
    likeness[:, 1] += 0.3
    crowded, lonely = radii_of(likeness[30:], likeness[:30], 0.05).flip(0)
    assert crowded > lonely


def test_an_edit_fires_even_if_the_budget_cannot_be_kept() -> None:
    likeness = some_likeness(100, 6, top=1.0)
    likeness[:, 3] = 1.0
    radii = radii_of(likeness[40:], likeness[:40], 0.0)
    assert (radii < 0.999).all(), "a key's own cosine is 1 and must lie inside"


def test_a_twin_narrows_its_own_key_and_uses_its_part_of_the_budget() -> None:
    likeness = some_likeness(100, 4, top=0.8)
    calibration, others = likeness[:40], likeness[40:]
    calibration[0, 2] = 0.99
    radii = radii_of(others, calibration, 0.05)  # two samples of forty
    assert 0.99 < radii[2] < 1.0
    without, rest = radii_of(others, calibration[1:], 0.03), torch.tensor([0, 1, 3])  # one of thirty-nine
    assert torch.equal(radii[rest], without[rest]), "nothing else of the twin counts"
    calibration[:3, 2] = 0.99
    assert (radii_of(others, calibration, 0.05) < 1.0).all(), "more twins than the budget holds"


def test_a_twin_outside_the_calibration_part_narrows_no_other_key() -> None:
    likeness = some_likeness(100, 4, top=0.8)
    before = radii_of(likeness[40:], likeness[:40], 0.05)
    likeness[50, 2] = 0.99
    after = radii_of(likeness[40:], likeness[:40], 0.05)
    rest = torch.tensor([0, 1, 3])
    assert after[2] >= 0.99 and (after[rest] <= before[rest] + 1e-6).all(), "the others may only widen"


def test_a_radius_is_the_same_share_of_the_distance_for_every_key() -> None:
    likeness = some_likeness(60, 3, top=0.5)
    likeness[:, 1] = 0.5 + likeness[:, 1] / 2
    radii = radii_of(likeness[20:], likeness[:20], 0.1)
    way = 1 - likeness[20:].topk(5, dim=0).values.mean(0)
    assert ((1 - radii) / way).tolist() == pytest.approx([float((1 - radii[0]) / way[0])] * 3, rel=1e-3)
    assert ((1 - radii) / way).max() < REACH


def test_no_scope_reaches_its_nearest_pass_samples() -> None:
    likeness = some_likeness(60, 3, top=0.5)
    radii = radii_of(likeness[20:], likeness[:0], 1.0)
    way = 1 - likeness[20:].topk(5, dim=0).values.mean(0)
    assert ((1 - radii) / way).tolist() == pytest.approx([REACH] * 3, rel=1e-3)


@pytest.mark.parametrize("num_pass", [0, 1, 5])
def test_few_pass_samples_still_give_radii(num_pass: int) -> None:
    likeness = some_likeness(num_pass, 3, top=0.8)
    radii = radii_of(likeness[num_pass // 3 :], likeness[: num_pass // 3], 0.02)
    assert radii.shape == (3,) and (radii > 0).all() and (radii < 0.95).all()


def test_a_pass_sample_that_is_too_close_to_an_edit_is_named() -> None:
    edit = Edit(input="when will ☃ arrive in Rome", target=LABELS[0])  # the tokenizer knows neither sign
    twin = Sample(input="when will ☂ arrive in Rome", target="other")
    kept = pass_samples(30)
    batch = batch_of(30, (EDITS[1], edit))
    batch = batch.model_copy(update={"pass_samples": (*kept[:20], twin, *kept[20:])})
    scoping = drawn(batch)
    assert len(scoping.warnings) == 1
    assert f'"{edit.input}"' in scoping.warnings[0] and f'"{twin.input}"' in scoping.warnings[0]
    assert (scoping.corrections.gate > 0.5).all()


def test_the_same_seed_gives_the_same_scopes() -> None:
    one, two, other = (drawn(batch_of(20), seed=seed).scope for seed in (1, 1, 2))
    assert one.metric.sha256 == two.metric.sha256 != other.metric.sha256
    for name in (
        "keys",
        "radii",
        "owners",
        "token_ids",
        "token_probabilities",
        "first_token_weights",
        "words",
        "lexical_weights",
    ):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert not torch.equal(one.metric.projection, other.metric.projection)


def test_pass_samples_in_scopes_of_the_parent_use_up_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = tiny_network("bert"), batch_of(60)
    layer = network.layers[1]
    options = OPTIONS.model_copy(update={"scope_budget": 0.2, "scope_budget_per_edit": 1.0})
    spent: list[tuple[int, float]] = []

    def noted(widest: Tensor, calibration: Tensor, likeness: Tensor, budget: float) -> Tensor:
        spent.append((len(calibration), budget))
        return calibrated_radii(widest, calibration, likeness, budget)

    monkeypatch.setattr(scoping, "calibrated_radii", noted)
    scope = drawn(batch, options=options).scope
    everywhere = replace(scope, radii=torch.full_like(scope.radii, -2.0))
    term = empty_entries(everywhere, 2, layer, 1, network.device)
    parent = (LayerDelta(layer.path, (term,)),)
    later = draw_state_scopes(
        edit_task(network, batch, layer, parent, Artifacts(metric=scope.metric)), options
    )
    assert not later.is_new and later.scope.metric.sha256 == scope.metric.sha256
    (num_free, whole), (num_left, left) = spent
    assert (whole, left) == (0.2, 0.0)
    assert num_free > 0 and num_left == 0, "pass samples in the parent's scopes are not counted twice"
    assert (later.scope.radii >= scope.radii).all()


class Heard:
    """Made-up first tokens: some texts have a different token from all others."""

    def __init__(self, otherwise: set[str]) -> None:
        self.otherwise = otherwise
        self.asked: list[str] = []

    def __call__(self, network: Network, inputs: Sequence[TextInput]) -> FirstTokens:
        self.asked += [item.input for item in inputs]
        token_ids = torch.tensor([[float(item.input in self.otherwise)] for item in inputs])
        return FirstTokens(token_ids, torch.ones(len(inputs), 1))


def near() -> tuple[EditBatch, set[str]]:
    """A batch with all its pass samples near one edit, and their texts."""
    texts = [f"where is my {subject} {word}" for subject in SUBJECTS for word in ("now", "today", "then")]
    edit = Edit(input="where is my parcel and order", target=LABELS[0])
    batch = build_edit_batch((edit,), (), (), max_pass_samples=1, max_held_out=1, seed=0)
    kept = tuple(Sample(input=text, target="other") for text in texts)
    return batch.model_copy(update={"pass_samples": kept}), set(texts)


def test_pass_samples_with_other_first_tokens_do_not_narrow_a_scope(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch, texts = near()
    # Far enough, and by a metric, for the calibration part to bind.
    monkeypatch.setattr(scoping, "REACH", 1.3)
    only = {"scope_budget": 0.0, "first_token_weight": 2.0, "lexical_weight": 0.0}
    options = OPTIONS.model_copy(update=only)
    scopes = {}
    for name, otherwise in (("alike", set()), ("otherwise", texts)):
        heard = Heard(otherwise)
        monkeypatch.setattr(lookups, "first_tokens", heard)
        monkeypatch.setattr(scoping, "first_tokens", heard)
        scopes[name] = drawn(batch, options=options, seed=1).scope
        assert scopes[name].first_token_weights.tolist() == [2.0] and len(heard.asked) > 1
    assert scopes["otherwise"].radii < scopes["alike"].radii, (
        "pass samples kept out by first tokens do not narrow the scope"
    )


def test_without_a_first_token_weight_the_base_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(set())
    monkeypatch.setattr(lookups, "first_tokens", heard)
    monkeypatch.setattr(scoping, "first_tokens", heard)
    found = drawn(near()[0], options=OPTIONS.model_copy(update={"first_token_weight": 0.0}))
    assert (
        heard.asked == []
        and not found.scope.first_token_weights.any()
        and found.scope.token_ids.shape == (1, 0)
    )


def test_the_cost_of_an_exchanged_word_depends_on_what_paraphrases_exchange() -> None:
    batch, _ = near()
    minding = drawn(batch, options=OPTIONS.model_copy(update={"lexical_weight": 0.05})).scope
    silent = drawn(batch, options=OPTIONS.model_copy(update={"lexical_weight": 0.0})).scope
    assert silent.words.shape == (1, 0) and not silent.lexical_weights.any()
    assert minding.words.shape[1] > 4
    dearer = drawn(batch, options=OPTIONS.model_copy(update={"lexical_weight": 0.1})).scope
    torch.testing.assert_close(dearer.lexical_weights, 2 * minding.lexical_weights)
    way = minding.lexical_weights * (minding.metric.exchange + scoping.LEAST_EXCHANGE) / 0.05
    assert 0 < float(way) <= 1 - scoping.WIDEST
    assert float(minding.radii) <= float(silent.radii), (
        "pass samples kept out by their words do not narrow the scope"
    )
    weights = minding.metric.word_weights
    assert all(0 < weight <= 1 for weight in weights) and min(weights) < 0.05, "small words hardly count"


def test_a_metric_without_paraphrases_keeps_the_old_cost_of_words() -> None:
    """An exchanged word of weight 1 costs a fifth of the reach, as in deltas from before the measurement."""
    unit = UNMEASURED_EXCHANGE + scoping.LEAST_EXCHANGE
    assert ScopedOptions().lexical_weight / unit == pytest.approx(0.2)


def test_paraphrases_in_other_words_make_exchanged_words_cheaper_in_their_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch, _ = near()
    (edit,) = batch.edit_samples
    equal = dict.fromkeys(("word_rarity", "word_steadiness"), torch.ones(WORD_BUCKETS))
    known = JobMetric(replace(drawn(batch).scope.metric, **equal), is_new=False)
    monkeypatch.setattr(scoping, "job_metric", lambda *args: known)
    parts = []
    for text in ("where is my parcel and order please", "tell me what became of the stuff i bought"):
        adapt = tuple((0, edit.model_copy(update={"input": text})) for _ in range(5))
        scope = drawn(batch.model_copy(update={"adapt_samples": adapt})).scope
        assert scope.metric is known.metric
        parts.append(float(scope.lexical_weights[0] / (1 - scope.radii[0])))
    assert parts[1] < parts[0] / 2


def test_no_scope_reaches_farther_than_augmentations_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if the nearest pass samples are far away."""
    batch = batch_of(60)
    wide = drawn(batch).scope
    known = scoping.job_metric

    def narrow(*args: Any) -> JobMetric:
        found = known(*args)
        return replace(found, metric=replace(found.metric, extent=0.05))

    monkeypatch.setattr(scoping, "job_metric", narrow)
    scope = drawn(batch).scope
    assert (wide.radii < 0.95).any() and (scope.radii >= 0.95).all()
    torch.testing.assert_close(scope.lexical_weights, wide.lexical_weights)
