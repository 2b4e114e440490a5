"""Peers that send garbage: counted, told, shut out; and never at the cost of the others. Real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from common.wire import unread
from common.wire.conduct import (
    IGNORED_SECONDS,
    OFFENCE_SECONDS,
    OFFENCES_ALLOWED,
    OFFENCES_ALLOWED_OF_AN_ORIGIN,
    PEERS_KEPT,
    Conduct,
)
from common.wire.link import MESSAGES_A_TURN, SMALL_MESSAGE_BYTES, Link, Malformed
from common.wire.messages import (
    Ack,
    ArrayHeader,
    ConfigurationNotice,
    Credit,
    Event,
    Frames,
    Goodbye,
    Heartbeat,
    Hello,
    Register,
    Registered,
    Start,
    Telemetry,
    encode,
)
from detector_sim.publisher import Publisher
from detector_sim.safekeeping import Safekeeping
from detector_sim.spool import Head
from reconstructor.subscriber import Subscriber
from services.control_plane.bus import Bus, Component

DEADLINE_SECONDS = 60.0
BLOCKS = 300


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(0)


def awaited(ready: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := ready()):
        assert time.monotonic() < deadline, f"{what} never came"
        threading.Event().wait(0.005)
    return value


# ---- the record -------------------------------------------------------------------------------------


def test_a_few_mistakes_are_forgiven_and_many_are_not() -> None:
    conduct = Conduct()
    for k in range(OFFENCES_ALLOWED - 1):
        assert not conduct.offend(b"a", 0.1 * k)
    assert not conduct.ignores(b"a", 1.0)
    assert conduct.offend(b"a", 1.0)
    assert conduct.ignores(b"a", 1.1)
    assert not conduct.ignores(b"b", 1.1)
    assert conduct.ignores(b"a", 1.0 + 0.99 * IGNORED_SECONDS)
    assert not conduct.ignores(b"a", 1.0 + IGNORED_SECONDS)
    assert not conduct.offend(b"a", 1.1 + IGNORED_SECONDS)  # it begins anew


def test_mistakes_now_and_then_are_never_too_many() -> None:
    conduct = Conduct()
    for k in range(100):
        assert not conduct.offend(b"a", k * OFFENCE_SECONDS / (OFFENCES_ALLOWED - 1) * 1.2)


def test_the_record_of_names_that_change_does_not_grow() -> None:
    conduct = Conduct()
    for k in range(3 * PEERS_KEPT):
        conduct.offend(b"%d" % k, 0.0)
    assert len(conduct._records) == PEERS_KEPT  # pyright: ignore[reportPrivateUsage]


def test_a_connection_is_cut_once_a_second_at_most() -> None:
    conduct = Conduct()
    conduct.offend(b"a", 0.0)
    assert [conduct.to_disconnect(b"a", now) for now in (0.0, 0.5, 0.99, 1.0, 1.5)] == [
        True, False, False, True, False,
    ]  # fmt: skip


def test_an_origin_is_allowed_more_than_one_name_but_not_any_number() -> None:
    conduct = Conduct(OFFENCES_ALLOWED_OF_AN_ORIGIN)
    for k in range(OFFENCES_ALLOWED_OF_AN_ORIGIN - 1):
        assert not conduct.offend(b"10.0.0.7", 0.01 * k)
    assert conduct.offend(b"10.0.0.7", 2.0)
    assert conduct.ignores(b"10.0.0.7", 2.0 + 0.9 * IGNORED_SECONDS)
    assert not conduct.ignores(b"10.0.0.8", 2.0)


# ---- sockets ----------------------------------------------------------------------------------------


class Flood:
    """A peer that sends garbage, or what ``parts`` make, as fast as it can; cut off it comes back."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, parts: list[bytes], identity: bytes) -> None:
        self._stop = threading.Event()
        self.sent = self.disconnected = 0
        self._parts = parts
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(endpoint)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._socket.send_multipart(self._parts, zmq.NOBLOCK)
                self.sent += 1
            except zmq.Again:
                self._stop.wait(0.001)
            while self._monitor.poll(0):
                self._monitor.recv_multipart()
                self.disconnected += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)


