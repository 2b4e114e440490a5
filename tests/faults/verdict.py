"""What must be true at the end of every fault: each frame acquired is there once, or lost with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mrcfile
import pandas as pd

from common.operators.spec import MaskSpec
from common.session import CameraSpec, PatternSource, RecoverySpec, SessionSpec
from detector_sim.sources import frame_number
from reconstructor.finalise import finalise

SHAPE = (32, 32)


def session(output: Path, *, rate: float | None = 1000, frames: int | None = None) -> SessionSpec:
    """Numbered frames through an open aperture, so that what comes back tells which frame it is."""
    return SessionSpec(
        source=PatternSource(shape=SHAPE),
        mask=MaskSpec(kind="none"),  # pyright: ignore[reportCallIssue]
        camera=CameraSpec(rate=rate, frames=frames),
        recovery=RecoverySpec(method="minimum_norm", free_share=0.0),
        output=str(output),
    )


def balanced(counters: dict[str, Any]) -> None:
    """The identity, as the detector told it."""
    held = sum(counters[f"frames_{name}"] for name in ("acknowledged", "in_flight", "spooled"))
    assert counters["frames_acquired"] == held + sum(counters["frames_lost"].values()), counters
    assert counters["frames_unaccounted"] == 0


def every_frame_once(
    output: Path,
    opened: dict[str, Any],
    counters: dict[str, Any],
    lost: set[str] | None = None,
    *,
    is_exact: bool = True,
) -> pd.DataFrame:
    """All frames but those lost for a reason of ``lost`` are recovered exactly once, each in its own slot.

    ``is_exact``: no mask was used that pixels do not come back from as they were.
    """
    balanced(counters)
    assert counters["state"] == "finished"
    assert (counters["frames_in_flight"], counters["frames_spooled"]) == (0, 0)
    assert set(counters["frames_lost"]) <= (lost or set())
    summary = finalise(output, opened, counters)
    assert summary.frames_recovered == counters["frames_acknowledged"] > 0
    assert summary.frames_missing == 0
    table = pd.read_csv(output / "frames.csv")
    ids = table["frame_id"].tolist()
    assert len(set(ids)) == len(ids)
    assert 0 <= min(ids) <= max(ids) < counters["frames_acquired"]
    with mrcfile.mmap(output / "recovered.mrcs") as stack:
        assert len(stack.data) == counters["frames_acquired"]
        assert not is_exact or [frame_number(stack.data[frame].round()) for frame in ids] == ids
    return table


def completed(view: dict[str, Any]) -> dict[str, Any]:
    """The same of a session that a control plane led, by what it left on disk; its ``session.json``.

    ``view``: the session at its end, as REST shows it.
    """
    assert view["state"] == "completed", view["error"]
    output = Path(view["output"])
    account: dict[str, Any] = json.loads((output / "session.json").read_text())
    accounts = account["accounts"]
    acquired = accounts["acquired"]
    assert acquired > 0
    assert (accounts["acknowledged"], accounts["in_flight"], accounts["spooled"]) == (acquired, 0, 0)
    assert (accounts["lost"], accounts["unaccounted"]) == ({}, 0)
    assert account["frames"]["recovered"] == acquired
    table = pd.read_csv(output / "frames.csv")
    assert table["frame_id"].tolist() == list(range(acquired))
    assert (table["latency_seconds"] >= 0).all()
    is_exact = all(known["mask"]["kind"] == "none" for known in account["configurations"])
    with mrcfile.mmap(output / "recovered.mrcs") as stack:
        assert len(stack.data) == acquired
        assert not is_exact or [frame_number(frame.round()) for frame in stack.data] == list(range(acquired))
    return account
