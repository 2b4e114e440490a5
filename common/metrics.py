"""Every Prometheus metric of the system, in one place; docs/monitoring.md is made from it.

A process counts with plain numbers, under locks that it has anyway. When it is scraped, it takes one snapshot
and builds families from it with ``Metric.family``, so the figures of a scrape belong together. Labels have
few values that are known beforehand, or are bounded: no session, frame or file is ever one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal, TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

Kind = Literal["counter", "gauge", "histogram", "summary"]
Part = Literal["control", "detector", "reconstructor"]
Labels: TypeAlias = tuple[str, ...]

CONTROL: tuple[Part, ...] = ("control",)
DETECTOR: tuple[Part, ...] = ("detector",)
WORKER: tuple[Part, ...] = ("reconstructor",)

LOSS_REASONS = (
    "not_finite",
    "not_coded",
    "rejected",
    "worker_died",
    "acquisition_failed",
    "stopped",
    "dropped",
    "spool_damaged",
)
"""Why a frame was lost, or *other*; what exactly was wrong is said in the session's figures."""

ACQUISITION_STATES = ("idle", "acquiring", "paused", "draining", "finished", "failed")
SESSION_STATES = ("created", "running", "paused", "stopping", "completed", "failed")
DEPARTURES = ("left", "gone", "silent")
METHODS = ("minimum_norm", "wiener", "dct", "wavelet", "tv", "diffusion")
EVENT_KINDS = (
    "started",
    "acquisition",
    "recovery",
    "registered",
    "silent",
    "returned",
    "left",
    "adopted",
    "store_failing",
    "store_back",
    "spool_failed",
    "spool_back",
    "spool_damaged",
    "results_failed",
    "results_back",
    "resumed",
    "archive",
    "archive_failed",
    "worker_joined",
    "worker_left",
    "worker_silent",
    "worker_back",
    "worker_refused",
    "peer_ignored",
    "not_let_in",
    "batch_halved",
    "batch_grown",
    "recovery_slow",
    "prior",
    "prior_doubtful",
    "block_suspected",
    "frames_lost",
    "bad_file",
    "error",
    "finished",
    "completed",
    "failed",
)
OTHER = "other"
"""What a label says where its value is none of those known beforehand."""

SETTINGS_TOLD_APART = 32
"""Masks with their compression factors that have labels of their own; those that follow are *other*."""

RECOVERY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
WRITE_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
REQUEST_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Distribution:
    """Observations in buckets with inclusive upper bounds; whoever shares one between threads locks it.

    Parameters
    ----------
    bounds : tuple of float
        Ascending; what is above the last one is only counted. Without any it is a mere count and sum.
    """

    def __init__(self, bounds: Iterable[float] = ()) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value; it must be finite and not negative, so that the sum only grows."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, +Inf included."""
        total, buckets = 0, list[tuple[str, float]]()
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), total))  # as every version of Prometheus shows them
        return buckets


Value: TypeAlias = float | Distribution


@dataclass(frozen=True)
class Metric:
    """What a metric is called and what it means.

    Attributes
    ----------
    name : str
        As it is scraped; a counter's ends in ``_total``, the unit stands in it.
    kind : str
        counter, gauge, histogram, or summary (count and sum only).
    help : str
        One sentence.
    parts : tuple of str
        The processes that serve it.
    labels : tuple of str
        Names of its labels.
    bounds : tuple of float
        Upper bounds of a histogram's buckets; empty where whoever counts brings its own.
    """

    name: str
    kind: Kind
    help: str
    parts: tuple[Part, ...]
    labels: Labels = ()
    bounds: tuple[float, ...] = ()

    def distribution(self) -> Distribution:
        """An empty one with this metric's buckets."""
        return Distribution(self.bounds)

    def family(self, values: Value | Mapping[Labels, Value] | None) -> Family:
        """The metric with its values of now.

        Parameters
        ----------
        values : float, Distribution or mapping
            The value, or the values by their labels; None: there is none now.
        """
        if values is None:
            values = {}
        if isinstance(values, (int, float, Distribution)):
            values = {(): values}
        match self.kind:
            case "counter":
                family = CounterMetricFamily(self.name, self.help, labels=self.labels)
            case "gauge":
                family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
            case "histogram":
                family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
            case "summary":
                family = SummaryMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in values.items():
            if isinstance(value, Distribution):
                if isinstance(family, HistogramMetricFamily):
                    family.add_metric(labels, value.buckets(), value.sum)
                elif isinstance(family, SummaryMetricFamily):
                    family.add_metric(labels, value.count, value.sum)
                else:
                    raise TypeError(f"{self.name} is a {self.kind}; a distribution is none")
            elif isinstance(family, (CounterMetricFamily, GaugeMetricFamily)):
                family.add_metric(labels, value)
            else:
                raise TypeError(f"{self.name} is a {self.kind}; {value!r} is no distribution")
        return family


