"""What the REST interface takes and gives, where it is not one of the shared specifications."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.operators.spec import MaskSpec
from common.session import SessionSpec
from common.state.store import EventRecord, TelemetryRecord
from services.control_plane.metrics import ByteCounts, FrameCounts
from services.control_plane.session import AcquisitionSetting, RecoverySetting, Session
from services.control_plane.states import State

MethodName = Literal["minimum_norm", "wiener", "dct", "wavelet", "tv"]


class SessionView(BaseModel):
    """A session: what was asked for, where it stands, and all its settings so far."""

    id: str
    state: State
    error: str | None = Field(description="why it failed, in one line")
    created_at: datetime
    opened_at: datetime | None = Field(description="when the acquisition began")
    finished_at: datetime | None
    output: str | None = Field(description="folder of the results")
    shape: tuple[int, int] | None = Field(description="height and width of a frame, pixels")
    dtype: str | None = Field(description="of the raw frames")
    pixel_size_angstrom: float | None
    frames_expected: int | None = Field(description="null: endless, or not known beforehand")
    specification: SessionSpec = Field(description="as it was asked for")
    acquisition: list[AcquisitionSetting] = Field(description="settings in the order they took effect")
    recovery: list[RecoverySetting] = Field(description="settings in the order they were made")

    @classmethod
    def of(cls, session: Session) -> SessionView:
        """A session as the interface shows it."""
        opened = session.opened
        return cls(
            id=session.id,
            state=session.state,
            error=session.error or None,
            created_at=_time(session.created_at),
            opened_at=None if session.opened_at is None else _time(session.opened_at),
            finished_at=None if session.finished_at is None else _time(session.finished_at),
            output=opened.get("output"),
            shape=opened.get("shape"),
            dtype=opened.get("dtype"),
            pixel_size_angstrom=opened.get("pixel_size_angstrom"),
            frames_expected=opened.get("frames_expected"),
            specification=session.spec,
            acquisition=session.acquisition,
            recovery=session.recovery,
        )


class _Patch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _says_something(self) -> _Patch:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"nothing to change; give at least one of {', '.join(type(self).model_fields)}")
        return self


class AcquisitionPatch(_Patch):
    """How to acquire from now on.

    A bare ``compression_factor`` picks the nearest setting of the active kind of mask. Beside a mask that
    leaves its own factor open, it picks the nearest setting of that mask.
    """

    compression_factor: float | None = Field(None, ge=1, le=4096, description="pixels over numbers measured")
    mask: MaskSpec | None = None


class RecoveryPatch(_Patch):
    """How to recover from now on; what is not given stays.

    Parameters are merged into those in force, and null puts one back to its default. Another method begins
    with its own defaults.
    """

    method: MethodName | None = None
    parameters: dict[str, Any] | None = Field(None, description="the method's own, by name")
    free_share: float | None = Field(
        None, ge=0, le=0.5, description="share of the measurements kept out for the free residual"
    )


class WorkerAnswer(BaseModel):
    """Whether a worker took a new recovery."""

    name: str
    taken: bool
    error: str | None = Field(description="why not")


class RecoveryView(RecoverySetting):
    """The recovery in force; after a change also how each worker answered."""

    workers: list[WorkerAnswer] = Field(default_factory=list[WorkerAnswer])


class EventView(BaseModel):
    """A line in a session's history."""

    number: int = Field(description="counts from 1 within the session")
    at: datetime
    component: str
    name: str
    kind: str
    message: str
    details: dict[str, Any]

    @classmethod
    def of(cls, event: EventRecord) -> EventView:
        """An event as the interface shows it."""
        return cls(
            number=event.number, at=_time(event.at), component=event.component, name=event.name,
            kind=event.kind, message=event.message, details=event.details,
        )  # fmt: skip


class HistoryPoint(BaseModel):
    """A session's counters at one moment."""

    at: datetime
    frames: FrameCounts
    bytes: ByteCounts
    frames_per_s: float
    wire_mbit_per_s: float

    @classmethod
    def of(cls, record: TelemetryRecord) -> HistoryPoint:
        """Stored counters as the interface shows them."""
        return cls(at=_time(record.at), **record.values)


class Health(BaseModel):
    """The control plane is alive."""

    status: Literal["alive"] = "alive"
    version: str


class Readiness(BaseModel):
    """Whether a session can be started and will be kept.

    *degraded*: sessions run, but the state store cannot be written, so a restart of the control plane would
    forget them.
    """

    status: Literal["ready", "degraded", "not ready"]
    detector: bool
    workers: Annotated[int, Field(ge=0)]
    store: Literal["ok", "failing"]
    detail: str = Field(description="what is missing; empty: nothing")


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
