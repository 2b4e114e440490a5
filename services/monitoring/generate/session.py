"""The dashboard *Session*: what is gained, what it costs, and that nothing is lost."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from services.monitoring.generate.panels import (
    ANGSTROMS,
    AREA,
    BITS_PER_SECOND,
    DASHED,
    DECIBELS,
    FRAMES,
    FRAMES_PER_SECOND,
    NONE_IS_GOOD,
    RATIO,
    SECONDS,
    SHARE,
    Column,
    Query,
    board,
    colour,
    graph,
    heat,
    numbered,
    row,
    stat,
    steps,
    table,
)

UID, TITLE = "cryoflux-session", "CryoFlux: Session"
OTHER = ("cryoflux-workers", "CryoFlux: Workers")

RATE = "[$__rate_interval]"
BY_SETTING = "sum by (mask, compression_factor)"
SETTING = "{{mask}}, C = {{compression_factor}}"
LOSSLESS_SHARE = (
    "(sum(cryoflux_reference_lossless_bytes_total) / (sum(cryoflux_reference_raw_bytes_total) > 0))"
)
STATES = {
    "created": "blue",
    "running": "green",
    "paused": "yellow",
    "stopping": "orange",
    "completed": "text",
    "failed": "red",
}


def recent_mean(metric: str) -> str:
    """Mean of what workers judged lately, by mask and compression factor."""
    sums, counts = (
        f"{BY_SETTING} (increase({metric}_{part}[$__rate_interval]))" for part in ("sum", "count")
    )
    return f"{sums} / ({counts} > 0)"


def quantile(q: float) -> str:
    """A quantile of the latency."""
    return f"histogram_quantile({q}, sum by (le) (rate(cryoflux_frame_latency_seconds_bucket{RATE})))"


def session() -> dashboard.Dashboard:
    """The dashboard."""
    built = (
        board(UID, TITLE, "A live session: throughput gained, quality paid, frames accounted for.", OTHER)
        # ---- at a glance
        .with_panel(
            stat(
                "State",
                "Of the session that runs or ran last.",
                Query("cryoflux_session_state == 1", "{{state}}"),
                by_name=STATES,
                width=3,
            )
        )
        .with_panel(
            stat(
                "Throughput gain",
                "Raw bytes of acquired frames over bytes on the wire (headers, reference frames and all), "
                "over the whole session.",
                Query("cryoflux_session_throughput_gain_ratio"),
                unit=RATIO,
                decimals=2,
                thresholds=steps((None, "orange"), (1, "green")),
                width=3,
            )
        )
        .with_panel(
            stat(
                "Gain over lossless",
                "The same against losslessly coded raw frames, which is what facilities send today. Below 1 "
                "the mask costs more than it saves.",
                Query("cryoflux_session_gain_over_lossless_ratio"),
                unit=RATIO,
                decimals=2,
                thresholds=steps((None, "orange"), (1, "green")),
                width=3,
            )
        )
        .with_panel(
            stat(
                "Frames acquired",
                "Per second.",
                Query(f"sum(rate(cryoflux_frames_acquired_total{RATE}))"),
                unit=FRAMES_PER_SECOND,
                decimals=1,
                sparkline=True,
                width=3,
            )
        )
        .with_panel(
            stat(
                "Against raw frames",
                "Frames per second acquired, over what the same link would carry of raw frames.",
                Query(
                    f"sum(rate(cryoflux_frames_acquired_total{RATE})) "
                    "/ max(cryoflux_session_raw_frames_per_second_limit)"
                ),
                unit=RATIO,
                width=3,
                decimals=2,
                thresholds=steps((None, "orange"), (1, "green")),
            )
        )
        .with_panel(
            stat(
                "Latency",
                "99 of 100 frames were recovered, and their results on disk, within this time.",
                Query(quantile(0.99)),
                unit=SECONDS,
                width=3,
                decimals=2,
            )
        )
        .with_panel(
            stat(
                "Frames lost",
                "In the time range shown, for whatever reason.",
                Query("sum(increase(cryoflux_frames_lost_total[$__range]))"),
                unit=FRAMES,
                decimals=0,
                thresholds=NONE_IS_GOOD,
                width=3,
            )
        )
        .with_panel(
            stat(
                "Unaccounted for",
                "acquired - acknowledged - in flight - spooled - lost. Anything but 0 is a bug.",
                Query("sum(abs(cryoflux:frames_unaccounted))"),
                unit=FRAMES,
                decimals=0,
                thresholds=NONE_IS_GOOD,
                width=3,
            )
        )
        # ---- throughput
        .with_row(row("Throughput gained"))
        .with_panel(
            graph(
                "Wire against raw-equivalent",
                "What the link carries, and what it would have to carry for the same frames as they are, or "
                "losslessly coded (estimated from the reference frames).",
                Query(
                    f"sum(rate(cryoflux_wire_bytes_total{RATE})) * 8", "on the wire", colour("blue", **AREA)
                ),
                Query(f"sum(rate(cryoflux_raw_bytes_total{RATE})) * 8", "raw-equivalent", colour("orange")),
                Query(
                    f"sum(rate(cryoflux_raw_bytes_total{RATE})) * 8 * {LOSSLESS_SHARE}",
                    "lossless-equivalent",
                    colour("yellow"),
                ),
                Query(
                    "max(cryoflux_session_link_limit_bytes_per_second) * 8",
                    "link limit",
                    colour("red", **DASHED),
                ),
                unit=BITS_PER_SECOND,
                height=10,
            )
        )
        .with_panel(
            graph(
                "Frames per second against the link limit",
                "What is acquired and recovered, and what the same link could carry of raw and of losslessly "
                "coded frames.",
                Query(f"sum(rate(cryoflux_frames_acquired_total{RATE}))", "acquired", colour("blue", **AREA)),
                Query(
                    f"sum(rate(cryoflux_frames_acknowledged_total{RATE}))",
                    "recovered",
                    colour("green"),
                ),
                Query(
                    "max(cryoflux_session_raw_frames_per_second_limit)",
                    "raw, same link",
                    colour("red", **DASHED),
                ),
                Query(
                    "max(cryoflux_session_lossless_frames_per_second_limit)",
                    "lossless, same link",
                    colour("orange", **DASHED),
                ),
                unit=FRAMES_PER_SECOND,
                height=10,
            )
        )
        .with_panel(
            graph(
                "Gain",
                "Of the last minute: raw bytes over wire bytes, and losslessly coded raw bytes over wire "
                "bytes. The line at 1 is where a mask begins to pay.",
                Query("avg(cryoflux:throughput_gain:ratio1m)", "over raw", colour("green")),
                Query("avg(cryoflux:gain_over_lossless:ratio1m)", "over lossless", colour("yellow")),
                unit=RATIO,
                thresholds=steps((None, "transparent"), (1, "red")),
            )
        )
        .with_panel(
            graph(
                "Frames by mask and compression factor",
                "Acquired per second through each mask.",
                Query(f"{BY_SETTING} (rate(cryoflux_configuration_frames_total{RATE}))", SETTING),
                unit=FRAMES_PER_SECOND,
                stacked=True,
            )
        )
        # ---- quality
        .with_row(row("Quality by compression factor"))
        .with_panel(
            table(
                "Session so far",
                "Means over frames of the session that runs or ran last: PSNR, SSIM and FRC of those that "
                "were also sent whole, the free residual of all. Frames: of the detector's process.",
                [
                    Column(f"{BY_SETTING} (cryoflux_configuration_frames_total)", "Frames"),
                    Column(f"{BY_SETTING} (cryoflux_session_psnr_decibels)", "PSNR", DECIBELS, 2),
                    Column(f"{BY_SETTING} (cryoflux_session_ssim)", "SSIM", "none", 3),
                    Column(f"{BY_SETTING} (cryoflux_session_frc_resolution_angstroms)", "FRC", ANGSTROMS, 2),
                    Column(
                        f"{BY_SETTING} (cryoflux_session_free_residual_ratio)", "Free residual", "none", 3
                    ),
                    Column(f"{BY_SETTING} (cryoflux_session_prior_shift_ratio)", "Prior shift", "none", 3),
                ],
                rows={"mask": "Mask", "compression_factor": "C"},
            )
        )
        .with_panel(
            graph(
                "PSNR",
                "Of reference frames judged lately. Against a noisy reference most of what PSNR compares is "
                "noise: follow how it changes.",
                Query(recent_mean("cryoflux_frame_psnr_decibels"), SETTING),
                unit=DECIBELS,
                least=None,
            )
        )
        .with_panel(
            graph(
                "SSIM",
                "Of reference frames judged lately.",
                Query(recent_mean("cryoflux_frame_ssim"), SETTING),
                unit="none",
                most=1,
            )
        )
        .with_panel(
            graph(
                "FRC resolution",
                "Of reference frames judged lately; smaller is better.",
                Query(recent_mean("cryoflux_frame_frc_resolution_angstroms"), SETTING),
                unit=ANGSTROMS,
            )
        )
        .with_panel(
            graph(
                "Free residual",
                "Error in predicting measurements that were kept out of the recovery, all frames. At 1 "
                "nothing is predicted.",
                Query(recent_mean("cryoflux_frame_free_residual_ratio"), SETTING),
                unit="none",
                thresholds=steps((None, "transparent"), (1, "red")),
            )
        )
        .with_panel(
            graph(
                "Prior shift",
                "How far a learned prior moved images from the linear estimate of the same measurements, "
                "relative to that: the larger, the more of an image is the prior's.",
                Query(recent_mean("cryoflux_frame_prior_shift_ratio"), SETTING),
                unit="none",
            )
        )
        # ---- accounts
        .with_row(row("Every frame accounted for"))
        .with_panel(
            graph(
                "Frames without a verdict",
                "With a worker, waiting to be sent, or in the spool.",
                Query(
                    "sum(cryoflux_frames_in_flight) - sum(cryoflux_frames_queued)",
                    "with a worker",
                    colour("blue"),
                ),
                Query("sum(cryoflux_frames_queued)", "queued", colour("orange")),
                Query("sum(cryoflux_frames_spooled)", "spooled", colour("purple")),
                unit=FRAMES,
                stacked=True,
                width=8,
            )
        )
        .with_panel(
            graph(
                "Spool",
                "How much of its limit the spool takes on the detector's disk, the share of time that the "
                "camera waits because it is full, and whether it cannot be written (1).",
                Query(
                    "sum(cryoflux_spool_bytes) / (sum(cryoflux_spool_limit_bytes) > 0)",
                    "spool used",
                    colour("purple", **AREA),
                ),
                Query(
                    f"sum(rate(cryoflux_camera_spool_full_seconds_total{RATE}))",
                    "camera waits for it",
                    colour("red"),
                ),
                Query("max(cryoflux_spool_failing)", "cannot be written", colour("red", **DASHED)),
                unit=SHARE,
                most=1,
                width=8,
            )
        )
        .with_panel(
            graph(
                "Delivered again",
                "Blocks sent to another worker, acknowledgements of frames that had their verdict, and how "
                "often another process of the detector took up the series.",
                Query(
                    f"sum(increase(cryoflux_blocks_redelivered_total{RATE}))",
                    "blocks redelivered",
                    colour("orange"),
                ),
                Query(f"sum(increase(cryoflux_late_answers_total{RATE}))", "late answers", colour("yellow")),
                Query("max(cryoflux_series_restarts)", "detector restarts", colour("red", **DASHED)),
                unit="short",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Losses",
                "Frames that will never be recovered, by reason.",
                Query(f"sum by (reason) (increase(cryoflux_frames_lost_total{RATE}))", "{{reason}}"),
                unit=FRAMES,
                bars=True,
                stacked=True,
                width=12,
            )
        )
        .with_panel(
            graph(
                "Window and camera",
                "How much of the window of unacknowledged payload is used, and the share of time that the "
                "camera waits for the link or the workers.",
                Query(
                    "sum(cryoflux_unacknowledged_bytes) / sum(cryoflux_window_bytes)",
                    "window used",
                    colour("blue"),
                ),
                Query(f"sum(rate(cryoflux_camera_idle_seconds_total{RATE}))", "camera waits", colour("red")),
                unit=SHARE,
                most=1,
                width=12,
            )
        )
        .with_panel(
            graph(
                "Latency",
                "From the end of a frame's exposure to its acknowledgement, when its result is on disk.",
                Query(quantile(0.5), "half within", colour("green")),
                Query(quantile(0.9), "90 % within", colour("yellow")),
                Query(quantile(0.99), "99 % within", colour("red")),
                unit=SECONDS,
            )
        )
        .with_panel(
            heat(
                "Latency, all frames",
                "Acknowledged frames by their latency.",
                Query(f"sum by (le) (increase(cryoflux_frame_latency_seconds_bucket{RATE}))", "{{le}}"),
                unit=SECONDS,
            )
        )
        # ---- the control plane
        .with_row(row("Control plane"))
        .with_panel(
            graph(
                "Events",
                "Lines in the session's history, by kind.",
                Query(f"sum by (kind) (increase(cryoflux_events_total{RATE}))", "{{kind}}"),
                unit="short",
                bars=True,
                stacked=True,
                width=8,
            )
        )
        .with_panel(
            graph(
                "Requests",
                "By route and status.",
                Query(
                    f"sum by (method, route, status) (rate(cryoflux_http_requests_total{RATE}))",
                    "{{method}} {{route}} {{status}}",
                ),
                unit="reqps",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Answers begin within",
                "95 of 100 requests, by route.",
                Query(
                    "histogram_quantile(0.95, sum by (le, method, route) "
                    f"(rate(cryoflux_http_request_seconds_bucket{RATE})))",
                    "{{method}} {{route}}",
                ),
                unit=SECONDS,
                width=8,
            )
        )
        .build()
    )
    return numbered(built)
