"""The control bus as a component sees it: it registers, obeys commands, and tells once a second how it is.

The control plane may go away and come back at any time: the component registers anew, with growing pauses
while nobody answers, and what it does meanwhile is not touched.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zmq
from pydantic import ValidationError

from common.wire.keys import Security
from common.wire.link import Link, Malformed, not_listened_to
from common.wire.messages import (
    Command,
    Event,
    Goodbye,
    Message,
    Refusal,
    Register,
    Registered,
    Reply,
    Telemetry,
)
from common.wire.waking import Bell, Pulse

log = logging.getLogger(__name__)

BACKLOG = 1000
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0


class Conflict(RuntimeError):
    """A command that does not fit the state the component is in."""


def error_line(error: BaseException) -> str:
    """What went wrong in one line; for a pydantic error the field that is wrong and why."""
    if isinstance(error, ValidationError):
        problems = (f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
        return "; ".join(problems)
    return " ".join(str(error).split()) or type(error).__name__


class ControlClient:
    """A component's side of the control bus, on threads of its own.

    Parameters
    ----------
    registration : Register
        Who this is; sent at every (re)connection.
    command : callable
        ``command(verb, arguments) -> result``. Runs on a thread of its own, one command at a time. ValueError
        is answered as *invalid*, ``Conflict`` as *conflict*, anything else as *failed*.
    telemetry : callable
        The counters of now; called from the bus's thread, so it must be quick.
    failed : callable
        Told if the bus's own thread fails, which is a bug: nobody would hear the component any more.
    registered : callable, optional
        Told what the control plane answers to a registration.
    security : Security, optional
        Encrypts the bus, and says whose key the control plane has to have.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        registration: Register,
        *,
        command: Callable[[str, dict[str, Any]], dict[str, Any]],
        telemetry: Callable[[], dict[str, Any]],
        failed: Callable[[Exception], None],
        registered: Callable[[Registered], None] | None = None,
        interval_seconds: float = 1.0,
        security: Security | None = None,
    ) -> None:
        identity = f"{registration.name}-{uuid.uuid4().hex[:8]}".encode()
        self._link = Link.dealer(context, endpoint, identity, large=False, security=security)
        self._registration = registration
        self._command = command
        self._telemetry = telemetry
        self._failed = failed
        self._answered = registered
        self._interval = interval_seconds
        self._outgoing: deque[Message] = deque(maxlen=BACKLOG)
        self._bell = Bell()
        self._telling = Pulse(1.0)  # between two lines about messages that are not understood
        self._closing = threading.Event()
        self._commands = ThreadPoolExecutor(1, thread_name_prefix="command")
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self.registered = threading.Event()

    def start(self) -> None:
        """Connect, register, obey."""
        self._thread.start()

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Put a line in the session's history; kept while the control plane is away."""
        log.info("%s: %s", kind, message)
        who = self._registration
        self._post(Event(component=who.component, name=who.name, kind=kind, message=message, details=details))

    def report(self) -> None:
        """Send the counters of now, ahead of the events that follow."""
        self._post(self._telemetry_message())

    def leave(self) -> None:
        """Say goodbye: that nothing is heard any more is meant, and no reason to worry."""
        self._post(Goodbye())

    def close(self) -> None:
        """Send what is still to be said, if the control plane listens, and leave."""
        self._commands.shutdown(wait=True, cancel_futures=True)
        self._closing.set()
        self._bell.ring()
        if self._thread.ident is not None:
            self._thread.join()
        self._link.close()
        self._bell.close()

    def _post(self, message: Message) -> None:
        self._outgoing.append(message)
        self._bell.ring()

    def _telemetry_message(self) -> Telemetry:
        who = self._registration
        return Telemetry(component=who.component, name=who.name, values=self._telemetry())

    def _run(self) -> None:
        try:
            self._converse()
        except Exception as error:
            log.exception("the control bus's thread failed")
            self._failed(error)

    def _converse(self) -> None:
        poller = zmq.Poller()
        self._link.register(poller)
        self._bell.register(poller)
        pulse = Pulse(self._interval)
        connected = False
        pause, ask_at = FIRST_PAUSE_SECONDS, 0.0
        while not self._closing.is_set():
            poller.poll(int(1000 * min(pulse.wait(time.monotonic()), 1.0)) + 1)
            self._bell.clear()
            change = self._link.connection_change()
            if change is not None:
                connected, pause, ask_at = change, FIRST_PAUSE_SECONDS, 0.0
                self.registered.clear()
            self._receive()
            now = time.monotonic()
            if connected and not self.registered.is_set() and now >= ask_at:
                self._link.send(self._registration)
                pause, ask_at = min(2 * pause, LONGEST_PAUSE_SECONDS), now + pause
            if pulse.due(now) and self.registered.is_set():
                self._link.send(self._telemetry_message())
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while self.registered.is_set() and self._outgoing:
            message = self._outgoing.popleft()
            if not self._link.send(message):
                self._outgoing.appendleft(message)
                return

    def _receive(self) -> None:
        for received in self._link.turn():
            match received.message:
                case Registered() as answer:
                    self.registered.set()
                    if self._answered is not None:
                        self._answered(answer)
                case Command() as command:
                    self._commands.submit(self._obey, command)
                case Refusal():  # it was not heard for so long that it is known no more
                    self.registered.clear()
                case Malformed(reason, shut_out):
                    if shut_out:
                        log.warning("control bus: %s", not_listened_to("its other end"))
                    elif self._telling.due(time.monotonic()):
                        log.warning("control bus: %s", reason)
                case other:
                    if self._telling.due(time.monotonic()):
                        log.warning("control bus: unexpected %s", type(other).__name__)

    def _obey(self, command: Command) -> None:
        try:
            reply = Reply(
                request=command.request, ok=True, result=self._command(command.verb, command.arguments)
            )
        except ValueError as error:
            reply = Reply(request=command.request, ok=False, error=error_line(error), error_kind="invalid")
        except Conflict as error:
            reply = Reply(request=command.request, ok=False, error=error_line(error), error_kind="conflict")
        except Exception as error:  # whatever went wrong, whoever asked must hear it
            log.exception("%s failed", command.verb)
            reply = Reply(request=command.request, ok=False, error=error_line(error), error_kind="failed")
        self._post(reply)
