"""A control plane behind a real HTTP server, so that streams stream, and a client that reads them."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
import torch
import zmq

from common.operators.spec import MaskSpec
from common.state.embedded import EmbeddedStore
from common.state.store import Store
from common.tokens import Role, Tokens
from common.wire.codec import encode_array
from common.wire.messages import ConfigurationNotice, Frames, Start
from reconstructor.finalise import Summary
from reconstructor.writer import Results, ResultsWriter
from services.control_plane.app import create_app
from services.control_plane.bus import Bus
from services.control_plane.guard import Access
from services.control_plane.recorder import Recorder
from services.control_plane.server import Server, listen, served
from tests import waiting
from tests.unit.fakes import SHAPE, FakeDetector, FakeWorker, configuration

BASE = "/api/v1/sessions"
PATIENCE_SECONDS = 20.0
eventually = partial(waiting.eventually, seconds=PATIENCE_SECONDS, pause=0.01)


class Told(NamedTuple):
    """One event of a stream."""

    event: str
    id: str
    data: Any


class Reader:
    """Reads a stream on a thread of its own until it is closed; a context manager.

    Attributes
    ----------
    told : list of Told
        What came so far; ``comments`` counts the lines that say nothing.
    ended : threading.Event
        Set when the server closed the stream, or it broke.
    """

    def __init__(self, url: str, after: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.told: list[Told] = []
        self.comments = 0
        self.status = 0
        self.ended = threading.Event()
        self.broken: Exception | None = None
        self._leaving = False
        self._client = httpx.Client(timeout=PATIENCE_SECONDS)
        wanted = {**(headers or {}), **({"last-event-id": after} if after else {})}
        self._request = self._client.build_request("GET", url, headers=wanted)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._leaving = True
        if self.ended.is_set():
            self._client.close()

    def leave(self) -> None:
        """Hang up when the next line comes."""
        self._leaving = True

    def _read(self) -> None:
        try:
            answer = self._client.send(self._request, stream=True)
            self.status = answer.status_code
            event = identity = ""
            data: list[str] = []
            for line in answer.iter_lines():
                if self._leaving:
                    break
                field, _, value = line.partition(": ")
                match field:
                    case "event":
                        event = value
                    case "id":
                        identity = value
                    case "data":
                        data.append(value)
                    case "" if line:
                        self.comments += 1
                    case "":
                        if data:
                            self.told.append(Told(event, identity, json.loads("\n".join(data))))
                        event, identity, data = "", "", []
            answer.close()
        except Exception as error:
            self.broken = error
        self.ended.set()

    def of(self, event: str) -> list[Any]:
        """The data of all events of a name so far."""
        return [told.data for told in list(self.told) if told.event == event]

    def numbers(self, event: str) -> list[int]:
        """The numbers of the events or points so far."""
        return [data["number"] for data in self.of(event)]

    @property
    def cursor(self) -> str:
        """What a browser would send to go on."""
        return next((told.id for told in reversed(list(self.told)) if told.id), "")

    def until(self, holds: Callable[[Reader], Any], what: str) -> Any:
        """Read on until ``holds`` does."""
        return eventually(lambda: holds(self), f"{what}; told: {[(t.event, t.id) for t in self.told][-20:]}")


class Served:
    """A control plane on a real port, with the fake components that a test wants.

    Where it has tokens, ``client`` shows the operator's.
    """

    def __init__(
        self, folder: Path, store: Callable[[], Store] | None = None, tokens: Tokens | None = None
    ) -> None:
        self.folder = folder
        self.access = Access(tokens)
        operator = self.access.tokens.secret(Role.OPERATOR)
        self.shown = {"Authorization": f"Bearer {operator}"} if operator else {}
        self.context: zmq.Context[Any] = zmq.Context()
        self.fakes: list[FakeDetector | FakeWorker] = []
        self._store = store or (lambda: EmbeddedStore(folder / "state.sqlite"))
        self.endpoint = "tcp://127.0.0.1:0"
        self.open()

    def open(self) -> None:
        """Start the control plane; again after ``shut``, on the same endpoints."""
        listener = listen("127.0.0.1", 0)
        bus = Bus(self.endpoint, silent_after_seconds=1.0)
        self.endpoint = bus.endpoint
        self.recorder = Recorder(self._store())
        self.app = create_app(bus, self.recorder, finalise, self.folder / "results", self.access)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, headers=self.shown)
        self.server = Server(served(self.app))
        self._thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self._thread.start()
        eventually(lambda: self.server.started, "the server starts")

    def shut(self) -> None:
        """Stop the control plane as SIGTERM does."""
        self.client.close()
        self.server.should_exit = True
        self._thread.join()

    def close(self) -> None:
        """Stop everything."""
        for fake in self.fakes:
            fake.close()
        self.shut()
        self.context.term()

    def detector(self) -> FakeDetector:
        """A detector that has registered."""
        fake = FakeDetector(self.context, self.endpoint)
        self.fakes.append(fake)
        eventually(lambda: fake.welcome, "the detector is registered")
        return fake

    def worker(self, name: str = "worker-1") -> FakeWorker:
        """A worker that has registered."""
        fake = FakeWorker(self.context, self.endpoint, name)
        self.fakes.append(fake)
        eventually(lambda: fake.welcome, "the worker is registered")
        return fake

    def start(self, **specification: Any) -> dict[str, Any]:
        """Start a session; its view."""
        answer = self.client.post(BASE, json=specification)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def follow(self, name: str = "current", after: str = "") -> Reader:
        """Follow a session."""
        return Reader(f"{self.url}{BASE}/{name}/stream", after, self.shown)

    def becomes(self, state: str) -> None:
        """Wait for the session's state."""
        eventually(
            lambda: self.client.get(f"{BASE}/current").json().get("state") == state, f"the session is {state}"
        )


