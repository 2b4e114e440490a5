"""The plots of a soak, from its document alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

Document = Mapping[str, Any]

COLOURS = {
    "control": "#0072B2",
    "detector": "#D55E00",
    "worker-1": "#009E73",
    "worker-2": "#CC79A7",
    "serve": "#666666",
}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
    "lines.linewidth": 1.1,
}
WINDOW_SAMPLES = 10
GAP_SECONDS = 3.0
DPI = 110


def draw(document: Document, folder: Path) -> list[Path]:
    """Write ``soak-*.png``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, plot in PLOTS.items():
        with plt.rc_context(STYLE):
            figure = plot(document)
            path = folder / f"soak-{name}.png"
            figure.savefig(path, dpi=DPI)
            plt.close(figure)
        paths.append(path)
    return paths


def _axes(
    document: Document, rows: int, heights: tuple[float, ...] | None = None
) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(
        rows,
        1,
        sharex=True,
        figsize=(9.0, 1.0 + 2.1 * rows),
        squeeze=False,
        constrained_layout=True,
        gridspec_kw={"height_ratios": heights} if heights else None,
    )
    for row in axes[:, 0]:
        _mark(row, document)
    axes[0, 0].set_title(" ")  # room for the names of the phases
    for phase in document["phases"]:
        middle = (phase["began"] + phase["ended"]) / 120
        place = axes[0, 0].get_xaxis_transform()
        axes[0, 0].text(middle, 1.04, phase["name"], transform=place, ha="center", color="#444444")
    axes[-1, 0].set_xlabel("minutes")
    return figure, list(axes[:, 0])


def _mark(axes: Axes, document: Document) -> None:
    """Phases shaded in turn; faults as lines, changes as ticks below."""
    for number, phase in enumerate(document["phases"]):
        if number % 2:
            axes.axvspan(phase["began"] / 60, phase["ended"] / 60, color="#f5f5f5", zorder=0)
    for deed in document["deeds"]:
        at = deed["at"] / 60
        if deed["verb"] in ("kill", "terminate", "hang"):
            colour = COLOURS.get(deed["target"], "black")
            style = {"kill": "-", "terminate": "--", "hang": ":"}[deed["verb"]]
            axes.axvline(at, color=colour, linestyle=style, linewidth=0.8, alpha=0.45, zorder=1)
        else:
            place = axes.get_xaxis_transform()
            axes.plot([at, at], [0, 0.03], color="#888888", linewidth=0.7, transform=place)


def _processes(document: Document, axes: Axes, key: str, unit: float) -> None:
    named: set[str] = set()
    for process in document["processes"].values():
        name = process["name"]
        label = None if name in named else name
        named.add(name)
        at, values = np.array(process["at"]) / 60, np.array(process[key]) / unit
        axes.plot(at, values, color=COLOURS.get(name, "black"), label=label)
    axes.set_ylim(bottom=0)


def _memory(document: Document) -> Figure:
    figure, (resident, own) = _axes(document, 2)
    _processes(document, resident, "rss", 1e6)
    resident.set_ylabel("resident, MB")
    resident.legend(ncols=5, loc="upper left", fontsize=8)
    _processes(document, own, "anonymous", 1e6)
    own.set_ylabel("of it anonymous, MB")
    _fit_to_rest(document, (resident, own), ("rss", "anonymous"))
    return figure


def _fit_to_rest(document: Document, axes: tuple[Axes, ...], keys: tuple[str, ...]) -> None:
    """Where the large frames need far more than all else, that goes beyond the top, with its peak written."""
    large = next((phase for phase in document["phases"] if phase["name"] == "large"), None)
    for plot, key in zip(axes, keys, strict=True):
        others, peaks = [0.0], [0.0]
        for process in document["processes"].values():
            for at, value in zip(process["at"], process[key], strict=True):
                (peaks if large is not None and at >= large["began"] else others).append(value / 1e6)
        if others[1:] and max(peaks) > 2 * max(others):
            plot.set_ylim(0, 1.35 * max(others))
            assert large is not None
            middle = (large["began"] + large["ended"]) / 120
            height, peak = 1.27 * max(others), f"up to {max(peaks):.0f}"
            plot.text(middle, height, peak, ha="center", va="top", fontsize=8)


def _descriptors(document: Document) -> Figure:
    figure, (descriptors, threads) = _axes(document, 2)
    _processes(document, descriptors, "descriptors", 1)
    descriptors.set_ylabel("open descriptors")
    descriptors.legend(ncols=5, loc="upper left", fontsize=8)
    descriptors.set_ylim(0, 1.3 * descriptors.get_ylim()[1])
    _processes(document, threads, "threads", 1)
    threads.set_ylabel("threads")
    return figure


