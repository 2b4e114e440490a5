"""The clock that nobody sets."""

import time

import pytest

from common.clock import SteadyClock


def test_setting_the_system_clock_does_not_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, true = SteadyClock(), time.time
    before = clock.now()
    assert before == pytest.approx(true(), abs=5)
    for hours in (5, -3):
        monkeypatch.setattr(time, "time", lambda hours=hours: true() + 3600 * hours)
        assert before <= clock.now() < before + 5
    clock.set()
    assert clock.now() == pytest.approx(before - 3 * 3600, abs=5)


def test_readings_of_the_monotonic_clock_become_times() -> None:
    clock = SteadyClock()
    now = time.monotonic()
    assert clock.at(now + 2.5) - clock.at(now) == pytest.approx(2.5)
    assert clock.at(time.monotonic()) == pytest.approx(clock.now(), abs=5)
