"""The control bus as the control plane sees it: who is there, what they say, and commands with their answers.

A thread owns the socket. Everything it receives is handed to the event loop, where the registry lives, so
nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec
import zmq

from common.wire.keys import Role, Security, role_of
from common.wire.link import Link, Malformed, PeerGone, Received, not_listened_to
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
    encode,
)
from common.wire.waking import Bell, Pulse

log = logging.getLogger(__name__)

LONGEST_POLL_SECONDS = 1.0
FORGET_AFTER_SECONDS = 60.0
TOLD_SECONDS = 1.0  # between two lines about messages that are not understood

ROLES: dict[str, Role] = {"detector": "detector", "reconstructor": "worker"}  # of keys, by component

ErrorKind = Literal["invalid", "conflict", "failed", "gone", "timeout"]


class CommandError(RuntimeError):
    """A command was not carried out; ``kind`` says whether it was the asker's fault."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind


@dataclass(eq=False, slots=True)
class Component:
    """A detector or a worker that registered; a process that was started anew is another component.

    Attributes
    ----------
    identity : bytes
        One process has one, however often it reconnects.
    last_seen : float
        Monotonic time of its last sign of life, seconds.
    present : bool
        Whether it is heard.
    telemetry : dict
        The counters it last sent.
    key : str
        Name of the key that it was let in with; empty where the bus is not encrypted.
    """

    identity: bytes
    kind: Literal["detector", "reconstructor"]
    name: str
    host: str
    pid: int
    data_endpoint: str
    details: dict[str, Any]
    last_seen: float
    present: bool = True
    telemetry: dict[str, Any] = field(default_factory=dict)
    key: str = ""


class Listener(Protocol):
    """Who is told what happens on the bus; called on the event loop."""

    def registered(self, component: Component, is_new: bool) -> Registered:
        """A component registered (``is_new``: a process not seen before); the answer goes back to it."""
        ...

    def telemetry(self, component: Component) -> None:
        """A component sent its counters."""
        ...

    def event(self, component: Component | None, event: Event) -> None:
        """A component has something to say, or the bus itself about a stranger."""
        ...

    def silent(self, component: Component) -> None:
        """A component is not heard any more."""
        ...

    def returned(self, component: Component) -> None:
        """A component that was silent is heard again."""
        ...