def finalise(output: Path, start: Any, accounts: Any) -> Summary:
    """Writes nothing."""
    output.mkdir(parents=True, exist_ok=True)
    lost = dict(accounts.get("frames_lost") or {})
    acquired = accounts.get("frames_acquired", 0)
    return Summary(acquired, acquired - sum(lost.values()), lost, 0, 0, {})


def write_results(output: Path, mask: MaskSpec, count: int = 8, references: int = 3) -> None:
    """What a worker leaves behind of the first frames of a session with frames of ``SHAPE``."""
    made, operator = configuration(mask), mask.build(SHAPE)
    frames = np.random.default_rng(0).integers(0, 8, (count, *SHAPE)).astype(np.uint8)
    measured = operator.A(torch.from_numpy(frames.astype(np.float32))).round().numpy().astype(np.uint16)
    payload, buffer = encode_array(measured, made.codec)
    whole_payload, whole = encode_array(frames[:references], made.codec)
    ids = list(range(count))
    start = Start(
        series="series-1", session="any", frames_expected=None, shape=SHAPE, dtype="uint8",
        pixel_size_angstrom=1.5, output=str(output), optics={}, calibration={},
    )  # fmt: skip
    header = Frames(
        series="series-1", block=0, config_id=made.config_id, frame_ids=ids,
        acquired_at=[10.0 + k for k in ids],
        payload=payload, reference_ids=ids[:references], reference_payload=whole_payload,
    )  # fmt: skip
    results = Results(
        header=header, buffers=[buffer, whole], rows=ids, images=frames.astype(np.float32),
        compression_factor=made.compression_factor, recovery_id="r", method="dct", recovered_at=20.0,
        free_residual=[0.5] * count, psnr=dict.fromkeys(ids[:references], 20.0),
        ssim=dict.fromkeys(ids[:references], 0.5),
        frc_resolution_angstrom=dict.fromkeys(ids[:references], math.inf),
    )  # fmt: skip
    with ResultsWriter(start, "journal-1") as writer:
        writer.configure(ConfigurationNotice(configuration=made.model_dump(mode="json")))
        writer.write([results])
