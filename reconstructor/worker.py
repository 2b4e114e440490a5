"""A worker process: takes blocks against credit, recovers them, makes the results durable, acknowledges.

None of its threads waits for another's work: the *link* receives, answers and keeps the heartbeat; the
*recovery* joins waiting blocks of one configuration into batches and recovers them; the *writer* puts results
on disk, all that wait with one sync; the *control bus* takes commands.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import msgspec
import torch
import zmq
from prometheus_client.metrics_core import Metric as Family
from pydantic import BaseModel, ConfigDict, Field

from common import metrics
from common.ending import ending_signals
from common.exposition import Exposition, registry_of
from common.gpu import gpu_of
from common.logs import about, last_word
from common.protection import NotProtected
from common.roots import NotAllowed, outputs_of
from common.session import RecoverySpec
from common.settings import Settings
from common.tracing import Attributes, Tracing
from common.tracing import start as start_tracing
from common.wire.control import ControlClient, error_line
from common.wire.link import Received, keep_freed_memory
from common.wire.messages import (
    Ack,
    ConfigurationNotice,
    Frames,
    Message,
    Register,
    Registered,
    Reject,
    Start,
)
from common.wire.planes import Planes
from reconstructor.batches import Block, Outcome, Recoverer, RecoveryChoice, wanted_frames
from reconstructor.lpips import WrongWeights, lpips_of
from reconstructor.memory import BatchKey
from reconstructor.metrics import Measured
from reconstructor.pace import Standing
from reconstructor.recovery import check_recovery
from reconstructor.subscriber import Subscriber
from reconstructor.writer import Results, ResultsWriter

log = logging.getLogger(__name__)

LAST_BATCH_SECONDS = 2.0  # that a worker which failed waits for the batch that is being recovered
ANSWERED_SECONDS = 1.0  # that a frame recovered alone waits for the answer of the one before to be sent
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM_SECONDS = 2.0  # between two attempts to write on a disk that was full


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecoveryArguments(_Arguments):
    """Of the command *recovery*, and of the answer to a registration."""

    recovery: RecoverySpec
    recovery_id: str = Field(min_length=1)


class AttachArguments(_Arguments):
    """Of the command *attach*."""

    data_endpoint: str = Field(min_length=1)


class Newest(NamedTuple):
    """The highest frame ids recovered of a series, all frames and those also sent whole; None before any."""

    series: str = ""
    frame: int | None = None
    reference: int | None = None

    def after(self, results: Results) -> Newest:
        """The same when further results are durable."""
        header = results.header
        frames = {header.frame_ids[row] for row in results.rows}
        references = frames.intersection(header.reference_ids)
        before = self if self.series == header.series else Newest()
        return Newest(
            header.series,
            max((*frames, *([] if before.frame is None else [before.frame])), default=None),
            max((*references, *([] if before.reference is None else [before.reference])), default=None),
        )


class _Tally:
    """What this process has counted since it started; its threads add, telemetry reads."""

    def __init__(self) -> None:
        self.frames_recovered = self.frames_rejected = self.batches = 0
        self.recovery_seconds = self.write_seconds = 0.0
        self.newest = Newest()
        self.quality: dict[str, dict[str, float]] = defaultdict(
            lambda: dict.fromkeys(
                (
                    "frames",
                    "psnr_sum",
                    "ssim_sum",
                    "frc_resolution_angstrom_sum",
                    "lpips_frames",
                    "lpips_sum",
                    "free_frames",
                    "free_residual_sum",
                    "learned_frames",
                    "prior_shift_sum",
                ),
                0.0,
            )
        )

    def add(self, results: Results) -> None:
        """Count what is durable."""
        quality = self.quality[results.header.config_id]
        judged = results.psnr.keys() & results.ssim.keys() & results.frc_resolution_angstrom.keys()
        free = [value for value in results.free_residual if value is not None]
        shifts = [learned.prior_shift for learned in results.learned if learned.prior_shift is not None]
        for name, value in (
            ("frames", len(judged)),
            ("psnr_sum", sum(results.psnr[frame] for frame in judged)),
            ("ssim_sum", sum(results.ssim[frame] for frame in judged)),
            ("frc_resolution_angstrom_sum", sum(results.frc_resolution_angstrom[frame] for frame in judged)),
            ("lpips_frames", len(results.lpips)),
            ("lpips_sum", sum(results.lpips.values())),
            ("free_frames", len(free)),
            ("free_residual_sum", sum(free)),
            ("learned_frames", len(shifts)),
            ("prior_shift_sum", sum(shifts)),
        ):
            quality[name] += value
        self.newest = self.newest.after(results)
        self.frames_recovered += len(results.rows)


class Worker:
    """Everything a worker process does, apart from signals.

    Parameters
    ----------
    name : str
        As people know it; each process writes its files under a name of its own.
    metrics_address : str
        ``host:port`` where the process serves its metrics; empty: it does not.
    tracing : Tracing, optional
        Makes spans of blocks that are recovered and written.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        context: zmq.Context[Any],
        metrics_address: str = "",
        tracing: Tracing | None = None,
    ) -> None:
        self._planes = Planes(settings, "worker")
        self._planes.check_control_bus(settings.control_endpoint)
        self._is_not_protected = False
        self._tracing = tracing
        self._threads_of_torch = settings.worker_threads
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self._unique_name = f"{name}-{uuid.uuid4().hex[:8]}"
        self._recoverer = Recoverer(
            self._device,
            settings.batch_pixels,
            self._batch_changed,
            keeps_pace=True,
            lpips=lpips_of(settings, self._device),
        )
        self._choice = RecoveryChoice(RecoverySpec(), "default")
        self._inbox: SimpleQueue[Received | None] = SimpleQueue()
        self._outbox: SimpleQueue[Callable[[], None] | Outcome | None] = SimpleQueue()
        self._waiting: deque[Received | None] = deque()
        self._outputs = outputs_of(settings)
        self._writer: ResultsWriter | None = None
        self._results_error = ""  # why they cannot be written now
        self._ending = threading.Event()
        self._refused = ""  # why nothing can be written where the series wants it
        self._tally = _Tally()
        self._measured = Measured()
        self._gpu = gpu_of(self._device)
        self._credits = settings.credits
        self._series = self._session = ""
        self._busy_before = (time.monotonic(), 0.0)
        self._error: str | None = None
        self.wanted = threading.Event()  # set to have ``run_worker`` look at what happened
        self._subscriber = Subscriber(
            context,
            self._unique_name,
            credits=settings.credits,
            heartbeat_seconds=settings.heartbeat_seconds,
            deliver=self._inbox.put,
            failed=self.fail,
            security=self._planes.data_plane,
        )
        if settings.data_endpoint:
            self._planes.check_data_plane(settings.data_endpoint)
            self._subscriber.attach(settings.data_endpoint)
        self._control = ControlClient(
            context,
            settings.control_endpoint,
            Register(
                component="reconstructor",
                name=name,
                host=socket.gethostname(),
                pid=os.getpid(),
                details={
                    "device": str(self._device),
                    "threads": self._threads_of_torch,
                    "journal": self._unique_name,
                    **({"metrics": metrics_address} if metrics_address else {}),
                },
            ),
            command=self.obey,
            telemetry=self.telemetry,
            failed=self.fail,
            registered=self._registered,
            interval_seconds=settings.heartbeat_seconds,
            security=self._planes.control_bus,
        )
        self._recovery_thread = threading.Thread(
            target=self._guarded(self._recover), name="recovery", daemon=True
        )
        self._writer_thread = threading.Thread(target=self._guarded(self._write), name="writer", daemon=True)

    def start(self) -> None:
        """Join the control bus and, once it says where, the detector."""
        self._recovery_thread.start()
        self._writer_thread.start()
        self._subscriber.start()
        self._control.start()

    def close(self) -> None:
        """Take no more, finish what is here, acknowledge it, and leave."""
        self._ending.set()
        self._subscriber.leave()
        self._inbox.put(None)
        if self.failed:
            self._recovery_thread.join(LAST_BATCH_SECONDS)
        else:
            self._recovery_thread.join()
            self._outbox.put(None)
            self._writer_thread.join()
        self._subscriber.close()
        self._control.report()
        if not self.failed:
            self._control.leave()
        self._control.close()

    @property
    def computes(self) -> bool:
        """Whether a batch is still being recovered, of a worker that failed meanwhile."""
        return self._recovery_thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether the worker cannot go on."""
        return self._error is not None

    @property
    def is_not_protected(self) -> bool:
        """Whether it failed because it was told to go beyond this machine without keys."""
        return self._is_not_protected

    @property
    def error(self) -> str:
        """What it failed of, in one line."""
        return self._error or ""

    def fail(self, error: Exception) -> None:
        """Something the worker cannot do without has failed; what it held goes to others."""
        self._error = self._error or error_line(error)
        self._control.event("failed", self._error)
        self.wanted.set()

    def _guarded(self, run: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                run()
            except Exception as error:
                log.exception("a worker's thread failed")
                self.fail(error)

        return guarded

    # ---- commands

    def obey(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do what the control bus says.

        Raises
        ------
        ValueError
            If the verb or an argument is wrong.
        """
        match verb:
            case "recovery":
                self._choose(RecoveryArguments.model_validate(arguments))
                return {"recovery_id": self._choice.recovery_id}
            case "attach":
                self._attach(AttachArguments.model_validate(arguments).data_endpoint)
                return {}
            case _:
                raise ValueError(f"a reconstructor does not know the command {verb!r}")

    def _choose(self, wanted: RecoveryArguments) -> None:
        check_recovery(wanted.recovery)
        self._choice = RecoveryChoice(wanted.recovery, wanted.recovery_id)

    def _registered(self, answer: Registered) -> None:
        if answer.recovery:
            spec = {name: value for name, value in answer.recovery.items() if name != "recovery_id"}
            self._choose(
                RecoveryArguments(
                    recovery=RecoverySpec.model_validate(spec), recovery_id=answer.recovery["recovery_id"]
                )
            )
        if answer.data_endpoint:
            self._attach(answer.data_endpoint)

    def _attach(self, endpoint: str) -> None:
        """Serve the detector that the control plane names, if it may be served without keys."""
        try:
            self._planes.check_data_plane(endpoint)
        except NotProtected as error:
            self._is_not_protected = True
            self.fail(ValueError(error.strerror))
        else:
            self._subscriber.attach(endpoint)

    def telemetry(self) -> dict[str, Any]:
        """What was counted since the process started, and how the worker is."""
        tally, now = self._tally, time.monotonic()
        then, busy = self._busy_before
        self._busy_before = (now, tally.recovery_seconds)
        share = (tally.recovery_seconds - busy) / (now - then) if now > then else 0.0
        learned = self._learned
        return {
            "series": self._series,
            "frames_recovered": tally.frames_recovered,
            "frames_rejected": tally.frames_rejected,
            "batches": tally.batches,
            "batch_halvings": self._recoverer.batch_halvings,
            "frames_per_batch": self._recoverer.frames_at_a_time,
            "evaluations": None if learned is None else learned.evaluations,
            "frames_per_s_possible": None if learned is None else learned.possible,
            "frames_per_s_asked": None if learned is None else learned.asked,
            "recovery_seconds": tally.recovery_seconds,
            "write_seconds": tally.write_seconds,
            "busy_share": min(1.0, max(0.0, share)),
            "blocks_held": self._subscriber.held,
            "quality": {config_id: dict(figures) for config_id, figures in list(tally.quality.items())},
            "newest": tally.newest._asdict(),
            "recovery_id": self._choice.recovery_id,
            "device": str(self._device),
            "threads": self._threads_of_torch,
            "data_endpoint": self._subscriber.endpoint,
            "malformed_messages": self._subscriber.malformed,
            "results_error": self._results_error,
            "error": self.error,
        }

    @property
    def _learned(self) -> Standing | None:
        """How the learned prior keeps up, if one is used."""
        pace = self._recoverer.pace
        return None if pace is None else pace.standing

    def families(self) -> Iterator[Family]:
        """What Prometheus is told."""
        learned = self._learned
        tally, device, threads = self._tally, str(self._device), str(self._threads_of_torch)
        yield metrics.RECOVERED.family(tally.frames_recovered)
        yield metrics.REJECTED.family(tally.frames_rejected)
        yield from self._measured.families()
        yield metrics.FRAMES_PER_BATCH.family(self._recoverer.frames_at_a_time)
        yield metrics.BATCH_HALVINGS.family(self._recoverer.batch_halvings)
        yield metrics.EVALUATIONS.family(None if learned is None else learned.evaluations)
        yield metrics.FRAMES_POSSIBLE.family(None if learned is None else learned.possible)
        yield metrics.FRAMES_ASKED.family(None if learned is None else learned.asked)
        yield metrics.BLOCKS_HELD.family(self._subscriber.held)
        yield metrics.CREDITS.family(self._credits)
        yield metrics.WORKER_INFO.family({(device, threads): 1})
        yield metrics.MALFORMED.family(self._subscriber.malformed)
        if self._gpu is not None:
            yield from self._gpu.collect()

    # ---- the recovery thread

    def _recover(self) -> None:
        torch.set_num_threads(self._threads_of_torch)
        while not self.failed and (received := self._next()) is not None:
            match received.message:
                case Start() as start:
                    self._begin(start)
                case ConfigurationNotice() as notice:
                    if self._recoverer.configure(notice):
                        self._outbox.put(lambda notice=notice: self._configure(notice))
                case Frames(alone=True) as header:
                    self._recover_alone(header, received)
                case Frames() as header:
                    self._recover_blocks(header, received)
                case _:  # end: a series is over when its frames are, and the next start says the rest
                    pass

    def _batch_changed(self, key: BatchKey, frames: int, is_less: bool) -> None:
        """Memory was short, or is not any more."""
        settings = f"configuration {key.config_id}, {key.method}"
        now = f"{frames} frame{'s' * (frames != 1)} recovered at a time"
        if is_less:
            self._control.event("batch_halved", f"memory of {self._device} is short: {now} ({settings})")
        else:
            self._control.event(
                "batch_grown", f"memory of {self._device} holds more again: {now} ({settings})"
            )

    def _next(self) -> Received | None:
        return self._waiting.popleft() if self._waiting else self._inbox.get()

    def _begin(self, start: Start) -> None:
        if start.series == self._series:
            return  # the same series, over a new connection
        self._series = start.series
        self._session = start.session
        about(session=start.session)
        self._recoverer.start(start)
        self._outbox.put(lambda: self._open(start))

    def _recover_blocks(self, header: Frames, received: Received) -> None:
        """Recover a block, together with those of the same configuration that wait behind it."""
        blocks = [Block(header, received.buffers)]
        frames = len(header.frame_ids)
        choice, most = self._choice, self._recoverer.joined_frames
        pace = self._recoverer.keep_pace(choice)
        if pace is not None:
            pace.came(time.monotonic(), header.acquired_at)
            most = pace.frames_together(self._recoverer.frames_per_batch)
            if frames > most:
                self._recover_in_parts(header, received)
                return
        while (follower := self._peek()) is not None and isinstance(follower.message, Frames):
            next_header = follower.message
            frames += len(next_header.frame_ids)
            same = (next_header.series, next_header.config_id) == (header.series, header.config_id)
            if not same or next_header.alone or frames > most:
                break
            if pace is not None:
                pace.came(time.monotonic(), next_header.acquired_at)
            blocks.append(Block(next_header, follower.buffers))
            self._waiting.popleft()
        for outcome in self._recovered(blocks, choice):
            self._outbox.put(outcome)

    def _recover_in_parts(self, header: Frames, received: Received) -> None:
        """Recover a block that takes long, a few frames at a time, each answered for when it is done.

        So its first frames need not wait for its last, and a worker that is told to end does not either.
        """
        frames = wanted_frames(Block(header, received.buffers))
        while frames:
            if self.failed or self._subscriber.leaving:
                return  # what is left goes to others
            choice = self._choice
            pace = self._recoverer.keep_pace(choice)
            size = len(frames) if pace is None else pace.frames_together(self._recoverer.frames_per_batch)
            part, frames = frames[:size], frames[size:]
            self._recover_part(header, received, part, choice, is_last=not frames)

    def _recover_alone(self, header: Frames, received: Received) -> None:
        """Recover a block that workers died with: each frame only when the one before is answered for.

        So the detector knows which frame it was if this worker dies too.
        """
        frames = wanted_frames(Block(header, received.buffers))
        for frame in frames:
            if self.failed or self._subscriber.leaving:
                return  # what is left goes to others
            self._recover_part(header, received, [frame], self._choice, is_last=frame == frames[-1])
            written = threading.Event()
            self._outbox.put(written.set)
            while not written.wait(ANSWERED_SECONDS) and not self.failed:
                pass
            self._subscriber.await_answered(ANSWERED_SECONDS)

    def _recover_part(
        self, header: Frames, received: Received, frames: list[int], choice: RecoveryChoice, *, is_last: bool
    ) -> None:
        part = msgspec.structs.replace(header, wanted=frames)
        (outcome,) = self._recovered([Block(part, received.buffers)], choice)
        outcome.is_last = is_last
        self._outbox.put(outcome)

    def _recovered(self, blocks: list[Block], choice: RecoveryChoice) -> list[Outcome]:
        headers = [block.header for block in blocks]
        about(config=headers[0].config_id)
        began = time.monotonic()
        outcomes = self._recoverer.recover(blocks, choice)
        seconds = time.monotonic() - began
        if self._recoverer.pace is not None and (slow := self._recoverer.pace.complaint()):
            self._control.event("recovery_slow", slow)
        if self._tracing is not None:
            self._trace("recover", headers, seconds, {"cryoflux.method": choice.spec.method})
        self._tally.recovery_seconds += seconds
        self._tally.batches += 1
        wanted = (header.frame_ids if header.wanted is None else header.wanted for header in headers)
        self._measured.batch(choice.spec.method, sum(map(len, wanted)), seconds)
        return outcomes

    def _trace(self, name: str, headers: Sequence[Frames], seconds: float, more: Attributes) -> None:
        """A span, that ends now, in the trace of each block that it was made for."""
        assert self._tracing is not None
        now = time.time()
        for header in headers:
            attributes: Attributes = {
                "cryoflux.session": self._session,
                "cryoflux.config": header.config_id,
                "cryoflux.block": header.block,
                "cryoflux.frames": len(header.frame_ids if header.wanted is None else header.wanted),
                "cryoflux.attempt": header.attempt,
                "cryoflux.worker": self._unique_name,
                **more,
            }
            self._tracing.add(header.trace, name, now - seconds, now, attributes)

    def _peek(self) -> Received | None:
        """What comes next, if it is here already."""
        if not self._waiting:
            try:
                self._waiting.append(self._inbox.get_nowait())
            except Empty:
                return None
        return self._waiting[0]

    # ---- the writer's thread

    def _write(self) -> None:
        ended = False
        while not ended:
            jobs = [self._outbox.get()]
            while not self._outbox.empty():
                jobs.append(self._outbox.get())
            outcomes: list[Outcome] = []
            for job in jobs:
                match job:
                    case Outcome():
                        outcomes.append(job)
                    case None:
                        ended = True
                    case _:
                        self._finish(outcomes)
                        outcomes = []
                        self._on_disk(job)
            self._finish(outcomes)
        if self._writer is not None:
            self._writer.close()

    def _on_disk(self, write: Callable[[], None]) -> bool:
        """Have something written. On a disk that is full, as soon as somebody has made room.

        Meanwhile the worker serves nobody, and the blocks that it has go to others. False: it was told to end
        before there was room.
        """
        while True:
            try:
                write()
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                if not self._results_error:
                    self._no_room(error)
            else:
                if self._results_error and not self._ending.is_set():
                    self._results_error = ""
                    self._control.event("results_back", "there is room for the results again: worker goes on")
                    self._subscriber.rejoin()
                return True
            if self._ending.wait(ROOM_SECONDS):
                return False

    def _no_room(self, error: OSError) -> None:
        self._results_error = error_line(error)
        self._subscriber.withdraw()
        told = f"the results cannot be written ({self._results_error}): this worker's frames go to others"
        log.error("%s", told)
        self._control.event("results_failed", f"{told}; it goes on as soon as there is room")

    def _open(self, start: Start) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._refused = None, ""
        try:
            output = self._outputs.make_folder(start.output)
        except NotAllowed as error:
            self._refused = f"output: {error}"
            log.error("%s", self._refused)
            self._control.event("error", f"frames are rejected: {self._refused}")
            return
        self._writer = ResultsWriter(msgspec.structs.replace(start, output=str(output)), self._unique_name)

    def _configure(self, notice: ConfigurationNotice) -> None:
        if self._writer is None:
            return  # it must not write, or was told to end before the files could be made
        self._writer.configure(notice)
        configuration = notice.configuration
        self._measured.configuration(
            configuration["config_id"], configuration["mask"]["kind"], configuration["compression_factor"]
        )

    def _finish(self, outcomes: list[Outcome]) -> None:
        """Make results durable, then answer for their blocks."""
        if self._refused:
            for outcome in outcomes:
                outcome.results = None
                outcome.rejected = dict.fromkeys(wanted_frames(outcome.block), self._refused)
        group = [outcome.results for outcome in outcomes if outcome.results is not None]
        if group:
            seconds = 0.0

            def write() -> None:
                nonlocal seconds
                assert self._writer is not None
                began = time.monotonic()
                self._writer.write(group)
                seconds = time.monotonic() - began

            if self._writer is None or not self._on_disk(write):
                return  # given up: others have these blocks
            self._tally.write_seconds += seconds
            if self._tracing is not None:
                self._trace("write", [results.header for results in group], seconds, {})
            self._measured.written(seconds)
        for outcome in outcomes:
            header, results = outcome.block.header, outcome.results
            answers: list[Message] = []
            if results is not None:
                self._tally.add(results)
                self._measured.judged(results)
                frame_ids = [header.frame_ids[row] for row in results.rows]
                answers.append(Ack(series=header.series, block=header.block, frame_ids=frame_ids))
            self._tally.frames_rejected += len(outcome.rejected)
            for reason in dict.fromkeys(outcome.rejected.values()):
                frames = [frame for frame, why in outcome.rejected.items() if why == reason]
                answers.append(
                    Reject(series=header.series, block=header.block, frame_ids=frames, reason=reason)
                )
            self._subscriber.finish(answers, is_last=outcome.is_last)


