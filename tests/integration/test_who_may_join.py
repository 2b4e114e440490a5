"""Real processes with keys, on every interface: whole sessions, faults, strangers, keys taken away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from common.wire.keys import CONTROL_BUS, Keyring, Security, make_keys
from common.wire.link import Link
from common.wire.messages import Event, Hello, Register, Registered, Telemetry, encode
from services.control_plane.bus import Bus as ControlBus
from services.control_plane.bus import Component
from services.supervisor import free_port
from tests.faults.verdict import every_frame_once, session
from tests.integration.bus import Bus
from tests.integration.recorder import Recorder
from tests.integration.test_live import Live, eventually, table

pytestmark = pytest.mark.timeout(300)

NEEDED = {
    "control": ("control.key_secret", "detector.key", "worker.key", "node7.key"),
    "detector": ("detector.key_secret", "control.key", "worker.key", "node7.key"),
    "worker": ("worker.key_secret", "control.key", "detector.key"),
    "node7": ("node7.key_secret", "control.key", "detector.key"),
}


def own_address() -> str:
    """An address of this machine that is not loopback, where it has one."""
    interfaces = psutil.net_if_addrs().values()
    found = (address.address for addresses in interfaces for address in addresses
             if address.family == socket.AF_INET and not address.address.startswith("127."))  # fmt: skip
    return next(found, "127.0.0.1")


@pytest.fixture
def machines(tmp_path: Path) -> dict[str, str]:
    """A folder for each machine, with no more in it than docs/security.md says it needs."""
    made = tmp_path / "made"
    make_keys(made, ["control", "detector", "worker", "node7"])
    for machine, files in NEEDED.items():
        (tmp_path / machine).mkdir(mode=0o700)
        for file in files:
            shutil.copy2(made / file, tmp_path / machine / file)
    return {machine: str(tmp_path / machine) for machine in NEEDED}


class Installation(Bus):
    """Control bus and processes with keys, each on every interface; workers find the detector as told."""

    def __init__(self, folder: Path, machines: dict[str, str], **settings: Any) -> None:
        self.machines = machines
        super().__init__(folder, host="0.0.0.0", keys=machines["control"], **settings)
        port = self.endpoint.rpartition(":")[2]
        self.settings["control_endpoint"] = f"tcp://{own_address()}:{port}"
        self.port = free_port("127.0.0.1")
        self.settings["data_bind"] = f"tcp://0.0.0.0:{self.port}"
        self.told = f"tcp://{own_address()}:{self.port}"  # workers, by the control bus

    def begin_detector(self) -> None:
        """Start it, also anew."""
        self.detector(keys=self.machines["detector"], data_endpoint=self.told)

    def everything(self) -> None:
        """A detector and two workers, one of them with a key of its own."""
        self.begin_detector()
        self.worker("w1", keys=self.machines["worker"])
        self.worker("w2", keys=self.machines["node7"], key="node7")

    def acknowledges(self, more: int) -> None:
        before = self.of_detector("frames_acknowledged")
        self.wait(lambda: self.of_detector("frames_acknowledged") > before + more)


def test_a_session_under_keys_survives_a_killed_worker_and_a_killed_detector(
    tmp_path: Path, machines: dict[str, str]
) -> None:
    """Three machines' folders, not loopback; what passes between detector and workers is listened to."""
    output = tmp_path / "a-folder-to-look-for"
    with Installation(tmp_path, machines, block_bytes=20_000) as bus, Recorder(bus.port) as wire:
        bus.told = f"tcp://127.0.0.1:{wire.port}"
        bus.everything()
        opened = bus.open(session(output, rate=600))
        bus.acknowledges(100)
        bus.kill("w1")
        bus.acknowledges(100)
        bus.worker("w1", keys=machines["worker"])
        bus.kill("detector")
        bus.telemetry.pop("detector")
        bus.begin_detector()
        bus.wait(lambda: bus.of_detector("restarts") == 1)
        bus.acknowledges(100)
        bus.command("detector", "stop")
        counters = bus.finished()
        rows = every_frame_once(output, opened, counters)
        assert {name.rsplit("-", 1)[0] for name in rows["worker"]} == {"w1", "w2"}
        stream = bytes(wire.towards + wire.back)
        assert len(wire.back) > 100_000  # the frames did come by here
        for text in (b"a-folder-to-look-for", b"acknowledge", b"frame_ids", b"hello", b"heartbeat",
                     b"config_id", b"calibration"):  # fmt: skip
            assert text not in stream
        assert "not_let_in" not in bus.kinds()


