"""What wakes a thread that polls sockets: a bell that others ring, and the clock."""

from __future__ import annotations

import os
import threading

import zmq


class Bell:
    """Wakes a thread that polls: any thread may ring, the polling one hears and clears it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._lock = threading.Lock()  # a ring after closing must not write into a descriptor used anew
        self._open = True
        self._rung = False

    def register(self, poller: zmq.Poller) -> None:
        """Have ``poller`` wake when the bell rings."""
        poller.register(self._read, zmq.POLLIN)

    def ring(self) -> None:
        """Wake the poller; ringing twice before it is heard is the same as once."""
        with self._lock:
            if self._open and not self._rung:
                self._rung = True
                os.write(self._write, b"!")

    def clear(self) -> None:
        """Forget a ring heard so far."""
        with self._lock:
            if self._rung:
                self._rung = False
                os.read(self._read, 1)

    def close(self) -> None:
        """Take the bell down; rings from now on are ignored."""
        with self._lock:
            if self._open:
                self._open = False
                os.close(self._read)
                os.close(self._write)


class Pulse:
    """Something to be done once in ``interval`` seconds, by a loop that looks at the clock."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next = float("-inf")

    def due(self, now: float) -> bool:
        """Whether it is time; if so, the next time is an interval from now."""
        if now < self._next:
            return False
        self._next = now + self._interval
        return True

    def wait(self, now: float) -> float:
        """Seconds until it is time."""
        return max(0.0, self._next - now)
