"""Samples of a running installation: every process, and the accounts as the detector tells them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_fd_to_metric_families

from benchmarks.soak.installation import Installation

EVERY_SECONDS = 1.0
PAGE_KB = 1024
ACCOUNTS = {
    "cryoflux_frames_acquired_total": "acquired",
    "cryoflux_frames_acknowledged_total": "acknowledged",
    "cryoflux_frames_in_flight": "in_flight",
    "cryoflux_frames_spooled": "spooled",
    "cryoflux_frames_lost_total": "lost",
    "cryoflux_wire_bytes_total": "wire_bytes",
}
BUCKETS = "cryoflux_frame_latency_seconds_bucket"


class Watch:
    """Takes a sample a second of everything, on two threads: a detector that hangs must not keep the other.

    Attributes
    ----------
    processes : dict
        By ``name/pid``: lists of ``at`` (seconds since the soak began), ``rss``, ``pss``, ``anonymous``
        (bytes), ``descriptors``, ``threads``, ``processor_seconds``.
    accounts : list of dict
        The detector's counters: ``at``, ``acquired``, ``acknowledged``, ``in_flight``, ``spooled``, ``lost``,
        ``unaccounted``, ``wire_bytes``, and ``latency``: counts by upper bound, cumulative.
    unanswered : int
        Times at which the detector did not answer: it was dead, starting, or hung.
    """

    def __init__(self) -> None:
        self._installation: Installation | None = None
        self._began = time.monotonic()
        self._over = threading.Event()
        self.processes: dict[str, dict[str, Any]] = {}
        self.accounts: list[dict[str, Any]] = []
        self.unanswered = 0
        self._threads = [
            threading.Thread(target=self._every, args=(sample,), daemon=True)
            for sample in (self._sample_processes, self._sample_accounts)
        ]

    def now(self) -> float:
        """Seconds since the soak began."""
        return time.monotonic() - self._began

    def look_at(self, installation: Installation | None) -> None:
        """Take samples of this one from now on; the first one begins the count of seconds."""
        if not self.processes:
            self._began = time.monotonic()
        self._installation = installation

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _every(self, sample: Any) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            if (installation := self._installation) is not None:
                sample(installation)
            due = max(due + EVERY_SECONDS, time.monotonic())

    def _sample_processes(self, installation: Installation) -> None:
        for name, process in installation.processes().items():
            try:
                with process.oneshot():
                    memory = process.memory_full_info()
                    values = {
                        "at": round(self.now(), 3),
                        "rss": memory.rss,
                        "pss": memory.pss,
                        "anonymous": _anonymous_bytes(process.pid),
                        "descriptors": process.num_fds(),
                        "threads": process.num_threads(),
                        "processor_seconds": round(sum(process.cpu_times()[:2]), 2),
                    }
            except (psutil.Error, OSError, StopIteration):  # it ended just now
                continue
            if not values["rss"]:  # a process that is dead and not yet waited for
                continue
            known = self.processes.setdefault(
                f"{name}/{process.pid}", {"name": name, "pid": process.pid, **{key: [] for key in values}}
            )
            for key, value in values.items():
                known[key].append(value)

    def _sample_accounts(self, installation: Installation) -> None:
        address = installation.metrics_address("detector")
        try:
            if address is None:
                raise OSError("no detector yet")
            text = httpx.get(address, timeout=2.0).raise_for_status().text
        except (OSError, httpx.HTTPError):
            self.unanswered += 1
            return
        self.accounts.append({"at": round(self.now(), 3), **accounts_of(text)})


def accounts_of(text: str) -> dict[str, Any]:
    """The identity's terms in one scrape of a detector, and by how much they miss."""
    values: dict[str, Any] = dict.fromkeys(ACCOUNTS.values(), 0)
    latency: dict[str, int] = {}
    for family in text_fd_to_metric_families(iter(text.splitlines(keepends=True))):
        for sample in family.samples:
            if name := ACCOUNTS.get(sample.name):
                values[name] += int(sample.value)
            elif sample.name == BUCKETS:
                latency[sample.labels["le"]] = int(sample.value)
    held = sum(values[name] for name in ("acknowledged", "in_flight", "spooled", "lost"))
    return {**values, "unaccounted": values["acquired"] - held, "latency": latency}


def _anonymous_bytes(pid: int) -> int:
    """Memory of a process that is no file's: what it has allocated and touched."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return PAGE_KB * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))
