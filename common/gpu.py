"""Memory and utilisation of a GPU, as its driver tells (NVML); nothing where there is no NVIDIA GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

from prometheus_client.metrics_core import Metric as Family

from common import metrics

log = logging.getLogger(__name__)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Gpu:
    """One GPU, asked anew at every look.

    Parameters
    ----------
    uuid : str
        As CUDA tells it, with or without ``GPU-``: a device's number there need not be the driver's.
    nvml : module, optional
        With the functions of ``pynvml``; default: that.
    """

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        self._uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        if nvml is None:
            import pynvml as nvml
        self._nvml = nvml
        self._lock = threading.Lock()  # two scrapers at a time
        self._handle: Any = None
        self._labels: metrics.Labels = ()
        self._told = False

    def collect(self) -> Iterator[Family]:
        """The GPU's families; without values where the driver does not tell."""
        with self._lock:
            memory, utilisation = self._ask(self._memory), self._ask(self._utilisation)
        labels = self._labels
        yield metrics.GPU_MEMORY_USED.family({labels: memory.used} if memory is not None else None)
        yield metrics.GPU_MEMORY_TOTAL.family({labels: memory.total} if memory is not None else None)
        yield metrics.GPU_UTILISATION.family(
            {labels: utilisation.gpu / 100} if utilisation is not None else None
        )

    def _memory(self) -> Any:
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle)

    def _utilisation(self) -> Any:
        return self._nvml.nvmlDeviceGetUtilizationRates(self._handle)

    def _ask(self, question: Any) -> Any:
        """An answer of the driver; None where it has none, which is told once."""
        try:
            if self._handle is None:
                self._open()
            return question()
        except self._nvml.NVMLError as error:
            if not self._told:
                log.warning(
                    "GPU %s: the driver does not tell its memory or utilisation: %s", self._uuid, error
                )
            self._told = True
            return None

    def _open(self) -> None:
        nvml = self._nvml
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        model = _text(nvml.nvmlDeviceGetName(handle))
        self._labels = (str(nvml.nvmlDeviceGetIndex(handle)), self._uuid, model)
        self._handle = handle


def gpu_of(device: Any) -> Gpu | None:
    """The GPU of a torch device; None if it is none of NVIDIA's, or cannot be told."""
    import torch

    if device.type != "cuda" or torch.version.hip:
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return None if uuid is None else Gpu(str(uuid))