ALL: dict[str, Metric] = {}
"""Every metric by its name, in the order of their definition."""


def _metric(
    name: str,
    kind: Kind,
    parts: tuple[Part, ...],
    text: str,
    labels: Labels = (),
    bounds: tuple[float, ...] = (),
) -> Metric:
    assert name not in ALL, f"{name} is defined twice"
    ALL[name] = metric = Metric(name, kind, text, parts, labels, bounds)
    return metric


def str_of(number: float) -> str:
    """A number as labels show it: short, and the same however it was computed."""
    return f"{number:.4g}"


def one_hot(states: Iterable[str], state: str | None) -> dict[Labels, Value]:
    """1 for the state, 0 for all others."""
    return {(known,): float(known == state) for known in states}


def by_known(counts: Mapping[str, int], known: Iterable[str]) -> dict[Labels, Value]:
    """Counts by a label whose values are known beforehand, each initialised; all others are one."""
    values: dict[Labels, Value] = {(name,): 0 for name in (*known, OTHER)}
    for name, count in counts.items():
        labels = (name,) if (name,) in values else (OTHER,)
        before = values[labels]
        assert not isinstance(before, Distribution)
        values[labels] = before + count
    return values


SETTING_LABELS = ("mask", "compression_factor")


def setting_labels(mask: str, compression_factor: float, known: Iterable[Labels]) -> Labels:
    """The labels of a mask with its compression factor, unless too many are told apart already."""
    labels = (mask, str_of(compression_factor))
    known = set(known)
    return labels if labels in known or len(known) < SETTINGS_TOLD_APART else (OTHER, OTHER)


# ---- every process

BUILD = _metric(
    "cryoflux_build_info", "gauge", (*CONTROL, *DETECTOR, *WORKER),
    "Always 1; the version that runs.", ("version",),
)  # fmt: skip


def build_info() -> Family:
    """The version that runs."""
    return BUILD.family({(version("cryoflux"),): 1})


MALFORMED = _metric(
    "cryoflux_malformed_messages_total", "counter", (*DETECTOR, *WORKER),
    "Messages of the data plane that could not be read.",
)  # fmt: skip

NOT_LET_IN = _metric(
    "cryoflux_not_let_in_total", "counter", (*CONTROL, *DETECTOR),
    "How often somebody without the right key came to the control bus or the data plane, or spoke there.",
)  # fmt: skip

# ---- the detector: the accounts, acquired = acknowledged + in flight + spooled + lost

