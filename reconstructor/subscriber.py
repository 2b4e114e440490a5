"""The worker's end of the data plane: a thread that receives against credit, and answers."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from common.wire.keys import Security
from common.wire.link import Link, Malformed, Received
from common.wire.messages import (
    Ack,
    ConfigurationNotice,
    Credit,
    End,
    Frames,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Refusal,
    Start,
)
from common.wire.waking import Bell, Pulse

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5  # after a message that could not be read, and twice as long each further time
LONGEST_PAUSE_SECONDS = 30.0


class Refused(ConnectionError):
    """The detector will not serve this worker, and why."""


class Subscriber:
    """Keeps a worker connected to the detector, whichever and wherever that is, and its credit right.

    The worker holds at most ``credits`` blocks. A new connection, to this detector or another, begins with a
    hello and a credit for what the worker is free to take; what was granted or promised before is void.

    Parameters
    ----------
    name : str
        Of this process; never used before.
    deliver : callable
        Takes each ``Received`` with a start, configuration, frames or end message; called on the link's
        thread.
    failed : callable
        Told if the thread fails, or with ``Refused`` if the detector does not want this worker.
    security : Security, optional
        Encrypts the data plane, and says whose key the detector has to have.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        name: str,
        *,
        credits: int,
        heartbeat_seconds: float,
        deliver: Callable[[Received], None],
        failed: Callable[[Exception], None],
        security: Security | None = None,
    ) -> None:
        self._context, self._name, self._credits = context, name, credits
        self._security = security
        self._deliver, self._failed = deliver, failed
        self._pulse = Pulse(heartbeat_seconds)
        self._telling = Pulse(1.0)  # between two lines about messages that are not expected
        self._bell = Bell()
        self._lock = threading.Lock()  # guards everything below
        self._wanted_endpoint = ""
        self._answers: deque[Message] = deque()
        self._held = 0  # blocks delivered and not finished
        self._to_grant = 0
        self._answered = threading.Condition(self._lock)  # all answers have been sent
        self._away = False
        self._leaving = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self.malformed = 0

    def start(self) -> None:
        """Begin; connects as soon as ``attach`` has said where."""
        self._thread.start()

    def attach(self, endpoint: str) -> None:
        """Serve the detector at ``endpoint`` from now on."""
        with self._lock:
            self._wanted_endpoint = endpoint
        self._bell.ring()

    @property
    def endpoint(self) -> str:
        """Where the detector is, as last told."""
        return self._wanted_endpoint

    @property
    def held(self) -> int:
        """Blocks delivered and not finished."""
        return self._held

    @property
    def leaving(self) -> bool:
        """Whether no further blocks are taken."""
        return self._leaving

    def finish(self, answers: list[Message], *, is_last: bool = True) -> None:
        """A block is done: send its acks and rejects, and take another. Not ``is_last``: a part of it is."""
        with self._lock:
            self._answers.extend(answers)
            self._held -= is_last
            self._to_grant += is_last and not self._leaving
        if threading.current_thread() is not self._thread:
            self._bell.ring()

    def await_answered(self, seconds: float) -> None:
        """Return when what was answered has been sent, or after so long."""
        with self._answered:
            self._answered.wait_for(lambda: not self._answers, seconds)

    def withdraw(self) -> None:
        """Say goodbye and stay away until ``rejoin``; what is here goes to others, answers are kept."""
        with self._lock:
            self._away = True
        self._bell.ring()

    def rejoin(self) -> None:
        """Serve the detector again."""
        with self._lock:
            self._away = False
        self._bell.ring()

    def leave(self) -> None:
        """Take no further blocks; what arrives from now on is left to other workers."""
        with self._lock:
            self._leaving = True
            self._to_grant = 0

    def close(self) -> None:
        """Send the answers that are left, say goodbye and disconnect."""
        with self._lock:
            self._closing = True
        self._bell.ring()
        if self._thread.ident is not None:
            self._thread.join()
        self._bell.close()

    # ---- the link's thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            if not isinstance(error, Refused):
                log.exception("the link's thread failed")
            self._failed(error)

    def _serve(self) -> None:
        link: Link | None = None
        connected = closing = False
        pause, not_before = FIRST_PAUSE_SECONDS, 0.0
        poller = zmq.Poller()
        self._bell.register(poller)
        try:
            while not closing:
                poller.poll(int(1000 * self._pulse.wait(time.monotonic())) + 1)
                self._bell.clear()
                beat = self._pulse.due(time.monotonic())
                with self._lock:
                    endpoint, closing, away = self._wanted_endpoint, self._closing, self._away
                if away:
                    if link is not None:
                        link.send(Goodbye())
                        link.close()
                        link, connected = None, False
                        poller = zmq.Poller()
                        self._bell.register(poller)
                    continue
                is_new = link is not None and link.endpoint != endpoint
                if endpoint and (is_new or (link is None and time.monotonic() >= not_before)):
                    if link is not None:
                        link.close()
                    identity = f"{self._name}-{uuid.uuid4().hex[:4]}".encode()
                    link = Link.dealer(self._context, endpoint, identity, security=self._security)
                    connected = False
                    poller = zmq.Poller()
                    link.register(poller)
                    self._bell.register(poller)
                if link is None:
                    continue
                change = link.connection_change()
                if change is not None:
                    connected = change
                    log.info("detector at %s %s", endpoint, "found" if change else "lost")
                if change:
                    self._greet(link)
                for received in link.turn():
                    self._hear(link, received)
                    if len(self._answers) >= 1 and connected:
                        self._answer(link)  # at once: the detector may be waiting for the credit
                    if isinstance(received.message, Frames):
                        pause = FIRST_PAUSE_SECONDS
                    elif isinstance(received.message, Malformed):
                        # it may have been a block: leaving gives all that is here to others, this one too
                        link.send(Goodbye())
                        link.close()
                        link, connected = None, False
                        poller = zmq.Poller()
                        self._bell.register(poller)
                        not_before = time.monotonic() + pause
                        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                        break
                if link is None:
                    continue
                if connected:
                    self._answer(link)
                    if beat:
                        link.send(Heartbeat())
            if link is not None and connected:
                link.send(Goodbye())
        finally:
            if link is not None:
                link.close()

    def _greet(self, link: Link) -> None:
        link.send(Hello(worker=self._name, host=socket.gethostname(), pid=os.getpid()))
        with self._lock:
            self._to_grant = 0 if self._leaving else self._credits - self._held

    def _answer(self, link: Link) -> None:
        with self._lock:
            while self._answers:
                answer = self._answers[0]
                if isinstance(answer, Ack) and self._to_grant:
                    answer = msgspec.structs.replace(answer, credit=self._to_grant)
                if not link.send(answer):
                    return
                self._answers.popleft()
                if isinstance(answer, Ack):
                    self._to_grant -= answer.credit
                if not self._answers:
                    self._answered.notify_all()
            if self._to_grant > 0 and link.send(Credit(blocks=self._to_grant)):
                self._to_grant = 0

    def _hear(self, link: Link, received: Received) -> None:
        match received.message:
            case Frames():
                with self._lock:
                    if self._leaving:
                        return
                    self._held += 1
                self._deliver(received)
            case Start() | ConfigurationNotice() | End():
                self._deliver(received)
            case Heartbeat():
                pass
            case Refusal(reason=reason):
                raise Refused(f"the detector at {link.endpoint} refuses this worker: {reason}")
            case Malformed(reason):
                self.malformed += 1
                log.warning("message from the detector not understood, connecting anew: %s", reason)
            case other:
                self.malformed += 1
                if self._telling.due(time.monotonic()):
                    log.warning("message from the detector not expected: %s", type(other).__name__)
