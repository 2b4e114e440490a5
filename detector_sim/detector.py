"""The detector process: obeys the control bus, runs one series after another, serves the workers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from pydantic import BaseModel, ConfigDict, Field

from common.ending import ending_signals
from common.exposition import Exposition, registry_of
from common.logs import about, last_word
from common.operators.spec import MaskSpec
from common.protection import NotProtected
from common.roots import inputs_of
from common.session import ArchiveSource, SessionSpec
from common.settings import Settings
from common.tracing import start as start_tracing
from common.wire.control import Conflict, ControlClient, error_line
from common.wire.link import keep_freed_memory
from common.wire.messages import Register
from common.wire.planes import Planes
from detector_sim.metrics import Figures, families
from detector_sim.publisher import Publisher
from detector_sim.replay import RecordedFrames, open_series
from detector_sim.safekeeping import Safekeeping
from detector_sim.series import Series, SeriesTotals
from detector_sim.spool import Found, Spool
from detector_sim.tracing import BlockTraces

log = logging.getLogger(__name__)

NAME = "detector"
PATIENCE_SECONDS = 10.0


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OpenArguments(_Arguments):
    """Of the command *open*."""

    session: str = Field(min_length=1)
    spec: SessionSpec


class AcquisitionArguments(_Arguments):
    """Of the command *acquisition*: a mask, or only the compression factor of the kind in force."""

    mask: MaskSpec | None = None
    compression_factor: float | None = None


class AbandonArguments(_Arguments):
    """Of the command *abandon*: whose frames that are not delivered are given up, and why."""

    session: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Detector:
    """One series at a time, and everything a control plane may ask about it.

    Parameters
    ----------
    on_event : callable, optional
        ``on_event(kind, message)``: told of every event, as the control plane is.
    metrics_address : str
        ``host:port`` where the process serves its metrics; empty: it does not.
    traces : BlockTraces, optional
        Makes spans of the blocks.
    replay : ArchiveSource, optional
        What sessions replay that want an archive and name none.

    Raises
    ------
    OSError
        In one line, if the data plane's endpoint cannot be bound (``NotProtected``: must not be), or another
        detector that runs has the spool.
    """

    def __init__(
        self,
        settings: Settings,
        context: zmq.Context[Any],
        on_event: Callable[[str, str], None] | None = None,
        metrics_address: str = "",
        traces: BlockTraces | None = None,
        replay: ArchiveSource | None = None,
    ) -> None:
        planes = Planes(settings, "detector")
        planes.check_data_plane(settings.data_bind)
        planes.check_control_bus(settings.control_endpoint)
        self._replay = replay
        self._settings = settings
        self._on_event = on_event
        self._series: Series | None = None
        self._past = SeriesTotals()  # of the series before
        self._failure: str | None = None
        self._over = threading.Event()  # no series is running
        self._over.set()
        self.wanted = threading.Event()  # set to have ``run_detector`` look at what happened
        self._safekeeping = Safekeeping(
            Path(settings.spool) if settings.spool_bytes else None,
            settings.spool_bytes,
            settings.spool_policy,
            self._event,
        )
        self._safekeeping.claim()
        self._publisher = Publisher(
            context,
            settings.data_bind,
            heartbeat_seconds=settings.heartbeat_seconds,
            silent_after_seconds=settings.silent_after_seconds,
            window_bytes=settings.window_bytes,
            safekeeping=self._safekeeping,
            traces=traces,
            event=self._event,
            drained=self._drained,
            failed=self.fail,
            security=planes.data_plane,
        )
        self.endpoint = settings.advertised(self._publisher.endpoint)
        self._details: dict[str, Any] = {"metrics": metrics_address} if metrics_address else {}
        self._control = ControlClient(
            context,
            settings.control_endpoint,
            Register(
                component="detector",
                name=NAME,
                host=socket.gethostname(),
                pid=os.getpid(),
                data_endpoint=self.endpoint,
                details=self._details,
            ),
            command=self.obey,
            telemetry=self.telemetry,
            failed=self.fail,
            interval_seconds=settings.heartbeat_seconds,
            security=planes.control_bus,
        )

    def start(self) -> None:
        """Serve workers and obey; first of all go on with what another process left unfinished."""
        self._publisher.start()
        left = self._safekeeping.find()
        if left is not None:
            self._go_on(*left)
        self._control.start()

    def _go_on(self, spool: Spool, found: Found) -> None:
        start = found.head.start
        try:
            spec = SessionSpec.model_validate(found.head.spec)
            left = (spool, found)
            series = open_series(
                spec, start.session, self._publisher, self._series_settings(), self._event, left
            )
        except Exception as error:  # whatever it is, the next session must not suffer from it
            log.exception("the series %s cannot be gone on with", start.series)
            self._safekeeping.put_aside(spool, error)
            return
        self._details["session"] = start.session
        self._over.clear()
        self._series = series
        series.start()
        waiting = sum(len(block.frame_ids) for block in found.blocks)
        told = f"the detector goes on with session {start.session} at frame {found.gathering_from}"
        self._event("resumed", f"{told}; {waiting} frames of before are delivered from the spool")

    def close(self, *, leave: bool = False) -> None:
        """End; a series that still runs is given up, its frames counted as lost.

        ``leave``: what it still owes is left in the spool instead, for the detector that is started next.
        """
        if self._series is not None and not self._series.over:
            if leave and self._safekeeping.writes:
                open_frames = self._series.accounts()
                count = open_frames.in_flight + open_frames.spooled
                self._event("left", f"nobody took {count} frames; the next detector delivers them")
            else:
                self._give_up(self._series)
        self._control.close()
        self._publisher.close()
        if self._series is not None and self._over.is_set() and not self.failed:
            self._safekeeping.end()
        else:
            self._safekeeping.close()
        self._safekeeping.release()

    def _give_up(self, series: Series) -> None:
        series.abandon("the detector was stopped")
        self._over.wait(PATIENCE_SECONDS)

    # ---- commands

    def obey(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do what the control bus says.

        Raises
        ------
        ValueError
            If the verb or an argument is wrong.
        Conflict
            If it does not fit the state.
        """
        match verb:
            case "open":
                return self._open(OpenArguments.model_validate(arguments))
            case "acquisition":
                wanted = AcquisitionArguments.model_validate(arguments)
                changed = self._running().change(wanted.mask, wanted.compression_factor)
                about(config=changed["config_id"])
                return changed
            case "pause":
                self._running().pause()
            case "resume":
                self._running().resume()
            case "stop":
                self._running().stop()
            case "describe":
                return self._running().account_of_itself()
            case "abandon":
                given_up = AbandonArguments.model_validate(arguments)
                series = self._running()
                if series.start_message.session == given_up.session and not series.over:
                    series.abandon(given_up.reason)
            case _:
                raise ValueError(f"a detector does not know the command {verb!r}")
        return {"state": self.state}

    def _open(self, arguments: OpenArguments) -> dict[str, Any]:
        if self._failure:
            raise Conflict(f"the detector has failed ({self._failure}) and must be restarted")
        if self._series is not None and not self._series.over:
            raise Conflict(f"a series is {self._series.state}; stop it first")
        try:
            spec = self._with_archive(arguments.spec)
            series = open_series(
                spec, arguments.session, self._publisher, self._series_settings(), self._event
            )
        except OSError as error:  # a file that is not there is the asker's mistake
            raise ValueError(error_line(error)) from error
        self._over.clear()
        self._details["session"] = arguments.session
        with self._publisher.changed:
            if self._series is not None:
                self._past = self._past.with_those_of(self._series.totals())
            self._series = series
        series.start()
        opened = series.describe()
        about(session=opened["session"], config=opened["configuration"]["config_id"])
        return opened

    def _with_archive(self, spec: SessionSpec) -> SessionSpec:
        """The session with the archive of this detector, where it wants one and names none."""
        if not isinstance(spec.source, ArchiveSource) or spec.source.path is not None:
            return spec
        if self._replay is None:
            raise ValueError("source.path: the detector was started without --input; name an archive")
        speed = spec.source.speed if "speed" in spec.source.model_fields_set else self._replay.speed
        source = self._replay.model_copy(update={"speed": speed})
        return spec.model_copy(update={"source": source})

    def _series_settings(self) -> Settings:
        """The settings, by which the archive that the detector was started with may be read too."""
        if self._replay is None or self._replay.path is None or not inputs_of(self._settings).limited:
            return self._settings
        inputs = (*self._settings.inputs, self._replay.path)
        return self._settings.model_copy(update={"inputs": inputs})

    def _running(self) -> Series:
        if self._series is None:
            raise Conflict("no series is open")
        return self._series

    # ---- what is told

    @property
    def state(self) -> str:
        """idle, acquiring, paused, draining, finished or failed."""
        if self._failure:
            return "failed"
        return self._series.state if self._series is not None else "idle"

    def telemetry(self) -> dict[str, Any]:
        """The counters of the running or last series, and the workers as seen from here."""
        values: dict[str, Any] = {"state": "idle"} if self._series is None else self._series.counters()
        values["state"] = self.state
        values["workers"] = self._publisher.workers()
        values["malformed_messages"] = self._publisher.malformed
        return values

    def figures(self) -> Figures:
        """Everything that is measured here, at one moment."""
        publisher = self._publisher
        spool = publisher.spool_counters()
        with publisher.changed:
            ledger, series = publisher.ledger, self._series
            present = [peer for peer in ledger.peers.values() if peer.present]
            return Figures(
                state=self.state,
                totals=ledger.totals(),
                in_flight=ledger.in_flight,
                queued=ledger.queued,
                spooled=ledger.spooled,
                spool_bytes=spool["spool_bytes"],
                spool_limit_bytes=spool["spool_limit_bytes"],
                spool_failing=bool(spool["spool_error"]),
                restarts=0 if series is None else series.restarts,
                unacknowledged_bytes=ledger.held_bytes,
                window_bytes=publisher.window_bytes,
                series=self._past if series is None else self._past.with_those_of(series.totals()),
                in_force=None if series is None else series.in_force(),
                wire_bytes=publisher.bytes_sent,
                open_credits=sum(peer.credit for peer in present),
                workers_present=len(present),
                workers_silent=len(ledger.peers) - len(present),
                workers_joined=publisher.joined,
                workers_departed=Counter(publisher.departed),
                workers_refused=publisher.refused,
                malformed_messages=publisher.malformed,
                not_let_in=publisher.turned_away,
            )

    def _event(self, kind: str, message: str) -> None:
        self._control.event(kind, message)
        if self._on_event is not None:
            self._on_event(kind, message)

    def _drained(self) -> None:
        series = self._running()
        series.end()
        self._control.report()
        accounts = series.accounts()
        lost = f", {sum(accounts.lost.values())} lost" if accounts.lost else ""
        counts = f"{accounts.acquired} frames acquired, {accounts.acknowledged} recovered{lost}"
        if series.error:
            self._event("failed", f"{series.error}; {counts}")
        else:
            self._event("finished", counts)
        self._over.set()

    def fail(self, error: Exception) -> None:
        """A thread that everything depends on has failed."""
        self._failure = error_line(error)
        if self._series is not None and not self._series.over:
            self._series.fail(error)
        self._over.set()
        self.wanted.set()
        self._control.report()
        self._event("failed", self._failure)

    # ---- the process

    @property
    def failed(self) -> bool:
        """Whether the process cannot go on."""
        return self._failure is not None

    def finish(self, at_once: threading.Event) -> bool:
        """Stop acquiring and deliver what was acquired; whether that was done.

        Workers that are merely slow are waited for, but not ones that acknowledge nothing for
        ``PATIENCE_SECONDS``; nor is anyone once ``at_once`` is set.
        """
        series = self._series
        if series is None or series.over:
            return not self.failed
        series.stop()
        acknowledged, patience_until = -1, 0.0
        while not self._over.wait(0.1) and not at_once.is_set():
            if series.accounts().acknowledged != acknowledged:
                acknowledged, patience_until = (
                    series.accounts().acknowledged,
                    time.monotonic() + PATIENCE_SECONDS,
                )
            elif time.monotonic() > patience_until:
                break
        return self._over.is_set() and not self.failed


