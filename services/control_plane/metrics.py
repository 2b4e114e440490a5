"""The figures of a session: what was acquired, what the wire carried, what came back, and how good it is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from common.operators.spec import MaskSpec
from services.control_plane.bus import Component
from services.control_plane.session import Session
from services.control_plane.states import State

RATE_WINDOW_SECONDS = 5.0
JUDGED = {
    "frames": ("psnr", "ssim", "frc_resolution_angstrom"),
    "lpips_frames": ("lpips",),
    "free_frames": ("free_residual",),
    "learned_frames": ("prior_shift",),
}
"""What workers sum up, by what they count it over."""


class FrameCounts(BaseModel):
    """``acquired = acknowledged + in_flight + spooled + lost`` at every moment."""

    acquired: int = Field(0, description="exposed by the camera")
    acknowledged: int = Field(0, description="recovered, with the result on disk")
    in_flight: int = Field(0, description="acquired, no verdict yet")
    queued: int = Field(0, description="of those in flight: not sent yet")
    spooled: int = Field(0, description="waiting on the detector's disk")
    lost: int = 0
    lost_by_reason: dict[str, int] = {}


class ByteCounts(BaseModel):
    """What the acquired frames are, were, and would have been."""

    raw: int = Field(0, description="the acquired frames, uncoded")
    wire: int = Field(0, description="sent to workers: headers, reference frames, redeliveries and all")
    raw_lossless: int = Field(
        0, description="the raw frames losslessly coded, from the reference frames' ratio"
    )


class Latency(BaseModel):
    """From the end of the exposure to the acknowledgement, on the detector's clock."""

    p50_seconds: float | None = None
    p99_seconds: float | None = None


class Quality(BaseModel):
    """Means over frames; null where nothing was measured."""

    references: int = Field(
        default=0, description="frames also sent whole and recovered: PSNR, SSIM, LPIPS and FRC are theirs"
    )
    psnr: float | None = Field(default=None, description="dB")
    ssim: float | None = None
    lpips: float | None = Field(
        default=None, description="0: equal; null also where no weights are given to measure it with"
    )
    frc_resolution_angstrom: float | None = None
    free_residual: float | None = Field(
        default=None,
        description="error in predicting measurements kept out of the recovery; 1: nothing predicted",
    )
    learned_frames: int = Field(
        default=0, description="frames recovered with a learned prior: the prior shift is theirs"
    )
    prior_shift: float | None = Field(
        default=None,
        description="how far the learned prior moved images from the linear estimate, relative to that; "
        "0: not at all",
    )


class ConfigurationFigures(BaseModel):
    """What was acquired with one configuration, and how it came back."""

    config_id: str
    mask: MaskSpec
    compression_factor: float
    printed_compression_factor: float
    error_bound: str
    first_frame: int | None = Field(description="null: none was acquired with it")
    frames: int
    quality: Quality


class WorkerFigures(BaseModel):
    """A worker as it is known on the control bus; counts are of the process that runs now."""

    name: str
    host: str
    pid: int
    present: bool = Field(description="whether it is heard")
    device: str | None = None
    threads: int | None = None
    busy_share: float | None = None
    frames_recovered: int = 0
    frames_rejected: int = 0
    frames_per_s: float = Field(default=0.0, description="recovered, of the last seconds")
    batch_frames_mean: float | None = Field(default=None, description="frames recovered at a time")
    evaluations: int | None = Field(
        default=None, description="of the learned prior's network for each image; null: none is used"
    )
    frames_per_s_possible: float | None = Field(
        default=None, description="that it can recover so, measured; null: no learned prior, or not known yet"
    )
    frames_per_s_asked: float | None = Field(
        default=None, description="that come to it to be recovered so; null: not known yet"
    )
    credits: int | None = Field(
        default=None, description="blocks it would take now; null: the detector does not know it"
    )
    frames_held: int | None = Field(default=None, description="sent to it, no verdict yet")


class Metrics(BaseModel):
    """All figures of a session at one moment."""

    session: str
    state: State
    at: float = Field(description="Unix time, seconds")
    elapsed_seconds: float
    frames_expected: int | None
    frames: FrameCounts
    bytes: ByteCounts
    throughput_gain: float | None = Field(description="raw bytes over bytes on the wire")
    gain_over_lossless: float | None = Field(description="losslessly coded raw bytes over bytes on the wire")
    frames_per_s: float = Field(
        description="acquired; of the last seconds, or of the whole session once it is over"
    )
    wire_mbit_per_s: float
    raw_mbit_per_s: float = Field(description="what the same frames would take uncoded")
    raw_frames_per_s_limit: float | None = Field(
        description="frames per second that the limited link carries uncoded; null: it has no limit"
    )
    lossless_frames_per_s_limit: float | None = Field(
        description="the same losslessly coded, from the reference frames' ratio"
    )
    newest_frame: int | None = Field(description="highest frame_id recovered; null: none yet")
    newest_reference: int | None = Field(description="the same of frames that were also sent whole")
    idle_seconds: float = Field(description="the camera had to wait for the link or the workers")
    latency: Latency
    blocks_redelivered: int
    bad_files: int
    recovery_seconds: float = Field(description="spent in recoveries, all workers")
    quality: Quality
    configurations: list[ConfigurationFigures]
    workers: list[WorkerFigures]