class Bus:
    """A ROUTER that every component of the installation connects to.

    Parameters
    ----------
    endpoint : str
        Where to listen.
    silent_after_seconds : float
        A component that sends nothing for so long is taken to be gone.
    security : Security, optional
        Encrypts the bus, and says which components are let in.

    Raises
    ------
    OSError
        In one line, if the endpoint cannot be bound.
    """

    def __init__(
        self, endpoint: str, *, silent_after_seconds: float, security: Security | None = None
    ) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            self._link = Link.router(self._context, endpoint, security)
        except OSError:
            self._context.destroy(0)
            raise
        self._silent_after = silent_after_seconds
        self._components: dict[bytes, Component] = {}
        self._pending: dict[str, tuple[bytes, asyncio.Future[Reply]]] = {}
        self._outgoing: deque[tuple[bytes, Message]] = deque()
        self._bell = Bell()
        self._heard = threading.Event()
        self._heard.set()
        self._telling, self._shutting_out = Pulse(TOLD_SECONDS), Pulse(TOLD_SECONDS)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)
        self._watch: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._listener: Listener

    @property
    def endpoint(self) -> str:
        """The address really bound."""
        return self._link.endpoint

    def start(self, listener: Listener) -> None:
        """Serve components; call on the event loop that is to hear of them."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._thread.start()
        self._watch = self._loop.create_task(self._watch_for_silence())

    async def close(self) -> None:
        """Leave the bus; commands that wait for an answer fail."""
        if self._watch is not None:
            self._watch.cancel()
        self._closing = True
        self._bell.ring()
        await asyncio.to_thread(self._thread.join)
        for _, answer in self._pending.values():
            if not answer.done():
                answer.set_exception(CommandError("gone", "the control plane is stopping"))
        self._link.close()
        self._bell.close()
        await asyncio.to_thread(self._context.term)

    # ---- who is there

    @property
    def detector(self) -> Component | None:
        """The detector that is heard; where there are several, the one that registered last."""
        present = [c for c in self._components.values() if c.kind == "detector" and c.present]
        return present[-1] if present else None

    @property
    def components(self) -> list[Component]:
        """All components; one that is not heard is kept for a while, until another has its name."""
        known = self._components.values()
        heard = {(component.kind, component.name) for component in known if component.present}
        shown = (c for c in known if c.present or (c.kind, c.name) not in heard)
        return sorted(shown, key=lambda component: (component.kind, component.name))

    @property
    def workers(self) -> list[Component]:
        """All workers by name; one that is not heard is kept for a while, until another has its name."""
        return [component for component in self.components if component.kind == "reconstructor"]

    @property
    def turned_away(self) -> int:
        """How often somebody was not let in."""
        return self._link.turned_away

    # ---- commands

    async def command(
        self, component: Component, verb: str, arguments: dict[str, Any], *, timeout: float
    ) -> dict[str, Any]:
        """Have a component do something; what it answers.

        Raises
        ------
        CommandError
            If it refuses, fails, is gone, or does not answer within ``timeout`` seconds.
        """
        request = uuid.uuid4().hex
        command = Command(request=request, verb=verb, arguments=arguments)
        try:
            encode(command)  # what cannot travel must not come as far as the bus's thread
        except (TypeError, ValueError, OverflowError) as error:
            raise CommandError("invalid", f"the command {verb!r} cannot be sent: {error}") from error
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._pending[request] = (component.identity, answer)
        self._send(component.identity, command)
        try:
            reply = await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            message = f"{component.name} did not answer the command {verb!r} within {timeout:g} s"
            raise CommandError("timeout", message) from None
        finally:
            del self._pending[request]
        if not reply.ok:
            raise CommandError(reply.error_kind or "failed", reply.error)
        return reply.result

    def _send(self, identity: bytes, message: Message) -> None:
        self._outgoing.append((identity, message))
        self._bell.ring()

    # ---- on the event loop

    def _hear(self, identity: bytes, message: Message | Malformed, key: str = "") -> None:
        component = self._components.get(identity)
        if component is not None:
            component.last_seen = time.monotonic()
            if not component.present and not isinstance(message, Register):
                component.present = True
                self._listener.returned(component)
        match message:
            case Register() as register:
                self._register(identity, register, key)
            case Reply(request=request) as reply:
                _, answer = self._pending.get(request, (b"", None))
                if answer is not None and not answer.done():
                    answer.set_result(reply)
            case Telemetry(values=values) if component is not None:
                component.telemetry = values
                self._listener.telemetry(component)
            case Event() as event if component is not None:
                said = msgspec.structs.replace(event, component=component.kind, name=component.name)
                self._listener.event(component, said)
            case Goodbye() if component is not None:
                del self._components[identity]
                self._gone(identity)
            case Malformed(reason, shut_out):
                if shut_out or self._telling.due(time.monotonic()):
                    log.warning("message from %r not understood: %s", identity, reason)
                if shut_out and self._shutting_out.due(time.monotonic()):
                    name = component.name if component is not None else f"a stranger ({identity.hex()})"
                    text = not_listened_to(f"{name} on the control bus")
                    self._tell("peer_ignored", text, component)
            case Telemetry() | Event():  # of somebody forgotten, whose connection outlived that
                if self._telling.due(time.monotonic()):
                    log.info("%r is not known here any more: it is asked to register anew", identity)
                self._send(identity, Refusal(reason="not registered here, or not any more"))
            case other:
                if self._telling.due(time.monotonic()):
                    log.warning("message from %r not expected: %s", identity, type(other).__name__)

    def _tell(self, kind: str, text: str, about: Component | None = None) -> None:
        self._listener.event(about, Event(component="control", name="control", kind=kind, message=text))

    def _not_registered(self, register: Register, key: str) -> str:
        """Why a component must not register as what it says it is, by its key; empty: it may."""
        if key and role_of(key) != ROLES[register.component]:
            return f"the key {key} is none for a {register.component} ({register.name} on {register.host})"
        for other in self._components.values():
            is_same = (other.kind, other.name) == (register.component, register.name)
            if is_same and other.present and other.key != key:
                return f"the key {key} is not that of the {other.kind} {other.name}, which is there"
        return ""

    def _register(self, identity: bytes, register: Register, key: str) -> None:
        if reason := self._not_registered(register, key):
            if self._telling.due(time.monotonic()):
                log.warning("not registered: %s", reason)
                self._tell("not_let_in", f"not registered: {reason}")
            return
        is_new = identity not in self._components
        before = self._components.pop(identity, None)
        component = Component(
            identity=identity,
            kind=register.component,
            name=register.name,
            host=register.host,
            pid=register.pid,
            data_endpoint=register.data_endpoint,
            details=register.details,
            last_seen=time.monotonic(),
            telemetry=before.telemetry if before is not None else {},
            key=key,
        )
        for other in self._components.values():
            if (other.kind, other.name) == (component.kind, component.name):
                other.present = False  # its process ended, and this one takes its place
                self._gone(other.identity)
        self._components[identity] = component
        self._send(identity, self._listener.registered(component, is_new))

    def _gone(self, identity: bytes) -> None:
        for holder, answer in self._pending.values():
            if holder == identity and not answer.done():
                answer.set_exception(CommandError("gone", "the component is not connected any more"))

    async def _watch_for_silence(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._silent_after / 3))
            now = time.monotonic()
            for component in list(self._components.values()):
                silence = now - component.last_seen
                if component.present and silence > self._silent_after:
                    component.present = False
                    self._listener.silent(component)
                elif silence > FORGET_AFTER_SECONDS:
                    del self._components[component.identity]

    # ---- the bus's thread

    def _run(self) -> None:
        poller = zmq.Poller()
        self._link.register(poller)
        self._bell.register(poller)
        while not self._closing:
            poller.poll(int(1000 * LONGEST_POLL_SECONDS))
            self._bell.clear()
            while (news := self._link.news()) is not None:
                self._loop.call_soon_threadsafe(self._tell, "not_let_in", news)
            if self._heard.is_set():  # the event loop has had time for what came before
                self._hand_over(list(self._link.turn()))
            else:
                self._heard.wait(0.01)
            while self._outgoing:
                identity, message = self._outgoing.popleft()
                try:
                    self._link.send(message, to=identity)
                except PeerGone:
                    self._loop.call_soon_threadsafe(self._gone, identity)

    def _hand_over(self, received: list[Received]) -> None:
        if received:
            self._heard.clear()
            self._loop.call_soon_threadsafe(self._hear_all, received)

    def _hear_all(self, received: list[Received]) -> None:
        try:
            for one in received:
                self._hear(one.identity, one.message, one.key)
        finally:
            self._heard.set()
