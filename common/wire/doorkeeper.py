"""Who is let in at a socket that is protected by CURVE: asked at every handshake, told where somebody is not.

ZeroMQ asks by ZAP (its RFC 27) on a thread of ours; what goes wrong before it comes to asking, the socket's
monitor tells. None of it costs a message anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as sockets
import threading
import time
from collections import deque
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from common.wire.keys import Member, Members, Security
from common.wire.waking import Bell, Pulse

log = logging.getLogger(__name__)

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
LOOKED_EVERY_SECONDS = 1.0  # at the folder of keys
TOLD_SECONDS = 1.0  # between two lines in the log
NEWS_SECONDS = 10.0  # between two lines in a session's history
OTHER_END = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Doorkeeper:
    """Lets in at one socket who holds a key that lies in a folder, and is meant for that plane.

    A context has one such socket, for ZeroMQ has one place in it to ask at.

    Attributes
    ----------
    turned_away : int
        How often somebody was not let in.

    Raises
    ------
    zmq.ZMQError
        If the context has such a socket already.
    """

    def __init__(self, context: zmq.Context[Any], socket: zmq.Socket[bytes], security: Security) -> None:
        self._keys, self._plane = security
        pair = self._keys.pair()
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, self._plane.name.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # where nobody answers, nobody is let in
        self._socket = socket
        self._members = self._keys.members()
        self._asked: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._asked.setsockopt(zmq.LINGER, 0)
        try:
            self._asked.bind(ZAP_ENDPOINT)
        except zmq.ZMQError:
            self._asked.close(0)
            raise
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(OTHER_END)
        self._bell = Bell()
        self._closing = False
        self._addresses: dict[int, str] = {}  # by descriptor
        self._failed = 0  # the handshake of whoever is disconnected next
        self._telling, self._newsworthy = Pulse(TOLD_SECONDS), Pulse(NEWS_SECONDS)
        self._news: deque[str] = deque(maxlen=100)
        self._lock = threading.Lock()  # of what is told: both threads do
        self._untold = 0
        self.turned_away = 0
        self._thread = threading.Thread(target=self._run, name="doorkeeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more; to be called before the socket is closed, by the thread that uses it."""
        if not self._closing:
            self._closing = True
            self._socket.disable_monitor()
            self._bell.ring()
            self._thread.join()
            self._bell.close()

    @property
    def members(self) -> Members:
        """Who is let in as of now; whoever else still has a connection is not to be spoken with."""
        return self._members

    def holder(self, part: zmq.Frame, identity: bytes) -> Member | None:
        """Who sent a message; None: one whose key is not there any more, or who is not who it says."""
        member = self._members.get(_told(part, "User-Id"))
        if member is None:
            who = _told(part, "Peer-Address")
            self.tell(f"{who} was let in, but its key has been taken away since")
            return None
        if not identity.endswith(member.mark):
            who = f"{_told(part, 'Peer-Address')} with the key {member.name}"
            self.tell(f"{who} pretends to be somebody else (identity {identity.hex()})")
            return None
        return member

    def tell(self, line: str) -> None:
        """Have people know of somebody who was not let in, or not listened to; not too often."""
        now = time.monotonic()
        with self._lock:
            self.turned_away += 1
            told, untold = self._telling.due(now), self._untold
            self._untold = 0 if told else untold + 1
            if self._newsworthy.due(now):
                self._news.append(f"not let in to the {self._plane.name}: {line}")
        if told:
            more = f" ({untold} times before that nothing was told)" if untold else ""
            log.warning("%s: not let in: %s%s", self._plane.name, line, more)

    def news(self) -> str | None:
        """Something for a session's history, if there is: one line in ten seconds at most."""
        try:
            return self._news.popleft()
        except IndexError:
            return None

    # ---- the doorkeeper's own thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._asked, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        self._bell.register(poller)
        while not self._closing:
            try:
                ready = dict(poller.poll(int(1000 * LOOKED_EVERY_SECONDS)))
                self._members = self._keys.members()
                if self._asked in ready:
                    self._answer(self._asked.recv_multipart())
                if self._monitor in ready:
                    self._watch()
            except zmq.ZMQError as error:
                if error.errno in (zmq.ETERM, zmq.ENOTSOCK):  # the context ends without waiting for us
                    break
                log.exception("%s: somebody could not be let in", self._plane.name)
            except (
                Exception
            ):  # were this thread to end, nobody would be let in, and ZeroMQ's would stand still
                log.exception("%s: somebody could not be let in", self._plane.name)
        self._asked.close(0)  # from now on ZeroMQ refuses everybody
        self._monitor.close(0)

    def _answer(self, parts: list[bytes]) -> None:
        """One request of ZAP: version, number, domain, address, identity, mechanism, credentials."""
        if len(parts) < 6 or parts[0] != ZAP_VERSION:
            self._asked.send_multipart([ZAP_VERSION, b"", b"500", b"not understood", b"", b""])
            return
        _, number, _, address, _, mechanism, *credentials = parts
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and len(credentials) == 1 else ""
        member = self._members.get(key)
        if member is not None and member.role in self._plane.lets_in:
            self._asked.send_multipart([ZAP_VERSION, number, b"200", b"OK", key.encode(), b""])
            return
        self._asked.send_multipart([ZAP_VERSION, number, b"400", b"not let in", b"", b""])
        if member is None:
            self.tell(f"{address.decode(errors='replace')} has the public key {key}, which is not among ours")
        else:
            who = f"{address.decode(errors='replace')} has the key {member.name}"
            self.tell(f"{who}, which is none for the {self._plane.name}")

    def _watch(self) -> None:
        """What did not come as far as a question: who it was is known by the descriptor only."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            match event["event"]:
                case zmq.EVENT_ACCEPTED:
                    self._addresses[event["value"]] = _address(event["value"])
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    self._failed = event["value"]
                case zmq.EVENT_DISCONNECTED:
                    address = self._addresses.pop(event["value"], "somebody")
                    if self._failed:
                        self.tell(f"{address} {_explained(self._failed, self._plane)}")
                        self._failed = 0
                case _:  # the socket is closed
                    return


def _told(part: zmq.Frame, name: str) -> str:
    """What ZeroMQ knows of a message's sender; of one on the same machine it may know no address."""
    try:
        return str(part.get(name))
    except zmq.ZMQError:
        return "somebody"


def _address(descriptor: int) -> str:
    """Where a connection comes from; of one that is closed already nobody knows."""
    with contextlib.suppress(OSError), sockets.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family in (sockets.AF_INET, sockets.AF_INET6):
            return str(connection.getpeername()[0])
    return "somebody"


def _explained(error: int, plane: Any) -> str:
    match error:
        case zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return "does not use CURVE: no keys are set there"
        case zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
            return f"has another key than ours as {plane.server}.key"
        case _:
            return f"does not speak as it should (ZeroMQ's error {error:#x})"
