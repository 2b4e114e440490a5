"""Clients that send requests too large, too deep, too slowly or too many: real sockets at a real server."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from services.control_plane import connections, stream
from services.control_plane.body import LARGEST_BYTES
from services.control_plane.connections import LARGEST_HEADER_BYTES
from tests.unit.served import BASE, Served, eventually

JSON = {"content-type": "application/json"}
DEADLINE_SECONDS = 30.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("hostile"))
    yield served
    served.close()


def connected(served: Served) -> socket.socket:
    url = httpx.URL(served.url)
    connection = socket.create_connection((url.host, url.port), timeout=DEADLINE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def until_closed(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection, which it must."""
    answer = b""
    try:
        while data := connection.recv(1 << 16):
            answer += data
            assert len(answer) < 1 << 20
    except ConnectionError:  # as it is closed while there is something unread
        pass
    return answer


def sent(served: Served, request: bytes) -> bytes:
    """The answer to these bytes, up to its end; the connection is closed by the server."""
    with connected(served) as connection:
        try:
            connection.sendall(request)
        except ConnectionError:
            return b""
        return until_closed(connection)


def lives(served: Served) -> None:
    assert httpx.get(f"{served.url}/healthz", timeout=DEADLINE_SECONDS).status_code == 200


# ---- too large


CLOSE = b"Host: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"a" * 2 * LARGEST_HEADER_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz?" + b"a=1&" * LARGEST_HEADER_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 2 * LARGEST_HEADER_BYTES + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * LARGEST_HEADER_BYTES + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n" + b"a" * 99,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFFFF\r\n",
        b"GET  HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\0" * 10_000,
    ],
    ids=["path", "query", "header", "headers", "length", "lengths", "chunk", "line", "tls", "zeros"],
)
def test_requests_that_are_none_are_refused_and_cut_off(served: Served, request_: bytes) -> None:
    answer = sent(served, request_)
    # sent on in full it may be cut off before it could read why
    assert answer == b"" or answer.split(b" ", 2)[1][:1] == b"4", answer[:200]
    lives(served)


@pytest.mark.parametrize(
    "path",
    ["/" + "a" * 30_000, "/api/v1/sessions/" + "a" * 30_000,
     "/api/v1/sessions/current/events?limit=" + "9" * 5000, "/api/v1/sessions/current/frames/" + "9" * 5000,
     "/%2e%2e/%2e%2e/etc/passwd", "/a%00b",
     "/assets/..%2f..%2f..%2fetc%2fpasswd", "/api/v1/sessions/current/stream?after=" + "a" * 20_000],
    ids=["path", "name", "number", "frame", "dots", "zero", "asset", "cursor"],
)  # fmt: skip
def test_long_and_strange_paths_are_no_more_than_that(served: Served, path: str) -> None:
    answer = sent(served, f"GET {path} HTTP/1.1\r\n".encode() + CLOSE + b"\r\n")
    status, _, rest = answer.partition(b"\r\n")
    assert status.split(b" ")[1] in (b"400", b"404", b"422"), answer[:300]
    assert len(rest) < 2 * LARGEST_HEADER_BYTES
    assert b"root:" not in rest
    lives(served)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 400_000,
        b'{"a":' * 150_000 + b"1" + b"}" * 150_000,
        b'{"camera": {"frames": ' + b"9" * 500_000 + b"}}",
        b'{"camera": {"rate": 1e400}}',
        b'{"camera": {"rate": NaN}}',
        b'{"camera": {"frames": 1e300}}',
        b'{"camera": {"frames": -9223372036854775809}}',
        b'{"a": "\\ud800"}',
        b'{"a": "' + b"\xff" * 1000 + b'"}',
        b"{" + b",".join(b'"%d": 1' % k for k in range(60_000)) + b"}",
        b'{"camera": {"frames": 1, "frames": 2}, "camera": 7}',
        b"[]",
        b"7",
        b'"' + b"a" * 900_000 + b'"',
    ],
    ids=lambda body: body[:14].decode("latin-1"),
)
def test_bodies_that_cannot_be_meant_are_refused(served: Served, body: bytes) -> None:
    assert len(body) <= LARGEST_BYTES
    began = time.monotonic()
    answer = httpx.post(f"{served.url}{BASE}", content=body, headers=JSON, timeout=DEADLINE_SECONDS)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    detail = answer.json()["detail"]
    assert "\n" not in detail
    assert len(answer.content) < 100_000
    assert time.monotonic() - began < DEADLINE_SECONDS
    lives(served)


