"""A component on the control bus, with the control plane played by the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from pydantic import BaseModel, Field

from common.wire.control import Conflict, ControlClient, error_line
from common.wire.link import Link, Received
from common.wire.messages import Command, Event, Register, Registered, Reply, Telemetry

DEADLINE_MS = 30_000


class Plane:
    """A ROUTER and one client that joins it."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.link = Link.router(self.context, "tcp://127.0.0.1:*")
        self.endpoint = self.link.endpoint
        self.failures: list[Exception] = []
        self.answers: list[Registered] = []
        self.count = 0
        self.act: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda verb, arguments: {"did": verb}
        self.client = ControlClient(
            self.context,
            self.endpoint,
            Register(component="detector", name="d", host="h", pid=1),
            command=lambda verb, arguments: self.act(verb, arguments),
            telemetry=self._telemetry,
            failed=self.failures.append,
            registered=self.answers.append,
            interval_seconds=0.01,
        )
        self.client.start()

    def _telemetry(self) -> dict[str, Any]:
        self.count += 1
        return {"count": self.count}

    def expect(self, kind: type) -> Received:
        """The next message of a kind; others are passed over."""
        poller = zmq.Poller()
        self.link.register(poller)
        while True:
            received = self.link.receive()
            if received is None:
                assert poller.poll(DEADLINE_MS), f"no {kind.__name__} came"
            elif isinstance(received.message, kind):
                return received

    def welcome(self) -> bytes:
        """Answer the next registration."""
        identity = self.expect(Register).identity
        self.link.send(Registered(data_endpoint="tcp://there"), to=identity)
        return identity

    def close(self) -> None:
        self.client.close()
        self.link.close(0)
        self.context.term()


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane()
    yield plane
    plane.close()
    assert plane.failures == []


def test_it_registers_then_tells_how_it_is(plane: Plane) -> None:
    plane.welcome()
    first = plane.expect(Telemetry).message
    second = plane.expect(Telemetry).message
    assert second.values["count"] > first.values["count"]
    assert [answer.data_endpoint for answer in plane.answers] == ["tcp://there"]


def test_it_asks_again_while_nobody_answers(plane: Plane) -> None:
    plane.expect(Register)
    plane.expect(Register)
    plane.welcome()
    plane.expect(Telemetry)


def test_commands_are_obeyed_and_answered(plane: Plane) -> None:
    identity = plane.welcome()
    plane.link.send(Command(request="1", verb="jump", arguments={"high": 2}), to=identity)
    assert plane.expect(Reply).message == Reply(request="1", ok=True, result={"did": "jump"})


class _Model(BaseModel):
    rate: float = Field(gt=0)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("K: too\nlarge"), "invalid", "K: too large"),
        (Conflict("paused"), "conflict", "paused"),
        (RuntimeError("broken"), "failed", "broken"),
        (KeyError(), "failed", "KeyError"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(plane: Plane, error: Exception, kind: str, text: str) -> None:
    def fail(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        raise error

    plane.act = fail
    identity = plane.welcome()
    plane.link.send(Command(request="1", verb="jump"), to=identity)
    reply = plane.expect(Reply).message
    assert (reply.ok, reply.error_kind, reply.error) == (False, kind, text)


def test_a_wrong_field_is_named() -> None:
    with pytest.raises(ValueError, match="rate") as raised:
        _Model(rate=-1)
    assert error_line(raised.value) == "rate: Input should be greater than 0"


def test_a_slow_command_stops_neither_telemetry_nor_events(plane: Plane) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        assert go_on.wait(DEADLINE_MS / 1000)
        return {}

    plane.act = slow
    identity = plane.welcome()
    plane.link.send(Command(request="1", verb="build"), to=identity)
    assert begun.wait(DEADLINE_MS / 1000)
    plane.client.event("note", "still here")
    assert plane.expect(Event).message.message == "still here"
    plane.expect(Telemetry)
    go_on.set()
    assert plane.expect(Reply).message.ok


def test_events_wait_for_a_control_plane_that_is_away(plane: Plane) -> None:
    plane.welcome()
    plane.expect(Telemetry)
    plane.link.close(0)
    until = time.monotonic() + DEADLINE_MS / 1000
    while plane.client.registered.is_set():
        assert time.monotonic() < until
        zmq.Poller().poll(1)
    plane.client.event("one", "first")
    plane.client.event("two", "second")
    plane.link = Link.router(plane.context, plane.endpoint)
    plane.welcome()
    assert plane.expect(Event).message.kind == "one"
    assert plane.expect(Event).message.kind == "two"


def test_a_report_comes_before_the_event_it_belongs_to(plane: Plane) -> None:
    plane.welcome()
    plane.expect(Telemetry)
    plane.count = 1000
    plane.client.report()
    plane.client.event("finished", "done")
    counts = []
    while True:
        received = plane.link.receive()
        if received is None:
            poller = zmq.Poller()
            plane.link.register(poller)
            assert poller.poll(DEADLINE_MS)
        elif isinstance(received.message, Telemetry):
            counts.append(received.message.values["count"])
        elif isinstance(received.message, Event):
            break
    assert max(counts) > 1000


def test_telemetry_that_fails_is_a_failure_that_is_told() -> None:
    plane = Plane()
    plane.expect(Register)
    told = threading.Event()
    plane.client._failed = lambda error: told.set()
    plane.client._telemetry = lambda: {}["missing"]
    plane.welcome()
    assert told.wait(DEADLINE_MS / 1000)
    plane.close()