def test_a_worker_whose_key_is_taken_away_is_out_and_loses_nothing(
    tmp_path: Path, machines: dict[str, str]
) -> None:
    output = tmp_path / "out"
    with Installation(tmp_path, machines, block_bytes=20_000) as bus:
        bus.everything()
        opened = bus.open(session(output, rate=600))
        bus.wait(lambda: bus.telemetry.get("w2", {}).get("frames_recovered", 0) > 50)
        (Path(machines["detector"]) / "node7.key").unlink()

        def gone() -> bool:
            workers = {worker["name"].rsplit("-", 1)[0]: worker for worker in bus.of_detector("workers")}
            return "w2" not in workers or not workers["w2"]["present"]

        bus.wait(gone)
        bus.wait(lambda: "not_let_in" in bus.kinds())
        at_its_end = bus.telemetry["w2"]["frames_recovered"]
        bus.acknowledges(200)
        line = eventually(lambda: re.search(r"not let in at .*", bus.log("w2")), "it is told", None)
        assert "node7.key is not among the keys there" in line[0]
        assert bus.telemetry["w2"]["frames_recovered"] <= at_its_end + 4 * 20  # what it held at that moment
        bus.command("detector", "stop")
        every_frame_once(output, opened, bus.finished())
        assert bus.processes["w2"].poll() is None  # it goes on asking, for a key may come back


def _whole_answer(port: int, *said: bytes) -> bytes:
    """Everything that a bare connection is told within two seconds, or until it is closed."""
    answer = b""
    with (
        socket.create_connection((own_address(), port), timeout=2) as stranger,
        contextlib.suppress(ConnectionError, TimeoutError),
    ):
        for part in said:
            stranger.sendall(part)
        while more := stranger.recv(4096):
            answer += more
    return answer


def _plain_clients(port: int) -> Iterable[zmq.Socket[bytes]]:
    context: zmq.Context[Any] = zmq.Context.instance()
    for kind in (zmq.DEALER, zmq.REQ, zmq.ROUTER, zmq.SUB, zmq.PULL):
        client = context.socket(kind)
        client.setsockopt(zmq.LINGER, 0)
        if kind == zmq.SUB:
            client.setsockopt(zmq.SUBSCRIBE, b"")
        client.connect(f"tcp://{own_address()}:{port}")
        yield client


def test_strangers_get_nothing_from_either_plane_while_a_session_runs(
    tmp_path: Path, machines: dict[str, str]
) -> None:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    with Installation(tmp_path, machines, block_bytes=20_000) as bus:
        bus.everything()
        bus.open(session(tmp_path / "out", rate=300))
        bus.acknowledges(50)
        control = int(bus.endpoint.rpartition(":")[2])
        for port, first in (
            (bus.port, Hello(worker="stranger", host="h", pid=1)),
            (control, Register(component="reconstructor", name="stranger", host="h", pid=1)),
        ):
            assert len(_whole_answer(port)) <= 64
            assert len(_whole_answer(port, greeting)) <= 64
            assert len(_whole_answer(port, greeting, b"\x00\x05hello")) <= 64
            clients = list(_plain_clients(port))
            for client in clients:
                if client.type in (zmq.DEALER, zmq.REQ):
                    client.send(encode(first))
            poller = zmq.Poller()
            for client in clients:
                if client.type != zmq.REQ:
                    poller.register(client, zmq.POLLIN)
            until = time.monotonic() + 3  # heartbeats come ten times a second
            while time.monotonic() < until:
                assert not poller.poll(20)
            for client in clients:
                client.close(0)
        assert "stranger" not in bus.registered
        assert "stranger" not in json.dumps(bus.of_detector("workers"))
        bus.wait(lambda: "not_let_in" in bus.kinds())
        told = next(event.message for event in bus.events if event.kind == "not_let_in")
        assert told.startswith("not let in to the data plane: ")
        assert told.endswith("does not use CURVE: no keys are set there")
        bus.acknowledges(50)


def test_a_worker_without_keys_does_not_follow_a_detector_beyond_this_machine(tmp_path: Path) -> None:
    """It would be told where by a control bus that is on loopback, and so needs no keys."""
    with Bus(tmp_path) as bus:
        bus.recovery["data_endpoint"] = "tcp://192.0.2.7:5551"
        bus.worker("w")
        bus.wait(lambda: bus.processes["w"].poll() is not None, dead=["w"])
        assert bus.processes["w"].returncode == 2
        last = bus.log("w").strip().splitlines()[-1]
        assert last.startswith(
            "cryoflux reconstructor: data plane on tcp://192.0.2.7:5551: beyond this machine it needs keys"
        )


