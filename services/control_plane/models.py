"""What the REST interface takes and gives, where it is not one of the shared specifications."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from common.fields import Number
from common.operators.spec import MaskSpec
from common.session import MethodName, SessionSpec
from common.state.store import EventRecord, TelemetryRecord
from common.tokens import Role
from services.control_plane.metrics import ByteCounts, FrameCounts, Latency, Metrics, Quality, finite
from services.control_plane.session import AcquisitionSetting, RecoverySetting, Session
from services.control_plane.states import State


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

    compression_factor: Number | None = Field(None, ge=1, le=4096, description="pixels over numbers measured")
    mask: MaskSpec | None = None


class RecoveryPatch(_Patch):
    """How to recover from now on; what is not given stays.

    Parameters are merged into those in force, and null puts one back to its default. Another method begins
    with its own defaults.
    """

    method: MethodName | None = None
    parameters: dict[str, Any] | None = Field(None, description="the method's own, by name")
    free_share: Number | None = Field(
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

    def record(self) -> EventRecord:
        """The event as it is to be stored."""
        return EventRecord(
            self.number, self.at.timestamp(), self.component, self.name, self.kind, self.message, self.details
        )


class HistoryPoint(BaseModel):
    """A session's figures at one moment."""

    number: int = Field(description="counts from 1 within the session")
    at: datetime
    state: State
    config_id: str | None = Field(description="the configuration in force")
    compression_factor: float | None = Field(description="of the configuration in force")
    frames: FrameCounts
    bytes: ByteCounts
    frames_per_s: float
    wire_mbit_per_s: float
    raw_mbit_per_s: float = Field(description="what the same frames would take uncoded")
    throughput_gain: float | None = Field(description="raw bytes over bytes on the wire, so far")
    gain_over_lossless: float | None
    latency: Latency
    idle_seconds: float
    recent_quality: Quality = Field(description="of what was judged since the points before")
    workers_present: int

    @classmethod
    def of(cls, record: TelemetryRecord) -> HistoryPoint:
        """Stored figures as the interface shows them."""
        return cls(number=record.number, at=_time(record.at), **record.values)

    @classmethod
    def taken(cls, number: int, session: Session, figures: Metrics, recent: Quality) -> HistoryPoint:
        """The next point of a session's history."""
        setting = session.acquisition[-1] if session.acquisition else None
        return cls(
            number=number,
            at=_time(figures.at),
            state=figures.state,
            config_id=setting.config_id if setting else None,
            compression_factor=setting.compression_factor if setting else None,
            frames=figures.frames,
            bytes=figures.bytes,
            frames_per_s=figures.frames_per_s,
            wire_mbit_per_s=figures.wire_mbit_per_s,
            raw_mbit_per_s=figures.raw_mbit_per_s,
            throughput_gain=figures.throughput_gain,
            gain_over_lossless=figures.gain_over_lossless,
            latency=figures.latency,
            idle_seconds=figures.idle_seconds,
            recent_quality=recent,
            workers_present=sum(worker.present for worker in figures.workers),
        )

    def record(self) -> TelemetryRecord:
        """The point as it is to be stored."""
        return TelemetryRecord(
            self.number, self.at.timestamp(), self.model_dump(mode="json", exclude={"number", "at"})
        )


class FrameView(BaseModel):
    """What is known of a frame that was recovered: its line in a worker's journal."""

    frame_id: int
    config_id: str
    compression_factor: float
    recovery_id: str
    method: str
    worker: str = Field(description="the journal it stands in")
    attempt: int = Field(description="1 + how often it was delivered before")
    acquired_at: datetime = Field(description="end of the exposure, on the detector's clock")
    recovered_at: datetime = Field(description="on the worker's clock")
    latency_seconds: float = Field(description="between the two: as exact as the clocks agree")
    reference: bool = Field(description="whether it was also sent whole")
    psnr: float | None = Field(description="dB, against the reference; null: it has none")
    ssim: float | None
    lpips: float | None = Field(
        description="0: equal; null also where no weights are given to measure it with"
    )
    frc_resolution_angstrom: float | None
    free_residual: float | None = Field(
        description="error in predicting measurements kept out of the recovery; null: none were"
    )
    prior_shift: float | None = Field(
        description="how far the learned prior moved the image from the linear estimate, relative to that; "
        "null: none was used"
    )
    posterior_spread: float | None = Field(
        description="mean over the frame of the samples' standard deviation, in the frame's units; null: one "
        "sample, or no learned prior"
    )
    evaluations: int | None = Field(
        description="of the learned prior's network, for each sample; null: none was used"
    )
    metadata: dict[str, Any] = Field(description="RELION columns that the source gave the frame")

    @classmethod
    def of(cls, row: Mapping[str, str]) -> FrameView:
        """A journal's line as the interface shows it."""
        known = {name: value for name, value in row.items() if value}
        return cls(
            frame_id=int(known["frame_id"]),
            config_id=known["config_id"],
            compression_factor=float(known["compression_factor"]),
            recovery_id=known["recovery_id"],
            method=known["method"],
            worker=known["worker"],
            attempt=int(known["attempt"]),
            acquired_at=_time(float(known["acquired_at"])),
            recovered_at=_time(float(known["recovered_at"])),
            latency_seconds=float(known["latency_seconds"]),
            reference=known["reference"] == "1",
            psnr=finite(_number(known.get("psnr"))),
            ssim=finite(_number(known.get("ssim"))),
            lpips=finite(_number(known.get("lpips"))),
            frc_resolution_angstrom=finite(_number(known.get("frc_resolution_angstrom"))),
            free_residual=finite(_number(known.get("free_residual"))),
            prior_shift=finite(_number(known.get("prior_shift"))),
            posterior_spread=finite(_number(known.get("posterior_spread"))),
            evaluations=int(known["evaluations"]) if "evaluations" in known else None,
            metadata=json.loads(known.get("metadata", "{}")),
        )


class Health(BaseModel):
    """The control plane is alive."""

    status: Literal["alive"] = "alive"
    version: str


class Readiness(BaseModel):
    """Whether a session can be started and will be kept.

    *degraded*: sessions run, but the state store cannot be written (a restart of the control plane would
    forget them), nor the detector's spool or a worker's results, or the accounts of frames do not balance.
    """

    status: Literal["ready", "degraded", "not ready"]
    detector: bool
    workers: Annotated[int, Field(ge=0)]
    store: Literal["ok", "failing"]
    detail: str = Field(description="what is missing; empty: nothing")


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class SignIn(BaseModel):
    """Who signs in."""

    model_config = ConfigDict(extra="forbid")

    token: SecretStr = Field(max_length=4096, description="the operator's or the viewer's")


class SignInView(BaseModel):
    """Who asks."""

    role: Role = Field(description="*viewer*: may look; *operator*: may do everything")
    needed: bool = Field(description="whether this control plane asks for a token at all")
