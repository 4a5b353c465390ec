"""Progress and the time left of a job, from how long its phases should take."""

from __future__ import annotations

import pytest
from registry_records import edit_result

from salem.records import Proportion
from worker.attempts.pace import PHASES, Pace, expected_after, expected_first

EXPECTED = {"loading": 2.0, "predicting": 8.0, "saliency": 10.0, "training": 60.0, "evaluating": 20.0}


def shares_of(took: dict[str, float]) -> list[tuple[float, float]]:
    """The estimated and the true time left at the start and in the middle of each phase."""
    pace, found = Pace(EXPECTED), []
    phases = list(took)
    for place, phase in enumerate(phases):
        ended = {each: took[each] for each in phases[:place]}
        for part in (0.0, 0.5):
            left = sum(took[each] for each in phases[place:]) - part * took[phase]
            found.append((pace.time_left_s(ended, phase, part * took[phase]), left))
    return found


def test_phases_that_take_what_was_expected_leave_the_true_time() -> None:
    for estimate, left in shares_of(EXPECTED):
        assert estimate == pytest.approx(left)


@pytest.mark.parametrize("speed", [0.5, 2.0, 3.0])
def test_a_slower_or_faster_machine_is_noticed(speed: float) -> None:
    found = shares_of({phase: seconds * speed for phase, seconds in EXPECTED.items()})
    errors = [abs(estimate - left) / left for estimate, left in found]
    assert errors[0] > 0.4, "nothing is known at first"
    assert errors[-4] < errors[2] < errors[0], "each phase that ends corrects the estimate"


def test_a_phase_that_takes_longer_leaves_some_time() -> None:
    ended = {phase: EXPECTED[phase] for phase in ("loading", "predicting", "saliency")}
    late = Pace(EXPECTED).time_left_s(ended, "training", 120.0)
    assert late == pytest.approx(0.1 * 120 + EXPECTED["evaluating"])


def test_the_last_job_tells_what_the_next_one_takes() -> None:
    share = Proportion(value=1.0, low=0.5, high=1.0, count=10)
    last = edit_result(edit_accuracy=share, adapt_accuracy=share, phase_seconds=EXPECTED)
    assert expected_after(last, 20, 32) == EXPECTED
    more = expected_after(last, 40, 32)
    assert more["training"] == 2 * EXPECTED["training"] and more["loading"] == EXPECTED["loading"]
    assert more["saliency"] == EXPECTED["saliency"] * 32 / 20, "it reads at most 32"
    assert expected_after(last, 5, 32)["saliency"] == EXPECTED["saliency"] / 4


def test_a_first_job_has_an_expectation_for_every_phase() -> None:
    for generates in (False, True):
        few, many = (expected_first(num, 32, generates=generates) for num in (15, 150))
        assert set(few) == set(PHASES)
        assert all(many[phase] >= few[phase] > 0 for phase in PHASES) and many["training"] > few["training"]
