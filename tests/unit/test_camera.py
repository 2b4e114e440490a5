"""The exposure clock, with the time handed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector_sim.camera import Camera


def test_frames_come_at_the_rate_asked_for() -> None:
    camera = Camera(10.0, 0.0)
    taken = 0
    for tick in range(1, 1001):  # ten seconds in ticks of 10 ms
        now = tick / 100
        count = camera.due(now, 100)
        ends = camera.take(count, now) if count else []
        assert all(end <= now + 1e-9 for end in ends)
        taken += count
    assert taken in (99, 100)
    assert camera.idle_seconds(10.0) == 0


def test_without_a_rate_frames_are_there_whenever_asked() -> None:
    camera = Camera(None, 0.0)
    assert camera.due(0.0, 7) == 7
    assert camera.take(7, 0.5) == [0.5] * 7
    assert camera.due(0.5, 3) == 3


def test_a_held_camera_counts_the_time_it_could_have_used() -> None:
    camera = Camera(1.0, 0.0)
    camera.hold(0.25)
    assert camera.wait(0.5) is None
    assert camera.due(5.0, 10) == 0
    assert camera.idle_seconds(0.75) == 0  # the running exposure is not over yet
    assert camera.idle_seconds(3.0) == pytest.approx(2.0)
    camera.release(4.0)
    assert camera.idle_seconds(9.0) == pytest.approx(3.0)
    assert camera.due(4.0, 10) == 1  # what was missed is not made up for
    camera.take(1, 4.0)
    assert camera.wait(4.0) == pytest.approx(1.0)


def test_a_fast_camera_is_idle_from_the_moment_it_is_held() -> None:
    camera = Camera(None, 0.0)
    camera.hold(1.0)
    camera.hold(2.0)
    camera.release(3.0)
    camera.release(4.0)
    assert camera.idle_seconds(9.0) == pytest.approx(2.0)
    assert camera.due(9.0, 2) == 2


def test_a_pause_is_nobodys_loss() -> None:
    camera = Camera(10.0, 0.0)
    camera.pause(0.05)
    camera.hold(0.1)
    assert camera.due(100.0, 5) == 0
    assert camera.wait(100.0) is None
    camera.resume(200.0)
    assert camera.idle_seconds(200.0) == 0
    assert camera.due(200.05, 5) == 0
    assert camera.due(200.11, 5) == 1


def test_time_in_which_the_spool_was_full_is_a_part_of_the_idle_time() -> None:
    camera = Camera(None, 0.0)
    camera.hold(1.0)
    camera.hold(3.0, by_spool=True)
    assert camera.spool_full_seconds(5.0) == pytest.approx(2.0)
    camera.hold(6.0, by_spool=True)
    camera.release(7.0)
    camera.hold(8.0)
    assert camera.spool_full_seconds(20.0) == pytest.approx(4.0)
    assert camera.idle_seconds(20.0) == pytest.approx(18.0)


def test_a_change_of_what_a_camera_waits_for_loses_no_idle_time() -> None:
    waits, changes = Camera(10.0, 0.0), Camera(10.0, 0.0)
    waits.hold(0.02)
    for k in range(100):
        changes.hold(0.02 + k / 100, by_spool=bool(k % 2))
    for camera in (waits, changes):
        camera.release(2.0)
    assert changes.idle_seconds(2.0) == pytest.approx(waits.idle_seconds(2.0))
    assert 0 < changes.spool_full_seconds(2.0) < changes.idle_seconds(2.0)


def test_pausing_a_held_camera_ends_its_idle_time() -> None:
    camera = Camera(None, 0.0)
    camera.hold(1.0)
    camera.pause(2.0)
    camera.resume(50.0)
    assert camera.idle_seconds(60.0) == pytest.approx(1.0)
    assert camera.due(60.0, 1) == 1


def test_a_slow_source_is_given_a_quarter_of_a_second_and_no_more() -> None:
    camera = Camera(100.0, 0.0)
    assert camera.due(10.0, 1000) in (25, 26)
    camera.take(25, 10.0)
    assert camera.idle_seconds(10.0) == 0


@given(
    rate=st.one_of(st.none(), st.floats(0.1, 1e5)),
    steps=st.lists(
        st.tuples(st.sampled_from("hrpct"), st.floats(0, 2), st.integers(1, 50)), min_size=1, max_size=40
    ),
)
def test_idle_time_only_grows_and_never_beyond_the_clock(
    rate: float | None, steps: list[tuple[str, float, int]]
) -> None:
    camera, now, idle = Camera(rate, 0.0), 0.0, 0.0
    for action, pause, limit in steps:
        now += pause
        match action:
            case "h":
                camera.hold(now)
            case "r":
                camera.release(now)
            case "p":
                camera.pause(now)
            case "c":
                camera.resume(now)
            case _:
                count = camera.due(now, limit)
                assert 0 <= count <= limit
                if count:
                    ends = camera.take(count, now)
                    assert ends == sorted(ends)
                    assert ends[-1] <= now + 1e-6
        assert idle <= camera.idle_seconds(now) + 1e-9
        idle = camera.idle_seconds(now)
        assert idle <= now + 1e-9
