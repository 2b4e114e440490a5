"""The dashboard *Workers*: how fast each recovers, what it holds, and who came and went."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.models import dashboard

from services.monitoring.generate.panels import (
    DASHED,
    FRAMES,
    FRAMES_PER_SECOND,
    NONE_IS_GOOD,
    SECONDS,
    SHARE,
    SOURCE,
    Query,
    board,
    colour,
    graph,
    heat,
    numbered,
    row,
    stat,
    steps,
)

UID, TITLE = "cryoflux-workers", "CryoFlux: Workers"
OTHER = ("cryoflux-session", "CryoFlux: Session")

RATE = "[$__rate_interval]"
CHOSEN = 'name=~"$worker"'


def rate(metric: str, *more: str) -> str:
    """Rate of a worker's counter, of the workers chosen."""
    return f"rate({metric}{{{', '.join((CHOSEN, *more))}}}{RATE})"


def mean(metric: str, by: str = "name") -> str:
    """Mean of a worker's histogram."""
    return f"sum by ({by}) ({rate(metric + '_sum')}) / (sum by ({by}) ({rate(metric + '_count')}) > 0)"


def workers() -> dashboard.Dashboard:
    """The dashboard."""
    present = 'cryoflux_components{kind="reconstructor", state="present"}'
    ungraceful = 'cryoflux_workers_departed_total{how!="left"}'
    built = (
        board(UID, TITLE, "The recovery workers: rate, batches, credits, redeliveries, GPUs.", OTHER)
        .with_variable(
            dashboards.QueryVariable("worker")
            .label("Worker")
            .datasource(SOURCE)
            .query({"query": "label_values(cryoflux_frames_recovered_total, name)", "refId": "worker"})
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
        )
        # ---- at a glance
        .with_panel(
            stat(
                "Workers",
                "Heard on the control bus.",
                Query(f"sum({present})"),
                thresholds=steps((None, "red"), (1, "green")),
            )
        )
        .with_panel(
            stat(
                "Recovered",
                "All workers, per second.",
                Query(f"sum({rate('cryoflux_frames_recovered_total')})"),
                unit=FRAMES_PER_SECOND,
                decimals=1,
                sparkline=True,
            )
        )
        .with_panel(
            stat(
                "Busy",
                "Share of time that workers spend recovering, mean. Near 1 they are what limits the session.",
                Query(f"avg(sum by (name) ({rate('cryoflux_recovery_seconds_sum')}))"),
                unit=SHARE,
                decimals=0,
                thresholds=steps((None, "green"), (0.8, "orange"), (0.95, "red")),
                sparkline=True,
            )
        )
        .with_panel(
            stat(
                "Went without goodbye",
                "In the time range shown: connection lost, or silent.",
                Query(f"sum(increase({ungraceful}[$__range]))"),
                decimals=0,
                thresholds=NONE_IS_GOOD,
            )
        )
        .with_panel(
            stat(
                "Blocks redelivered",
                "In the time range shown: taken back from one worker and sent to another.",
                Query("sum(increase(cryoflux_blocks_redelivered_total[$__range]))"),
                decimals=0,
                thresholds=steps((None, "green"), (1, "orange")),
            )
        )
        .with_panel(
            stat(
                "Frames rejected",
                "In the time range shown: a worker could not recover them.",
                Query(f"sum(increase(cryoflux_frames_rejected_total{{{CHOSEN}}}[$__range]))"),
                decimals=0,
                thresholds=NONE_IS_GOOD,
            )
        )
        # ---- speed
        .with_row(row("Rate"))
        .with_panel(
            graph(
                "Frames recovered",
                "Per second, by worker; the result is on disk.",
                Query(f"sum by (name) ({rate('cryoflux_frames_recovered_total')})", "{{name}}"),
                unit=FRAMES_PER_SECOND,
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Busy",
                "Share of time spent recovering, by worker.",
                Query(f"sum by (name) ({rate('cryoflux_recovery_seconds_sum')})", "{{name}}"),
                unit=SHARE,
                most=1,
                thresholds=steps((None, "transparent"), (0.95, "red")),
            )
        )
        .with_row(row("Batches and recovery time"))
        .with_panel(
            graph(
                "Batch size",
                "Frames recovered together, mean by worker. Larger batches use a GPU better.",
                Query(mean("cryoflux_batch_frames"), "{{name}}"),
                unit=FRAMES,
                width=12,
            )
        )
        .with_panel(
            graph(
                "Memory for a batch",
                "Frames recovered in one call at most, and batches that memory did not hold: those are "
                "halved and tried again. A line that falls and stays low says that a GPU is too full.",
                Query(f"min by (name) (cryoflux_frames_per_batch{{{CHOSEN}}})", "{{name}}: at most"),
                Query(
                    f"sum by (name) (increase(cryoflux_batch_halvings_total{{{CHOSEN}}}{RATE}))",
                    "{{name}}: halved",
                    DASHED,
                ),
                unit="short",
                width=12,
            )
        )
        .with_panel(
            graph(
                "Recovery of a batch",
                "Time to decode, recover and judge it: median and 95 %, by method.",
                *(
                    Query(
                        f"histogram_quantile({q}, sum by (le, method) "
                        f"({rate('cryoflux_recovery_seconds_bucket')})) and on (method) "
                        f"sum by (method) ({rate('cryoflux_recovery_seconds_count')}) > 0",
                        f"{{{{method}}}} {name}",
                    )
                    for q, name in ((0.5, "median"), (0.95, "95 %"))
                ),
                unit=SECONDS,
                width=12,
            )
        )
        .with_panel(
            graph(
                "Recovery of a frame",
                "Time over frames, mean by worker: what a worker takes for one frame.",
                Query(
                    f"sum by (name) ({rate('cryoflux_recovery_seconds_sum')}) / "
                    f"(sum by (name) ({rate('cryoflux_batch_frames_sum')}) > 0)",
                    "{{name}}",
                ),
                unit=SECONDS,
                width=12,
            )
        )
        .with_panel(
            heat(
                "Recovery of a batch, all batches",
                "Batches by the time they took.",
                Query(
                    f"sum by (le) (increase(cryoflux_recovery_seconds_bucket{{{CHOSEN}}}{RATE}))", "{{le}}"
                ),
                unit=SECONDS,
            )
        )
        .with_panel(
            graph(
                "Writing",
                "Time until results are durable, mean by worker.",
                Query(mean("cryoflux_write_seconds"), "{{name}}"),
                unit=SECONDS,
            )
        )
        .with_panel(
            graph(
                "Learned prior: evaluations",
                "Of its network for each image. A worker takes as many as the stream leaves time for, unless "
                "the session says how many.",
                Query(f"max by (name) (cryoflux_recovery_evaluations{{{CHOSEN}}})", "{{name}}"),
                unit="short",
            )
        )
        .with_panel(
            graph(
                "Learned prior: keeping up",
                "Frames per second that a worker can recover with so many evaluations, and (dashed) those "
                "that come to it. Where more come, frames wait.",
                Query(
                    f"max by (name) (cryoflux_recovery_frames_per_second_possible{{{CHOSEN}}})",
                    "{{name}}: possible",
                ),
                Query(
                    f"max by (name) (cryoflux_recovery_frames_per_second_asked{{{CHOSEN}}})",
                    "{{name}}: asked",
                    DASHED,
                ),
                unit=FRAMES_PER_SECOND,
            )
        )
        # ---- the wire
        .with_row(row("Credits and redeliveries"))
        .with_panel(
            graph(
                "Blocks held",
                "Received and not yet answered for, by worker; the dashed line is what one takes at most. A "
                "worker at the line has work waiting, one at 0 waits for the link or the detector.",
                Query(f"sum by (name) (cryoflux_blocks_held{{{CHOSEN}}})", "{{name}}"),
                Query(f"max(cryoflux_worker_credits{{{CHOSEN}}})", "at most", colour("red", **DASHED)),
                unit="short",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Open credits",
                "Blocks that workers would take now, as the detector knows. At 0 the workers limit.",
                Query("sum(cryoflux_open_credits)", "open credits"),
                unit="short",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Redeliveries and late answers",
                "Blocks sent to another worker, and acknowledgements of frames that had their verdict.",
                Query(
                    f"sum(increase(cryoflux_blocks_redelivered_total{RATE}))",
                    "blocks redelivered",
                    colour("orange"),
                ),
                Query(f"sum(increase(cryoflux_late_answers_total{RATE}))", "late answers", colour("yellow")),
                unit="short",
                bars=True,
                width=8,
            )
        )
        .with_panel(
            graph(
                "Who is there",
                "On the control bus, and on the data plane.",
                Query(
                    'sum by (state) (cryoflux_components{kind="reconstructor"})',
                    "control bus: {{state}}",
                ),
                Query("sum by (state) (cryoflux_workers_connected)", "data plane: {{state}}"),
                unit="short",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Who came and went",
                "left: said goodbye; gone: connection lost; silent: no sign of life.",
                Query(f"sum(increase(cryoflux_workers_joined_total{RATE}))", "joined", colour("green")),
                Query(f"sum by (how) (increase(cryoflux_workers_departed_total{RATE}))", "{{how}}"),
                unit="short",
                bars=True,
                width=8,
            )
        )
        .with_panel(
            graph(
                "Rejected and malformed",
                "Frames a worker could not recover, and messages it could not read.",
                Query(
                    f"sum by (name) (increase(cryoflux_frames_rejected_total{{{CHOSEN}}}{RATE}))",
                    "{{name}}: rejected",
                ),
                Query(
                    f"sum by (name) (increase(cryoflux_malformed_messages_total{RATE}))",
                    "{{name}}: malformed",
                ),
                unit="short",
                bars=True,
                width=8,
            )
        )
        # ---- machines
        .with_row(row("GPUs and processes"))
        .with_panel(
            graph(
                "GPU utilisation",
                "Share of time in which the GPU computed, for whomever.",
                Query(
                    f"max by (uuid, gpu, model) (cryoflux_gpu_utilisation_ratio{{{CHOSEN}}})",
                    "GPU {{gpu}} ({{model}})",
                ),
                unit=SHARE,
                most=1,
            )
        )
        .with_panel(
            graph(
                "GPU memory",
                "In use by whomever, and what there is.",
                Query(
                    f"max by (uuid, gpu, model) (cryoflux_gpu_memory_used_bytes{{{CHOSEN}}})",
                    "GPU {{gpu}} ({{model}})",
                ),
                Query(
                    f"max by (uuid, gpu, model) (cryoflux_gpu_memory_total_bytes{{{CHOSEN}}})",
                    "GPU {{gpu}}: all",
                    DASHED,
                ),
                unit="bytes",
            )
        )
        .with_panel(
            graph(
                "CPU",
                "Cores used, by process.",
                Query(
                    'sum by (name) (rate(process_cpu_seconds_total{job="cryoflux"}[$__rate_interval]))',
                    "{{name}}",
                ),
                unit="suffix: cores",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Memory",
                "Resident, by process.",
                Query('sum by (name) (process_resident_memory_bytes{job="cryoflux"})', "{{name}}"),
                unit="bytes",
                width=8,
            )
        )
        .with_panel(
            graph(
                "Open files",
                "Files and sockets, by process.",
                Query('sum by (name) (process_open_fds{job="cryoflux"})', "{{name}}"),
                unit="short",
                width=8,
            )
        )
        .build()
    )
    return numbered(built)
