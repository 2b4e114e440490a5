"""The control plane is killed, cut off, or forgets a component: frames flow on, and it goes on with them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.installation import CURRENT, Installation, eventually
from tests.faults.network import HERE, Network
from tests.faults.verdict import completed
from tests.integration.bus import Place

pytestmark = pytest.mark.timeout(400)

EXACT = {"mask": {"kind": "none"}, "recovery": {"method": "minimum_norm"}}
FORGETFUL = Place(code="import services.control_plane.bus as bus; bus.FORGET_AFTER_SECONDS = 1.0")


def test_a_control_plane_killed_and_started_again_goes_on_with_the_session(tmp_path: Path) -> None:
    with Installation(tmp_path) as house:
        session = house.begin()
        house.goes_on()
        for _ in range(2):
            house.kill("control")
            house.frames_flow()
            house.start("control")
            house.becomes("ready")
            assert house.current()["id"] == session
            house.goes_on()
        changed = house.client.patch(f"{CURRENT}/acquisition", json={"compression_factor": 4})
        assert changed.status_code == 200, changed.text
        house.goes_on()
        completed(house.finish())


def test_a_control_plane_cut_off_from_all_others_finds_them_again(tmp_path: Path) -> None:
    with Network("detector", "worker-1") as network:
        places = {name: network.place(name) for name in ("detector", "worker-1")}
        with Installation(
            tmp_path,
            host=network.address(),
            data_bind=f"tcp://{network.address('detector')}:0",
            places=places,
            unprotected="planes",
            silent_after_seconds=1.0,
        ) as house:
            session = house.begin(**EXACT)
            house.goes_on()
            for name in places:
                network.cut(HERE, name)
            eventually(lambda: not house.ready()["detector"], "the detector is missed")
            refused = house.client.post(f"{CURRENT}/pause")
            assert refused.status_code == 503, refused.text
            house.frames_flow()
            assert house.current()["state"] == "running"
            network.heal()
            house.becomes("ready")
            house.goes_on()
            assert house.current()["id"] == session
            assert house.client.post(f"{CURRENT}/pause").status_code == 200
            assert house.client.post(f"{CURRENT}/resume").status_code == 200
            completed(house.finish())


@pytest.mark.parametrize("stopped", ["detector", "worker-1"])
def test_whoever_stood_still_so_long_that_it_is_forgotten_is_heard_again(
    tmp_path: Path, stopped: str
) -> None:
    with Installation(
        tmp_path, workers=("worker-1", "worker-2"), places={"control": FORGETFUL}, silent_after_seconds=0.5
    ) as house:
        session = house.begin(**EXACT)
        house.goes_on()
        house.freeze(stopped)
        eventually(lambda: "silent" in house.kinds(), "it is missed")
        if stopped == "detector":
            house.becomes("not ready")
        else:
            house.goes_on()
        until = time.monotonic() + 3.0
        eventually(lambda: time.monotonic() > until, "it is forgotten")
        house.thaw(stopped)
        house.becomes("ready")
        eventually(lambda: "asked to register anew" in house.log("control"), "it had been forgotten")
        eventually(lambda: len(house.metrics()["workers"]) == 2, "it is heard again")
        house.goes_on()
        assert house.current()["id"] == session
        completed(house.finish())