ACQUIRED = _metric("cryoflux_frames_acquired_total", "counter", DETECTOR, "Frames that the camera exposed.")
ACKNOWLEDGED = _metric(
    "cryoflux_frames_acknowledged_total", "counter", DETECTOR, "Frames recovered, with the result on disk."
)
LOST = _metric(
    "cryoflux_frames_lost_total", "counter", DETECTOR,
    "Frames that will never be recovered, and why.", ("reason",),
)  # fmt: skip
IN_FLIGHT = _metric(
    "cryoflux_frames_in_flight", "gauge", DETECTOR,
    "Frames acquired without a verdict yet, those in the spool apart.",
)  # fmt: skip
QUEUED = _metric(
    "cryoflux_frames_queued", "gauge", DETECTOR,
    "Frames in flight that no worker holds: gathering into a block, or waiting to be sent.",
)  # fmt: skip
SPOOLED = _metric(
    "cryoflux_frames_spooled", "gauge", DETECTOR, "Frames acquired that wait in the spool on disk."
)
SPOOL_BYTES = _metric(
    "cryoflux_spool_bytes", "gauge", DETECTOR, "Disk space that blocks of frames take in the spool."
)
SPOOL_LIMIT_BYTES = _metric(
    "cryoflux_spool_limit_bytes", "gauge", DETECTOR,
    "Disk space that they may take; 0: there is no spool.",
)  # fmt: skip
SPOOL_FAILING = _metric(
    "cryoflux_spool_failing", "gauge", DETECTOR,
    "1 while the spool cannot be written and frames are kept in memory only, else 0.",
)  # fmt: skip
SERIES_RESTARTS = _metric(
    "cryoflux_series_restarts", "gauge", DETECTOR,
    "How often the series was taken up by another detector process, the one before having died.",
)  # fmt: skip
UNACKNOWLEDGED_BYTES = _metric(
    "cryoflux_unacknowledged_bytes", "gauge", DETECTOR, "Payload that waits for its acknowledgement."
)
WINDOW_BYTES = _metric(
    "cryoflux_window_bytes", "gauge", DETECTOR,
    "Payload that may wait for its acknowledgement; the camera waits where it is used up.",
)  # fmt: skip
LATENCY = _metric(
    "cryoflux_frame_latency_seconds", "histogram", DETECTOR,
    "From the end of a frame's exposure to its acknowledgement.",
)  # fmt: skip

# ---- the detector: the camera and its mask

ACQUISITION_STATE = _metric(
    "cryoflux_acquisition_state", "gauge", DETECTOR,
    "1 for the state of the series, 0 for all others.", ("state",),
)  # fmt: skip
IDLE_SECONDS = _metric(
    "cryoflux_camera_idle_seconds_total", "counter", DETECTOR,
    "Time in which the camera could have exposed, but had to wait for the link or the workers.",
)  # fmt: skip
SPOOL_FULL_SECONDS = _metric(
    "cryoflux_camera_spool_full_seconds_total", "counter", DETECTOR,
    "The part of that time in which the spool was full.",
)  # fmt: skip
BAD_FILES = _metric(
    "cryoflux_bad_files_total",
    "counter",
    DETECTOR,
    "Input files that were skipped because they cannot be read.",
)
SETTING_FRAMES = _metric(
    "cryoflux_configuration_frames_total", "counter", DETECTOR,
    "Frames acquired through each mask and compression factor.", SETTING_LABELS,
)  # fmt: skip
SETTING_CHANGES = _metric(
    "cryoflux_configuration_changes_total", "counter", DETECTOR,
    "How often frames began to be acquired through another mask, a series' first one included.",
)  # fmt: skip
SETTING_SINCE = _metric(
    "cryoflux_configuration_since_timestamp_seconds", "gauge", DETECTOR,
    "Since when the mask in force is; there is one series, and its labels say which mask.", SETTING_LABELS,
)  # fmt: skip

# ---- the detector: bytes and the wire

RAW_BYTES = _metric(
    "cryoflux_raw_bytes_total", "counter", DETECTOR, "The acquired frames, had they been sent as they are."
)
WIRE_BYTES = _metric(
    "cryoflux_wire_bytes_total", "counter", DETECTOR,
    "Bytes sent to workers: headers, payloads, reference frames, heartbeats, redeliveries.",
)  # fmt: skip
REFERENCE_RAW_BYTES = _metric(
    "cryoflux_reference_raw_bytes_total", "counter", DETECTOR, "Frames also sent whole, as they are."
)
REFERENCE_LOSSLESS_BYTES = _metric(
    "cryoflux_reference_lossless_bytes_total", "counter", DETECTOR,
    "The same frames losslessly coded; the ratio of the two is how far raw frames could be coded.",
)  # fmt: skip
BLOCKS_SENT = _metric(
    "cryoflux_blocks_sent_total",
    "counter",
    DETECTOR,
    "Blocks of frames handed to workers, redeliveries included.",
)
REDELIVERED = _metric(
    "cryoflux_blocks_redelivered_total", "counter", DETECTOR,
    "Blocks taken back from a worker that left, fell silent or rejected them, to be sent to another.",
)  # fmt: skip
LATE_ANSWERS = _metric(
    "cryoflux_late_answers_total", "counter", DETECTOR,
    "Acknowledgements of frames that had their verdict already.",
)  # fmt: skip
OPEN_CREDITS = _metric(
    "cryoflux_open_credits", "gauge", DETECTOR, "Blocks that workers would take now, as the detector knows."
)
CONNECTED = _metric("cryoflux_workers_connected", "gauge", DETECTOR, "Workers on the data plane.", ("state",))
JOINED = _metric("cryoflux_workers_joined_total", "counter", DETECTOR, "Workers that came to the data plane.")
DEPARTED = _metric(
    "cryoflux_workers_departed_total", "counter", DETECTOR,
    "Workers that went: left (said goodbye), gone (connection lost), silent (no sign of life).", ("how",),
)  # fmt: skip
REFUSED = _metric(
    "cryoflux_workers_refused_total", "counter", DETECTOR, "Messages of strangers that were refused."
)

