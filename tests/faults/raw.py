"""A worker without anything behind it: it says to a detector, byte by byte, what a test wants said."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

from common.wire.link import Link
from common.wire.messages import PROTOCOL_VERSION, Credit, Frames, Hello, Message

T = TypeVar("T")

DEADLINE_SECONDS = 60.0


class RawWorker:
    """Connected and greeted; ``received`` holds all messages so far."""

    def __init__(
        self, endpoint: str, name: str = "raw", credit: int = 0, version: int = PROTOCOL_VERSION
    ) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.link = Link.dealer(self._context, endpoint, name.encode())
        self._poller = zmq.Poller()
        self.link.register(self._poller)
        self.received: list[Message] = []
        self.until(self.link.connection_change)
        self.link.send(Hello(worker=name, host="h", pid=1, version=version))
        if credit:
            self.link.send(Credit(blocks=credit))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.link.close(0)
        self._context.destroy(0)

    def until(self, ready: Callable[[], T | None]) -> T:
        """What ``ready`` gives as soon as it is true."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (value := ready()):
            assert time.monotonic() < deadline, self.received[-3:]
            self._poller.poll(50)
            self.listen()
        return value

    def listen(self) -> None:
        """Take what has come."""
        while (received := self.link.receive()) is not None:
            assert not isinstance(received.message, tuple), received.message
            self.received.append(received.message)

    @property
    def blocks(self) -> list[Frames]:
        """The blocks so far, in the order they came."""
        return [message for message in self.received if isinstance(message, Frames)]
