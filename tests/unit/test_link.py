"""Sockets, bell, limit and pulse, without waiting for wall-clock time."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from common.wire.link import Link, LinkLimit, Malformed, PeerGone, Received, as_bytes, wire_size
from common.wire.messages import PROTOCOL_VERSION, ArrayHeader, Frames, Heartbeat, Hello, encode
from common.wire.waking import Bell, Pulse

DEADLINE_MS = 10_000


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(0)


def _await(link: Link, ready: Callable[[], Any]) -> Any:
    """What ``ready`` gives as soon as it gives anything, polling the link."""
    poller = zmq.Poller()
    link.register(poller)
    while not (value := ready()):
        assert poller.poll(DEADLINE_MS), "nothing came"
    return value


def _pair(context: zmq.Context[Any]) -> tuple[Link, Link]:
    router = Link.router(context, "tcp://127.0.0.1:*")
    dealer = Link.dealer(context, router.endpoint, b"worker-1")
    assert _await(dealer, dealer.connection_change) is True
    return router, dealer


# ---- the limit


@given(
    rate=st.floats(0.5, 10_000),
    sizes=st.lists(st.integers(1, 5_000_000), min_size=20, max_size=60),
    lateness=st.lists(st.floats(0, 0.01), min_size=60, max_size=60),
)
def test_a_busy_sender_reaches_exactly_the_stated_rate(
    rate: float, sizes: list[int], lateness: list[float]
) -> None:
    limit, now = LinkLimit(rate), 100.0
    for size, late in zip(sizes, lateness, strict=False):
        now += limit.wait(now) + late
        assert limit.wait(now) == 0
        limit.spend(size, now)
    end = now + limit.wait(now)
    ideal = sum(sizes) * 8e-6 / rate
    # never faster; slower by no more than what a caller later than a message lasts can lose
    assert end - 100.0 >= ideal - 0.05 - 1e-6
    assert end - 100.0 <= ideal + sum(lateness) + 1e-6
    if min(sizes) * 8e-6 / rate > 0.02:
        assert end - 100.0 <= ideal + 0.02 + 1e-6


def test_unused_time_is_not_saved_up() -> None:
    limit = LinkLimit(8.0)  # a megabyte a second
    limit.spend(1_000_000, 0.0)
    assert limit.wait(0.25) == pytest.approx(0.70)
    limit.spend(1_000_000, 1000.0)
    assert limit.wait(1000.0) >= 0.95


def test_no_limit_never_waits() -> None:
    limit = LinkLimit(None)
    limit.spend(10**12, 0.0)
    assert limit.wait(0.0) == 0


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="link_mbit_per_s"):
        LinkLimit(0.0)


def test_a_pulse_beats_once_an_interval() -> None:
    pulse = Pulse(1.0)
    assert pulse.due(0.0)
    assert not pulse.due(0.9)
    assert pulse.wait(0.9) == pytest.approx(0.1)
    assert pulse.due(1.0)


# ---- sockets


def test_header_and_payloads_arrive_as_they_were_sent(context: zmq.Context[Any]) -> None:
    router, dealer = _pair(context)
    payload = np.arange(100_000, dtype=np.float32).reshape(100, 1000)
    message = Frames(
        series="s", block=0, config_id="c", frame_ids=[7], acquired_at=[0.0], reference_ids=[7],
        payload=ArrayHeader(shape=[1, 100, 1000], dtype="float32", coding="plain", values="float32"),
        reference_payload=ArrayHeader(shape=[1, 5], dtype="uint8", coding="plain"),
    )  # fmt: skip
    sent = dealer.send(message, [payload, b"small"])
    received: Received = _await(router, router.receive)
    assert received.identity == b"worker-1"
    assert received.message == message
    assert [bytes(buffer) for buffer in received.buffers] == [payload.tobytes(), b"small"]
    header = len(encode(message))
    framing = (9 if header > 255 else 2) + 9 + 2
    assert sent == dealer.bytes_sent == header + payload.nbytes + len(b"small") + framing
    router.send(Heartbeat(), to=received.identity)
    assert _await(dealer, dealer.receive).message == Heartbeat()


def test_wire_size_counts_framing() -> None:
    assert wire_size([b"", bytes(255), bytes(256)]) == (0 + 2) + (255 + 2) + (256 + 9)


def test_only_contiguous_memory_travels() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        as_bytes(np.zeros((4, 4))[:, ::2])
    assert bytes(as_bytes(np.arange(3, dtype="<u2"))) == b"\0\0\1\0\2\0"


@pytest.mark.parametrize(
    "parts",
    [
        [b"\xff\xff\xff"],
        [b""],
        [encode(Hello(worker="w", host="h", pid=1, version=PROTOCOL_VERSION + 1))],
        [encode(Heartbeat())] + [b"x"] * 20,
    ],
    ids=["garbage", "empty", "other version", "too many parts"],
)
def test_what_cannot_be_read_is_counted_and_the_next_message_is_read(
    context: zmq.Context[Any], parts: list[bytes]
) -> None:
    router = Link.router(context, "tcp://127.0.0.1:*")
    raw = context.socket(zmq.DEALER)
    raw.connect(router.endpoint)
    raw.send_multipart(parts)
    received: Received = _await(router, router.receive)
    assert isinstance(received.message, Malformed)
    assert router.malformed == 1
    raw.send(encode(Heartbeat()))
    assert _await(router, router.receive).message == Heartbeat()


def test_a_peer_that_is_gone_is_known_at_the_next_message(context: zmq.Context[Any]) -> None:
    router, dealer = _pair(context)
    dealer.send(Heartbeat())
    _await(router, router.receive)
    dealer.close(0)
    poller = zmq.Poller()
    router.register(poller)
    for _ in range(DEADLINE_MS // 10):  # until the kernel has told that the connection is closed
        try:
            router.send(Heartbeat(), to=b"worker-1")
        except PeerGone:
            return
        poller.poll(10)
    pytest.fail("sending to a closed peer never failed")


def test_nothing_piles_up_while_nobody_listens(context: zmq.Context[Any]) -> None:
    with socket.socket() as held:  # nobody else gets its port, and nobody listens
        held.bind(("127.0.0.1", 0))
        dealer = Link.dealer(context, f"tcp://127.0.0.1:{held.getsockname()[1]}", b"w")
        assert dealer.send(Heartbeat()) == 0
        assert dealer.bytes_sent == 0


def test_a_port_that_is_taken_is_one_clear_line(context: zmq.Context[Any]) -> None:
    router = Link.router(context, "tcp://127.0.0.1:*")
    with pytest.raises(OSError, match=f"cannot listen on {router.endpoint}: Address already in use"):
        Link.router(context, router.endpoint)


def test_a_lost_connection_is_noticed_and_made_again(context: zmq.Context[Any]) -> None:
    router, dealer = _pair(context)
    endpoint = router.endpoint
    router.close(0)
    assert _await(dealer, lambda: dealer.connection_change() is False)
    again = Link.router(context, endpoint)
    assert _await(dealer, dealer.connection_change) is True
    dealer.send(Heartbeat())
    assert _await(again, again.receive).identity == b"worker-1"


def test_a_bell_wakes_a_poll_from_another_thread() -> None:
    with_bell = zmq.Poller()
    bell = Bell()
    bell.register(with_bell)
    assert not with_bell.poll(0)
    thread = threading.Thread(target=bell.ring)
    thread.start()
    assert with_bell.poll(DEADLINE_MS)
    thread.join()
    bell.clear()
    assert not with_bell.poll(0)
    for _ in range(100_000):  # more than a pipe holds
        bell.ring()
    assert with_bell.poll(0)
    bell.clear()
    bell.close()
    bell.ring()