# ---- a worker

RECOVERED = _metric(
    "cryoflux_frames_recovered_total",
    "counter",
    WORKER,
    "Frames recovered by this process, with the result on disk.",
)
REJECTED = _metric(
    "cryoflux_frames_rejected_total", "counter", WORKER, "Frames that this process could not recover."
)
RECOVERY_SECONDS = _metric(
    "cryoflux_recovery_seconds", "histogram", WORKER,
    "Time to decode, recover and judge a batch.", ("method",), RECOVERY_BOUNDS,
)  # fmt: skip
BATCH_FRAMES = _metric(
    "cryoflux_batch_frames", "histogram", WORKER, "Frames recovered together.", (), BATCH_BOUNDS
)
FRAMES_PER_BATCH = _metric(
    "cryoflux_frames_per_batch", "gauge", WORKER,
    "Frames that are recovered in one call at most; fewer than usual while memory is short.",
)  # fmt: skip
BATCH_HALVINGS = _metric(
    "cryoflux_batch_halvings_total", "counter", WORKER,
    "Batches that memory did not hold, of the GPU or the machine: halved and tried again.",
)  # fmt: skip
WRITE_SECONDS = _metric(
    "cryoflux_write_seconds",
    "histogram",
    WORKER,
    "Time to make the results that wait durable.",
    (),
    WRITE_BOUNDS,
)
BLOCKS_HELD = _metric("cryoflux_blocks_held", "gauge", WORKER, "Blocks received and not yet answered for.")
CREDITS = _metric(
    "cryoflux_worker_credits", "gauge", WORKER, "Blocks that this worker takes at a time, at most."
)
WORKER_INFO = _metric(
    "cryoflux_worker_info", "gauge", WORKER, "Always 1; what this worker computes on.", ("device", "threads")
)
PSNR = _metric(
    "cryoflux_frame_psnr_decibels", "summary", WORKER,
    "PSNR of recovered frames that were also sent whole; negative ones count as 0.", SETTING_LABELS,
)  # fmt: skip
SSIM = _metric(
    "cryoflux_frame_ssim", "summary", WORKER,
    "SSIM of recovered frames that were also sent whole; negative ones count as 0.", SETTING_LABELS,
)  # fmt: skip
FRC_RESOLUTION = _metric(
    "cryoflux_frame_frc_resolution_angstroms", "summary", WORKER,
    "Resolution (FRC) of recovered frames that were also sent whole.", SETTING_LABELS,
)  # fmt: skip
FREE_RESIDUAL = _metric(
    "cryoflux_frame_free_residual_ratio", "summary", WORKER,
    "Error in predicting measurements kept out of the recovery; 1: nothing predicted.", SETTING_LABELS,
)  # fmt: skip
PRIOR_SHIFT = _metric(
    "cryoflux_frame_prior_shift_ratio", "summary", WORKER,
    "How far a learned prior moved images from the linear estimate, relative to that.", SETTING_LABELS,
)  # fmt: skip
EVALUATIONS = _metric(
    "cryoflux_recovery_evaluations", "gauge", WORKER,
    "Evaluations of the learned prior's network for each image; absent where none is used.",
)  # fmt: skip
FRAMES_POSSIBLE = _metric(
    "cryoflux_recovery_frames_per_second_possible", "gauge", WORKER,
    "Frames per second that this worker can recover with a learned prior and so many evaluations, measured.",
)  # fmt: skip
FRAMES_ASKED = _metric(
    "cryoflux_recovery_frames_per_second_asked", "gauge", WORKER,
    "Frames per second that come to this worker to be recovered with a learned prior.",
)  # fmt: skip