class Rates(NamedTuple):
    """What goes on per second."""

    frames_per_s: float = 0.0
    wire_mbit_per_s: float = 0.0
    raw_mbit_per_s: float = 0.0


class RateWindow:
    """Rates over the last few seconds, from counters that come about once a second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int, int]] = deque()

    def add(self, now: float, frames: int, wire: int = 0, raw: int = 0) -> None:
        """Frames, and bytes on the wire and uncoded, counted up to a monotonic time."""
        self._samples.append((now, frames, wire, raw))
        while now - self._samples[0][0] > RATE_WINDOW_SECONDS:
            self._samples.popleft()

    def rates(self) -> Rates:
        """The rates; zero until there are two samples."""
        if len(self._samples) < 2 or self._samples[-1][0] <= self._samples[0][0]:
            return Rates()
        first, last = self._samples[0], self._samples[-1]
        seconds, frames, wire, raw = (b - a for a, b in zip(first, last, strict=True))
        return Rates(frames / seconds, wire * 8e-6 / seconds, raw * 8e-6 / seconds)


def finite(value: Any) -> float | None:
    """A number that JSON can hold, else None."""
    return float(value) if value is not None and math.isfinite(value) else None


def ratio(above: float, below: float) -> float | None:
    """A quotient, or None where there is nothing to divide by."""
    return above / below if below else None


def configurations(session: Session) -> list[ConfigurationFigures]:
    """What was acquired with each configuration, in the order of first use."""
    judged = final_quality(session.quality) if session.quality is not None else _live_quality(session)
    return [
        ConfigurationFigures(**known, quality=judged.get(known["config_id"], Quality()))
        for known in session.counters.get("configurations", [])
    ]


def final_quality(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Quality]:
    """From the tables of all frames."""
    names = ("psnr", "ssim", "lpips", "frc_resolution_angstrom", "free_residual", "prior_shift")
    return {
        config_id: Quality(
            references=int(known["references"]),
            learned_frames=int(known.get("learned_frames", 0)),
            **{name: finite(known.get(name)) for name in names},
        )
        for config_id, known in figures.items()
    }


def _live_quality(session: Session) -> dict[str, Quality]:
    """From what the workers have counted so far."""
    quality: dict[str, Quality] = {}
    for config_id, sums in session.workers.total().get("quality", {}).items():
        judged, learned = sums["frames"], sums.get("learned_frames", 0.0)
        quality[config_id] = Quality(
            references=round(judged),
            psnr=ratio(sums["psnr_sum"], judged),
            ssim=ratio(sums["ssim_sum"], judged),
            lpips=ratio(sums.get("lpips_sum", 0.0), sums.get("lpips_frames", 0.0)),
            frc_resolution_angstrom=finite(ratio(sums["frc_resolution_angstrom_sum"], judged)),
            free_residual=ratio(sums["free_residual_sum"], sums["free_frames"]),
            learned_frames=round(learned),
            prior_shift=ratio(sums.get("prior_shift_sum", 0.0), learned),
        )
    return quality


def mean_quality(figures: Iterable[ConfigurationFigures]) -> Quality:
    """Over several configurations, each frame counted alike."""
    figures = list(figures)

    def mean(name: str, counts: Iterable[int]) -> float | None:
        values = (getattr(figure.quality, name) for figure in figures)
        known = [(value, count) for value, count in zip(values, counts, strict=True) if value is not None]
        return ratio(sum(value * count for value, count in known), sum(count for _, count in known))

    references = [figure.quality.references for figure in figures]
    learned = [figure.quality.learned_frames for figure in figures]
    return Quality(
        references=sum(references),
        psnr=mean("psnr", references),
        ssim=mean("ssim", references),
        lpips=mean("lpips", references),
        frc_resolution_angstrom=mean("frc_resolution_angstrom", references),
        free_residual=mean("free_residual", [figure.frames for figure in figures]),
        learned_frames=sum(learned),
        prior_shift=mean("prior_shift", learned),
    )


def recent_quality(session: Session) -> Quality:
    """Means over what was judged since this was asked before; null where nothing was."""
    sums: dict[str, float] = {}
    for figures in session.workers.total().get("quality", {}).values():
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value
    before, means = session.judged, dict[str, float | None]()
    counted = dict.fromkeys(JUDGED, 0.0)
    for count, names in JUDGED.items():
        new = sums.get(count, 0.0) - before.get(count, 0.0)
        if new > 0:
            kept = {count: sums[count], **{f"{name}_sum": sums[f"{name}_sum"] for name in names}}
            for name in names:
                means[name] = finite((kept[f"{name}_sum"] - before.get(f"{name}_sum", 0.0)) / new)
            session.judged = {**session.judged, **kept}
            counted[count] = new
    references, learned = round(counted["frames"]), round(counted["learned_frames"])
    return Quality(references=references, learned_frames=learned, **means)  # pyright: ignore[reportArgumentType]


def limits(session: Session, sizes: ByteCounts) -> tuple[float | None, float | None]:
    """Frames per second that the session's limited link would carry uncoded, and losslessly coded."""
    link, shape = session.spec.link_mbit_per_s, session.opened.get("shape")
    if link is None or shape is None:
        return None, None
    frame_bits = 8 * np.dtype(session.opened["dtype"]).itemsize * shape[0] * shape[1]
    raw = link * 1e6 / frame_bits
    share = ratio(sizes.raw_lossless, sizes.raw)
    return raw, raw / share if share else None