def run_worker(settings: Settings, name: str) -> int:
    """Run a worker until it is told to end (SIGTERM, SIGINT); the process's exit code.

    It then takes no more blocks, finishes and acknowledges those it has, and says goodbye.
    """
    keep_freed_memory()
    context: zmq.Context[Any] = zmq.Context()
    try:
        exposition = Exposition.of(settings)
        tracing = start_tracing(settings.otlp_endpoint, component="reconstructor", name=name)
        worker = Worker(settings, name, context, metrics_address=exposition.address, tracing=tracing)
    except (OSError, RuntimeError, WrongWeights) as error:  # an endpoint or a device that does not exist
        last_word(f"cryoflux reconstructor: {getattr(error, 'strerror', None) or error_line(error)}")
        return 2 if isinstance(error, NotProtected | WrongWeights) else 1
    for number in ending_signals():
        signal.signal(number, lambda number, frame: worker.wanted.set())
    exposition.serve(registry_of(worker.families))
    worker.start()
    log.info("metrics on http://%s/metrics", exposition.address)
    worker.wanted.wait()
    worker.close()
    if tracing is not None:
        tracing.close()
    exposition.close()
    context.term()
    if worker.failed:
        last_word(f"cryoflux reconstructor: {worker.error}")
        code = 2 if worker.is_not_protected else 1
        if worker.computes:  # torn down with the interpreter, it would abort the process, with another code
            os._exit(code)
        return code
    return 0