def test_a_body_that_says_it_is_small_is_taken_at_its_word(served: Served) -> None:
    """What follows the length that was said is another request, and none."""
    head = b"POST /api/v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = sent(served, head + b"Content-Length: 2\r\n\r\n[]" + b"garbage" * 100 + b"\r\n\r\n")
    statuses = [line.split(b" ")[1] for line in answer.splitlines() if line.startswith(b"HTTP/1.1 ")]
    assert statuses in ([b"422"], [b"422", b"400"])
    lives(served)


# ---- too slowly


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        b"POST /api/v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100000\r\n\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["nothing", "headers", "body", "body that is not wanted", "another request"],
)
def test_a_request_that_does_not_come_to_its_end_is_not_waited_for(served: Served, beginning: bytes) -> None:
    """A letter at a time, for ever: cut off, however regularly the letters come."""
    with connected(served) as slow:
        slow.sendall(beginning)
        slow.settimeout(0.05)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            assert time.monotonic() < deadline, "it is never cut off"
            try:
                slow.sendall(b"a")
                if not slow.recv(1 << 16):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    lives(served)


@pytest.mark.usefixtures("hasty")
def test_those_who_do_ask_are_never_cut_off(served: Served) -> None:
    """A connection that is used again and again, and a stream, last longer than a request may take."""
    with httpx.Client(base_url=served.url, timeout=DEADLINE_SECONDS) as client, served.follow() as reader:
        with connected(served) as own:
            until = time.monotonic() + 3.0
            while time.monotonic() < until:
                own.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += own.recv(1 << 16)
                assert answer.startswith(b"HTTP/1.1 200")
                assert client.get("/healthz").status_code == 200
        assert not reader.ended.is_set()
        assert reader.broken is None


# ---- too many


def test_who_only_connects_keeps_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has kept the server waiting for longest makes room; streams and requests are left alone."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 20)
    with ExitStack() as stack, served.follow() as reader:
        eventually(lambda: reader.told or reader.comments, "it follows")
        idle = [stack.enter_context(connected(served)) for _ in range(60)]
        for one in idle:
            one.setblocking(False)
        lives(served)
        eventually(lambda: len(served.server.server_state.connections) <= 20, "there are not too many")
        lives(served)

        def is_closed(one: socket.socket) -> bool:
            try:
                return one.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        eventually(lambda: sum(map(is_closed, idle)) >= 41, "the oldest have made room")
        assert not is_closed(idle[-1]), "the youngest has not"
        assert not reader.ended.is_set()


def test_there_are_only_so_many_streams(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MOST_FOLLOWERS", 3)
    with served.follow(), served.follow(), served.follow():
        followers = served.app.state.sessions.followers
        eventually(lambda: len(followers) == 3, "all follow")
        answer = httpx.get(f"{served.url}{BASE}/current/stream", timeout=DEADLINE_SECONDS)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "follow already" in answer.json()["detail"]
    eventually(lambda: len(followers) < 3, "they leave")
    with served.follow() as reader:
        eventually(lambda: reader.told or reader.comments, "there is room again")


def test_garbage_without_end_is_told_of_now_and_then(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            assert b" 400 " in sent(served, b"garbage\r\n\r\n")
    lines = [record for record in caplog.records if "Invalid HTTP request" in record.getMessage()]
    assert len(lines) <= 2
    lives(served)


def test_many_clients_at_once_are_all_answered(served: Served) -> None:
    """Beside two hundred that say nothing."""
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(base_url=served.url, timeout=DEADLINE_SECONDS) as client:
            statuses.extend(client.get("/healthz").status_code for _ in range(20))

    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connected(served))
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 160
    assert json.loads(httpx.get(f"{served.url}/healthz").content)
