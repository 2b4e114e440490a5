"""Sockets that speak typed messages, a bell that wakes a poll from another thread, and the limit of the link.

Nothing here knows what the messages mean: who keeps what until it is acknowledged is
``detector_sim.publisher``'s business, who recovers what is ``reconstructor.worker``'s.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket as sockets
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from common.wire.conduct import IGNORED_SECONDS, Conduct
from common.wire.messages import (
    MAX_FRAMES_HEADER_BYTES,
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    MalformedMessage,
    Message,
    decode,
    encode,
    has_buffers,
)

Buffer = bytes | memoryview | np.ndarray[Any, np.dtype[Any]]

MAX_PARTS = 8
# ZeroMQ takes memory for a part of a message as soon as its length has come; longer ones end the connection.
SMALL_MESSAGE_BYTES = MAX_HEADER_BYTES  # headers alone: what a detector and a control plane receive
LARGE_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + MAX_FRAMES_HEADER_BYTES  # what a worker receives
MESSAGES_WAITING = 1000  # of each peer, before its sender has to wait
MESSAGES_A_TURN = 256  # received before the thread looks at what else it has to do,
IGNORED_A_TURN_SECONDS = 0.005  # and how long it may drop those of peers not listened to
LINGER_MS = 2000
GIVEN_UP_AFTER_MS = 15_000  # nothing that was sent arrives for so long: the connection is dead
HANDSHAKE_MS = 10_000  # the longest a new connection may take to say who it is,
CONNECT_MS = 3000  # and to be made at all, before it is tried again
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_KEPT_BYTES = 32 << 20  # the most that glibc allows
_KEPT_BYTES = 512 << 20
_READABLE = int(zmq.POLLIN)
COPY_BELOW_BYTES = 65_536  # handing a small buffer over costs more than copying it


class Malformed(NamedTuple):
    """In place of a message: what came could not be read, and why.

    ``shut_out``: it was one too many, and its sender is disconnected and not listened to for a while.
    """

    reason: str
    shut_out: bool = False


class Received(NamedTuple):
    """One message as it came; the buffers are views of memory that ZeroMQ owns, alive as long as they are."""

    identity: bytes  # of the sender, where a ROUTER received it
    message: Message | Malformed
    buffers: list[memoryview]


class PeerGone(ConnectionError):
    """A ROUTER was asked to send to a peer that is not connected."""


def wire_size(parts: Sequence[bytes | memoryview]) -> int:
    """Bytes that a message of these flat parts takes in the stream, ZMTP's frame headers included."""
    return sum(len(part) + (2 if len(part) < 256 else 9) for part in parts)


def as_bytes(buffer: Buffer) -> bytes | memoryview:
    """The same memory as a flat row of bytes, without a copy.

    Raises
    ------
    ValueError
        If an array is not contiguous.
    """
    view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
    if not view.contiguous:
        raise ValueError("only contiguous buffers travel without a copy")
    return view.cast("B") if view.nbytes else b""


