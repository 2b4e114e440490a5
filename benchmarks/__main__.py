"""``python -m benchmarks [part …]``: speed as ratios of the same run, the figures of docs/performance.md.

Parts: recovery, readout, link, chain, spool, safety, learned, volume. A figure that misses its target is
marked and makes the exit status 1.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys

import torch

from benchmarks.figure import Figure

PARTS = ("recovery", "readout", "link", "chain", "spool", "safety", "learned", "volume")


def machine() -> str:
    """The machine in a line."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf8") as lines:
            model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    return f"{model}, {os.cpu_count()} cores, {device}, torch {torch.__version__}, {load}"


def main(parts: list[str]) -> int:
    """Run the parts and print their figures."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        print(f"benchmarks: no part {unknown[0]!r}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    print(f"{machine()}\n", flush=True)
    missed = 0
    for part in parts or PARTS:
        figures: list[Figure] = importlib.import_module(f"benchmarks.{part}").run()
        print(part)
        for figure in figures:
            missed += not figure.is_met
            print(f"  {figure}", flush=True)
    if missed:
        print(f"{missed} figures miss their target")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
