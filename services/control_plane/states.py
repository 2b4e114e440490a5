"""The states of a session, and what leads from one to the next: all of it in one table."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a session stands."""

    CREATED = "created"  # asked for; the detector opens the source
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"  # no new frame; what was acquired is delivered, then the results are finalised
    COMPLETED = "completed"
    FAILED = "failed"


class Trigger(StrEnum):
    """What happens to a session."""

    OPENED = "opened"  # the detector acquires
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    FINISHED = "finished"  # every frame has its verdict
    FINALISED = "finalised"  # the results are written
    FAIL = "fail"


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.CREATED, Trigger.OPENED): State.RUNNING,
    (State.RUNNING, Trigger.PAUSE): State.PAUSED,
    (State.PAUSED, Trigger.RESUME): State.RUNNING,
    (State.RUNNING, Trigger.STOP): State.STOPPING,
    (State.PAUSED, Trigger.STOP): State.STOPPING,
    (State.RUNNING, Trigger.FINISHED): State.STOPPING,
    (State.PAUSED, Trigger.FINISHED): State.STOPPING,
    (State.STOPPING, Trigger.FINISHED): State.STOPPING,
    (State.STOPPING, Trigger.FINALISED): State.COMPLETED,
    (State.CREATED, Trigger.FAIL): State.FAILED,
    (State.RUNNING, Trigger.FAIL): State.FAILED,
    (State.PAUSED, Trigger.FAIL): State.FAILED,
    (State.STOPPING, Trigger.FAIL): State.FAILED,
}

OVER = frozenset({State.COMPLETED, State.FAILED})


class WrongState(RuntimeError):
    """Something was asked of a session that its state does not allow."""


def after(state: State, trigger: Trigger) -> State:
    """The state that ``trigger`` leads to.

    Raises
    ------
    WrongState
        In one line that says from which states it would be possible.
    """
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        allowed = [before for before, what in TRANSITIONS if what is trigger]
        raise WrongState(
            f"the session is {state}; {trigger} is possible only while it is {' or '.join(allowed)}"
        ) from None
