"""The clock jumps by hours in mid-session: nothing times out, nothing is lost, no duration is absurd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import program
from tests.faults.installation import CURRENT, OVER, Installation, eventually
from tests.faults.verdict import completed
from tests.integration.bus import Place

pytestmark = pytest.mark.timeout(400)

PARTS = ("control", "detector", "worker-1")
SANE_SECONDS = 120.0  # nothing here takes as long, and hours are more


class Clocked(Installation):
    """An installation of which every process reads a clock of its own, by libfaketime."""

    def __init__(self, folder: Path) -> None:
        program("faketime", "faketime")
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        self._clocks = {part: folder / f"{part}.clock" for part in PARTS}
        for part in PARTS:
            self.set(part, 0)
        places = {
            part: Place(
                environment={
                    "LD_PRELOAD": str(library),
                    "FAKETIME_TIMESTAMP_FILE": str(clock),
                    "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as when somebody sets the clock
                    "NO_FAKE_STAT": "1",
                }
            )
            for part, clock in self._clocks.items()
        }
        super().__init__(folder, places=places)

    def set(self, part: str, hours: float) -> None:
        """Set the clock of a process, hours ahead of the true one."""
        clock = self._clocks[part]
        new = clock.with_suffix(".new")
        new.write_text(f"{3600 * hours:+.0f}\n")
        new.rename(clock)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clocked]:
    with Clocked(tmp_path_factory.mktemp("clock")) as installation:
        yield installation


@pytest.fixture(autouse=True)
def _right_again(house: Clocked) -> Iterator[None]:
    yield
    for part in PARTS:
        house.set(part, 0)
    if house.client.get(CURRENT).status_code == 200 and house.current()["state"] not in OVER:
        house.finish()


def grows(numbers: list[Any]) -> bool:
    return numbers == sorted(numbers)


@pytest.mark.parametrize("jumping", [*((part,) for part in PARTS), PARTS], ids=[*PARTS, "all"])
def test_a_clock_that_jumps_by_hours_in_mid_session_harms_nothing(
    house: Clocked, jumping: tuple[str, ...]
) -> None:
    house.begin(mask={"kind": "none"}, recovery={"method": "minimum_norm"})
    house.goes_on()
    for hours in (5, -3, 0):
        for part in jumping:
            house.set(part, hours)
        house.goes_on()
    view = house.finish()
    account = completed(view)
    assert not {"silent", "returned", "worker_silent", "worker_back", "worker_left"} & set(house.kinds())
    assert 0 < account["elapsed_seconds"] < SANE_SECONDS
    assert 0 < account["latency"]["p50_seconds"] <= account["latency"]["p99_seconds"] < SANE_SECONDS
    table = pd.read_csv(Path(view["output"]) / "frames.csv")
    assert table["latency_seconds"].between(0, SANE_SECONDS).all()
    assert grows(table["acquired_at"].tolist())
    assert grows([event["at"] for event in house.events()])
    history = house.client.get(f"{CURRENT}/metrics/history").json()
    assert grows([point["at"] for point in history])


def test_the_session_that_runs_is_found_again_also_when_it_seems_older_than_the_one_before(
    house: Clocked,
) -> None:
    house.begin()
    house.reaches(10)
    house.finish()
    house.set("control", -3)
    session = house.begin()
    house.goes_on()
    house.kill("control")
    house.start("control")
    house.becomes("ready")
    eventually(lambda: house.current()["id"] == session, "the session that runs is the current one")
    house.goes_on()
    completed(house.finish())
