"""One series: source → camera → readout → blocks, on its own thread, until every frame has its verdict."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from common.calibration import Calibration
from common.configuration import Configuration
from common.operators.base import LinearOperator
from common.operators.spec import MaskSpec
from common.roots import NotAllowed, inputs_of, outputs_of
from common.session import RESULTS, SessionSpec
from common.settings import Settings
from common.wire.codec import encode_array
from common.wire.control import Conflict, error_line
from common.wire.link import as_bytes
from common.wire.messages import ConfigurationNotice, Start
from detector_sim.assembler import Assembler, Shots, joined
from detector_sim.camera import Camera
from detector_sim.ledger import Accounts
from detector_sim.publisher import Publisher
from detector_sim.readout import Readout, make_configuration
from detector_sim.sources import BadFile, FrameBatch, Source, SourceError, open_source
from detector_sim.spool import Change, Found, Head, Spool, Turn

log = logging.getLogger(__name__)

State = Literal["idle", "acquiring", "paused", "draining", "finished", "failed"]

LARGEST_BLOCK_BYTES_RAW = 64_000_000
NOT_FINITE = "not finite"
KILLED = "the detector was killed before they were sent"


@dataclass(eq=False, slots=True)
class _Setting:
    """A configuration, ready to read frames out."""

    configuration: Configuration
    readout: Readout
    bytes_per_frame: float
    first_frame: int | None = None
    frames: int = 0


@dataclass(frozen=True)
class SeriesTotals:
    """What a series, or several after one another, counted; nothing here ever decreases."""

    bytes_raw: int = 0
    reference_bytes_raw: int = 0
    reference_bytes_lossless: int = 0
    idle_seconds: float = 0.0
    spool_full_seconds: float = 0.0
    bad_files: int = 0
    changes: int = 0
    frames: Counter[tuple[str, float]] = field(default_factory=Counter[tuple[str, float]])

    def with_those_of(self, other: SeriesTotals) -> SeriesTotals:
        """The sums of both."""
        numbers = [name.name for name in fields(self) if name.name != "frames"]
        frames = Counter(self.frames)
        frames.update(other.frames)  # unlike the sum of two, keeps a mask that has no frame yet
        sums = {name: getattr(self, name) + getattr(other, name) for name in numbers}
        return SeriesTotals(**sums, frames=frames)

    def without_those_of(self, other: SeriesTotals) -> SeriesTotals:
        """What came on top of ``other``."""
        numbers = [name.name for name in fields(self) if name.name != "frames"]
        frames = Counter(self.frames)
        frames.subtract(other.frames)
        return SeriesTotals(
            **{name: getattr(self, name) - getattr(other, name) for name in numbers}, frames=frames
        )


class _NoSource(Source):
    """In place of a source that cannot go on where it was left."""

    def __init__(self) -> None:
        self.bad_files: list[BadFile] = []

    def read(self, count: int) -> FrameBatch | None:
        """There is nothing."""
        return None

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(eq=False, slots=True)
class _Change:
    """A configuration on its way to the acquisition thread, which says from which frame on it is in force."""

    setting: _Setting
    effective_from: Future[int]


class Series:
    """A series from its source to its last verdict.

    Building one opens the source, reads its first frames, calibrates and builds the first configuration;
    ``start`` lets it run. Every method may be called from any thread.

    Parameters
    ----------
    event : callable
        ``event(kind, message)``: lines for the session's history.
    left : tuple, optional
        What another process left of this very series. It is gone on with at the first frame that is not in
        the spool, if the source can give that frame, and else only delivered.

    Raises
    ------
    ValueError, OSError
        In one line, if the source of a new series cannot be opened, the mask does not fit the frames, or the
        output folder already holds the results of a session.
    """

    def __init__(
        self,
        spec: SessionSpec,
        session: str,
        publisher: Publisher,
        settings: Settings,
        event: Callable[..., None],
        left: tuple[Spool, Found] | None = None,
    ) -> None:
        self._spec, self._publisher, self._event = spec, publisher, event
        self._left = left
        self._inputs, self._outputs = inputs_of(settings), outputs_of(settings)
        self._configured: dict[str, _Setting] = {}
        self._next_frame = self._exposed = 0
        self._idle_before, self._bytes_wire_before, self._restarts = 0.0, 0, 0
        self._spool_full_before = 0.0
        self._lost_before: frozenset[int] = frozenset()
        self._stopping = False
        self._ahead: FrameBatch | None = None
        self._camera = Camera(spec.camera.rate, time.monotonic())
        self.state: State = "acquiring"
        if left is None:
            self._begin(spec, session)
        else:
            self._go_on(left[1])
        self._inherited = SeriesTotals()
        self._linger = settings.block_linger_ms / 1000
        frame_bytes = self.dtype.itemsize * self.shape[0] * self.shape[1]
        self._assembler = Assembler(
            self.start_message.series,
            block_bytes=settings.block_bytes,
            block_frames=max(1, LARGEST_BLOCK_BYTES_RAW // frame_bytes),
            linger_seconds=self._linger,
            publish=publisher.add,
            lose=lambda frame_ids, reason: self._lose(frame_ids, reason, "not_coded"),
        )
        self._frames_limit = spec.camera.frames
        self._seconds_per_frame = 0.0
        self._changes = 0
        self._in_force_since = 0.0
        self._change: _Change | None = None
        self._bad_files_told = 0
        self._error: str | None = None
        self._open = False
        self._thread = threading.Thread(target=self._run, name="acquisition", daemon=True)
        if left is not None:
            figures = left[1].figures
            self._assembler.reference_bytes = figures.get("reference_bytes", 0)
            self._assembler.reference_bytes_raw = figures.get("reference_bytes_raw", 0)
            self._inherited = self._summed()

    def _new_output(self, spec: SessionSpec) -> Path:
        """The folder of the results, in which nothing is called as they will be."""
        if spec.output is None:
            raise ValueError("output: no folder is named; the control plane names one where nobody else does")
        output = Path(spec.output).absolute()
        try:
            real = self._outputs.real(output)
            there = next((name for name in RESULTS if os.path.lexists(real / name)), None)
        except NotAllowed as error:
            raise ValueError(f"output: {error}") from error
        if real.exists() and not real.is_dir():
            raise ValueError(f"output: {output} is a file; name a folder")
        if there is not None:
            raise ValueError(f"output: {output} already holds {there}, which would be replaced; name another")
        return output

    def _begin(self, spec: SessionSpec, session: str) -> None:
        output = self._new_output(spec)
        self._source: Source = open_source(spec.source, self._inputs)
        self.shape: tuple[int, int] = self._source.shape
        self.dtype = np.dtype(self._source.dtype)
        try:
            self._ahead = self._read_first(spec.camera.reference_first)
            self._setting = self._requested = self._prepare(spec.mask)
        except Exception:
            self._source.close()
            raise
        limits = [limit for limit in (spec.camera.frames, self._source.frame_count) if limit is not None]
        self.start_message = Start(
            series=str(uuid.uuid4()),
            session=session,
            frames_expected=min(limits) if limits else None,
            shape=self.shape,
            dtype=self.dtype.name,
            pixel_size_angstrom=float(self._source.pixel_size_angstrom),
            output=str(output),
            optics=self._source.optics,
            calibration=Calibration.from_frames(
                torch.from_numpy(self._first_frames.astype(np.float32))
            ).model_dump(),
        )

    def _go_on(self, found: Found) -> None:
        """Take up what another process left."""
        start = self.start_message = found.head.start
        self.shape, self.dtype = start.shape, np.dtype(start.dtype)
        self._source: Source = _NoSource()
        self._first_frames = np.zeros((1, *self.shape), self.dtype)
        self._next_frame = self._exposed = found.exposed
        if found.phase == "draining":
            self._stopping = True
        else:
            try:
                self._reopen(found.gathering_from)
                self._next_frame = found.gathering_from
            except (ValueError, OSError) as error:
                self._stopping = True
                told = f"the acquisition cannot go on ({error_line(error)}); what was acquired is delivered"
                self._event("error", told)
        changes = found.changes
        for change, following in zip(changes, [*changes[1:], None], strict=True):
            configuration = Configuration.model_validate(change.configuration)
            if configuration.config_id not in self._configured:
                operator = configuration.mask.build(self.shape)
                setting = self._read_out(configuration, operator)
                self._configured[configuration.config_id] = setting
            self._setting = self._requested = setting = self._configured[configuration.config_id]
            if setting.first_frame is None:
                setting.first_frame = change.first_frame
            last = self._next_frame if following is None else following.first_frame
            setting.frames += last - change.first_frame
        if found.phase == "paused" and not self._stopping:
            self.state = "paused"
            self._camera.pause(time.monotonic())
        self._idle_before = float(found.figures.get("idle_seconds", 0.0))
        self._spool_full_before = float(found.figures.get("spool_full_seconds", 0.0))
        self._bytes_wire_before = int(found.figures.get("bytes_wire", 0))
        self._restarts = int(found.figures.get("restarts", 0)) + 1

    def _reopen(self, frame: int) -> None:
        """Open the source anew and go on with ``frame``."""
        source = open_source(self._spec.source, self._inputs)
        try:
            if (source.shape, source.dtype) != (self.shape, self.dtype):
                raise SourceError(f"source: frames are now {source.shape} {source.dtype}")
            self._source = source
            self._read_first(self._spec.camera.reference_first)  # what later configurations are made with
            if not source.seek(frame):
                raise SourceError(f"source: cannot be read from frame {frame} on")
        except Exception:
            self._source = _NoSource()
            source.close()
            raise

    # ---- commands

    def start(self) -> None:
        """Open the series on the wire and expose."""
        self._publisher.figures = self._figures
        link, has_clock = self._spec.link_mbit_per_s, self._spec.camera.rate is not None
        if self._left is None:
            spec = self._spec.model_dump(mode="json")
            head = Head(start=self.start_message, spec=spec, began_at=time.time())
            self._publisher.open(head, link, has_clock=has_clock)
            self._open = True
            self._use(self._setting)
        else:
            spool, found = self._left
            self._publisher.take_up(spool, found, link, has_clock=has_clock)
            self._open = True
            if self._stopping:
                self._publisher.lose(found.gathering, KILLED, "stopped")
            self._lost_before = found.lost_ahead
            self._put_in_force(self._setting)
        self._thread.start()

    def change(self, mask: MaskSpec | None, compression_factor: float | None) -> dict[str, Any]:
        """Acquire through another mask from some frame on; returns once that frame is known.

        The operator is built on the caller's thread, while frames flow through the one before.

        Raises
        ------
        ValueError
            If the mask does not fit, or the factor is out of range.
        Conflict
            If no frame will be acquired any more.
        """
        self._require("acquiring", "paused")
        mask = mask or self._requested.configuration.mask
        if compression_factor is not None:
            mask = mask.with_compression_factor(compression_factor)
        change = _Change(self._prepare(mask), Future())
        with self._publisher.changed:
            self._require("acquiring", "paused")
            self._change = change
            self._publisher.changed.notify_all()
        effective_from = change.effective_from.result()
        self._requested = change.setting
        return {**_described(change.setting.configuration), "effective_from_frame": effective_from}

    def pause(self) -> None:
        """Expose nothing until ``resume``."""
        with self._publisher.changed:
            self._require("acquiring")
            self.state = "paused"
            self._camera.pause(time.monotonic())
            self._publisher.changed.notify_all()
        self._publisher.note(Turn(phase="paused"))

    def resume(self) -> None:
        """Expose again."""
        with self._publisher.changed:
            self._require("paused")
            self.state = "acquiring"
            self._camera.resume(time.monotonic())
            self._publisher.changed.notify_all()
        self._publisher.note(Turn(phase="acquiring"))

    def stop(self) -> None:
        """Expose no further frame; what was acquired is delivered."""
        with self._publisher.changed:
            self._require("acquiring", "paused", "draining")
            self._stopping = True
            self._publisher.changed.notify_all()
        self._publisher.note(Turn(phase="draining"))

    def abandon(self, reason: str) -> None:
        """Expose no further frame and give up what is not delivered; frames given up are counted as lost."""
        with self._publisher.changed:
            self._stopping = True
            self._publisher.changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._publisher.abandon(reason)

    def fail(self, error: Exception) -> None:
        """Something the series cannot do without has failed."""
        with self._publisher.changed:
            self._error = self._error or error_line(error)
            self._stopping = True
            self.state = "failed"
            self._publisher.changed.notify_all()

    def end(self) -> None:
        """Every frame has its verdict."""
        self._check(self.accounts())
        self.state = "failed" if self._error else "finished"

    @property
    def over(self) -> bool:
        """Whether the series is finished or has failed."""
        return self.state in ("finished", "failed")

    @property
    def restarts(self) -> int:
        """How often the series was taken up by another process, its own having died."""
        return self._restarts

    def accounts(self) -> Accounts:
        """Where every frame is."""
        with self._publisher.changed:
            if not self._open:  # the accounts are still those of the series before
                return Accounts(0, 0, 0, 0, {})
            return self._publisher.ledger.accounts()

    def _check(self, accounts: Accounts) -> None:
        """Fail if frames are unaccounted for: what the series says of itself can no longer be believed."""
        if accounts.balanced or self._error:
            return
        self._error = f"{accounts.unaccounted} frames are unaccounted for: {accounts}"
        log.error("%s", self._error)
        with self._publisher.changed:
            self._stopping = True
            self._publisher.changed.notify_all()
        self._event("error", self._error)

    @property
    def error(self) -> str | None:
        """What ended the series before its time, in one line."""
        return self._error

    def describe(self) -> dict[str, Any]:
        """What whoever opened the series is told."""
        start = self.start_message
        return {
            "series": start.series,
            "session": start.session,
            "shape": list(start.shape),
            "dtype": start.dtype,
            "pixel_size_angstrom": start.pixel_size_angstrom,
            "frames_expected": start.frames_expected,
            "output": start.output,
            "optics": start.optics,
            "configuration": self._setting.configuration.model_dump(mode="json"),
        }

    def account_of_itself(self) -> dict[str, Any]:
        """What a control plane has to know that has lost its state and finds the series running."""
        return {"opened": self.describe(), "spec": self._spec.model_dump(mode="json")}

    def counters(self) -> dict[str, Any]:
        """The counters of the series, for telemetry; what they say is checked each time."""
        self._check(self.accounts())
        with self._publisher.changed:
            ledger = self._publisher.ledger
            accounts, latency = self.accounts(), ledger.latency
            bytes_raw = accounts.acquired * self.dtype.itemsize * self.shape[0] * self.shape[1]
            raw, coded = self._assembler.reference_bytes_raw, self._assembler.reference_bytes
            return {
                "session": self.start_message.session,
                "series": self.start_message.series,
                "state": self.state,
                "error": self._error or "",
                "frames_expected": self.start_message.frames_expected,
                "frames_acquired": accounts.acquired,
                "frames_acknowledged": accounts.acknowledged,
                "frames_in_flight": accounts.in_flight,
                "frames_queued": ledger.queued,
                "frames_spooled": accounts.spooled,
                "frames_lost": accounts.lost,
                "frames_unaccounted": accounts.unaccounted,
                "restarts": self._restarts,
                **self._publisher.spool_counters(),
                "bytes_raw": bytes_raw,
                "bytes_wire": self._bytes_wire_before + self._publisher.bytes_wire,
                "bytes_raw_lossless_estimate": round(bytes_raw * coded / raw) if raw else bytes_raw,
                "bytes_in_flight": ledger.held_bytes,
                "blocks_redelivered": ledger.blocks_redelivered,
                "idle_seconds": self._idle_before + self._camera.idle_seconds(time.monotonic()),
                "spool_full_seconds": self._spool_full_before
                + self._camera.spool_full_seconds(time.monotonic()),
                "latency_p50_seconds": latency.percentile(50),
                "latency_p99_seconds": latency.percentile(99),
                "latency_bounds_seconds": latency.bounds.tolist(),
                "latency_counts": latency.counts.tolist(),
                "latency_sum_seconds": latency.sum_seconds,
                "bad_files": len(self._source.bad_files),
                "configurations": [
                    {
                        **_described(setting.configuration),
                        "first_frame": setting.first_frame,
                        "frames": setting.frames,
                    }
                    for setting in self._configured.values()
                ],
            }

    def _figures(self) -> dict[str, Any]:
        """What another process would go on counting from; the accounts are checked as often."""
        self._check(self.accounts())
        with self._publisher.changed:
            latency = self._publisher.ledger.latency
            return {
                "bytes_wire": self._bytes_wire_before + self._publisher.bytes_wire,
                "idle_seconds": self._idle_before + self._camera.idle_seconds(time.monotonic()),
                "spool_full_seconds": self._spool_full_before
                + self._camera.spool_full_seconds(time.monotonic()),
                "reference_bytes": self._assembler.reference_bytes,
                "reference_bytes_raw": self._assembler.reference_bytes_raw,
                "blocks_redelivered": self._publisher.ledger.blocks_redelivered,
                "latency_counts": latency.counts.tolist(),
                "latency_sum_seconds": latency.sum_seconds,
                "restarts": self._restarts,
            }

    def totals(self) -> SeriesTotals:
        """What the series counted in this process; hold the publisher's ``changed``."""
        return self._summed().without_those_of(self._inherited)

    def _summed(self) -> SeriesTotals:
        frames: Counter[tuple[str, float]] = Counter()
        for setting in self._configured.values():
            configuration = setting.configuration
            frames[configuration.mask.kind, configuration.compression_factor] += setting.frames
        return SeriesTotals(
            bytes_raw=self._exposed * self.dtype.itemsize * self.shape[0] * self.shape[1],
            reference_bytes_raw=self._assembler.reference_bytes_raw,
            reference_bytes_lossless=self._assembler.reference_bytes,
            idle_seconds=self._camera.idle_seconds(time.monotonic()),
            spool_full_seconds=self._camera.spool_full_seconds(time.monotonic()),
            bad_files=len(self._source.bad_files),
            changes=self._changes,
            frames=frames,
        )

    def in_force(self) -> tuple[str, float, float] | None:
        """Kind and factor of the mask in force, since when (Unix seconds); None once the series is over."""
        if self.over or not self._in_force_since:
            return None
        configuration = self._setting.configuration
        return configuration.mask.kind, configuration.compression_factor, self._in_force_since

    # ---- the acquisition thread

    def _run(self) -> None:
        for part in (self._acquire, self._assembler.flush):  # what was gathered is sent also after a failure
            try:
                part()
            except Exception as error:
                log.exception("acquisition failed")
                self._error = self._error or error_line(error)
                self._event("error", f"acquisition failed: {self._error}")
        self._source.close()
        with self._publisher.changed:
            self._camera.release(time.monotonic())  # what is only delivered is not waited for
            self._publisher.ledger.lose_gathering("acquisition failed")
            self._stopping = True
            if not self.over:
                self.state = "draining"
            if self._change is not None:
                self._change.effective_from.set_exception(
                    Conflict("the series took its last frame meanwhile")
                )
                self._change = None
        self._publisher.note(Turn(phase="draining"))
        self._publisher.complete()

    def _acquire(self) -> None:
        while (count := self._await_exposures()) > 0:
            began = time.monotonic()
            batch = self._read(count)
            self._tell_bad_files()
            if batch is None:
                return
            if not len(batch):  # a watched folder has nothing new
                continue
            shots = self._expose(batch)
            now = time.monotonic()
            self._seconds_per_frame = (now - began) / len(batch)
            if shots is not None:
                self._assembler.add(shots, now)

    def _await_exposures(self) -> int:
        """How many frames to read now; 0: no more. Sends blocks that wait too long and applies changes."""
        changed = self._publisher.changed
        while True:
            self._apply_change()
            if self._assembler.wait(time.monotonic()) == 0:
                self._assembler.flush()
            limit = self._batch_limit()
            with changed:
                if self._stopping or limit == 0:
                    return 0
                if self._change is not None:
                    continue
                now = time.monotonic()
                block_bytes = self._assembler.frames_per_block * round(self._assembler.bytes_per_frame)
                if self._publisher.has_room(block_bytes):
                    self._camera.release(now)
                else:
                    self._camera.hold(now, by_spool=self._publisher.spool_lacks_room(block_bytes))
                if (count := self._camera.due(now, limit)) > 0:
                    return count
                waits = [self._assembler.wait(now), self._camera.wait(now)]
                # frames that come fast are read several at a time, a quarter of the linger time apart
                waits[1] = waits[1] and max(waits[1], min(self._linger / 4, 0.01))
                changed.wait(min((wait for wait in waits if wait is not None), default=None))

    def _batch_limit(self) -> int:
        """Frames to read at most: what fills the block and is read within the linger time."""
        limits = [self._assembler.missing]
        if self._seconds_per_frame > 0:
            limits.append(int(max(self._linger, 0.01) / self._seconds_per_frame))
        limit = max(1, min(limits))
        return limit if self._frames_limit is None else min(limit, self._frames_limit - self._next_frame)

    def _apply_change(self) -> None:
        with self._publisher.changed:
            change, self._change = self._change, None
        if change is not None:
            self._use(change.setting)
            change.effective_from.set_result(self._next_frame)

    def _use(self, setting: _Setting) -> None:
        """Take frames so from the next on, and have that written down."""
        self._assembler.flush()  # before the change is written down, so that no frame is taken for another's
        configuration = setting.configuration.model_dump(mode="json")
        self._publisher.note(Change(configuration=configuration, first_frame=self._next_frame))
        self._put_in_force(setting)

    def _put_in_force(self, setting: _Setting) -> None:
        configuration = setting.configuration
        self._assembler.configure(configuration, setting.bytes_per_frame)
        self._publisher.configure(ConfigurationNotice(configuration=configuration.model_dump(mode="json")))
        with self._publisher.changed:
            self._setting = self._configured.setdefault(configuration.config_id, setting)
            self._changes += 1
            self._in_force_since = time.time()

    def _expose(self, batch: FrameBatch) -> Shots | None:
        """Number the frames and read them out; None if not one of them can be."""
        frames, metadata = batch.frames, batch.metadata
        count = len(frames)
        frame_ids = list(range(self._next_frame, self._next_frame + count))
        fresh = frame_ids[-1] + 1 - self._exposed  # others were exposed before by a process that was killed
        if fresh > 0:
            self._publisher.expose(frame_ids[-1] + 1)
        with self._publisher.changed:
            now = time.monotonic()
            acquired_at = [self._publisher.clock.at(end) for end in self._camera.take(count, now)]
            if fresh > 0:
                self._publisher.ledger.acquire(fresh)
                self._exposed += fresh
            if self._setting.first_frame is None:
                self._setting.first_frame = self._next_frame
            self._setting.frames += count
            self._next_frame += count
        try:
            measurements = self._setting.readout.readout(frames)
        except ValueError:
            finite = _finite(frames)
            if finite.all():
                raise
            self._lose([frame_ids[k] for k in np.flatnonzero(~finite)], NOT_FINITE, "not_finite")
            kept = np.flatnonzero(finite).tolist()
            if not kept:
                return None
            frames = frames[finite]
            frame_ids, acquired_at = [frame_ids[k] for k in kept], [acquired_at[k] for k in kept]
            metadata = metadata and {name: [column[k] for k in kept] for name, column in metadata.items()}
            measurements = self._setting.readout.readout(frames)
        references = [k for k, frame in enumerate(frame_ids) if self._is_reference(frame)]
        return Shots(
            frame_ids=frame_ids,
            acquired_at=acquired_at,
            measurements=measurements,
            reference_ids=[frame_ids[k] for k in references],
            references=frames[references] if references else None,
            metadata=metadata,
        )

    def _lose(self, frame_ids: list[int], reason: str, kind: str) -> None:
        """Frames cannot be sent; those that were lost before in the process that was killed count once."""
        if new := [frame for frame in frame_ids if frame not in self._lost_before]:
            self._publisher.lose(new, reason, kind)

    def _is_reference(self, frame: int) -> bool:
        camera = self._spec.camera
        return frame < camera.reference_first or bool(
            camera.reference_every and frame % camera.reference_every == 0
        )

    # ---- the source

    def _read_first(self, count: int) -> FrameBatch:
        """Up to ``count`` frames; fewer if the source has no more, or none yet after the first."""
        batches: list[FrameBatch] = []
        while (missing := count - sum(len(batch) for batch in batches)) > 0:
            batch = self._source.read(missing)
            if batch is None or (batches and not len(batch)):
                break
            if len(batch):
                batches.append(batch)
        if not batches:
            raise ValueError("source: there is not a single frame")
        frames = np.concatenate([batch.frames for batch in batches])
        self._first_frames = frames[_finite(frames)]
        if not len(self._first_frames):
            raise ValueError(f"source: none of the first {len(frames)} frames is finite in every pixel")
        return FrameBatch(frames, joined([batch.metadata for batch in batches]))

    def _read(self, count: int) -> FrameBatch | None:
        """Next frames; those read for the calibration come first."""
        ahead = self._ahead
        if ahead is None:
            return self._source.read(count)
        self._ahead = _rows(ahead, slice(count, None)) if count < len(ahead) else None
        return _rows(ahead, slice(0, count))

    def _tell_bad_files(self) -> None:
        bad_files = self._source.bad_files
        for bad in bad_files[self._bad_files_told :]:
            self._event("bad_file", f"{bad.path}: {bad.reason}")
        self._bad_files_told = len(bad_files)

    def _prepare(self, mask: MaskSpec) -> _Setting:
        for known in list(self._configured.values()):
            if known.configuration.mask == mask:  # all else is the same in a series
                return known
        configuration, operator = make_configuration(
            mask, self.shape, self.dtype.name, self._spec.readout, self._first_frames
        )
        return self._configured.get(configuration.config_id) or self._read_out(configuration, operator)

    def _read_out(self, configuration: Configuration, operator: LinearOperator) -> _Setting:
        """The setting of a configuration whose operator is built."""
        readout = Readout(operator, configuration.codec)
        measurements = readout.readout(self._first_frames)
        _, buffer = encode_array(measurements, configuration.codec)
        return _Setting(configuration, readout, len(as_bytes(buffer)) / len(measurements))

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise Conflict(f"the series is {self.state}; this needs it to be {' or '.join(states)}")


def _finite(frames: np.ndarray) -> np.ndarray:
    """Which of (B, H, W) frames have only finite pixels, (B,) bool."""
    if frames.dtype.kind in "iub":
        return np.ones(len(frames), dtype=bool)
    return np.isfinite(frames).all(axis=(1, 2))


def _rows(batch: FrameBatch, rows: slice) -> FrameBatch:
    metadata = batch.metadata and {name: column[rows] for name, column in batch.metadata.items()}
    return FrameBatch(frames=batch.frames[rows], metadata=metadata)


def _described(configuration: Configuration) -> dict[str, Any]:
    return {
        "config_id": configuration.config_id,
        "mask": configuration.mask.model_dump(mode="json"),
        "compression_factor": configuration.compression_factor,
        "printed_compression_factor": configuration.printed_compression_factor,
        "error_bound": configuration.codec.error_bound,
    }