def metrics(
    session: Session,
    workers: Iterable[Component],
    rates: RateWindow | None,
    *,
    worker_rates: Mapping[bytes, RateWindow] | None = None,
    served: Iterable[Mapping[str, Any]] = (),
) -> Metrics:
    """The figures of a session.

    Parameters
    ----------
    rates : RateWindow, optional
        None where it is not acquiring.
    worker_rates : mapping, optional
        Of frames recovered, by the worker's identity.
    served : iterable of mapping
        The workers as the detector sees them, from its telemetry.
    """
    counters = session.counters
    lost: Mapping[str, int] = counters.get("frames_lost", {})
    sizes = ByteCounts(
        raw=counters.get("bytes_raw", 0),
        wire=counters.get("bytes_wire", 0),
        raw_lossless=counters.get("bytes_raw_lossless_estimate", 0),
    )
    acquired = counters.get("frames_acquired", 0)
    elapsed = session.elapsed_seconds
    if rates is not None:
        now = rates.rates()
    elif elapsed:
        now = Rates(acquired / elapsed, sizes.wire * 8e-6 / elapsed, sizes.raw * 8e-6 / elapsed)
    else:
        now = Rates()
    figures = configurations(session)
    raw_limit, lossless_limit = limits(session, sizes)
    seen = {worker.get("name"): worker for worker in served}
    return Metrics(
        session=session.id,
        state=session.state,
        at=session.now(),
        elapsed_seconds=elapsed,
        frames_expected=session.opened.get("frames_expected"),
        frames=FrameCounts(
            acquired=acquired,
            acknowledged=counters.get("frames_acknowledged", 0),
            in_flight=counters.get("frames_in_flight", 0),
            queued=counters.get("frames_queued", 0),
            spooled=counters.get("frames_spooled", 0),
            lost=sum(lost.values()),
            lost_by_reason=dict(lost),
        ),
        bytes=sizes,
        throughput_gain=ratio(sizes.raw, sizes.wire),
        gain_over_lossless=ratio(sizes.raw_lossless, sizes.wire),
        frames_per_s=now.frames_per_s,
        wire_mbit_per_s=now.wire_mbit_per_s,
        raw_mbit_per_s=now.raw_mbit_per_s,
        raw_frames_per_s_limit=raw_limit,
        lossless_frames_per_s_limit=lossless_limit,
        newest_frame=session.newest_frame,
        newest_reference=session.newest_reference,
        idle_seconds=counters.get("idle_seconds", 0.0),
        latency=Latency(
            p50_seconds=counters.get("latency_p50_seconds"), p99_seconds=counters.get("latency_p99_seconds")
        ),
        blocks_redelivered=counters.get("blocks_redelivered", 0),
        bad_files=counters.get("bad_files", 0),
        recovery_seconds=session.workers.total().get("recovery_seconds", 0.0),
        quality=mean_quality(figures),
        configurations=figures,
        workers=[
            _worker(
                worker,
                (worker_rates or {}).get(worker.identity),
                seen.get(worker.details.get("journal"), {}) if worker.present else {},
            )
            for worker in workers
        ],
    )


def _worker(component: Component, rates: RateWindow | None, served: Mapping[str, Any]) -> WorkerFigures:
    known = {**component.details, **component.telemetry}
    recovered, rejected = known.get("frames_recovered", 0), known.get("frames_rejected", 0)
    return WorkerFigures(
        name=component.name,
        host=component.host,
        pid=component.pid,
        present=component.present,
        device=known.get("device"),
        threads=known.get("threads"),
        busy_share=known.get("busy_share"),
        frames_recovered=recovered,
        frames_rejected=rejected,
        frames_per_s=rates.rates().frames_per_s if rates is not None and component.present else 0.0,
        batch_frames_mean=ratio(recovered + rejected, known.get("batches", 0)),
        evaluations=known.get("evaluations"),
        frames_per_s_possible=known.get("frames_per_s_possible"),
        frames_per_s_asked=known.get("frames_per_s_asked"),
        credits=served.get("credit"),
        frames_held=served.get("in_flight"),
    )
