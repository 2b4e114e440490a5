"""What the detector tells Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from prometheus_client.metrics_core import Metric as Family

from common import metrics
from detector_sim.latency import LatencyHistogram
from detector_sim.ledger import Totals
from detector_sim.series import SeriesTotals

SHOWN_EVERY = 4  # bins of the latency histogram: five buckets a decade
SHOWN_SECONDS = (1e-3, 1e3)


class Figures(NamedTuple):
    """What is measured in a detector process at one moment, over all its series.

    ``totals.acquired = totals.acknowledged + in_flight + spooled + sum(totals.lost)``.
    """

    state: str
    totals: Totals
    in_flight: int
    queued: int
    spooled: int
    spool_bytes: int
    spool_limit_bytes: int
    spool_failing: bool
    restarts: int  # of the series that runs or ran last
    unacknowledged_bytes: int
    window_bytes: int
    series: SeriesTotals
    in_force: tuple[str, float, float] | None  # kind of mask, compression factor, Unix seconds
    wire_bytes: int
    open_credits: int
    workers_present: int
    workers_silent: int
    workers_joined: int
    workers_departed: Counter[str]
    workers_refused: int
    malformed_messages: int
    not_let_in: int = 0


def families(figures: Figures) -> Iterator[Family]:
    """The figures as Prometheus wants them."""
    totals, series = figures.totals, figures.series
    lost = metrics.by_known(totals.lost, metrics.LOSS_REASONS)
    frames: dict[metrics.Labels, metrics.Value] = {}
    for (mask, factor), count in series.frames.items():
        labels = metrics.setting_labels(mask, factor, frames)
        frames[labels] = frames.get(labels, 0) + count  # pyright: ignore[reportOperatorIssue]
    in_force = None
    if figures.in_force is not None:
        mask, factor, since = figures.in_force
        in_force = {metrics.setting_labels(mask, factor, frames): since}
    departed = {(how,): figures.workers_departed[how] for how in metrics.DEPARTURES}
    connected = {("present",): figures.workers_present, ("silent",): figures.workers_silent}
    yield metrics.ACQUIRED.family(totals.acquired)
    yield metrics.ACKNOWLEDGED.family(totals.acknowledged)
    yield metrics.LOST.family(lost)
    yield metrics.IN_FLIGHT.family(figures.in_flight)
    yield metrics.QUEUED.family(figures.queued)
    yield metrics.SPOOLED.family(figures.spooled)
    yield metrics.SPOOL_BYTES.family(figures.spool_bytes)
    yield metrics.SPOOL_LIMIT_BYTES.family(figures.spool_limit_bytes)
    yield metrics.SPOOL_FAILING.family(figures.spool_failing)
    yield metrics.SERIES_RESTARTS.family(figures.restarts)
    yield metrics.UNACKNOWLEDGED_BYTES.family(figures.unacknowledged_bytes)
    yield metrics.WINDOW_BYTES.family(figures.window_bytes)
    yield metrics.LATENCY.family(_shown(totals.latency))
    yield metrics.ACQUISITION_STATE.family(metrics.one_hot(metrics.ACQUISITION_STATES, figures.state))
    yield metrics.IDLE_SECONDS.family(series.idle_seconds)
    yield metrics.SPOOL_FULL_SECONDS.family(series.spool_full_seconds)
    yield metrics.BAD_FILES.family(series.bad_files)
    yield metrics.SETTING_FRAMES.family(frames)
    yield metrics.SETTING_CHANGES.family(series.changes)
    yield metrics.SETTING_SINCE.family(in_force)
    yield metrics.RAW_BYTES.family(series.bytes_raw)
    yield metrics.WIRE_BYTES.family(figures.wire_bytes)
    yield metrics.REFERENCE_RAW_BYTES.family(series.reference_bytes_raw)
    yield metrics.REFERENCE_LOSSLESS_BYTES.family(series.reference_bytes_lossless)
    yield metrics.BLOCKS_SENT.family(totals.blocks_sent)
    yield metrics.REDELIVERED.family(totals.blocks_redelivered)
    yield metrics.LATE_ANSWERS.family(totals.late_answers)
    yield metrics.OPEN_CREDITS.family(figures.open_credits)
    yield metrics.CONNECTED.family(connected)
    yield metrics.JOINED.family(figures.workers_joined)
    yield metrics.DEPARTED.family(departed)
    yield metrics.REFUSED.family(figures.workers_refused)
    yield metrics.MALFORMED.family(figures.malformed_messages)
    yield metrics.NOT_LET_IN.family(figures.not_let_in)


def _shown(latency: LatencyHistogram) -> metrics.Distribution:
    """The histogram in fewer buckets, whose bounds are some of its own."""
    upper = latency.bounds[1:]
    first, last = np.searchsorted(upper, SHOWN_SECONDS)
    ends = np.arange(first, last + 1, SHOWN_EVERY)
    shown = metrics.Distribution(upper[ends].tolist())
    parts = np.split(latency.counts, ends + 1)
    shown.counts = [int(part.sum()) for part in parts]
    shown.sum = latency.sum_seconds
    return shown
