"""Accounts that do not balance. They always do, so a mistake is put into the detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.installation import OVER, Installation, Place, eventually
from tests.unit.test_metrics import Samples, scraped

pytestmark = pytest.mark.timeout(400)

_MISTAKE = """
import detector_sim.ledger as ledger

_ack = ledger.Ledger.ack

def _mistaken(self, ack, wall_now):
    news = _ack(self, ack, wall_now)
    if self._acknowledged > 150 and not hasattr(ledger, "made"):
        ledger.made = True
        {mistake}
    return news

ledger.Ledger.ack = _mistaken
"""
MISTAKES = {
    "an acknowledgement that is not counted": ("self._acknowledged -= 1", 1),
    "two frames counted as lost twice": ("self._lost['twice'] += 2", -2),
    "exposures that are counted and never come": ("self._acquired += 3", 3),
}


def _scraped(url: str) -> Samples:
    return scraped(httpx.get(url).text)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_accounts_that_do_not_balance_end_the_session_as_failed(tmp_path: Path, mistake: str) -> None:
    code, unaccounted = MISTAKES[mistake]
    place = Place(code=_MISTAKE.format(mistake=code))
    with Installation(tmp_path, places={"detector": place}) as house:
        session = house.begin()
        eventually(lambda: house.current()["state"] in OVER, "it ends by itself")
        view = house.current()
        assert view["state"] == "failed"
        assert view["error"].startswith(f"{unaccounted} frames are unaccounted for: ")
        assert "acquired=" in view["error"]

        ready = house.ready()
        assert ready["status"] == "degraded"
        assert f"{unaccounted} frames are unaccounted for" in ready["detail"]
        assert "error" in house.kinds()
        assert "failed" in house.kinds()

        account: dict[str, Any] = json.loads((tmp_path / "results" / session / "session.json").read_text())
        assert account["state"] == "failed"
        assert account["accounts"]["unaccounted"] == unaccounted
        assert view["error"] in account["error"]

        control = _scraped(f"{house.url}/metrics")
        assert control["cryoflux_session_state", (("state", "failed"),)] == 1
        targets = httpx.get(f"{house.url}/metrics/targets").json()
        (address,) = [t["targets"][0] for t in targets if t["labels"]["component"] == "detector"]
        figures = _scraped(f"http://{address}/metrics")
        explained = sum(
            value
            for (name, _), value in figures.items()
            if name
            in (
                "cryoflux_frames_acknowledged_total",
                "cryoflux_frames_in_flight",
                "cryoflux_frames_spooled",
            )
        )
        acquired = figures["cryoflux_frames_acquired_total", ()]
        if "lost" not in code:  # the label's counts are kept apart from the reasons'
            assert acquired - explained == unaccounted

        assert house.processes["detector"].poll() is None
        house.begin()  # the mistake was made once: the next session is sound
        house.reaches(50)
        eventually(lambda: house.ready()["status"] == "ready", "the next one is sound")
        assert house.finish()["state"] == "completed"
