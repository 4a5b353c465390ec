"""Intervals: values from the literature, edges, and how often they cover the truth."""

from __future__ import annotations

import random

import pytest

from worker.numerics.intervals import paired_drop, proportion


def hits(right: int, of: int) -> list[bool]:
    return [index < right for index in range(of)]


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_intervals_as_published(right: int, of: int, low: float, high: float) -> None:
    found = proportion(hits(right, of))
    assert found is not None and found.count == of and found.value == right / of
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("of", [1, 2, 7, 1000])
def test_a_proportion_is_inside_its_interval(of: int) -> None:
    for right in {0, 1, of // 2, of}:
        found = proportion(hits(right, of))
        assert found is not None and 0 <= found.low <= found.value <= found.high <= 1


def test_no_samples_give_no_proportion() -> None:
    assert proportion([]) is None
    assert paired_drop([], []) is None


def test_losses_count_up_and_gains_down() -> None:
    lost = paired_drop(hits(100, 100), hits(90, 100))
    won = paired_drop(hits(90, 100), hits(100, 100))
    assert lost is not None and won is not None
    assert lost.value == pytest.approx(0.1) and won.value == pytest.approx(-0.1)
    assert lost.low > 0 > won.high
    assert (lost.low, lost.high) == pytest.approx((-won.high, -won.low))


def test_swaps_in_both_directions_cancel_but_widen_the_interval() -> None:
    calm = paired_drop(hits(50, 100), hits(50, 100))
    swapped = paired_drop([True] * 10 + [False] * 10 + [True] * 80, [False] * 10 + [True] * 10 + [True] * 80)
    assert calm is not None and swapped is not None
    assert calm.value == swapped.value == 0
    assert swapped.high - swapped.low > 2 * (calm.high - calm.low)


@pytest.mark.parametrize("of", [1, 5, 1000])
def test_if_nothing_changed_the_interval_still_has_a_width(of: int) -> None:
    found = paired_drop(hits(of, of), hits(of, of))
    assert found is not None and found.value == 0
    assert found.low < 0 < found.high and found.high == pytest.approx(-found.low)
    assert found.high < 4 / of


@pytest.mark.parametrize("of", [1, 5, 1000])
def test_all_lost_reaches_one(of: int) -> None:
    found = paired_drop(hits(of, of), hits(0, of))
    assert found is not None and found.value == 1.0
    assert found.low <= found.value <= found.high == 1.0


def test_before_and_after_must_be_the_same_samples() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_drop(hits(3, 3), hits(2, 2))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_a_share_is_covered_about_nineteen_times_in_twenty(share: float) -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(1_000):
        found = proportion([rng.random() < share for _ in range(60)])
        covered += found is not None and found.low <= share <= found.high
    assert 920 <= covered <= 990


@pytest.mark.parametrize(("p_lost", "p_won"), [(0.02, 0.01), (0.1, 0.1), (0.3, 0.05)])
def test_a_drop_is_covered_about_nineteen_times_in_twenty(p_lost: float, p_won: float) -> None:
    rng = random.Random(2)
    covered = 0
    for _ in range(1_000):
        fates = [rng.random() for _ in range(100)]
        before = [fate < p_lost or fate >= p_lost + p_won for fate in fates]
        after = [fate >= p_lost for fate in fates]
        found = paired_drop(before, after)
        covered += found is not None and found.low <= p_lost - p_won <= found.high
    assert 925 <= covered <= 1_000
