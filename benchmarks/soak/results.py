"""Whether every frame acquired is in the results, once, and is the one that its slot says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd

from common.session import PatternSource
from detector_sim.sources import frame_number, open_source

AT_A_TIME_BYTES = 64 << 20


def check(output: Path, source: PatternSource) -> dict[str, Any]:
    """What a finished session left, and what is wrong with it.

    Each image is compared with the pattern's own frames: it must be more like the noise field of its frame
    than like any other (of frames so large that there is one field only, like that one). Where pixels come
    back as they were, without a mask and a prior, the frame's number is read from them too.

    Returns
    -------
    dict
        ``acquired``, ``recovered``, ``delivered_twice``, ``restarts``, ``latency``, ``frames_per_s``,
        ``wire_mbit_per_s``, ``lost``, ``numbers_read``: how many images told their number, and ``wrong``:
        lines, none of which should be there.
    """
    account = json.loads((output / "session.json").read_text())
    frames = account["frames"]
    wrong: list[str] = []
    if account["state"] != "completed":
        wrong.append(f"the session is {account['state']}: {account['error']}")
    if account["accounts"]["unaccounted"]:
        wrong.append(f"{account['accounts']['unaccounted']} frames are unaccounted for")
    if frames["lost"]:
        wrong.append(f"{frames['lost']} frames lost: {frames['lost_by_reason']}")
    table = pd.read_csv(output / "frames.csv", usecols=["frame_id", "compression_factor", "method"])
    counts = table["frame_id"].value_counts()
    twice = counts[counts > 1].index.tolist()
    missing = sorted(set(range(frames["acquired"])) - set(counts.index))
    unknown = sorted(set(counts.index) - set(range(frames["acquired"])))
    for name, found in (
        ("stand twice in frames.csv", twice),
        ("are not recovered", missing),
        ("were never acquired", unknown),
    ):
        if found and not (name == "are not recovered" and len(found) == frames["lost"]):
            wrong.append(f"{len(found)} frames {name}, such as {found[0]}")
    told, misplaced = _look(output, source, table)
    if misplaced:
        wrong.append(f"{len(misplaced)} images are not those of their slots, such as {misplaced[0]}")
    return {
        "session": account["session"],
        "acquired": frames["acquired"],
        "recovered": frames["recovered"],
        "lost": frames["lost"],
        "delivered_twice": frames["delivered_twice"],
        "blocks_redelivered": account["blocks_redelivered"],
        "detector_restarts": account["detector_restarts"],
        "elapsed_seconds": account["elapsed_seconds"],
        "frames_per_s": account["frames_per_s"],
        "wire_mbit_per_s": account["wire_mbit_per_s"],
        "idle_seconds": account["idle_seconds"],
        "latency": account["latency"],
        "settings": len(account["acquisition"]),
        "recoveries": len(account["recovery"]),
        "numbers_read": told,
        "wrong": wrong,
    }


def _look(output: Path, source: PatternSource, table: pd.DataFrame) -> tuple[int, list[int]]:
    """How many images told their number, and the frames whose image is another's."""
    pattern = open_source(source)
    fields = _fields(pattern)
    told, misplaced = 0, list[int]()
    table = table.drop_duplicates("frame_id").sort_values("frame_id")
    ids = table["frame_id"].to_numpy()
    is_exact = ((table["compression_factor"] == 1) & (table["method"] == "minimum_norm")).to_numpy()
    with mrcfile.mmap(output / "recovered.mrcs") as stack:
        images = stack.data if stack.data.ndim == 3 else stack.data[None]
        for first in range(0, len(ids), count := max(1, AT_A_TIME_BYTES // images[0].nbytes)):
            chosen = ids[first : first + count]
            chunk = np.asarray(images[chosen[0] : chosen[-1] + 1])[chosen - chosen[0]]
            alike = _normalised(chunk) @ fields.T  # (frames, fields), correlations
            own = chosen % len(fields)
            is_wrong = (alike.argmax(axis=1) != own) | (alike[np.arange(len(own)), own] < 0.05)
            for k in np.flatnonzero(is_exact[first : first + count]):
                told += 1
                is_wrong[k] |= frame_number(chunk[k].round()) != chosen[k]
            misplaced += chosen[is_wrong].tolist()
    return told, misplaced


def _fields(pattern: Any) -> np.ndarray:
    """The noise fields that frames are made of, in turn: (fields, pixels), normalised."""
    frames = [pattern.read(1).frames[0]]
    while not np.array_equal(frames[0][1:], (frame := pattern.read(1).frames[0])[1:]):
        frames.append(frame)
    return _normalised(np.stack(frames))


def _normalised(images: np.ndarray) -> np.ndarray:
    """(n, H, W) as (n, pixels) of mean 0 and length 1, without the row that has the number."""
    flat = images[:, 1:].reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
