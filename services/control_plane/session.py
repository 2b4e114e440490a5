"""A session as the control plane knows it; all of it is JSON, so that it can be stored and read back."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr

from common.clock import SteadyClock
from common.operators.spec import MaskSpec
from common.session import RecoverySpec, SessionSpec
from common.state.store import SessionRecord
from services.control_plane.states import OVER, State
from services.control_plane.tally import Tally


class AcquisitionSetting(BaseModel):
    """How frames are acquired from ``effective_from_frame`` on."""

    config_id: str
    effective_from_frame: int = Field(description="the first frame that is acquired so")
    compression_factor: float = Field(description="honest: pixels over real numbers measured")
    printed_compression_factor: float = Field(description="what the papers print for this mask")
    error_bound: str = Field(description="the largest error that coding for the wire can make")
    mask: MaskSpec


class RecoverySetting(RecoverySpec):
    """How images are recovered from some moment on."""

    recovery_id: str
    set_at: float = Field(description="Unix time, seconds")


class Session(BaseModel):
    """One session, from the request that made it to its end.

    ``opened`` is the detector's answer to *open*, ``counters`` what it counted last; ``detector`` is the
    identity of the detector's process on the control bus; ``quality`` is what the finalised results hold, per
    configuration. ``events`` and ``points`` are the numbers given last; ``judged`` is what the quality of the
    points so far was taken of.
    """

    id: str
    spec: SessionSpec
    created_at: float
    opened_at: float | None = None
    finished_at: float | None = None
    state: State = State.CREATED
    error: str = ""
    detector: str = ""
    opened: dict[str, Any] = {}
    counters: dict[str, Any] = {}
    acquisition: list[AcquisitionSetting] = []
    recovery: list[RecoverySetting] = []
    workers: Tally = Tally()
    quality: dict[str, dict[str, float]] | None = None
    archive: dict[str, Any] | None = None  # what the completed archive holds, or why there is none
    events: int = 0
    points: int = 0
    judged: dict[str, float] = {}
    newest_frame: int | None = None
    newest_reference: int | None = None
    _clock: SteadyClock = PrivateAttr(default_factory=SteadyClock)

    @classmethod
    def create(cls, spec: SessionSpec) -> Session:
        """A session that was just asked for; its id begins with the time, so ids sort by age."""
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        return cls(id=f"{stamp}-{secrets.token_hex(3)}", spec=spec, created_at=now)

    @classmethod
    def from_record(cls, record: SessionRecord) -> Session:
        """A session as it was stored."""
        return cls.model_validate(record.document)

    def record(self) -> SessionRecord:
        """The session as it is to be stored."""
        return SessionRecord(self.id, self.created_at, self.state, self.model_dump(mode="json"))

    def now(self) -> float:
        """Unix time, seconds, as the session counts it: nobody who sets the clock makes it jump."""
        return self._clock.now()

    @property
    def over(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in OVER

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the acquisition began, up to now or to its end."""
        if self.opened_at is None:
            return 0.0
        return max(0.0, (self.finished_at or self.now()) - self.opened_at)


def recovery_id(spec: RecoverySpec) -> str:
    """Names a way of recovering, as ``config_id`` names a way of acquiring: a hash of exactly its values."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