def _identity(document: Document) -> Figure:
    figure, (terms, missing) = _axes(document, 2, (3.0, 1.0))
    at = _column(document, "at") / 60
    for name, colour in (("in_flight", "#0072B2"), ("spooled", "#D55E00")):
        terms.plot(*_with_gaps(at, _column(document, name)), color=colour, label=name.replace("_", " "))
    terms.set_ylabel("frames")
    _scale(terms, 100, (0, 50, 100, 1000, 10_000))
    terms.legend(loc="upper left", ncols=2, fontsize=8)
    missing.plot(at, _column(document, "unaccounted"), ".", color="black", markersize=2)
    missing.set_ylabel("unaccounted")
    missing.set_ylim(-1.5, 1.5)
    return figure


def _latency(document: Document) -> Figure:
    figure, (axes,) = _axes(document, 1)
    samples = document["accounts"]
    at, p50, p99 = [], [], []
    for before, after in zip(samples, samples[WINDOW_SAMPLES:], strict=False):
        is_one_process = after["acquired"] >= before["acquired"] and after["at"] - before["at"] < 30
        counts = {bound: count - before["latency"].get(bound, 0) for bound, count in after["latency"].items()}
        if not is_one_process or not counts or counts["+Inf"] <= 0 or min(counts.values()) < 0:
            continue
        at.append(after["at"] / 60)
        p50.append(percentile(counts, 0.5))
        p99.append(percentile(counts, 0.99))
    axes.plot(*_with_gaps(np.array(at), np.array(p99)), color="#D55E00", label="99 % of frames within")
    axes.plot(*_with_gaps(np.array(at), np.array(p50)), color="#0072B2", label="half of the frames within")
    axes.set_yscale("log")
    axes.set_ylabel("seconds, of the last 10")
    axes.legend(loc="upper left", ncols=2, fontsize=8)
    return figure


def percentile(counts: Mapping[str, int], share: float) -> float:
    """From cumulative counts by upper bound, interpolated within the bucket as Prometheus does."""
    wanted = share * counts["+Inf"]
    before_bound, before_count = 0.0, 0
    for bound, count in counts.items():
        if count >= wanted:
            if bound == "+Inf":
                return before_bound
            part = (wanted - before_count) / max(1, count - before_count)
            return before_bound + part * (float(bound) - before_bound)
        before_bound, before_count = float(bound), count
    return before_bound


def _throughput(document: Document) -> Figure:
    figure, (frames, wire) = _axes(document, 2)
    at = _column(document, "at")
    for name, colour, label in (
        ("acquired", "#0072B2", "acquired"),
        ("acknowledged", "#009E73", "acknowledged"),
    ):
        frames.plot(*_rate(at, _column(document, name)), color=colour, label=label)
    frames.set_ylabel("frames a second")
    _scale(frames, 100, (0, 30, 60, 100, 1000, 10_000))
    frames.legend(loc="upper left", ncols=2, fontsize=8)
    wire.plot(*_rate(at, _column(document, "wire_bytes") * 8e-6), color="#666666")
    wire.set_ylabel("on the wire, Mbit/s")
    _scale(wire, 10, (0, 3, 6, 10, 100, 1000))
    return figure


def _scale(axes: Axes, linear_below: float, ticks: tuple[float, ...]) -> None:
    """From 0, and of numbers that are large by their logarithm."""
    highest = max(axes.get_ylim()[1], linear_below)
    axes.set_yscale("symlog", linthresh=linear_below, linscale=1.5)
    axes.set_yticks([tick for tick in ticks if tick <= highest])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(0, 1.05 * highest)


def _column(document: Document, name: str) -> np.ndarray:
    return np.array([sample[name] for sample in document["accounts"]], float)


def _rate(at: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per second over five samples; nothing across the restart of a detector."""
    seconds, more = at[5:] - at[:-5], counts[5:] - counts[:-5]
    rates = np.where((more >= 0) & (seconds < 15), more / np.maximum(seconds, 1e-9), np.nan)
    return _with_gaps(at[5:] / 60, rates)


def _with_gaps(minutes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """No line is drawn where nothing was sampled."""
    gaps = np.flatnonzero(np.diff(minutes) > GAP_SECONDS / 60) + 1
    return np.insert(minutes, gaps, np.nan), np.insert(values.astype(float), gaps, np.nan)


PLOTS: dict[str, Callable[[Document], Figure]] = {
    "memory": _memory,
    "descriptors": _descriptors,
    "identity": _identity,
    "latency": _latency,
    "throughput": _throughput,
}