def test_live_runs_whole_under_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, its supervisor and all processes, as a user would: one folder, one variable."""
    make_keys(tmp_path / "keys")
    monkeypatch.setenv("CRYOFLUX_KEYS", str(tmp_path / "keys"))
    output = tmp_path / "out"
    options = ("--input", "pattern", "--frames", "400", "--rate", "100", "--workers", "2")
    with Live(output, *options) as live:
        live.reaches(50)
        log = (output / "logs" / "detector.log").read_text()
        found = re.search(r"listens on tcp://[\d.]+:(\d+)", log)
        assert found is not None
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=60) as stranger:
            greeting = b""
            stranger.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
            while len(greeting) < 32 and (more := stranger.recv(64)):
                greeting += more
            assert b"NULL" not in greeting
        assert live.process.wait(240) == 0
    assert len(table(output)) == 400


# ---- the control plane's own bus


class Ears:
    """What the control plane hears."""

    def __init__(self) -> None:
        self.components: list[Component] = []
        self.events: list[tuple[str | None, Event]] = []

    def registered(self, component: Component, is_new: bool) -> Registered:
        self.components.append(component)
        return Registered()

    def telemetry(self, component: Component) -> None: ...

    def event(self, component: Component | None, event: Event) -> None:
        self.events.append((component.name if component is not None else None, event))

    def silent(self, component: Component) -> None: ...

    def returned(self, component: Component) -> None: ...


def _bus_scene(machines: dict[str, str], steps: Any) -> Ears:
    async def scene() -> Ears:
        keys = Security(Keyring(Path(machines["control"]), "control"), CONTROL_BUS)
        bus = ControlBus("tcp://0.0.0.0:*", silent_after_seconds=30.0, security=keys)
        context: zmq.Context[Any] = zmq.Context()
        ears, links = Ears(), dict[str, Link]()
        bus.start(ears)
        port = bus.endpoint.rpartition(":")[2]
        try:
            for machine in ("detector", "worker", "node7"):
                security = Security(Keyring(Path(machines[machine]), machine), CONTROL_BUS)
                link = Link.dealer(
                    context, f"tcp://{own_address()}:{port}", machine.encode(), large=False, security=security
                )
                links[machine] = link
                await _until(link.connection_change)
            await steps(bus, ears, links)
        finally:
            for link in links.values():
                link.close(0)
            context.term()
            await bus.close()
        return ears

    return asyncio.run(scene())


async def _until(ready: Any) -> Any:
    deadline = time.monotonic() + 60
    while not (value := ready()):
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)
    return value


def _registration(kind: str, name: str) -> Register:
    return Register(component=kind, name=name, host="h", pid=1, data_endpoint="tcp://evil:1")  # pyright: ignore


def test_a_workers_key_does_not_make_a_detector(machines: dict[str, str]) -> None:
    """Else whoever has any worker's key could send all others to a detector of his own."""

    async def steps(bus: ControlBus, ears: Ears, links: dict[str, Link]) -> None:
        links["worker"].send(_registration("detector", "detector"))
        links["detector"].send(_registration("reconstructor", "w9"))
        await _until(lambda: [e for _, e in ears.events if e.kind == "not_let_in"])
        assert bus.detector is None
        assert links["worker"].receive() is None
        links["detector"].send(_registration("detector", "detector"))
        assert (await _until(links["detector"].receive)).message == Registered()
        detector = bus.detector
        assert detector is not None
        assert detector.key == "detector"
        links["worker"].send(_registration("reconstructor", "w1"))
        await _until(links["worker"].receive)
        assert [worker.key for worker in bus.workers] == ["worker"]

    ears = _bus_scene(machines, steps)
    told = [event.message for _, event in ears.events if event.kind == "not_let_in"]
    assert told[0] == "not registered: the key worker is none for a detector (detector on h)"


def test_a_name_belongs_to_the_key_that_has_it(machines: dict[str, str]) -> None:
    async def steps(bus: ControlBus, ears: Ears, links: dict[str, Link]) -> None:
        links["worker"].send(_registration("reconstructor", "w1"))
        await _until(links["worker"].receive)
        links["node7"].send(_registration("reconstructor", "w1"))
        await _until(lambda: [e for _, e in ears.events if e.kind == "not_let_in"])
        (worker,) = bus.workers
        assert (worker.key, worker.present) == ("worker", True)
        # nor can it speak in the other's name
        links["node7"].send(_registration("reconstructor", "w7"))
        await _until(links["node7"].receive)
        links["node7"].send(Event(component="detector", name="detector", kind="finished", message="all done"))
        links["node7"].send(Telemetry(component="reconstructor", name="w1", values={"frames_recovered": 9}))
        await _until(lambda: [e for _, e in ears.events if e.kind == "finished"])
        await _until(lambda: [w for w in bus.workers if w.telemetry])
        assert {w.name: bool(w.telemetry) for w in bus.workers} == {"w1": False, "w7": True}

    ears = _bus_scene(machines, steps)
    (said,) = [event for _, event in ears.events if event.kind == "finished"]
    assert (said.component, said.name) == ("reconstructor", "w7")