def keep_freed_memory() -> None:
    """Have the C library keep large freed buffers for the next message instead of giving them back.

    Fresh memory comes page by page, each cleared first: for messages of a megabyte that costs as much as
    copying them. Where the library is not glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _reason(error: zmq.ZMQError) -> str:
    """What went wrong, without the address that ZeroMQ repeats."""
    return zmq.strerror(error.errno or 0)


def not_listened_to(who: str) -> str:
    """What to tell people of a peer that is shut out."""
    return (
        f"{who} sent too much that cannot be read: it is disconnected and not listened to for "
        f"{IGNORED_SECONDS:g} s; look what it is, or keep it off this port"
    )


def _disconnect(part: zmq.Frame) -> None:
    """Cut the connection that a part of a message came by; ZeroMQ itself has no way to."""
    with contextlib.suppress(OSError, zmq.ZMQError, ValueError):
        descriptor = int(part.get(zmq.SRCFD))
        if descriptor < 0:
            return
        with sockets.socket(fileno=os.dup(descriptor)) as connection:
            if str(connection.getpeername()[0]) == part.get("Peer-Address"):
                connection.shutdown(sockets.SHUT_RDWR)


class Link:
    """A ROUTER or DEALER socket that sends and receives typed messages; one thread uses it.

    Attributes
    ----------
    bytes_sent : int
        Every byte handed to the stream: headers, payloads and framing.
    malformed : int
        Messages received that could not be read.
    ignored : int
        Messages dropped unread, of peers that sent too many of those.
    endpoint : str
        The address really bound or connected to.
    """

    def __init__(self, socket: zmq.Socket[bytes], *, large: bool) -> None:
        self._socket = socket
        self._is_router = socket.type == zmq.ROUTER
        self._monitor: zmq.Socket[bytes] | None = None
        self.bytes_sent = 0
        self.malformed = self.ignored = 0
        # a worker drops the whole connection instead (see its subscriber): it must not miss single blocks
        self._conduct = Conduct() if self._is_router or not large else None
        self.endpoint = ""
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, LARGE_MESSAGE_BYTES if large else SMALL_MESSAGE_BYTES)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 5)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 2)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        # keepalive says nothing while something is on its way; without this the system tries for 15 minutes
        socket.setsockopt(zmq.TCP_MAXRT, GIVEN_UP_AFTER_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)

    @classmethod
    def router(cls, context: zmq.Context[Any], bind: str) -> Self:
        """A bound ROUTER. What it queues is bounded by credits, so it has no high-water mark of its own.

        Raises
        ------
        OSError
            In one line, if the endpoint cannot be bound (say, the port is taken).
        """
        socket = context.socket(zmq.ROUTER)
        link = cls(socket, large=False)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a worker that lost its connection keeps its name
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, MESSAGES_WAITING)
        try:
            socket.bind(bind)
        except zmq.ZMQError as error:
            socket.close(0)
            raise OSError(error.errno, f"cannot listen on {bind}: {_reason(error)}") from error
        link.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return link

    @classmethod
    def dealer(cls, context: zmq.Context[Any], connect: str, identity: bytes, *, large: bool = True) -> Self:
        """A DEALER that connects as soon as, and whenever again, the other side is there.

        What is sent while there is no connection is refused (``send`` gives 0) rather than piled up.
        ``large``: payloads are expected, not only headers.
        """
        socket = context.socket(zmq.DEALER)
        link = cls(socket, large=large)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        link._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            socket.connect(connect)
        except zmq.ZMQError as error:
            link.close(0)
            raise OSError(error.errno, f"cannot connect to {connect}: {_reason(error)}") from error
        link.endpoint = connect
        return link

    def register(self, poller: zmq.Poller) -> None:
        """Have ``poller`` wake for what this link receives, and for its connection coming and going."""
        poller.register(self._socket, zmq.POLLIN)
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)

    @staticmethod
    def _has(socket: zmq.Socket[bytes]) -> bool:
        """Whether there is something to receive; cheaper than an exception where there is nothing."""
        events = socket.getsockopt(zmq.EVENTS)
        return isinstance(events, int) and bool(events & _READABLE)

    def connection_change(self) -> bool | None:
        """True: a connection was made since the last call; False: it was lost; None: nothing changed.

        Whatever was sent before and not answered may have been lost with the old connection.
        """
        change: bool | None = None
        while self._monitor is not None and self._has(self._monitor):
            change = recv_monitor_message(self._monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
        return change

    def send(self, message: Message, buffers: Sequence[Buffer] = (), *, to: bytes = b"") -> int:
        """Queue one message without waiting or copying; the buffers must stay as they are until it has left.

        Returns the bytes it takes in the stream, or 0 where a DEALER has no connection or its queue is full.

        Raises
        ------
        PeerGone
            If a ROUTER has no connection to ``to``.
        """
        parts: list[bytes | memoryview] = [encode(message), *map(as_bytes, buffers)]
        size = wire_size(parts)
        if self._is_router:
            parts.insert(0, to)
        last = len(parts) - 1
        try:  # only the first part can fail: a message is taken whole or not at all
            for k, part in enumerate(parts):
                flags = zmq.NOBLOCK if k == last else zmq.NOBLOCK | zmq.SNDMORE
                self._socket.send(part, flags, copy=len(part) < COPY_BELOW_BYTES)
        except zmq.Again:
            return 0
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise PeerGone(f"{to!r} is not connected") from error
            raise
        self.bytes_sent += size
        return size

    def turn(self) -> Iterator[Received]:
        """What has come, up to a number of messages: a peer that never stops must not keep the thread.

        What is left is there at the next poll.
        """
        for _ in range(MESSAGES_A_TURN):
            received = self.receive()
            if received is None:
                return
            yield received

    def receive(self) -> Received | None:
        """The next message, or None where there is none now, or too many came of peers not listened to.

        What cannot be read is counted, not raised.
        """
        began = 0.0
        while self._has(self._socket):
            last = self._socket.recv(copy=False)
            parts = [last]
            while last.more:
                last = self._socket.recv(copy=False)
                if len(parts) <= MAX_PARTS + 1:
                    parts.append(last)
            identity = parts.pop(0).bytes if self._is_router else b""
            if self._conduct and self._conduct.ignores(identity, now := time.monotonic()):
                self.ignored += 1
                if self._conduct.to_disconnect(identity, now):
                    _disconnect(last)
                began = began or now
                if now - began > IGNORED_A_TURN_SECONDS:
                    return None
                continue
            if not parts or len(parts) > MAX_PARTS:
                return self._unreadable(identity, f"a message of {'many' if parts else 'no'} parts", last)
            try:
                message = decode(parts[0].buffer)
            except MalformedMessage as error:
                return self._unreadable(identity, str(error), last)
            if not has_buffers(message, len(parts) - 1):
                return self._unreadable(identity, f"frames with {len(parts) - 1} payloads", last)
            return Received(identity, message, [part.buffer for part in parts[1:]])
        return None

    def offend(self, identity: bytes) -> bool:
        """A peer sent what it should not, if readable; True if from now on it is not listened to."""
        self.malformed += 1
        return self._conduct is not None and self._conduct.offend(identity, time.monotonic())

    def _unreadable(self, identity: bytes, reason: str, part: zmq.Frame) -> Received:
        shut_out = self.offend(identity)
        if shut_out and self._conduct is not None and self._conduct.to_disconnect(identity, time.monotonic()):
            _disconnect(part)
        return Received(identity, Malformed(reason, shut_out), [])

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close after giving what is queued ``linger_ms`` to leave."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        self._socket.close(linger_ms)


class LinkLimit:
    """The speed of a simulated link: how long to wait before the next message may start.

    A message starts when the link has become free and keeps it busy for its own length, so a sender that
    always has something to send reaches exactly the stated rate in the long run. Lateness of the caller up
    to ``slack_seconds`` is made up for, so that the coarse timers of a poll cost nothing; unused time beyond
    it is not saved up.
    """

    def __init__(self, mbit_per_s: float | None, *, slack_seconds: float = 0.05) -> None:
        if mbit_per_s is not None and mbit_per_s <= 0:
            raise ValueError(f"link_mbit_per_s: must be above 0, got {mbit_per_s}")
        self._seconds_per_byte = 8e-6 / mbit_per_s if mbit_per_s else 0.0
        self._slack = slack_seconds
        self._free_at = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until a message may start; 0: it may start now."""
        return max(0.0, self._free_at - now)

    def spend(self, size: int, now: float) -> None:
        """A message of ``size`` bytes started."""
        self._free_at = max(self._free_at, now - self._slack) + size * self._seconds_per_byte
