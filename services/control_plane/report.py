"""``session.json``: the account of a finished session, beside its results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.whole import replacing
from reconstructor.archive import read_start
from reconstructor.finalise import Summary, read_journals
from reconstructor.journal import FOLDER as JOURNALS
from reconstructor.lpips import SMALLEST_SIDE
from services.control_plane.metrics import (
    ConfigurationFigures,
    configurations,
    finite,
    mean_quality,
    ratio,
)
from services.control_plane.session import Session

FILE = "session.json"


def final_accounts(output: Path, counters: Mapping[str, Any], error: str) -> dict[str, Any]:
    """What became of every frame, where the detector cannot say it any more.

    Its last counters may be a second old, so frames may have been recovered that they do not know of. What
    was acquired and is neither on disk nor lost already is lost with the detector.
    """
    table, _ = read_journals(output)
    lost = dict(counters.get("frames_lost", {}))
    last = max(table["frame_id"].tolist(), default=-1) + 1
    acquired = max(counters.get("frames_acquired", 0), last, len(table) + sum(lost.values()))
    missing = acquired - len(table) - sum(lost.values())
    if missing:
        lost[error] = lost.get(error, 0) + missing
    return {
        **counters,
        "frames_acquired": acquired,
        "frames_acknowledged": len(table),
        "frames_in_flight": 0,
        "frames_spooled": 0,
        "frames_lost": lost,
    }


def accounts(counters: Mapping[str, Any]) -> dict[str, Any]:
    """What the detector says of its frames; ``unaccounted`` is anything but 0 only by mistake."""
    lost: Mapping[str, int] = counters.get("frames_lost", {})
    held = {name: counters.get(f"frames_{name}", 0) for name in ("acknowledged", "in_flight", "spooled")}
    acquired = counters.get("frames_acquired", 0)
    unaccounted = acquired - sum(held.values()) - sum(lost.values())
    return {"acquired": acquired, **held, "lost": dict(lost), "unaccounted": unaccounted}


def accounts_problem(output: Path, counters: Mapping[str, Any], summary: Summary) -> str:
    """What does not add up in a finished session, in one line; empty: nothing."""
    account = accounts(counters)
    if account["unaccounted"]:
        return f"{account['unaccounted']} frames are unaccounted for: {account}"
    missing = account["acknowledged"] - summary.frames_recovered
    if missing > 0 and (output / JOURNALS).is_dir():
        return f"{missing} frames were acknowledged and are not among the results"
    return ""


def report(session: Session, summary: Summary) -> dict[str, Any]:
    """The account as JSON."""
    counters, output = session.counters, Path(session.opened["output"])
    start = read_start(output)
    lost = summary.frames_lost
    raw, wire = counters.get("bytes_raw", 0), counters.get("bytes_wire", 0)
    lossless = counters.get("bytes_raw_lossless_estimate", 0)
    figures = configurations(session)
    return {
        "session": session.id,
        "state": session.state,
        "error": session.error or None,
        "created_at": _iso(session.created_at),
        "finished_at": _iso(session.finished_at),
        "elapsed_seconds": session.elapsed_seconds,
        "frames": {
            "acquired": summary.frames_acquired,
            "recovered": summary.frames_recovered,
            "lost": sum(lost.values()),
            "lost_by_reason": lost,
            "references": summary.references,
            "delivered_twice": summary.duplicates_dropped,
        },
        "accounts": accounts(counters),
        "bytes": {"raw": raw, "wire": wire, "raw_lossless": lossless},
        "throughput_gain": ratio(raw, wire),
        "gain_over_lossless": ratio(lossless, wire),
        "frames_per_s": ratio(summary.frames_acquired, session.elapsed_seconds),
        "wire_mbit_per_s": ratio(wire * 8e-6, session.elapsed_seconds),
        "latency": {
            "p50_seconds": counters.get("latency_p50_seconds"),
            "p99_seconds": counters.get("latency_p99_seconds"),
        },
        "idle_seconds": counters.get("idle_seconds", 0.0),
        "blocks_redelivered": counters.get("blocks_redelivered", 0),
        "detector_restarts": counters.get("restarts", 0),
        "bad_files": counters.get("bad_files", 0),
        "quality": quality_of(figures, session.opened["shape"]),
        "configurations": [figure.model_dump(mode="json") for figure in figures],
        "acquisition": [setting.model_dump(mode="json") for setting in session.acquisition],
        "recovery": [setting.model_dump(mode="json") for setting in session.recovery],
        "calibration": start.calibration if start is not None else None,
        "shape": session.opened["shape"],
        "dtype": session.opened["dtype"],
        "pixel_size_angstrom": session.opened["pixel_size_angstrom"],
        "optics": session.opened.get("optics", {}),
        "specification": session.spec.model_dump(mode="json"),
    }


def quality_of(figures: Iterable[ConfigurationFigures], shape: Sequence[int]) -> dict[str, Any]:
    """Means over all frames; ``lpips_absent`` says in one line why there is no LPIPS, null: there is."""
    quality = mean_quality(figures)
    absent = None
    if quality.lpips is None:
        if not quality.references:
            absent = "no frame was sent whole"
        elif min(shape) < SMALLEST_SIDE:
            absent = f"frames with a side of less than {SMALLEST_SIDE} pixels are too small for its network"
        else:
            absent = "where the frames were recovered the setting lpips names no folder of weights"
    return {**quality.model_dump(), "lpips_absent": absent}


def write_report(document: Mapping[str, Any], output: Path) -> Path:
    """Write ``session.json`` into the results folder, whole or not at all."""
    path = output / FILE
    text = json.dumps(_jsonable(document), indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")
    return path


def _iso(seconds: float | None) -> str | None:
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    )


def _jsonable(value: Any) -> Any:
    """The same without infinities and NaN, which JSON does not have."""
    match value:
        case dict():
            return {key: _jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item) for item in value]
        case float():
            return finite(value)
        case _:
            return value