GPU_LABELS = ("gpu", "uuid", "model")
GPU_MEMORY_USED = _metric(
    "cryoflux_gpu_memory_used_bytes",
    "gauge",
    WORKER,
    "Memory of the worker's GPU in use, by whomever.",
    GPU_LABELS,
)
GPU_MEMORY_TOTAL = _metric(
    "cryoflux_gpu_memory_total_bytes", "gauge", WORKER, "Memory of the worker's GPU.", GPU_LABELS
)
GPU_UTILISATION = _metric(
    "cryoflux_gpu_utilisation_ratio", "gauge", WORKER,
    "Share of time in which the worker's GPU computed, for whomever.", GPU_LABELS,
)  # fmt: skip

# ---- the control plane

SESSION_STATE = _metric(
    "cryoflux_session_state", "gauge", CONTROL,
    "1 for the state of the session that runs or ran last, 0 for all others.", ("state",),
)  # fmt: skip
THROUGHPUT_GAIN = _metric(
    "cryoflux_session_throughput_gain_ratio",
    "gauge",
    CONTROL,
    "Raw bytes over bytes on the wire, whole session.",
)
GAIN_OVER_LOSSLESS = _metric(
    "cryoflux_session_gain_over_lossless_ratio", "gauge", CONTROL,
    "Losslessly coded raw bytes over bytes on the wire, whole session.",
)  # fmt: skip
LINK_LIMIT = _metric(
    "cryoflux_session_link_limit_bytes_per_second", "gauge", CONTROL,
    "Limit of the session's link; absent where there is none.",
)  # fmt: skip
RAW_LIMIT = _metric(
    "cryoflux_session_raw_frames_per_second_limit", "gauge", CONTROL,
    "Raw frames per second that the same link could carry; absent where it has no limit.",
)  # fmt: skip
LOSSLESS_LIMIT = _metric(
    "cryoflux_session_lossless_frames_per_second_limit", "gauge", CONTROL,
    "Losslessly coded frames per second that the same link could carry; absent where it has no limit.",
)  # fmt: skip
SESSION_PSNR = _metric(
    "cryoflux_session_psnr_decibels",
    "gauge",
    CONTROL,
    "Mean PSNR of the session's reference frames.",
    SETTING_LABELS,
)
SESSION_SSIM = _metric(
    "cryoflux_session_ssim", "gauge", CONTROL, "Mean SSIM of the session's reference frames.", SETTING_LABELS
)
SESSION_FRC_RESOLUTION = _metric(
    "cryoflux_session_frc_resolution_angstroms", "gauge", CONTROL,
    "Mean resolution (FRC) of the session's reference frames.", SETTING_LABELS,
)  # fmt: skip
SESSION_FREE_RESIDUAL = _metric(
    "cryoflux_session_free_residual_ratio", "gauge", CONTROL,
    "Mean free residual of the session's frames.", SETTING_LABELS,
)  # fmt: skip
SESSION_PRIOR_SHIFT = _metric(
    "cryoflux_session_prior_shift_ratio", "gauge", CONTROL,
    "Mean shift by the learned prior of the session's frames that were recovered with one.", SETTING_LABELS,
)  # fmt: skip
COMPONENTS = _metric(
    "cryoflux_components", "gauge", CONTROL,
    "Processes on the control bus: present, or silent (not heard for seconds; forgotten after a minute).",
    ("kind", "state"),
)  # fmt: skip
EVENTS = _metric(
    "cryoflux_events_total", "counter", CONTROL, "Lines added to sessions' histories.", ("kind",)
)
STORE_FAILING = _metric(
    "cryoflux_store_failing", "gauge", CONTROL, "1 while the state store cannot be written, else 0."
)
STORE_WAITING = _metric(
    "cryoflux_store_writes_waiting", "gauge", CONTROL, "Writes that wait for the state store."
)
REQUESTS = _metric(
    "cryoflux_http_requests_total", "counter", CONTROL,
    "Requests by route template and status; other: no such route.", ("method", "route", "status"),
)  # fmt: skip
REQUEST_SECONDS = _metric(
    "cryoflux_http_request_seconds", "histogram", CONTROL,
    "From a request to the beginning of its answer.", ("method", "route"), REQUEST_BOUNDS,
)  # fmt: skip
