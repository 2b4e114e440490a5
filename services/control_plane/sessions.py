"""One session at a time, from the request to its results: steers the detector and the workers by the bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.configuration import Configuration
from common.logs import about
from common.operators.spec import MaskSpec
from common.session import ArchiveSource, RecoverySpec, SessionSpec
from common.state.store import EventRecord, Store, StoreError
from common.wire.control import error_line
from common.wire.messages import Event, Registered
from reconstructor.finalise import Summary
from reconstructor.recovery import METHODS, check_recovery
from services.control_plane.archiver import Archiver
from services.control_plane.bus import Bus, CommandError, Component
from services.control_plane.chronicle import Chronicle, Lines
from services.control_plane.metrics import Metrics, RateWindow, metrics, recent_quality
from services.control_plane.models import EventView, HistoryPoint
from services.control_plane.places import Places
from services.control_plane.recorder import Recorder
from services.control_plane.report import accounts_problem, final_accounts, report, write_report
from services.control_plane.session import AcquisitionSetting, RecoverySetting, Session, recovery_id
from services.control_plane.states import OVER, State, Trigger, WrongState, after
from services.control_plane.stream import Followers
from services.explain import FieldProblem, explain
from services.priors import prior_of
from services.priors import settled as settled_recovery

log = logging.getLogger(__name__)

OPEN_SECONDS = 120.0
COMMAND_SECONDS = 60.0
CURRENT = "current"
BULKY = ("latency_bounds_seconds", "latency_counts", "workers")
SUMMED = ("frames_recovered", "frames_rejected", "batches", "recovery_seconds", "quality")

ACQUIRING = {"acquiring": State.RUNNING, "paused": State.PAUSED, "draining": State.STOPPING}

Finalise = Callable[[Path, Mapping[str, Any], Mapping[str, Any]], Summary]


class UnknownSession(KeyError):
    """There is no session with that id."""


class Unavailable(RuntimeError):
    """A part of the system that is needed is not there now."""


class InvalidValue(ValueError):
    """Values that cannot be used, field by field."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = list(problems)


