"""Sockets that speak typed messages, protected by CURVE where there are keys, and the limit of the link.

Nothing here knows what the messages mean: who keeps what until it is acknowledged is
``detector_sim.publisher``'s business, who recovers what is ``reconstructor.worker``'s.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket as sockets
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from common.protection import is_loopback
from common.wire.conduct import IGNORED_SECONDS, OFFENCES_ALLOWED_OF_AN_ORIGIN, Conduct
from common.wire.doorkeeper import Doorkeeper
from common.wire.keys import Security, mark_of
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
from common.wire.unread import Unread
from common.wire.waking import Pulse

log = logging.getLogger(__name__)

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
CURVE_BYTES = 33  # more in each part of a message: its name, a nonce, flags and a code that authenticates it
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.2, 5.0  # after a handshake that failed
MANY_FAILURES = 4  # of handshakes, one after the other: whoever is there is not just ending
CUT_SECONDS = 0.05  # between two connections of people who are not to be here any more
TROUBLE_TOLD_SECONDS = 30.0  # the same line about a handshake is not told again for so long
HANDSHAKES = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


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
    key: str = ""  # name of the sender's, where a ROUTER protected by CURVE received it


class PeerGone(ConnectionError):
    """A ROUTER was asked to send to a peer that is not connected."""


def wire_size(parts: Sequence[bytes | memoryview], more: int = 0) -> int:
    """Bytes that a message of these flat parts takes in the stream, ZMTP's frame headers included.

    ``more``: what encryption adds to each part.
    """
    return sum(len(part) + more + (2 if len(part) + more < 256 else 9) for part in parts)


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
            is_remote = connection.family != sockets.AF_UNIX  # one on this machine is only not listened to
            if is_remote and str(connection.getpeername()[0]) == part.get("Peer-Address"):
                connection.shutdown(sockets.SHUT_RDWR)


def _descriptor(part: zmq.Frame) -> int:
    """Of the connection that a part of a message came by; of no other use than to tell one from another."""
    with contextlib.suppress(zmq.ZMQError, ValueError):
        return int(part.get(zmq.SRCFD))
    return -1


def _origin(part: zmq.Frame) -> bytes:
    """Where a message comes from, whatever its sender calls itself: its key, or else its address.

    Nothing for those on this machine without a key: they are not told apart by that.
    """
    with contextlib.suppress(zmq.ZMQError):
        return str(part.get("User-Id")).encode()
    with contextlib.suppress(zmq.ZMQError):
        address = str(part.get("Peer-Address"))
        return b"" if is_loopback(address) else address.encode()
    return b""


def _explained(kind: zmq.Event, value: int, security: Security | None) -> str:
    """Why a handshake failed, and what to do; ZeroMQ lets us know no more."""
    if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH and security is not None:
        own = security.keys.own
        there = f"{own}.key is not among the keys there, or is none for the {security.plane.name}"
        return f"{there}; copy it into their folder"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        if security is None:
            return "it wants CURVE, and no keys are set here (setting keys, docs/security.md)"
        return "it does not use CURVE: no keys are set there (setting keys, docs/security.md)"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:  # it went before it had said what it wants
        if security is None:
            return (
                "it breaks off: perhaps it wants CURVE, and no keys are set here "
                "(setting keys, docs/security.md)"
            )
        known = security.keys.folder / f"{security.plane.server}.key"
        return (
            f"it breaks off: {known} is not its key, no keys are set there, or it is no {security.plane.name}"
        )
    return f"it does not speak as it should (ZeroMQ's error {value:#x})"


class Link:
    """A ROUTER or DEALER socket that sends and receives typed messages; one thread uses it.

    Attributes
    ----------
    bytes_sent : int
        Every byte handed to the stream: headers, payloads, framing, and what encryption adds.
    malformed : int
        Messages received that could not be read.
    ignored : int
        Messages dropped unread, of peers that sent too many of those.
    endpoint : str
        The address really bound or connected to.
    unread : Unread or None
        Watches what peers send of messages that have not come to their end, where this is a bound TCP socket.
    """

    def __init__(self, socket: zmq.Socket[bytes], *, large: bool, security: Security | None = None) -> None:
        self._socket = socket
        self._is_router = socket.type == zmq.ROUTER
        self._monitor: zmq.Socket[bytes] | None = None
        self._security = security
        self._more = CURVE_BYTES if security is not None else 0
        self._identity = b""  # of a DEALER, without the mark of its key
        self._doorkeeper: Doorkeeper | None = None
        self._cutting = Pulse(CUT_SECONDS)
        self._is_connected = False
        self._retry_at: float | None = None
        self._failures = 0  # handshakes in a row
        self._trouble, self._trouble_told = "", float("-inf")
        self.bytes_sent = 0
        self.malformed = self.ignored = 0
        # a worker drops the whole connection instead (see its subscriber): it must not miss single blocks
        self._conduct = Conduct() if self._is_router or not large else None
        self._origins = Conduct(OFFENCES_ALLOWED_OF_AN_ORIGIN) if self._is_router else None
        self.unread: Unread | None = None
        self._last: zmq.Frame | None = None  # part of the message received last
        self.endpoint = ""
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        longest = LARGE_MESSAGE_BYTES if large else SMALL_MESSAGE_BYTES
        socket.setsockopt(zmq.MAXMSGSIZE, longest + self._more)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 5)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 2)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        # keepalive says nothing while something is on its way; without this the system tries for 15 minutes
        socket.setsockopt(zmq.TCP_MAXRT, GIVEN_UP_AFTER_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)

    @classmethod
    def router(cls, context: zmq.Context[Any], bind: str, security: Security | None = None) -> Self:
        """A bound ROUTER. What it queues is bounded by credits, so it has no high-water mark of its own.

        ``security``: everything is encrypted, and only who holds a key for this plane is let in; else
        everybody who reaches the endpoint is.

        Raises
        ------
        OSError
            In one line, if the endpoint cannot be bound (say, the port is taken), or the keys cannot be used.
        """
        socket = context.socket(zmq.ROUTER)
        link = cls(socket, large=False, security=security)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a worker that lost its connection keeps its name
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, MESSAGES_WAITING)
        try:
            if security is not None:
                link._doorkeeper = Doorkeeper(context, socket, security)
            socket.bind(bind)
        except zmq.ZMQError as error:
            link.close(0)
            raise OSError(error.errno, f"cannot listen on {bind}: {_reason(error)}") from error
        except OSError:
            link.close(0)
            raise
        link.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if link.endpoint.startswith("tcp://"):
            link.unread = Unread(int(link.endpoint.rpartition(":")[2]))
        return link

    @classmethod
    def dealer(
        cls,
        context: zmq.Context[Any],
        connect: str,
        identity: bytes,
        *,
        large: bool = True,
        security: Security | None = None,
    ) -> Self:
        """A DEALER that connects as soon as, and whenever again, the other side is there.

        What is sent while there is no connection is refused (``send`` gives 0) rather than piled up. A
        handshake that fails is told in the log and tried again; keys are read anew for that.
        ``large``: payloads are expected, not only headers. ``security``: everything is encrypted, and the
        other end has to have the key of who binds this plane; the mark of the own one ends the identity.

        Raises
        ------
        OSError
            In one line, if the endpoint is none, or the keys cannot be used.
        """
        socket = context.socket(zmq.DEALER)
        link = cls(socket, large=large, security=security)
        socket.setsockopt(zmq.IDENTITY, identity)
        link._identity = identity
        try:
            link._use_keys()
        except OSError:
            link.close(0)
            raise
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        link._monitor = socket.get_monitor_socket(HANDSHAKES | zmq.EVENT_DISCONNECTED)
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
            event = recv_monitor_message(self._monitor)
            match event["event"]:
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    change = self._is_connected = True
                    self._retry_at, self._failures, self._trouble = None, 0, ""
                case zmq.EVENT_DISCONNECTED:
                    if self._is_connected:
                        change = self._is_connected = False
                case kind:
                    self._not_let_in(zmq.Event(kind), event["value"])
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._retry()
        return change

    def _use_keys(self) -> None:
        """Take the keys as they are now for the next connection."""
        if self._security is not None:
            keys, plane = self._security
            pair = keys.pair()
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.public(plane.server))
            self._socket.setsockopt(zmq.IDENTITY, self._identity + mark_of(pair.public))
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)

    def _not_let_in(self, kind: zmq.Event, value: int) -> None:
        """A handshake failed. ZeroMQ tries again at once, or never: what is wrong takes longer to mend."""
        self._failures += 1
        no_detail = kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        if no_detail and self._security is None and self._failures < MANY_FAILURES:
            return  # whoever is there goes away in mid-handshake: it may just have been ending
        if self._retry_at is None:
            with contextlib.suppress(zmq.ZMQError):  # it has given up by itself
                self._socket.disconnect(self.endpoint)
            pause = min(FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10), LONGEST_RETRY_SECONDS)
            self._retry_at = time.monotonic() + pause
        if not no_detail or self._failures > 1:
            self._tell(_explained(kind, value, self._security))

    def _tell(self, trouble: str) -> None:
        now = time.monotonic()
        if trouble != self._trouble or now - self._trouble_told > TROUBLE_TOLD_SECONDS:
            self._trouble, self._trouble_told = trouble, now
            log.warning("not let in at %s: %s", self.endpoint, trouble)

    def _retry(self) -> None:
        self._retry_at = None
        try:
            self._use_keys()
        except OSError as error:
            self._tell(error.strerror or str(error))
            self._retry_at = time.monotonic() + LONGEST_RETRY_SECONDS
            return
        self._socket.connect(self.endpoint)

    @property
    def turned_away(self) -> int:
        """How often somebody was not let in here."""
        return self._doorkeeper.turned_away if self._doorkeeper is not None else 0

    def news(self) -> str | None:
        """Something for people about who was not let in, if there is."""
        return self._doorkeeper.news() if self._doorkeeper is not None else None

    def send(self, message: Message, buffers: Sequence[Buffer] = (), *, to: bytes = b"") -> int:
        """Queue one message without waiting or copying; the buffers must stay as they are until it has left.

        Returns the bytes it takes in the stream, or 0 where a DEALER has no connection or its queue is full.

        Raises
        ------
        PeerGone
            If a ROUTER has no connection to ``to``.
        """
        parts: list[bytes | memoryview] = [encode(message), *map(as_bytes, buffers)]
        size = wire_size(parts, self._more)
        if self._is_router:
            if self._doorkeeper is not None and not self._doorkeeper.members.includes(to):
                raise PeerGone(f"the key of {to!r} has been taken away")
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
            identity, key = parts.pop(0).bytes if self._is_router else b"", ""
            if self._is_router:  # a worker's messages are large, and must not be kept
                self._last = last
            if self.unread is not None:
                self.unread.took(_descriptor(last))
            if self._doorkeeper is not None:
                member = self._doorkeeper.holder(last, identity)
                if member is None:
                    self.ignored += 1
                    now = time.monotonic()
                    if self._cutting.due(now):
                        _disconnect(last)
                    began = began or now
                    if now - began > IGNORED_A_TURN_SECONDS:
                        return None
                    continue
                key = member.name
            if (self._conduct or self._origins) and (shut_out := self._shut_out(identity, last)):
                self.ignored += 1
                now = time.monotonic()
                if shut_out[0].to_disconnect(shut_out[1], now):
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
            return Received(identity, message, [part.buffer for part in parts[1:]], key)
        return None

    def offend(self, identity: bytes) -> bool:
        """A peer sent what it should not, if readable; True if from now on it is not listened to.

        To be called before the next message is received.
        """
        self.malformed += 1
        now = time.monotonic()
        origin = _origin(self._last) if self._last is not None else b""
        by_origin = self._origins is not None and bool(origin) and self._origins.offend(origin, now)
        return (self._conduct is not None and self._conduct.offend(identity, now)) or by_origin

    def _shut_out(self, identity: bytes, part: zmq.Frame) -> tuple[Conduct, bytes] | None:
        """Whose record it is by which a message is not listened to, if it is not."""
        now = time.monotonic()
        if self._conduct and self._conduct.ignores(identity, now):
            return self._conduct, identity
        if self._origins and self._origins.ignores(origin := _origin(part), now):
            return self._origins, origin
        return None

    def _unreadable(self, identity: bytes, reason: str, part: zmq.Frame) -> Received:
        shut_out = self.offend(identity)
        if shut_out and self._conduct is not None and self._conduct.to_disconnect(identity, time.monotonic()):
            _disconnect(part)
        return Received(identity, Malformed(reason, shut_out), [])

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close after giving what is queued ``linger_ms`` to leave."""
        if self.unread is not None:
            self.unread.close()
        if self._doorkeeper is not None:
            self._doorkeeper.close()
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
