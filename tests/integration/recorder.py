"""A wire that is listened to: passes bytes on between two processes and keeps all of them."""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.faults.proxy import Proxy


class Recorder(Proxy):
    """A proxy that keeps what passes: ``towards`` the port it stands for, and ``back`` from there."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.towards, self.back = bytearray(), bytearray()
        self._keeping = threading.Lock()
        super().__init__(port)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            into = self.towards if target.getpeername()[1] == self._target else self.back
            while data := source.recv(65536):
                with self._keeping:
                    into += data
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