class Sessions:
    """The session that runs or ran last is kept in memory, those before it in the store.

    Listens to the bus. Every method runs on the event loop.

    Parameters
    ----------
    finalise : callable
        ``reconstructor.writer.finalise``; called off the event loop.
    results : str or Path
        Folder of the sessions that do not name their own.
    places : Places, optional
        What sessions may read and write; none: everything.
    """

    def __init__(
        self,
        bus: Bus,
        recorder: Recorder,
        finalise: Finalise,
        results: str | Path = "output",
        places: Places | None = None,
    ) -> None:
        self._bus, self._recorder, self._finalise = bus, recorder, finalise
        self.places = places or Places()
        self._results = Path(results).absolute()
        self._loop = asyncio.get_running_loop()
        self._chronicle: Chronicle | None = None  # of the session that runs or ran last
        self._chronicle_before: Chronicle | None = None  # while the detector opens the next one
        self._rates = RateWindow()
        self._worker_rates: dict[bytes, RateWindow] = {}
        self._unread = False  # the store could not be read when the control plane started
        self._looked_into: set[str] = set()  # sessions of detectors that are not active here
        self.followers = Followers()
        self.event_counts: Counter[str] = Counter()  # by kind, of all sessions since the process started
        self._steering = asyncio.Lock()  # one change at a time, each with its own effective frame
        self._restored = False  # read from the store, not yet compared with what the detector does
        self._finishing = False
        self._archiver: Archiver | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def restore(self) -> None:
        """Take up the session that was known last before the control plane was stopped.

        A store that cannot be read now is read when it comes back, unless a session was started meanwhile.
        """
        self._recorder.watch(self._catch_up, self._hear_of_store)
        try:
            self._take_up(await asyncio.to_thread(self._recorder.read, _last_chronicle))
        except StoreError as error:
            log.error("%s; no session from before is known until it can be read", error)
            self._unread = True

    def _take_up(self, chronicle: Chronicle | None) -> None:
        if chronicle is None or self._chronicle is not None:
            return
        self._chronicle, session = chronicle, chronicle.session
        self._restored = not session.over
        if session.state is State.CREATED:
            self._fail(session, "the control plane was restarted while the session was being opened")
        elif session.over:
            self._close(session)
        else:
            self._archive(session)
        self.followers.ring()

    async def close(self) -> None:
        """Leave what is still being done; a session goes on without its control plane."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._archiver is not None:
            await self._archiver.close()

    # ---- what is known

    @property
    def active(self) -> Session | None:
        """The session that is not over, if there is one."""
        return self._current if self._current is not None and not self._current.over else None

    @property
    def _current(self) -> Session | None:
        return self._chronicle.session if self._chronicle is not None else None

    @property
    def newest(self) -> Chronicle | None:
        """What there is to tell of the session that runs or ran last; one being opened is none yet."""
        opening = self._current is not None and self._current.state is State.CREATED
        return self._chronicle_before if opening else self._chronicle

    async def chronicle_of(self, name: str) -> Chronicle:
        """What there is to tell of a session.

        Raises
        ------
        UnknownSession, StoreError
            As ``get`` does.
        """
        session = await self.get(name)
        if self._chronicle is not None and session is self._chronicle.session:
            return self._chronicle
        chronicle = await asyncio.to_thread(self._recorder.read, lambda store: _chronicle(store, session))
        chronicle.take(self.metrics(session))
        chronicle.closed = True
        return chronicle

    async def all(self) -> list[Session]:
        """Every session, oldest first."""
        records = await asyncio.to_thread(self._recorder.read, lambda store: store.sessions())
        sessions = {record.id: Session.from_record(record) for record in records}
        if self._current is not None:
            sessions[self._current.id] = self._current
        return sorted(sessions.values(), key=lambda session: session.created_at)

    async def get(self, name: str) -> Session:
        """A session by its id; ``current`` is the one that runs or ran last.

        Raises
        ------
        UnknownSession
            If there is none of that name.
        StoreError
            If it is not in memory and the store cannot be read.
        """
        current = self._current
        if current is not None and name in (CURRENT, current.id):
            return current
        if name == CURRENT:
            raise UnknownSession("there is no session yet; POST /api/v1/sessions starts one")
        record = await asyncio.to_thread(self._recorder.read, lambda store: store.session(name))
        if record is None:
            raise UnknownSession(f"there is no session {name!r}")
        return Session.from_record(record)

    async def events(self, session: Session, after: int, limit: int) -> list[EventView]:
        """Up to ``limit`` events with a number above ``after``."""
        if self._chronicle is not None and session is self._current:
            return self._chronicle.events_after(after, limit)
        records = await asyncio.to_thread(
            self._recorder.read, lambda store: store.events(session.id, after, limit)
        )
        return [EventView.of(record) for record in records]

    async def history(self, session: Session, limit: int) -> list[HistoryPoint]:
        """The last ``limit`` points, about one a second, oldest first."""
        if self._chronicle is not None and session is self._current:
            return self._chronicle.last_points(limit)
        records = await asyncio.to_thread(
            self._recorder.read, lambda store: store.telemetry(session.id, limit)
        )
        return [HistoryPoint.of(record) for record in records]

    def metrics(self, session: Session) -> Metrics:
        """The figures of a session."""
        if session is not self._current:
            return metrics(session, [], None)
        detector = self._session_detector(session)
        return metrics(
            session,
            self._bus.workers,
            self._rates if session is self.active else None,
            worker_rates=self._worker_rates,
            served=detector.telemetry.get("workers", []) if detector is not None else [],
        )

    # ---- commands

    async def create(self, spec: SessionSpec) -> Session:
        """Start a session; returns when the detector acquires.

        Raises
        ------
        WrongState
            If one runs already.
        InvalidValue
            If the recovery does not know its parameters, a path must not be used, or the detector cannot do
            what is asked.
        Unavailable
            If there is no detector, or no worker.
        CommandError
            If the detector fails otherwise.
        """
        if self.active is not None:
            raise WrongState(f"session {self.active.id} is {self.active.state}; stop it first")
        self._check_recovery(spec.recovery)
        if isinstance(spec.source, ArchiveSource):
            for part in ("mask", "readout"):
                if getattr(spec, part) != SessionSpec.model_fields[part].default:
                    message = "a replayed session's masks and readout are as recorded; leave this out"
                    raise InvalidValue([FieldProblem(part, message)])
        spec, problems = await asyncio.to_thread(self.places.settled, spec)
        if problems:
            raise InvalidValue(problems)
        if self.active is not None:  # meanwhile
            raise WrongState(f"session {self.active.id} is {self.active.state}; stop it first")
        detector = self._detector()
        workers = [worker for worker in self._bus.workers if worker.present]
        if not workers:
            raise Unavailable("no worker is registered; start one: cryoflux reconstructor")
        before, session = self._chronicle, Session.create(spec)
        self._chronicle, self._chronicle_before = Chronicle(session), before
        self._rates = RateWindow()
        self._finishing = self._restored = False
        session.detector = detector.identity.hex()
        for worker in self._bus.workers:
            session.workers.begin(worker.identity.hex(), _counters(worker))
        try:
            await self._set_recovery(session, spec.recovery)
            output = spec.output or str(self._results / session.id)
            wanted = spec.model_copy(update={"output": output}).model_dump(mode="json")
            arguments = {"session": session.id, "spec": wanted}
            opened = await self._bus.command(detector, "open", arguments, timeout=OPEN_SECONDS)
        except CommandError as error:
            if error.kind in ("invalid", "conflict"):  # nothing has begun
                self._chronicle = before
                raise
            self._start_task(self._tell(detector, "stop"))  # it may yet begin
            self._fail(session, str(error))
            raise
        session.opened, session.opened_at = opened, session.now()
        self._apply(session, Trigger.OPENED)
        configuration = Configuration.model_validate(opened["configuration"])
        first = {"effective_from_frame": 0, "error_bound": configuration.codec.error_bound}
        self._acquires(session, {**configuration.model_dump(mode="json"), **first})
        self._note(session, "started", f"session {session.id} started; results go to {opened['output']}")
        await self._tell_of_prior(session, spec.recovery)
        self._archive(session)
        self._listen_again(session, detector)
        return session

    async def pause(self, session: Session) -> Session:
        """Expose nothing until ``resume``."""
        return await self._steer(session, Trigger.PAUSE)

    async def resume(self, session: Session) -> Session:
        """Expose again."""
        return await self._steer(session, Trigger.RESUME)

    async def stop(self, session: Session) -> Session:
        """Expose no further frame; what was acquired is delivered, then the results are finalised."""
        if session is self.active and self._session_detector(session) is None:
            self._end_without_detector(session, "the detector is gone")
            return session
        return await self._steer(session, Trigger.STOP)

    async def change_acquisition(
        self, session: Session, mask: MaskSpec | None, compression_factor: float | None
    ) -> AcquisitionSetting:
        """Acquire through another mask; returns when it is known from which frame on.

        Raises
        ------
        WrongState
            If the session does not acquire.
        InvalidValue
            If the two contradict each other, or the factor is out of range.
        CommandError, Unavailable
            If the detector refuses, fails, or is not there.
        """
        async with self._steering:
            self._require_acquiring(session)
            wanted = resolve_mask(session.acquisition[-1].mask, mask, compression_factor)
            detector = self._detector_of(session)
            arguments = {"mask": wanted.model_dump(mode="json")}
            result = await self._bus.command(detector, "acquisition", arguments, timeout=COMMAND_SECONDS)
            setting = self._acquires(session, result)
            self._note(
                session,
                "acquisition",
                f"C = {setting.compression_factor:.4g} from frame {setting.effective_from_frame} on",
                config_id=setting.config_id,
            )
            return setting

    async def change_recovery(
        self,
        session: Session,
        method: str | None,
        parameters: dict[str, Any] | None,
        free_share: float | None,
    ) -> tuple[RecoverySetting, dict[str, str]]:
        """Recover otherwise from each worker's next batch on.

        Parameters given are merged into those in force (null: back to the default); another method begins
        with its own defaults.

        Returns
        -------
        tuple
            The setting, and per worker what was wrong (empty: it took the setting).
        """
        async with self._steering:
            self._require_acquiring(session)
            before = session.recovery[-1]
            kept = before.parameters if method in (None, before.method) else {}
            merged = {**kept, **(parameters or {})}
            spec = RecoverySpec.model_validate(
                {
                    "method": method or before.method,
                    "parameters": {name: value for name, value in merged.items() if value is not None},
                    "free_share": before.free_share if free_share is None else free_share,
                }
            )
            self._check_recovery(spec)
            spec, problems = await asyncio.to_thread(settled_recovery, spec, self.places.inputs)
            if problems:
                raise InvalidValue(problems)
            if not any(worker.present for worker in self._bus.workers):
                raise Unavailable("no worker is registered; start one: cryoflux reconstructor")
            taken = await self._set_recovery(session, spec)
            self._note(session, "recovery", f"recovery {spec.method} {spec.parameters or ''}".strip())
            if (spec.method, spec.parameters.get("prior")) != (before.method, before.parameters.get("prior")):
                await self._tell_of_prior(session, spec)
            return session.recovery[-1], taken

    # ---- the bus's listener

    def registered(self, component: Component, is_new: bool) -> Registered:
        """Tell a worker where the data come from and how to recover; notice a new detector."""
        session = self.active
        self.followers.ring()
        if component.kind == "detector":
            known = component.details.get("session", "")
            if session is not None and session.detector and component.identity.hex() != session.detector:
                if known == session.id and session.opened and not self._finishing:
                    self._go_on_with(session, component)
                else:
                    self._end_without_detector(session, "the detector was started anew in mid-session")
            if known and known != (self.active.id if self.active is not None else None):
                self._start_task(self._settle(component, known))
            for worker in self._bus.workers:
                self._start_task(self._tell(worker, "attach", data_endpoint=component.data_endpoint))
            return Registered()
        if session is not None and is_new:
            where = f"worker {component.name} on {component.host} (pid {component.pid}) registered"
            self._note(session, "registered", where)
        detector = self._bus.detector
        return Registered(
            data_endpoint=detector.data_endpoint if detector is not None else "",
            recovery=(
                {**_spec(session.recovery[-1]), "recovery_id": session.recovery[-1].recovery_id}
                if session is not None and session.recovery
                else {}
            ),
        )

    def _go_on_with(self, session: Session, detector: Component) -> None:
        """The detector was killed and is there again, with everything that was not delivered."""
        session.detector = detector.identity.hex()
        self._restored = True  # its next counters say where it stands
        self._save(session)
        told = f"the detector was started anew (pid {detector.pid}) and goes on with the session"
        self._note(session, "resumed", told)

    async def _settle(self, detector: Component, known: str) -> None:
        """A detector goes on with a session that has ended without it: what it still has was counted as lost.

        One of which nothing is known is left alone: its frames are delivered all the same.
        """
        try:
            session = await self.get(known)
        except (UnknownSession, StoreError):
            log.warning("the detector serves session %s, of which nothing is known here", known)
            return
        if session.over:
            reason = f"session {known} had ended without the detector"
            await self._tell(detector, "abandon", session=known, reason=reason)

    def telemetry(self, component: Component) -> None:
        """Keep the counters of the session that runs; they also tell when it is finished."""
        session = self.active
        if session is None:
            if component.kind == "detector" and component.telemetry.get("state") in ACQUIRING:
                self._find(component, component.telemetry.get("session", ""))
            return
        if component.kind == "reconstructor":
            self._worker_counts(session, component)
        elif component.identity.hex() == session.detector:
            self._detector_counts(session, component.telemetry)

    def _find(self, detector: Component, name: str) -> None:
        """A detector acquires for a session that is not active here; once each is looked into."""
        if name and name not in self._looked_into and not self._unread:
            self._looked_into.add(name)
            self._start_task(self._adopt(detector, name))

    async def _adopt(self, detector: Component, name: str) -> None:
        """Take up a session that runs and of which nothing is known: the store has lost it."""
        try:
            await self.get(name)
            return  # it is known, and over: see ``_settle``
        except UnknownSession:
            pass
        except StoreError:
            self._looked_into.discard(name)  # it may be known
            return
        try:
            known = await self._bus.command(detector, "describe", {}, timeout=COMMAND_SECONDS)
            spec, opened = SessionSpec.model_validate(known["spec"]), known["opened"]
        except (CommandError, ValidationError, KeyError) as error:
            log.warning("the detector acquires for session %s, of which nothing is known: %s", name, error)
            return
        if self.active is not None or opened.get("session") != name:
            return
        counters, now = detector.telemetry, time.time()
        recovery = RecoverySetting(
            **spec.recovery.model_dump(), recovery_id=recovery_id(spec.recovery), set_at=now
        )
        session = Session(
            id=name, spec=spec, created_at=now, opened_at=now, state=ACQUIRING[counters["state"]],
            detector=detector.identity.hex(), opened=opened, recovery=[recovery],
        )  # fmt: skip
        self._chronicle, self._chronicle_before = Chronicle(session), None
        self._rates, self._finishing, self._restored = RateWindow(), False, False
        for setting in counters.get("configurations", []):
            if setting.get("first_frame") is not None:
                self._acquires(session, {**setting, "effective_from_frame": setting["first_frame"]})
        self._save(session)
        told = "the state store had lost the session; it was found at the detector, its history begins here"
        self._note(session, "adopted", told)

    def event(self, component: Component, event: Event) -> None:
        """A line for the session's history."""
        session = self.active
        if session is not None:
            self._add_event(session, event.component, event.name, event.kind, event.message, event.details)

    def silent(self, component: Component) -> None:
        """A component is not heard any more."""
        self.followers.ring()
        session = self.active
        if session is not None:
            self._note(session, "silent", f"{component.kind} {component.name} is not heard any more")

    def returned(self, component: Component) -> None:
        """A component that was silent is heard again."""
        self.followers.ring()
        session = self.active
        if session is not None:
            self._note(session, "returned", f"{component.kind} {component.name} is heard again")

    # ---- steering

    async def _steer(self, session: Session, trigger: Trigger) -> Session:
        async with self._steering:
            after(session.state, trigger)
            detector = self._detector_of(session)
            await self._bus.command(detector, trigger, {}, timeout=COMMAND_SECONDS)
            if not session.over and session.state is not State.STOPPING:  # it may have finished meanwhile
                self._apply(session, trigger)
            return session

    async def _set_recovery(self, session: Session, spec: RecoverySpec) -> dict[str, str]:
        """Tell every worker; what was wrong with each."""
        setting = RecoverySetting(**spec.model_dump(), recovery_id=recovery_id(spec), set_at=session.now())
        session.recovery.append(setting)
        self._save(session)
        workers = [worker for worker in self._bus.workers if worker.present]
        answers = await asyncio.gather(
            *(
                self._tell(worker, "recovery", recovery=_spec(setting), recovery_id=setting.recovery_id)
                for worker in workers
            )
        )
        return {worker.name: answer for worker, answer in zip(workers, answers, strict=True)}

    async def _tell_of_prior(self, session: Session, spec: RecoverySpec) -> None:
        """Say which learned prior is used, what it was trained on, and where these frames are otherwise."""
        try:
            prior = await asyncio.to_thread(prior_of, spec, self.places.inputs)
        except ValueError as error:  # it was there a moment ago
            log.warning("%s", error_line(error))
            return
        if prior is None:
            return
        self._note(session, "prior", prior.told())
        opened = session.opened
        if doubt := prior.doubt(tuple(opened["shape"]), opened["pixel_size_angstrom"]):
            self._note(session, "prior_doubtful", doubt)

    async def _tell(self, component: Component, verb: str, **arguments: Any) -> str:
        """A command whose failure is not the asker's concern; what was wrong, or nothing."""
        try:
            await self._bus.command(component, verb, arguments, timeout=COMMAND_SECONDS)
        except CommandError as error:
            log.warning("%s: %s: %s", component.name, verb, error)
            return str(error)
        return ""

    def _detector(self) -> Component:
        detector = self._bus.detector
        if detector is None:
            raise Unavailable("no detector is registered; start one: cryoflux detector")
        return detector

    def _session_detector(self, session: Session) -> Component | None:
        detector = self._bus.detector
        return detector if detector is not None and detector.identity.hex() == session.detector else None

    def _detector_of(self, session: Session) -> Component:
        detector = self._session_detector(session)
        if detector is None:
            raise Unavailable("the detector of this session is not heard; frames may flow all the same")
        return detector

    def _require_acquiring(self, session: Session) -> None:
        if session.state not in (State.RUNNING, State.PAUSED):
            raise WrongState(
                f"the session is {session.state}; this is possible only while it is running or paused"
            )

    def _check_recovery(self, spec: RecoverySpec) -> None:
        try:
            check_recovery(spec)
        except ValueError as error:
            wrong = error.__cause__
            if not isinstance(wrong, ValidationError):
                raise InvalidValue([FieldProblem("parameters", error_line(error))]) from error
            schema = METHODS[spec.method].parameters_model.model_json_schema()
            problems = explain(wrong.errors(), schema, schema)
            raise InvalidValue(
                [FieldProblem(f"parameters.{p.field}", p.message) for p in problems]
            ) from error

    # ---- what becomes of it

    def _apply(self, session: Session, trigger: Trigger) -> None:
        session.state = after(session.state, trigger)
        self._save(session)

    def _acquires(self, session: Session, result: Mapping[str, Any]) -> AcquisitionSetting:
        setting = AcquisitionSetting.model_validate(
            {name: result[name] for name in AcquisitionSetting.model_fields}
        )
        session.acquisition.append(setting)
        about(session=session.id, config=setting.config_id)
        number, document = len(session.acquisition), setting.model_dump(mode="json")
        self._recorder.write(lambda store: store.save_configuration(session.id, number, document))
        self._save(session)
        return setting

    def _listen_again(self, session: Session, detector: Component) -> None:
        """A series so short that it was over before the detector's answer came."""
        if detector.telemetry.get("session") == session.id:
            self._detector_counts(session, detector.telemetry)

    def _detector_counts(self, session: Session, values: Mapping[str, Any]) -> None:
        if values.get("session") != session.id:
            if self._restored:
                self._end_without_detector(session, "the detector does not know the session any more")
            return
        session.counters = {name: value for name, value in values.items() if name not in BULKY}
        self._rates.add(
            time.monotonic(),
            values.get("frames_acquired", 0),
            values.get("bytes_wire", 0),
            values.get("bytes_raw", 0),
        )
        if self._restored:
            self._restored = False
            session.state = ACQUIRING.get(values["state"], session.state)
        self._remember(session)
        if session.state is State.CREATED:
            return  # the answer to *open* is still on its way
        if values["state"] in ("finished", "failed") and not self._finishing:
            self._finish(session, values.get("error", "") if values["state"] == "failed" else "")

    def _worker_counts(self, session: Session, worker: Component) -> None:
        session.workers.update(worker.identity.hex(), _counters(worker))
        rates = self._worker_rates.setdefault(worker.identity, RateWindow())
        rates.add(time.monotonic(), worker.telemetry.get("frames_recovered", 0))
        known = {component.identity for component in self._bus.workers}
        for identity in self._worker_rates.keys() - known:
            del self._worker_rates[identity]
        newest = worker.telemetry.get("newest", {})
        if newest.get("series") and newest["series"] == session.opened.get("series"):
            session.newest_frame = _higher(session.newest_frame, newest.get("frame"))
            session.newest_reference = _higher(session.newest_reference, newest.get("reference"))

    def _end_without_detector(self, session: Session, why: str) -> None:
        """Keep what is on disk; frames that were not yet recovered are lost with the detector."""
        if not self._finishing:
            self._note(session, "failed", why)
            self._finish(session, why, accounts_are_final=False)

    def _finish(self, session: Session, error: str, *, accounts_are_final: bool = True) -> None:
        self._finishing = True
        session.error = error
        session.finished_at = session.now()
        if session.state is not State.CREATED:
            self._apply(session, Trigger.FINISHED)
        self._start_task(self._complete(session, accounts_are_final))

    def _archive(self, session: Session) -> None:
        """Have the session's archive packed, if it wants one."""
        self._archiver = None
        if session.spec.archive is None or not session.opened:
            return
        output, file = Path(session.opened["output"]), Path(session.spec.archive)

        def failed(line: str) -> None:
            later = f"frames are not concerned; later: cryoflux archive {output} FILE"
            self._note(session, "archive_failed", f"{line} ({later})")

        specification = session.spec.model_dump(mode="json")
        self._archiver = Archiver(output, file, specification, failed, self.places.environment())
        self._start_task(self._archiver.start())

    async def _complete_archive(self, session: Session, account: dict[str, Any]) -> None:
        """Wait for the archive; the session ends well without it."""
        if self._archiver is None:
            return
        session.archive = account["archive"] = await self._archiver.finish(account)
        self._archiver = None
        if "error" not in session.archive:
            held = f"{session.archive['frames']} frames in {session.archive['bytes']} bytes"
            self._note(session, "archive", f"archive {session.archive['path']}: {held}")
        await asyncio.to_thread(lambda: write_report(account, self.places.results(session.opened)))

    async def _complete(self, session: Session, accounts_are_final: bool) -> None:
        try:
            account = await asyncio.to_thread(self._write_results, session, accounts_are_final)
            await self._complete_archive(session, account)
        except Exception as error:  # whatever is wrong with the folder, the session must come to an end
            log.exception("results of session %s could not be finalised", session.id)
            session.error = "; ".join(
                filter(None, (session.error, f"results not finalised: {error_line(error)}"))
            )
        if session.error:
            self._fail(session, session.error)
        else:
            self._apply(session, Trigger.FINALISED)
            self._note(session, "completed", f"results in {session.opened['output']}")
            self._close(session)

    def _write_results(self, session: Session, accounts_are_final: bool) -> dict[str, Any]:
        if not session.opened:
            return {}
        output = self.places.results(session.opened)
        if not accounts_are_final:
            session.counters = final_accounts(output, session.counters, session.error)
        summary = self._finalise(output, session.opened, session.counters)
        session.quality = summary.quality
        if wrong := accounts_problem(output, session.counters, summary):
            session.error = "; ".join(filter(None, (session.error, wrong)))
        ended = State.FAILED if session.error else State.COMPLETED
        account = report(session.model_copy(update={"state": ended}), summary)
        written: dict[str, Any] = json.loads(write_report(account, output).read_text())
        return written

    def _fail(self, session: Session, error: str) -> None:
        if session.over:
            return
        session.error, session.finished_at = error, session.finished_at or session.now()
        self._apply(session, Trigger.FAIL)
        self._note(session, "failed", error)
        self._close(session)

    def _close(self, session: Session) -> None:
        """Nothing more is told of a session that is over, but its final figures."""
        if self._chronicle is not None and session is self._chronicle.session:
            self._chronicle.take(self.metrics(session))
            self._chronicle.closed = True
            self.followers.ring()

    # ---- keeping

    def _save(self, session: Session) -> None:
        """Keep a session that the detector has opened; one that it refuses leaves no trace."""
        if session.state is State.CREATED:
            return
        record = session.record()
        if self._chronicle is not None and session is self._chronicle.session:
            self._chronicle.record = record
            self.followers.ring()
        self._recorder.write(lambda store: store.save_session(record))

    def _remember(self, session: Session) -> None:
        chronicle = self._chronicle
        if chronicle is None or session is not chronicle.session:
            return
        session.points += 1
        figures = self.metrics(session)
        point = HistoryPoint.taken(session.points, session, figures, recent_quality(session))
        chronicle.take(figures)
        chronicle.add_point(point)
        self._save(session)
        record = point.record()
        self._recorder.write(
            lambda store: store.add_telemetry(session.id, record),
            lambda: self._on_loop(self._show, chronicle.points, record.number),
        )

    def _show(self, lines: Lines, number: int) -> None:
        lines.show(number)
        self.followers.ring()

    def _note(self, session: Session, kind: str, message: str, **details: Any) -> None:
        self._add_event(session, "control", "control", kind, message, details)

    def _add_event(
        self, session: Session, component: str, name: str, kind: str, message: str, details: dict[str, Any]
    ) -> None:
        session.events += 1
        self.event_counts[kind] += 1
        event = EventRecord(session.events, session.now(), component, name, kind, message, details)
        log.info("%s: %s", kind, message)
        chronicle = self._chronicle
        if chronicle is None or session is not chronicle.session:
            return
        chronicle.add_event(event)
        self._recorder.write(
            lambda store: store.add_event(session.id, event),
            lambda: self._on_loop(self._show, chronicle.events, event.number),
        )

    # ---- the store, as the recorder's thread sees it

    def _catch_up(self, store: Store) -> None:
        """The store is back, or may have forgotten what it had: give it all that is known of the session."""
        if self._unread:
            found = _last_chronicle(store)
            self._unread = False
            self._on_loop(self._take_up, found)
        chronicle = self._chronicle
        if chronicle is not None and chronicle.record is not None:
            events, points = chronicle.kept()
            store.rewrite(chronicle.record, chronicle.record.document["acquisition"], events, points)

    def _hear_of_store(self, error: str) -> None:
        self._on_loop(self._tell_of_store, error)

    def _tell_of_store(self, error: str) -> None:
        session = self.active
        if session is not None:
            if error:
                self._note(session, "store_failing", f"{error}; frames flow, writes are tried again")
            else:
                self._note(session, "store_back", "the state store is back; the session was written again")
        self.followers.ring()

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        """Have something done on the event loop, from any thread; after its end it does not matter."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    def _start_task(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def resolve_mask(active: MaskSpec, mask: MaskSpec | None, compression_factor: float | None) -> MaskSpec:
    """The mask that a change of acquisition means.

    A bare compression factor is the nearest setting of the active kind. A mask that leaves its own factor
    open (no ``mask_count``, no ``compression_factor``) takes the one given beside it; one that says both must
    mean the same.

    Raises
    ------
    InvalidValue
        If the factor is out of the kind's range, or contradicts the mask.
    """
    if compression_factor is None:
        return mask or active
    try:
        nearest = (mask or active).with_compression_factor(compression_factor)
    except ValueError as error:
        raise InvalidValue([FieldProblem.parse(error_line(error))]) from error
    if mask is None or nearest == mask:
        return nearest
    decides = {"coded-aperture": "mask_count", "phase-plate": "compression_factor"}.get(mask.kind)
    if decides is not None and decides not in mask.root.model_fields_set:
        return nearest
    said = f"mask.{decides} {getattr(mask.root, decides)}" if decides else f"mask {mask.kind}"
    message = f"{compression_factor:g} contradicts {said}; give one of them"
    raise InvalidValue([FieldProblem("compression_factor", message)])


def _last_chronicle(store: Store) -> Chronicle | None:
    known = store.sessions()
    if not known:
        return None
    # the one that is not over, for it may not be the youngest: the clock may have been set back before it
    last = next((record for record in reversed(known) if record.state not in OVER), known[-1])
    return _chronicle(store, Session.from_record(last))


def _chronicle(store: Store, session: Session) -> Chronicle:
    """What a store kept of a session; numbers go on behind those that it kept."""
    chronicle = Chronicle.of_store(session, store.events(session.id), store.telemetry(session.id))
    session.events = max(session.events, chronicle.events.last)
    session.points = max(session.points, chronicle.points.last)
    return chronicle


def _higher(a: int | None, b: int | None) -> int | None:
    return max((value for value in (a, b) if value is not None), default=None)


def _counters(worker: Component) -> dict[str, Any]:
    """Those of a worker's counters that are summed over workers."""
    return {name: worker.telemetry[name] for name in SUMMED if name in worker.telemetry}


def _spec(setting: RecoverySetting) -> dict[str, Any]:
    return setting.model_dump(mode="json", include=set(RecoverySpec.model_fields))