def run_detector(settings: Settings, replay: ArchiveSource | None = None) -> int:
    """Run a detector until it is told to end (SIGTERM, SIGINT); the process's exit code.

    The first signal stops the acquisition and delivers what was acquired; what nobody takes is left in the
    spool. A second one ends at once, and what is not delivered is counted as lost.
    """
    keep_freed_memory()
    if replay is not None and replay.path is not None:
        try:
            RecordedFrames(Path(replay.path)).close()
        except (OSError, ValueError) as error:
            last_word(f"cryoflux detector: --input: {error_line(error)}")
            return 2
    context: zmq.Context[Any] = zmq.Context()
    tracing = start_tracing(settings.otlp_endpoint, component=NAME, name=NAME)
    traces = BlockTraces(tracing) if tracing is not None else None
    try:
        exposition = Exposition.of(settings)
        detector = Detector(
            settings, context, metrics_address=exposition.address, traces=traces, replay=replay
        )
    except OSError as error:
        last_word(f"cryoflux detector: {error.strerror}")
        return 2 if isinstance(error, NotProtected) else 1
    asked_again = threading.Event()

    def ask(number: int, frame: object) -> None:
        (asked_again if detector.wanted.is_set() else detector.wanted).set()

    for number in ending_signals():
        signal.signal(number, ask)
    exposition.serve(registry_of(lambda: families(detector.figures())))
    detector.start()
    log.info("detector listens on %s, metrics on http://%s/metrics", detector.endpoint, exposition.address)
    detector.wanted.wait()
    clean = detector.finish(asked_again)
    detector.close(leave=not asked_again.is_set())
    if traces is not None:
        traces.close()
    exposition.close()
    context.term()
    return 0 if clean else 1
