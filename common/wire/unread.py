"""Messages without an end: a peer that begins one and sends part after part, each within its bound.

ZeroMQ shows a message only when its last part has come, keeps all before it, and counts no parts. So the
system is asked how many bytes each connection has brought, several times a second: one that has brought too
many since the last whole message came by it is cut off. Linux alone tells; elsewhere nothing is bounded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as sockets
import stat
import struct
import sys
import threading
from dataclasses import dataclass

log = logging.getLogger(__name__)

MOST_UNREAD_BYTES = 64 << 20  # of a connection: many times what all messages take that may wait of one peer
MOST_UNREAD_OF_ALL_BYTES = 256 << 20
LOOK_SECONDS = 0.2
_DESCRIPTORS = "/proc/self/fd"
_BYTES_RECEIVED = struct.Struct("<Q")  # of Linux's struct tcp_info, since 4.1
_BYTES_RECEIVED_AT = 128


@dataclass(slots=True)
class _Connection:
    inode: int
    messages: int = -1  # taken so far, as of the last look
    base: int = 0  # bytes received when a message was last taken
    is_cut: bool = False  # and will be gone in a moment


class Unread:
    """Watches the connections that a socket bound to a TCP port has taken, on a thread of its own.

    Attributes
    ----------
    cut_off : int
        Connections that were cut.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._known: dict[int, _Connection] = {}  # by descriptor
        self._others: dict[int, int] = {}  # inodes of descriptors that are something else
        self._taken: dict[int, int] = {}  # messages, by descriptor
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.cut_off = 0
        if sys.platform == "linux" and os.path.isdir(_DESCRIPTORS):
            self._thread = threading.Thread(target=self._run, name="unread", daemon=True)
            self._thread.start()

    def took(self, descriptor: int) -> None:
        """A whole message came by this connection; called by the thread that receives."""
        self._taken[descriptor] = self._taken.get(descriptor, 0) + 1

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:  # not at the cost of what it guards
                log.exception("the connections cannot be watched")
                return

    def look(self) -> None:
        """Cut off whoever has sent too much of one message."""
        unread: dict[int, int] = {}
        present = set[int]()
        for name in os.listdir(_DESCRIPTORS):
            descriptor = int(name)
            with contextlib.suppress(OSError):
                state = os.fstat(descriptor)
                if stat.S_ISSOCK(state.st_mode):
                    present.add(descriptor)
                    if self._others.get(descriptor) != state.st_ino:
                        unread[descriptor] = self._unread(descriptor, state.st_ino)
        for gone in self._known.keys() - present:
            del self._known[gone]
        for gone in self._others.keys() - present:
            del self._others[gone]
        for gone in self._taken.keys() - present:
            self._taken.pop(gone, None)
        total = sum(unread.values())
        for descriptor, size in sorted(unread.items(), key=lambda item: -item[1]):
            if size <= MOST_UNREAD_BYTES and total <= MOST_UNREAD_OF_ALL_BYTES:
                break
            total -= size
            self._cut(descriptor, size)

    def _unread(self, descriptor: int, inode: int) -> int:
        """Bytes that came by a connection of ours since the last whole message did; 0 for other sockets."""
        with sockets.socket(fileno=os.dup(descriptor)) as connection:
            known = self._known.get(descriptor)
            if known is None or known.inode != inode:
                if not self._is_ours(connection):
                    self._others[descriptor] = inode
                    return 0
                known = self._known[descriptor] = _Connection(inode)
            received = _received(connection)
        messages = self._taken.get(descriptor, 0)
        if messages != known.messages:
            # what was there at the first look belongs to no whole message yet
            known.base = received if known.messages >= 0 else 0
            known.messages = messages
        return 0 if known.is_cut else received - known.base

    def _is_ours(self, connection: sockets.socket) -> bool:
        if connection.family not in (sockets.AF_INET, sockets.AF_INET6):
            return False
        if connection.type != sockets.SOCK_STREAM or connection.getsockname()[1] != self._port:
            return False
        return not connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_ACCEPTCONN)

    def _cut(self, descriptor: int, size: int) -> None:
        known = self._known[descriptor]
        with contextlib.suppress(OSError), sockets.socket(fileno=os.dup(descriptor)) as connection:
            if os.fstat(connection.fileno()).st_ino != known.inode:
                return
            known.is_cut = True
            who = connection.getpeername()[0]
            connection.shutdown(sockets.SHUT_RDWR)
            self.cut_off += 1
            log.warning("%s sent %d MB of a message without an end: disconnected", who, size >> 20)


def _received(connection: sockets.socket) -> int:
    """Bytes that the connection has brought."""
    info = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _BYTES_RECEIVED_AT + 8)
    if len(info) < _BYTES_RECEIVED_AT + 8:
        return 0  # an old kernel
    return _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0]
