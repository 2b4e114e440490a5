"""Links that are protected by CURVE: who is let in, who is not, and what both ends are told. Real sockets."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from common.wire.conduct import OFFENCES_ALLOWED
from common.wire.keys import CONTROL_BUS, DATA_PLANE, Keyring, Plane, Security, make_keys, mark_of
from common.wire.link import SMALL_MESSAGE_BYTES, Link, Malformed, PeerGone, Received
from common.wire.messages import ArrayHeader, Frames, Heartbeat, Hello, encode
from tests.integration.recorder import Recorder

T = TypeVar("T")

DEADLINE_SECONDS = 60.0
NODE = b"node7-1"


class Scene:
    """A folder of keys, and links that are closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "keys"
        make_keys(self.folder, ["control", "detector", "worker", "node7"])
        self.context: zmq.Context[Any] = zmq.Context()
        self.others: zmq.Context[Any] = zmq.Context()
        self.links: list[Link] = []

    def keys(self, own: str, plane: Plane = DATA_PLANE, folder: Path | None = None) -> Security:
        return Security(Keyring(folder or self.folder, own), plane)

    def router(self, own: str = "detector", plane: Plane = DATA_PLANE, *, plain: bool = False) -> Link:
        security = None if plain else self.keys(own, plane)
        self.links.append(Link.router(self.context, "tcp://0.0.0.0:*", security))
        return self.links[-1]

    def dealer(self, to: Link | int, security: Security | None, name: bytes = NODE) -> Link:
        port = to if isinstance(to, int) else port_of(to)
        link = Link.dealer(self.others, f"tcp://127.0.0.1:{port}", name, security=security)
        self.links.append(link)
        return link

    def joined(self, router: Link, own: str = "node7", plane: Plane = DATA_PLANE) -> tuple[Link, Received]:
        """A dealer that was let in, and what the router heard of it."""
        dealer = self.dealer(router, self.keys(own, plane))
        self.until(dealer.connection_change, dealer)
        dealer.send(Heartbeat())
        return dealer, self.until(router.receive, router)

    def until(self, ready: Callable[[], T | None], *links: Link) -> T:
        """What ``ready`` gives as soon as it is true; meanwhile the links go about their handshakes."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        poller = zmq.Poller()
        for link in links:
            link.register(poller)
        while not (value := ready()):
            assert time.monotonic() < deadline, "it never came to that"
            poller.poll(20)
        return value

    def stays_out(self, router: Link, dealer: Link, attempts: int = 3) -> None:
        """The dealer is not let in, however often it tries, and nothing of it is heard."""
        before = router.turned_away

        def tried() -> bool:
            assert dealer.connection_change() is None
            assert dealer.send(Heartbeat()) == 0
            assert dealer.receive() is None
            assert router.receive() is None
            return router.turned_away >= before + attempts

        self.until(tried, dealer)


def block(size: int, reference: int | None = None) -> Frames:
    """The header of one frame of so many bytes, and of one that is also sent whole."""

    def array(size: int) -> ArrayHeader:
        return ArrayHeader(shape=[1, size], dtype="uint8", coding="plain", bits=8)

    return Frames(
        series="s",
        block=0,
        config_id="a-configuration",
        frame_ids=[7],
        acquired_at=[0.0],
        reference_ids=[] if reference is None else [7],
        payload=array(size),
        reference_payload=None if reference is None else array(reference),
    )


def port_of(link: Link) -> int:
    return int(link.endpoint.rpartition(":")[2])


@pytest.fixture
def scene(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    caplog.set_level(logging.WARNING)
    scene = Scene(tmp_path)
    yield scene
    for link in scene.links:
        link.close(0)
    scene.context.destroy(0)
    scene.others.destroy(0)


# ---- those who may


def test_who_holds_a_key_is_let_in_and_known_by_it(scene: Scene) -> None:
    router = scene.router()
    dealer, received = scene.joined(router)
    assert received.key == "node7"
    assert received.identity == NODE + mark_of(Keyring(scene.folder, "node7").pair().public)
    router.send(block(1_000_000, 5), [b"x" * 1_000_000, b"small"], to=received.identity)
    answer = scene.until(dealer.receive, dealer)
    assert answer.message == block(1_000_000, 5)
    assert [bytes(buffer) for buffer in answer.buffers] == [b"x" * 1_000_000, b"small"]
    assert answer.key == ""
    assert router.turned_away == 0
    assert router.news() is None


def test_a_large_payload_goes_without_a_copy_of_ours_and_arrives_whole(scene: Scene) -> None:
    router = scene.router()
    dealer, received = scene.joined(router)
    payload = memoryview(bytearray(os.urandom(1 << 20) * 64))
    router.send(block(len(payload)), [payload], to=received.identity)
    answer = scene.until(dealer.receive, dealer)
    assert answer.buffers[0] == payload


@pytest.mark.parametrize("is_encrypted", [True, False])
def test_nothing_that_is_said_can_be_read_on_the_wire(scene: Scene, is_encrypted: bool) -> None:
    """With keys nothing known is found in the stream; without, all of it, so the search is one that finds."""
    router = scene.router(plain=not is_encrypted)
    payload = os.urandom(200_000)
    with Recorder(port_of(router)) as wire:
        dealer = scene.dealer(wire.port, scene.keys("node7") if is_encrypted else None)
        scene.until(dealer.connection_change, dealer)
        dealer.send(Hello(worker="a-name-to-look-for", host="h", pid=1))
        received = scene.until(router.receive, router)
        before = len(wire.back)
        frames = block(len(payload), 16)
        sent = router.send(frames, [payload, b"tail-to-look-for"], to=received.identity)
        scene.until(dealer.receive, dealer)
        stream = bytes(wire.towards + wire.back)
        known = (b"a-name-to-look-for", NODE, b"hello", b"frames", b"config_id", payload[1000:1016],
                 payload[-16:], b"tail-to-look-for")  # fmt: skip
        assert [text in stream for text in known] == [not is_encrypted] * len(known)
        # what is counted is what goes over the wire, to the byte
        scene.until(lambda: len(wire.back) - before >= sent)
        assert len(wire.back) - before == sent


def test_keys_hold_on_local_sockets_too(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There a connection has no address, and ZeroMQ makes one up."""
    endpoint = f"ipc://{tmp_path}/plane"
    router = Link.router(scene.context, endpoint, scene.keys("detector"))
    dealer = Link.dealer(scene.others, endpoint, NODE, security=scene.keys("node7"))
    scene.links += [router, dealer]
    scene.until(dealer.connection_change, dealer)
    dealer.send(Heartbeat())
    assert scene.until(router.receive, router).key == "node7"
    (scene.folder / "node7.key").unlink()

    def is_ignored() -> bool:
        dealer.connection_change()
        dealer.send(Heartbeat())
        router.receive()
        return router.ignored > 0

    scene.until(is_ignored)
    assert "was let in, but its key has been taken away since" in caplog.text


