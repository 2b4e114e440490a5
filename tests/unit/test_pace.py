"""How many evaluations a worker gives a learned prior, by what they cost and by what comes."""

from __future__ import annotations

import pytest

from reconstructor.pace import BUSY, FIRST_LEVEL, LEVELS, PART_SECONDS, Pace


def run(
    pace: Pace, *, cost: float, rate: float, seconds: float, share: float = 1.0, began: float = 0.0
) -> None:
    """A camera that exposes ``rate`` frames a second, of which this worker is given a share, in turn.

    A frame is taken when it is there and the worker is free; each takes ``cost`` for every evaluation.
    """
    free_at = began
    for number in range(int(seconds * rate * share)):
        exposed_at = began + number / (rate * share)
        free_at = max(free_at, exposed_at)
        pace.came(free_at, [exposed_at])
        evaluations = pace.standing.evaluations
        free_at += cost * evaluations
        pace.took(1, evaluations, cost * evaluations)


def test_before_anything_is_measured_the_usual_number_is_taken_and_one_frame_at_a_time() -> None:
    pace = Pace()
    assert pace.standing == (FIRST_LEVEL, None, None)
    assert pace.frames_together(1024) == 1
    assert pace.complaint() == ""


@pytest.mark.parametrize("rate", [0.5, 1.0, 1.7, 2.5, 4.1, 5.0, 7.9])
def test_as_many_are_taken_as_leave_a_share_of_the_time(rate: float) -> None:
    pace, cost = Pace(), 0.01
    run(pace, cost=cost, rate=rate, seconds=60)
    chosen, possible, asked = pace.standing
    assert asked == pytest.approx(rate)
    assert possible == pytest.approx(1 / (cost * chosen))
    assert chosen * cost * rate <= BUSY
    more = [level for level in LEVELS if level > chosen]
    assert not more or more[0] * cost * rate > BUSY / 1.1
    assert pace.complaint() == ""


def test_what_one_worker_of_several_is_asked_is_its_share() -> None:
    pace = Pace()
    run(pace, cost=0.01, rate=7.6, share=0.5, seconds=60)
    assert pace.standing.asked == pytest.approx(3.8)
    assert pace.standing.evaluations == 20


def test_where_the_fewest_are_too_many_it_is_told_once_and_by_how_much() -> None:
    pace = Pace()
    run(pace, cost=0.01, rate=25.0, seconds=60)
    assert pace.standing.evaluations == LEVELS[0]
    assert pace.standing.possible == pytest.approx(10.0)
    assert pace.standing.asked == pytest.approx(25.0)
    line = pace.complaint()
    assert "25 frames/s come to this worker, with the fewest 10 evaluations it recovers 10 (2.5 times" in line
    assert "\n" not in line
    run(pace, cost=0.01, rate=25.0, seconds=10, began=1000.0)
    assert pace.complaint() == ""


def test_a_camera_that_waits_for_the_workers_gets_the_fewest_and_nothing_is_told() -> None:
    """It exposes as fast as they go: there is no rate that they could fall short of."""
    pace, now = Pace(), 0.0
    for _ in range(2000):
        pace.came(now, [now])
        evaluations = pace.standing.evaluations
        now += 0.01 * evaluations
        pace.took(1, evaluations, 0.01 * evaluations)
        assert pace.complaint() == ""
    assert pace.standing.evaluations == LEVELS[0]


def test_a_rate_at_a_boundary_does_not_have_the_number_go_up_and_down() -> None:
    pace = Pace()
    boundary = BUSY / (0.01 * 20)
    chosen = []
    for k in range(40):
        run(pace, cost=0.01, rate=boundary * (1.03 if k % 2 else 0.97), seconds=30, began=100.0 * k)
        chosen.append(pace.standing.evaluations)
    assert len(set(chosen[2:])) == 1


def test_the_number_follows_when_the_stream_changes() -> None:
    pace = Pace()
    run(pace, cost=0.01, rate=1.0, seconds=60)
    assert pace.standing.evaluations == 50
    run(pace, cost=0.01, rate=7.0, seconds=60, began=61.0)
    assert pace.standing.evaluations == 10
    run(pace, cost=0.01, rate=1.0, seconds=90, began=122.0)
    assert pace.standing.evaluations == 50


def test_a_number_that_the_user_wants_is_kept_and_measured() -> None:
    pace = Pace(fixed=33)
    run(pace, cost=0.01, rate=6.0, seconds=60)
    assert pace.standing.evaluations == 33
    assert pace.standing.possible == pytest.approx(1 / 0.33)
    assert "with the 33 evaluations it recovers 3.03 (2.0 times" in pace.complaint()


def test_the_same_stream_gives_the_same_choice() -> None:
    chosen = []
    for _ in range(2):
        pace = Pace()
        run(pace, cost=0.013, rate=3.3, seconds=45)
        chosen.append(pace.standing)
    assert chosen[0] == chosen[1]


def test_blocks_that_are_delivered_again_are_not_asked_twice() -> None:
    pace, again = Pace(), Pace()
    for number in range(20):
        for one in (pace, again):
            one.came(float(number), [float(number)])
        again.came(number + 0.5, [number - 0.5])
    assert pace.asked == again.asked == pytest.approx(1.0)


@pytest.mark.parametrize("cost", [1e-5, 1e-3, 0.02, 0.3, 5.0])
@pytest.mark.parametrize("most", [1, 24, 1024])
def test_frames_recovered_together_take_no_longer_than_a_part_may(cost: float, most: int) -> None:
    pace = Pace(fixed=20)
    pace.took(1, 20, 20 * cost)
    size = pace.frames_together(most)
    assert 1 <= size <= most
    assert size == 1 or size * 20 * cost <= PART_SECONDS
    assert size == most or size & (size - 1) == 0
    assert 2 * size > most or 2 * size * 20 * cost > PART_SECONDS
