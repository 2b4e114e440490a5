"""What the control plane tells Prometheus, and whom else there is to ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client.metrics_core import Metric as Family
from pydantic import BaseModel, Field

from common import metrics
from services.control_plane.bus import Component
from services.control_plane.metrics import ConfigurationFigures, Metrics, mean_quality
from services.control_plane.requests import RequestTimes

KINDS = ("detector", "reconstructor")
STATES = ("present", "silent")
QUALITY = {
    "psnr": metrics.SESSION_PSNR,
    "ssim": metrics.SESSION_SSIM,
    "frc_resolution_angstrom": metrics.SESSION_FRC_RESOLUTION,
    "free_residual": metrics.SESSION_FREE_RESIDUAL,
    "prior_shift": metrics.SESSION_PRIOR_SHIFT,
}


class Target(BaseModel):
    """Where a process serves its metrics, as Prometheus' HTTP service discovery wants it."""

    targets: list[str] = Field(description="host:port", examples=[["gpu-3:9100"]])
    labels: dict[str, str] = Field(
        description="what Prometheus puts on every series that it scrapes there",
        examples=[{"component": "reconstructor", "name": "worker-3"}],
    )


def targets(own_address: str, components: Iterable[Component], scheme: str = "http") -> list[Target]:
    """The control plane itself, which ``scheme`` is for, and every component that serves metrics."""
    own = {"component": "control", "name": "control"}
    if scheme != "http":
        own["__scheme__"] = scheme  # by which Prometheus asks
    found = [Target(targets=[own_address], labels=own)]
    for component in components:
        address = component.details.get("metrics")
        if isinstance(address, str) and address:
            labels = {"component": component.kind, "name": component.name}
            found.append(Target(targets=[address], labels=labels))
    return found


class Figures(NamedTuple):
    """What is known in the control plane at one moment; ``session`` is None before the first one."""

    session: Metrics | None
    link_mbit_per_s: float | None
    components: list[Component]
    events: Counter[str]
    store_failing: bool
    store_writes_waiting: int
    not_let_in: int = 0


def families(figures: Figures) -> Iterator[Family]:
    """The figures as Prometheus wants them."""
    session, link = figures.session, figures.link_mbit_per_s
    heard = Counter((component.kind, STATES[not component.present]) for component in figures.components)
    yield metrics.SESSION_STATE.family(
        metrics.one_hot(metrics.SESSION_STATES, session.state if session is not None else None)
    )
    yield metrics.THROUGHPUT_GAIN.family(session.throughput_gain if session is not None else None)
    yield metrics.GAIN_OVER_LOSSLESS.family(session.gain_over_lossless if session is not None else None)
    yield metrics.LINK_LIMIT.family(link * 1e6 / 8 if link is not None else None)
    yield metrics.RAW_LIMIT.family(session.raw_frames_per_s_limit if session is not None else None)
    yield metrics.LOSSLESS_LIMIT.family(session.lossless_frames_per_s_limit if session is not None else None)
    yield from _quality(session.configurations if session is not None else ())
    yield metrics.COMPONENTS.family({(kind, state): heard[kind, state] for kind in KINDS for state in STATES})
    yield metrics.EVENTS.family(metrics.by_known(figures.events, metrics.EVENT_KINDS))
    yield metrics.STORE_FAILING.family(figures.store_failing)
    yield metrics.STORE_WAITING.family(figures.store_writes_waiting)
    yield metrics.NOT_LET_IN.family(figures.not_let_in)


def _quality(configurations: Iterable[ConfigurationFigures]) -> Iterator[Family]:
    """Means by kind of mask and compression factor, over configurations that differ in nothing else shown."""
    groups: dict[metrics.Labels, list[ConfigurationFigures]] = {}
    for known in configurations:
        labels = metrics.setting_labels(known.mask.kind, known.compression_factor, groups)
        groups.setdefault(labels, []).append(known)
    means = {labels: mean_quality(known) for labels, known in groups.items()}
    for name, metric in QUALITY.items():
        values = {labels: getattr(mean, name) for labels, mean in means.items()}
        yield metric.family({labels: value for labels, value in values.items() if value is not None})


def request_families(requests: RequestTimes) -> Iterator[Family]:
    """How often routes were asked for, and how long they took."""
    yield metrics.REQUESTS.family(dict(requests.counts))
    yield metrics.REQUEST_SECONDS.family(dict(requests.seconds))