def test_a_flood_is_cut_off_and_received_in_turns(context: zmq.Context[Any]) -> None:
    router = Link.router(context, "tcp://127.0.0.1:*")
    flood = Flood(context, router.endpoint, [b"\xc1garbage"], b"flood")
    seen: list[Malformed] = []

    def listen() -> bool:
        turn = list(router.turn())
        assert len(turn) <= MESSAGES_A_TURN
        seen.extend(received.message for received in turn if isinstance(received.message, Malformed))
        return flood.disconnected > 0 and router.ignored > 0

    awaited(listen, "the end of the connection")
    flood.stop()
    assert len(seen) == OFFENCES_ALLOWED
    assert [message.shut_out for message in seen] == [False] * (OFFENCES_ALLOWED - 1) + [True]
    assert router.malformed == OFFENCES_ALLOWED
    router.close(0)


def raw_peer(endpoint: str) -> socket.socket:
    """A connection over which ZMTP 3.0 has been agreed on, by hand."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS)
    mechanism = b"NULL".ljust(20, b"\0")
    peer.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + mechanism + bytes(32))
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    peer.sendall(bytes((4, len(ready))) + ready)
    greeting = 64
    answer = b""
    while len(answer) < greeting + 2 or len(answer) < greeting + 2 + answer[greeting + 1]:
        data = peer.recv(4096)
        assert data, "the connection is closed"
        answer += data
    return peer


def endless(peer: socket.socket, part_bytes: int, most_bytes: int) -> int:
    """Part after part of one message until the connection is cut, or so many bytes; how many they were."""
    size = b"\x03" + struct.pack(">Q", part_bytes) if part_bytes > 255 else bytes((1, part_bytes))
    chunk = (size + bytes(part_bytes)) * max(1, (1 << 20) // part_bytes)
    sent = 0
    peer.settimeout(2.0)  # a connection that is cut in full flow may just take nothing more
    try:
        while sent < most_bytes:
            peer.sendall(chunk)
            sent += len(chunk)
    except OSError:
        pass
    return sent


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
@pytest.mark.parametrize("part_bytes", [65_536, 200])
def test_a_message_without_an_end_is_cut_off(
    context: zmq.Context[Any],
    part_bytes: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a peer sends of one message, the process holds a bounded share of it; others are served."""
    bound = 8 << 20
    monkeypatch.setattr(unread, "MOST_UNREAD_BYTES", bound)
    router = Link.router(context, "tcp://127.0.0.1:*")
    good = Link.dealer(context, router.endpoint, b"good", large=False)
    awaited(good.connection_change, "a connection")
    sizes: list[int] = []
    with raw_peer(router.endpoint) as peer:
        thread = threading.Thread(target=lambda: sizes.append(endless(peer, part_bytes, 2 << 30)))
        thread.start()
        heard = 0
        while thread.is_alive():  # messages of ordinary size all the while
            good.send(Heartbeat())
            heard += sum(isinstance(received.message, Heartbeat) for received in router.turn())
            thread.join(0.002)
    assert bound <= sizes[0] < 2 << 30, "it is cut off"
    assert heard > 5
    assert router.malformed == 0
    assert "a message without an end" in caplog.text
    # the other one has sent more than that meanwhile or since, in messages that have an end
    for _ in range(200):
        good.send(Telemetry(component="detector", name="x", values={"a": "x" * 100_000}))
        awaited(router.receive, "a message")
    assert good.connection_change() is None
    router.close(0)
    good.close(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_many_who_begin_a_message_share_one_bound(
    context: zmq.Context[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "MOST_UNREAD_OF_ALL_BYTES", 16 << 20)
    router = Link.router(context, "tcp://127.0.0.1:*")
    peers = [raw_peer(router.endpoint) for _ in range(6)]
    assert router.unread is not None
    for peer in peers:
        endless(peer, 65_536, 4 << 20)
    awaited(lambda: router.unread is not None and router.unread.cut_off >= 2, "some are cut off")
    router.unread.look()
    assert router.unread.cut_off < len(peers)
    for peer in peers:
        peer.close()
    router.close(0)


def test_a_new_name_at_every_connection_does_not_help_for_long(
    context: zmq.Context[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.wire.link.is_loopback", lambda address: False)  # as if it came from elsewhere
    router = Link.router(context, "tcp://127.0.0.1:*")
    told = 0
    for k in range(OFFENCES_ALLOWED_OF_AN_ORIGIN + 20):
        peer = context.socket(zmq.DEALER)
        peer.setsockopt(zmq.IDENTITY, b"name-%d" % k)
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(router.endpoint)
        peer.send(b"\xc1garbage")
        before = router.ignored

        def listen(before: int = before) -> bool:
            nonlocal told
            received = list(router.turn())
            told += len(received)
            return bool(received) or router.ignored > before

        awaited(listen, "it is heard, or ignored")
        peer.close(0)
    assert told == OFFENCES_ALLOWED_OF_AN_ORIGIN
    assert router.ignored == 20
    router.close(0)


def test_a_message_that_is_too_long_ends_the_connection_unread(context: zmq.Context[Any]) -> None:
    router = Link.router(context, "tcp://127.0.0.1:*")
    flood = Flood(context, router.endpoint, [bytes(SMALL_MESSAGE_BYTES + 1)], b"long")
    awaited(lambda: flood.disconnected, "the end of the connection")
    assert router.receive() is None
    flood.stop()
    router.close(0)


def frames(count: int = 1, block: int = 0) -> Frames:
    return Frames(
        series="s",
        block=block,
        config_id="A",
        frame_ids=[count * block + k for k in range(count)],
        acquired_at=[0.0] * count,
        payload=ArrayHeader(shape=[count, 1000], dtype="uint8", coding="plain", bits=8),
    )


def start() -> Start:
    return Start(
        series="s",
        session="s",
        frames_expected=None,
        shape=(1, 1000),
        dtype="uint8",
        pixel_size_angstrom=1.0,
        output="",
        optics={},
        calibration={},
    )


@pytest.mark.parametrize("payloads", [0, 2])
def test_frames_with_another_number_of_payloads_are_malformed(
    context: zmq.Context[Any], payloads: int
) -> None:
    router = Link.router(context, "tcp://127.0.0.1:*")
    dealer = Link.dealer(context, router.endpoint, b"w")
    awaited(dealer.connection_change, "a connection")
    dealer.send(frames(), [b"x"] * payloads)
    received = awaited(router.receive, "the message")
    assert received.message == Malformed(f"frames with {payloads} payloads")
    router.close(0)
    dealer.close(0)


GARBAGE = {
    "garbage": [b"\xc1garbage"],
    "many parts": [encode(Heartbeat())] + [b"x"] * 50,
    "a message of the other side": [encode(start())],
    "a worker's answers that are none": [encode(Ack(series="s", block=0, frame_ids=[1]))[:-1]],
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_worker_is_served_beside_a_flood(context: zmq.Context[Any], kind: str) -> None:
    """Every block reaches the good worker and is acknowledged while others send garbage without a pause."""
    events: dict[str, list[str]] = defaultdict(list)
    over = threading.Event()
    failures: list[Exception] = []

    def event(kind: str, message: str, **_: Any) -> None:
        events[kind].append(message)

    publisher = Publisher(
        context,
        "tcp://127.0.0.1:0",
        heartbeat_seconds=1.0,
        silent_after_seconds=30.0,
        window_bytes=1_000_000_000,
        safekeeping=Safekeeping(None, 0, "pause", event),
        event=event,
        drained=over.set,
        failed=failures.append,
    )
    publisher.start()
    floods = [Flood(context, publisher.endpoint, GARBAGE[kind], b"flood-%d" % k) for k in range(2)]
    awaited(lambda: events["peer_ignored"], "the news that a peer is shut out")

    def work(received: Any) -> None:
        message = received.message
        if isinstance(message, Frames):
            worker.finish([Ack(series="s", block=message.block, frame_ids=message.frame_ids)])

    worker = Subscriber(
        context, "good", credits=4, heartbeat_seconds=1.0, deliver=work, failed=failures.append
    )
    worker.start()
    worker.attach(publisher.endpoint)
    publisher.open(Head(start=start(), spec={}, began_at=0.0), None, has_clock=False)
    publisher.configure(ConfigurationNotice(configuration={"config_id": "A"}))
    with publisher.changed:
        publisher.ledger.acquire(BLOCKS)
    for block in range(BLOCKS):
        publisher.add(frames(block=block), [bytes(1000)])
    publisher.complete()
    assert over.wait(DEADLINE_SECONDS), publisher.ledger.accounts()
    assert all(flood.sent > 10 * OFFENCES_ALLOWED for flood in floods)
    for flood in floods:
        flood.stop()
    worker.close()
    publisher.close()
    accounts = publisher.ledger.accounts()
    assert (accounts.acquired, accounts.acknowledged, accounts.lost) == (BLOCKS, BLOCKS, {})
    assert not failures
    assert any(flood.disconnected for flood in floods)
    assert all("not listened to for 30 s" in line for line in events["peer_ignored"])
    assert publisher.malformed >= 2 * OFFENCES_ALLOWED


def test_a_worker_that_cannot_read_a_block_gives_it_back(context: zmq.Context[Any]) -> None:
    """What it cannot read it cannot answer for: it says goodbye, so that the detector gives all to others."""
    router = Link.router(context, "tcp://127.0.0.1:*")
    delivered: list[Any] = []
    worker = Subscriber(
        context, "w", credits=2, heartbeat_seconds=0.2, deliver=delivered.append, failed=delivered.append
    )
    worker.start()
    worker.attach(router.endpoint)

    def heard(kind: type[Any]) -> bytes:
        def look() -> bytes | None:
            received = router.receive()
            return received.identity if received is not None and isinstance(received.message, kind) else None

        return awaited(look, kind.__name__)

    identity = heard(Hello)
    heard(Credit)
    router.send(frames(), [b"x", b"y"], to=identity)  # one payload too many
    assert heard(Goodbye) == identity
    assert heard(Hello) != identity
    assert worker.malformed == 1
    assert not delivered
    worker.close()
    router.close(0)


class Ears:
    """What the control plane hears on the bus."""

    def __init__(self) -> None:
        self.telemetries = 0
        self.events: list[Event] = []

    def registered(self, component: Component, is_new: bool) -> Registered:
        return Registered(data_endpoint="tcp://nowhere:1")

    def telemetry(self, component: Component) -> None:
        self.telemetries += 1

    def event(self, component: Component | None, event: Event) -> None:
        self.events.append(event)

    def silent(self, component: Component) -> None: ...

    def returned(self, component: Component) -> None: ...


@pytest.mark.parametrize(
    "parts",
    [[b"\xc1garbage"], [encode(Telemetry(component="detector", name="x", values={}))]],
    ids=["garbage", "telemetry of a stranger"],
)
def test_the_control_bus_serves_others_beside_a_flood(context: zmq.Context[Any], parts: list[bytes]) -> None:
    async def scene() -> Ears:
        bus = Bus("tcp://127.0.0.1:*", silent_after_seconds=30.0)
        ears = Ears()
        bus.start(ears)
        flood = Flood(context, bus.endpoint, parts, b"flood")
        good = Link.dealer(context, bus.endpoint, b"good", large=False)
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            is_registered = False
            while ears.telemetries < 20 or (parts[0][:1] == b"\xc1" and not ears.events):
                assert time.monotonic() < deadline, "the good component is not heard"
                if good.connection_change():
                    good.send(Register(component="detector", name="d", host="h", pid=1))
                received = good.receive()
                is_registered |= received is not None and isinstance(received.message, Registered)
                if is_registered:
                    good.send(Telemetry(component="detector", name="d", values={"a": 1}))
                await asyncio.sleep(0.005)
            assert flood.sent > OFFENCES_ALLOWED
        finally:
            flood.stop()
            good.close(0)
            await bus.close()
        return ears

    ears = asyncio.run(scene())
    if parts[0][:1] == b"\xc1":
        assert ears.events[0].kind == "peer_ignored"
        assert "on the control bus" in ears.events[0].message