def test_a_restarted_end_is_found_again(scene: Scene) -> None:
    router = scene.router()
    dealer, _ = scene.joined(router)
    port = port_of(router)
    router.close(0)
    scene.until(lambda: dealer.connection_change() is False, dealer)
    again = Link.router(scene.context, f"tcp://0.0.0.0:{port}", scene.keys("detector"))
    scene.links.append(again)
    scene.until(dealer.connection_change, dealer)
    dealer.send(Heartbeat())
    assert scene.until(again.receive, again).key == "node7"


# ---- those who may not


def test_an_unknown_key_is_not_let_in_until_it_is_known(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    router = scene.router()
    key = (scene.folder / "node7.key").read_bytes()
    (scene.folder / "node7.key").unlink()
    dealer = scene.dealer(router, scene.keys("node7"))
    scene.stays_out(router, dealer)
    public = Keyring(scene.folder, "node7").pair().public.decode()
    line = f"127.0.0.1 has the public key {public}, which is not among ours"
    assert f"data plane: not let in: {line}" in caplog.text
    assert router.news() == f"not let in to the data plane: {line}"
    told = "node7.key is not among the keys there, or is none for the data plane"
    assert caplog.text.count(told) == 1  # however often it tries
    (scene.folder / "node7.key").write_bytes(key)
    scene.until(dealer.connection_change, dealer)
    dealer.send(Heartbeat())
    assert scene.until(router.receive, router).key == "node7"


def test_a_key_of_ones_own_that_is_exchanged_is_used_at_the_next_attempt(
    scene: Scene, tmp_path: Path
) -> None:
    """A worker that was shut out gets a new key of the old name, and goes on without a restart."""
    router = scene.router()
    machine = tmp_path / "node7-keys"
    shutil.copytree(scene.folder, machine)
    (scene.folder / "node7.key").unlink()
    dealer = scene.dealer(router, scene.keys("node7", folder=machine))
    scene.stays_out(router, dealer)
    for file in (machine / "node7.key", machine / "node7.key_secret"):
        file.unlink()
    make_keys(machine, ["node7"])
    shutil.copy(machine / "node7.key", scene.folder)
    scene.until(dealer.connection_change, dealer)
    dealer.send(Heartbeat())
    received = scene.until(router.receive, router)
    assert (received.key, received.identity) == (
        "node7", NODE + mark_of(Keyring(machine, "node7").pair().public),
    )  # fmt: skip


def test_who_loses_the_key_is_neither_heard_nor_spoken_to_and_cut_off(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    router = scene.router()
    dealer, received = scene.joined(router)
    other = scene.dealer(router, scene.keys("worker"), b"other")
    scene.until(other.connection_change, other)
    (scene.folder / "node7.key").unlink()

    def is_out() -> bool:
        try:
            router.send(Heartbeat(), to=received.identity)
        except PeerGone:
            return True
        return False

    scene.until(is_out)
    dealer.connection_change()
    dealer.send(Hello(worker="too late", host="h", pid=1))

    def is_cut() -> bool:
        assert router.receive() is None
        while dealer.receive() is not None:  # what was said before: one that does not read sees no end
            pass
        return dealer.connection_change() is False

    scene.until(is_cut, dealer)
    assert router.ignored >= 1
    assert "was let in, but its key has been taken away since" in caplog.text
    scene.stays_out(router, dealer, 2)
    other.send(Heartbeat())
    assert scene.until(router.receive, router).key == "worker"


def test_an_end_with_another_key_than_expected_hears_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The key that a worker knows as the detector's is not this detector's: it may be anybody."""
    router = scene.router()
    make_keys(tmp_path / "elsewhere", ["detector"])
    known = (scene.folder / "detector.key").read_bytes()
    worker = scene.keys("node7")
    (scene.folder / "detector.key").write_bytes((tmp_path / "elsewhere" / "detector.key").read_bytes())
    dealer = scene.dealer(router, worker)
    scene.stays_out(router, dealer)
    # the address is known where the connection can still be asked for it
    assert re.search(
        r"not let in: (127\.0\.0\.1|somebody) has another key than ours as detector", caplog.text
    )
    assert (
        f"it breaks off: {scene.folder}/detector.key is not its key, no keys are set there, or it is"
        in caplog.text
    )
    (scene.folder / "detector.key").write_bytes(known)  # mended while it runs
    scene.until(dealer.connection_change, dealer)


def test_who_has_no_keys_gets_nothing_from_who_has(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    router = scene.router()
    dealer = scene.dealer(router, None)
    scene.stays_out(router, dealer)
    # who is quick to go has not yet said what it wants
    here = r"not let in at .*: it (breaks off: perhaps it )?wants CURVE, and no keys are set here"
    there = r"not let in: (127\.0\.0\.1|somebody) does not use CURVE: no keys are set"

    def told() -> bool:
        assert dealer.connection_change() is None
        assert router.receive() is None
        return all(re.search(line, caplog.text) for line in (here, there))

    scene.until(told, dealer)


def test_who_has_keys_says_nothing_to_who_has_none(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    router = scene.router(plain=True)
    dealer = scene.dealer(router, scene.keys("node7"))

    def told() -> bool:
        assert dealer.connection_change() is None
        assert dealer.send(Heartbeat()) == 0
        assert router.receive() is None
        return "no keys are set there" in caplog.text  # for certain, or where it is quick to go: perhaps

    scene.until(told, dealer)


@pytest.mark.parametrize(
    ("own", "plane", "server"),
    [
        ("detector", DATA_PLANE, "detector"),
        ("control", DATA_PLANE, "detector"),
        ("control", CONTROL_BUS, "control"),
    ],
)
def test_a_key_is_good_for_its_own_planes_only(
    scene: Scene, caplog: pytest.LogCaptureFixture, own: str, plane: Plane, server: str
) -> None:
    router = scene.router(server, plane)
    dealer = scene.dealer(router, scene.keys(own, plane))
    scene.stays_out(router, dealer)
    assert f"127.0.0.1 has the key {own}, which is none for the {plane.name}" in caplog.text


def test_keys_of_another_installation_open_nothing(scene: Scene, tmp_path: Path) -> None:
    router = scene.router()
    elsewhere = tmp_path / "elsewhere"
    make_keys(elsewhere)
    (elsewhere / "detector.key").write_bytes((scene.folder / "detector.key").read_bytes())  # it is public
    dealer = scene.dealer(router, scene.keys("worker", folder=elsewhere))
    scene.stays_out(router, dealer)


def test_nobody_can_take_the_identity_of_another_key(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    router = scene.router()
    worker = Keyring(scene.folder, "worker")
    pair, node = worker.pair(), Keyring(scene.folder, "node7").pair()
    for identity in (NODE + mark_of(node.public), b"no mark at all", b"worker-1" + mark_of(pair.public)[:-1]):
        raw = scene.others.socket(zmq.DEALER)
        raw.setsockopt(zmq.LINGER, 0)
        raw.setsockopt(zmq.IDENTITY, identity)
        raw.curve_serverkey, raw.curve_publickey, raw.curve_secretkey = (
            worker.public("detector"), pair.public, pair.secret,
        )  # fmt: skip
        before = router.ignored
        raw.connect(f"tcp://127.0.0.1:{port_of(router)}")
        raw.send(encode(Hello(worker="node7", host="h", pid=1)))

        def is_ignored(before: int = before) -> bool:
            assert router.receive() is None
            return router.ignored > before

        scene.until(is_ignored, router)
        raw.close(0)
    assert "127.0.0.1 with the key worker pretends to be somebody else" in caplog.text


def test_where_nobody_is_at_the_door_nobody_is_let_in(scene: Scene) -> None:
    router = scene.router()
    router._doorkeeper.close()  # pyright: ignore
    dealer = scene.dealer(router, scene.keys("node7"))
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        assert dealer.connection_change() is None
        assert router.receive() is None
        time.sleep(0.02)


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"


def _greeting(mechanism: bytes) -> bytes:
    return GREETING + mechanism.ljust(20, b"\0") + bytes(32)


def _command(name: bytes, body: bytes) -> bytes:
    return b"\x04" + bytes([1 + len(name) + len(body), len(name)]) + name + body


READY = _command(b"READY", b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x07stranger")
HELLO = b"\x00\x0b" + encode(Hello(worker="stranger", host="h", pid=1))[:11]


@pytest.mark.parametrize(
    ("mechanism", "then"),
    [
        (b"NULL", READY + HELLO),
        (b"PLAIN", _command(b"HELLO", b"\x01u\x01p") + HELLO),
        (b"GSSAPI", READY),
        (b"CURVE", _command(b"HELLO", b"\x01\x00" + bytes(192)) + HELLO),
        (b"CURVE", b"\x04\x01\xc8\x05HELLO" + os.urandom(194) + READY + HELLO),
        (b"CURVE", READY + HELLO),
        (b"CURVE", _command(b"INITIATE", bytes(200)) + HELLO),
        (b"CURVE", HELLO),
        (b"\xff" * 20, b""),
    ],
)
def test_a_stranger_gets_no_more_than_a_greeting(scene: Scene, mechanism: bytes, then: bytes) -> None:
    """Byte by byte: whatever it says, the 64 bytes that name version and mechanism are all that comes."""
    router = scene.router()
    _, received = scene.joined(router)
    answer = _answer(router, _greeting(mechanism), then)
    assert len(answer) <= 64
    assert answer[12:32] in (b"CURVE".ljust(20, b"\0"), b"")
    assert router.receive() is None
    router.send(Heartbeat(), to=received.identity)  # others are served on


def test_http_is_no_handshake(scene: Scene) -> None:
    router = scene.router()
    assert len(_answer(router, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(64))) <= 64
    assert router.receive() is None


def _answer(router: Link, *said: bytes) -> bytes:
    """All that a bare TCP connection gets for what it says, until the other end closes it."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port_of(router)), timeout=DEADLINE_SECONDS) as stranger,
        contextlib.suppress(ConnectionError),
    ):
        for part in said:
            stranger.sendall(part)
            answer += stranger.recv(64)
        while more := stranger.recv(4096):
            answer += more
    return answer


# ---- bounds hold under encryption


def test_a_message_of_the_longest_allowed_length_passes_and_one_more_byte_does_not(scene: Scene) -> None:
    router = scene.router()
    dealer, _ = scene.joined(router)
    dealer._socket.send_multipart([encode(Heartbeat()), bytes(SMALL_MESSAGE_BYTES)])  # pyright: ignore
    came = scene.until(router.receive, router).message
    assert came == Malformed("frames with 1 payloads")  # it has none to have, but it came
    dealer._socket.send_multipart([encode(Heartbeat()), bytes(SMALL_MESSAGE_BYTES + 1)])  # pyright: ignore
    scene.until(lambda: dealer.connection_change() is False, dealer)
    assert router.receive() is None


def test_garbage_of_somebody_with_a_key_gets_it_cut_off(scene: Scene) -> None:
    router = scene.router()
    dealer, _ = scene.joined(router)
    seen: list[Malformed] = []

    def is_cut() -> bool:
        if dealer.connection_change() is False:
            return True
        with contextlib.suppress(zmq.Again):
            dealer._socket.send(b"\xc1garbage", zmq.NOBLOCK)  # pyright: ignore
        seen.extend(r.message for r in router.turn() if isinstance(r.message, Malformed))
        return False

    scene.until(is_cut)
    assert len(seen) == OFFENCES_ALLOWED
    assert seen[-1].shut_out


def test_a_context_has_one_protected_socket_and_says_so(scene: Scene) -> None:
    scene.router()
    with pytest.raises(OSError, match="cannot listen on"):
        scene.router("control", CONTROL_BUS)
