"""What a worker measures of its own work, and tells Prometheus."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import Metric as Family

from common import metrics
from reconstructor.writer import Results


class Measured:
    """Times, batch sizes and quality since the process started; its threads add, scrapes read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recovery = {(method,): metrics.RECOVERY_SECONDS.distribution() for method in metrics.METHODS}
        self._batch = metrics.BATCH_FRAMES.distribution()
        self._write = metrics.WRITE_SECONDS.distribution()
        self._masks: dict[str, str] = {}
        self._quality: dict[metrics.Metric, dict[metrics.Labels, metrics.Distribution]] = {
            metric: {}
            for metric in (
                metrics.PSNR,
                metrics.SSIM,
                metrics.FRC_RESOLUTION,
                metrics.FREE_RESIDUAL,
                metrics.PRIOR_SHIFT,
            )
        }

    def batch(self, method: str, frames: int, seconds: float) -> None:
        """So many frames were recovered together, in so long."""
        with self._lock:
            self._recovery[(method,)].observe(seconds)
            self._batch.observe(frames)

    def written(self, seconds: float) -> None:
        """Results were made durable, in so long."""
        with self._lock:
            self._write.observe(seconds)

    def configuration(self, config_id: str, mask: str, compression_factor: float) -> None:
        """The kind of mask of a configuration; told before the first results that have it."""
        self._masks[config_id] = mask
        with self._lock:
            self._labels(mask, compression_factor)

    def _labels(self, mask: str, compression_factor: float) -> metrics.Labels:
        """The labels of a mask; where they are new, every metric has them from now on."""
        known = self._quality[metrics.FREE_RESIDUAL]
        labels = metrics.setting_labels(mask, compression_factor, known)
        if labels not in known:
            for metric, by_labels in self._quality.items():
                by_labels[labels] = metric.distribution()
        return labels

    def judged(self, results: Results) -> None:
        """Quality of frames whose results are durable."""
        mask = self._masks.get(results.header.config_id, metrics.OTHER)
        with self._lock:
            labels = self._labels(mask, results.compression_factor)
            for metric, values in (
                (metrics.FREE_RESIDUAL, results.free_residual),
                (metrics.PRIOR_SHIFT, [learned.prior_shift for learned in results.learned]),
                (metrics.PSNR, results.psnr.values()),
                (metrics.SSIM, results.ssim.values()),
                (metrics.FRC_RESOLUTION, results.frc_resolution_angstrom.values()),
            ):
                self._add(self._quality[metric][labels], values)

    @staticmethod
    def _add(into: metrics.Distribution, values: Iterable[float | None]) -> None:
        for value in values:
            if value is not None and math.isfinite(value):
                into.observe(max(0.0, value))  # a sum that decreases would look like a restart

    def families(self) -> Iterator[Family]:
        """The figures as Prometheus wants them."""
        with self._lock:  # families hold copies
            found = [
                metrics.RECOVERY_SECONDS.family(self._recovery),
                metrics.BATCH_FRAMES.family(self._batch),
                metrics.WRITE_SECONDS.family(self._write),
                *(metric.family(values) for metric, values in self._quality.items()),
            ]
        yield from found
