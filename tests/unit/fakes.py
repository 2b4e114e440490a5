"""A detector and workers that speak the control bus and do as a test says, with nothing behind them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from common.configuration import CodecSpec, Configuration
from common.operators.spec import MaskSpec
from common.session import SessionSpec
from common.wire.control import Conflict, ControlClient
from common.wire.messages import Register

SHAPE = (16, 16)
INTERVAL_SECONDS = 0.02


def configuration(mask: MaskSpec) -> Configuration:
    """What a detector with frames of ``SHAPE`` makes of a mask."""
    operator = mask.build(SHAPE)
    return Configuration.create(
        mask,
        SHAPE,
        "uint8",
        CodecSpec(values="integer", coding="packed"),
        mask_hash=operator.mask_hash,
        compression_factor=operator.compression_factor,
        printed_compression_factor=operator.printed_compression_factor,
    )


class _Fake:
    """A component; what it is told is kept in ``commands``."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, register: Register) -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.counters: dict[str, Any] = {}
        self.answer: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None  # instead of its own
        self.welcome: list[Any] = []
        self.client = ControlClient(
            context,
            endpoint,
            register,
            command=self._command,
            telemetry=lambda: dict(self.counters),
            failed=self._failed,
            registered=self.welcome.append,
            interval_seconds=INTERVAL_SECONDS,
        )
        self.client.start()

    def _failed(self, error: Exception) -> None:
        raise error

    def _command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.commands.append((verb, arguments))
        return self.answer(verb, arguments) if self.answer is not None else self.obey(verb, arguments)

    def obey(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry a command out."""
        return {}

    def refuse(self, error: Exception) -> None:
        """Answer the next commands with this error."""

        def answer(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
            raise error

        self.answer = answer

    def close(self) -> None:
        """Leave without a word."""
        self.client.close()


class FakeDetector(_Fake):
    """Acquires nothing; ``acquired`` frames are what it says it has."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, session: str = "") -> None:
        self.acquired = 0
        self.session = session  # that it goes on with, after another detector was killed
        self.lock = threading.Lock()
        register = Register(
            component="detector", name="detector", host="here", pid=1, data_endpoint="tcp://127.0.0.1:1",
            details={"session": session} if session else {},
        )  # fmt: skip
        super().__init__(context, endpoint, register)
        self.counters = {"state": "idle"}

    def obey(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """As the detector does, as far as the control plane can see."""
        match verb:
            case "open":
                return self._open(arguments["session"], SessionSpec.model_validate(arguments["spec"]))
            case "acquisition":
                return self._change(MaskSpec.model_validate(arguments["mask"]))
            case "pause":
                self.counters["state"] = "paused"
            case "resume":
                self.counters["state"] = "acquiring"
            case "stop":
                self.counters["state"] = "draining"
            case "describe":
                return {"opened": self.opened, "spec": self.spec.model_dump(mode="json")}
        return {}

    def _open(self, session: str, spec: SessionSpec) -> dict[str, Any]:
        if self.counters["state"] not in ("idle", "finished", "failed"):
            raise Conflict("a series is running")
        self.session, self.acquired = session, 0
        made = configuration(spec.mask)
        self.counters = {"session": session, "state": "acquiring", "configurations": []}
        self._count(made)
        self.spec = spec
        self.opened: dict[str, Any] = {
            "series": "series-1",
            "session": session,
            "shape": list(SHAPE),
            "dtype": "uint8",
            "pixel_size_angstrom": 1.5,
            "frames_expected": spec.camera.frames,
            "output": str(Path(spec.output).absolute()),
            "optics": {},
            "configuration": made.model_dump(mode="json"),
        }
        return self.opened

    def _change(self, mask: MaskSpec) -> dict[str, Any]:
        made = configuration(mask)
        with self.lock:
            self.acquired += 1  # a frame passes between any two changes
            return {**self._count(made), "effective_from_frame": self.acquired}

    def _count(self, made: Configuration) -> dict[str, Any]:
        described = {
            "config_id": made.config_id,
            "mask": made.mask.model_dump(mode="json"),
            "compression_factor": made.compression_factor,
            "printed_compression_factor": made.printed_compression_factor,
            "error_bound": made.codec.error_bound,
        }
        self.counters["configurations"] = [
            *self.counters["configurations"],
            {**described, "first_frame": self.acquired, "frames": 10},
        ]
        return described

    def tell(self, **counters: Any) -> None:
        """Send counters now."""
        self.counters = {**self.counters, **counters}
        self.client.report()

    def finish(self, acquired: int = 20, lost: dict[str, int] | None = None) -> None:
        """Every frame has its verdict."""
        lost = lost or {}
        self.tell(
            state="finished",
            frames_acquired=acquired,
            frames_acknowledged=acquired - sum(lost.values()),
            frames_in_flight=0,
            frames_lost=lost,
            bytes_raw=acquired * 256,
            bytes_wire=acquired * 128,
            bytes_raw_lossless_estimate=acquired * 192,
        )


class FakeWorker(_Fake):
    """Recovers nothing."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, name: str = "worker-1") -> None:
        register = Register(
            component="reconstructor", name=name, host="here", pid=2, details={"device": "cpu", "threads": 1}
        )
        super().__init__(context, endpoint, register)
        self.counters = {"frames_recovered": 0, "frames_rejected": 0, "recovery_seconds": 0.0, "quality": {}}
