"""Who holds which frames: the accounts of a series, without a socket, a thread or a clock of its own.

Every frame acquired is at every moment in exactly one of four states: acknowledged (its result is durable),
in flight (gathering into a block, queued, or with a worker), spooled (on disk, waiting for room in the
window) or lost, with a reason. Blocks go out against credit, in the order they were added; what a silent or
departed worker held goes to others; late and repeated answers count once.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from common.wire.link import Buffer, as_bytes
from common.wire.messages import (
    Ack,
    ConfigurationNotice,
    End,
    Frames,
    Heartbeat,
    Hello,
    Message,
    Reject,
    Start,
)
from detector_sim.deaths import FATAL, Deaths
from detector_sim.latency import LatencyHistogram
from detector_sim.spool import Answer, Found, compact

ATTEMPTS = 3
REASONS_KEPT = 32
REASON_CHARACTERS = 300  # of a worker's reason; what it sends is not ours
LOSSES_TOLD = 50  # a series, one by one; the others are only counted
READ_AHEAD_BLOCKS = 16  # are kept ready to be sent while others wait in the spool


class Accounts(NamedTuple):
    """Frames of the series; ``acquired == acknowledged + in_flight + spooled + sum(lost.values())``."""

    acquired: int
    acknowledged: int
    in_flight: int
    spooled: int
    lost: dict[str, int]

    @property
    def unaccounted(self) -> int:
        """Frames acquired that are nowhere; anything but 0 is an error."""
        return self.acquired - self.acknowledged - self.in_flight - self.spooled - sum(self.lost.values())

    @property
    def balanced(self) -> bool:
        """Whether every frame acquired is accounted for."""
        return self.unaccounted == 0


@dataclass(frozen=True)
class Totals:
    """What was counted since the process started, over all its series; nothing here ever decreases."""

    acquired: int = 0
    acknowledged: int = 0
    lost: Counter[str] = field(default_factory=Counter[str])  # by kind of reason
    blocks_sent: int = 0
    blocks_redelivered: int = 0
    late_answers: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)


@dataclass(eq=False, slots=True)
class Block:
    """Frames that travel together, kept until each is acknowledged or lost."""

    header: Frames
    buffers: Sequence[Buffer]
    size: int
    open_frames: dict[int, float]  # frame_id -> acquired_at, of those without a verdict
    holder: bytes | None = None
    refusals: Counter[int] = field(default_factory=Counter)  # frame_id -> how many times, over all deliveries
    refused: dict[int, str] = field(default_factory=dict)  # in this delivery, with the reason
    refused_by: set[bytes] = field(default_factory=set)
    deaths: Deaths = field(default_factory=Deaths)


@dataclass(eq=False, slots=True)
class Spooled:
    """A block that waits on disk for room in the window."""

    block: int
    frame_ids: Sequence[int]  # a range where they follow one another: there may be very many of these
    size: int
    answered: set[int] = field(default_factory=set)

    @property
    def frames(self) -> int:
        """Frames without a verdict."""
        return len(self.frame_ids) - len(self.answered)


@dataclass(eq=False, slots=True)
class Peer:
    """A worker as the detector sees it."""

    name: str
    last_seen: float
    credit: int = 0
    served: int = 0  # blocks it was given
    present: bool = True
    blocks: dict[int, Block] = field(default_factory=dict)
    configurations: set[str] = field(default_factory=set)
    notices: deque[Message] = field(default_factory=deque)


class Delivery(NamedTuple):
    """Messages for one worker, in order."""

    to: bytes
    messages: list[tuple[Message, Sequence[Buffer]]]


class Ledger:
    """The accounts of the running series and of the workers that serve it.

    All times are passed in: ``now`` in seconds of a monotonic clock, wall-clock times as Unix seconds.

    Parameters
    ----------
    event : callable
        ``event(kind, message)``: told of frames that are lost and of blocks that workers die with.
    """

    def __init__(
        self,
        *,
        silent_after_seconds: float,
        window_bytes: int,
        event: Callable[[str, str], None] = lambda kind, message: None,
    ) -> None:
        self._silent_after = silent_after_seconds
        self._window = window_bytes
        self._event = event
        self.peers: dict[bytes, Peer] = {}
        self._start: Start | None = None
        self._end: End | None = None
        self._next_block = 0
        self._past = Totals()
        self._reset()

    def _reset(self) -> None:
        self._configurations: dict[str, ConfigurationNotice] = {}
        self._blocks: dict[int, Block] = {}
        self._queue: deque[Block] = deque()
        self._spooled: dict[int, Spooled] = {}
        self._waiting: deque[Spooled | Block] = deque()  # behind the queue, in order
        self._waiting_bytes = self._spooled_frames = 0  # in memory; on disk
        self._answers: list[Answer] = []
        self._acquired = self._acknowledged = self._gathering = 0
        self._lost: Counter[str] = Counter()
        self._lost_kinds: Counter[str] = Counter()
        self._held_bytes = 0
        self._suspected: set[int] = set()  # blocks that are handed out alone
        self._dead: set[str] = set()  # worker processes, as far as is known
        self._losses_told = 0
        self._complete = False
        self._blocks_sent = 0
        self.blocks_redelivered = 0
        self.late_answers = 0
        self._latency = LatencyHistogram()
        self._latency_before = LatencyHistogram()  # of the processes that had the series before

    # ---- the series

    def open(self, start: Start, found: Found | None = None) -> None:
        """Begin a series; every worker is told. The one before must be over.

        ``found`` is what a process before left of this very series: its blocks wait in the spool, its counts
        go on, and the frames that were gathering are in flight until they are added again or lost.

        Raises
        ------
        RuntimeError
            If frames of the series before are still in flight.
        """
        if self._blocks or self._gathering or self._spooled:
            raise RuntimeError("the series before still has frames in flight")
        self._past = self.totals()
        self._reset()
        self._start, self._end = start, None
        if found is not None:
            self._take_up(found)
        for peer in self.peers.values():
            peer.configurations.clear()
            peer.notices.append(start)

    def _take_up(self, found: Found) -> None:
        self._next_block = max(self._next_block, found.next_block)
        self._acquired, self._acknowledged = found.exposed, found.acknowledged
        self._lost = Counter(found.lost)
        self._gathering = len(found.gathering)
        for waiting in found.blocks:
            entry = Spooled(waiting.block, compact(waiting.frame_ids), waiting.size)
            self._spooled[entry.block] = entry
            self._waiting.append(entry)
            self._spooled_frames += entry.frames
        figures = found.figures
        self.blocks_redelivered = int(figures.get("blocks_redelivered", 0))
        self._latency_before.restore(
            figures.get("latency_counts", []), float(figures.get("latency_sum_seconds", 0.0))
        )
        # what is counted since the process started begins with the frames that it found without a verdict
        past, lost = self._past, self._lost.total()
        self._past = dataclasses.replace(
            past,
            acquired=past.acquired - self._acknowledged - lost,
            acknowledged=past.acknowledged - self._acknowledged,
            blocks_redelivered=past.blocks_redelivered - self.blocks_redelivered,
        )

    def acquire(self, count: int) -> None:
        """So many frames were exposed; they are in flight from now on."""
        self._acquired += count
        self._gathering += count

    def lose(self, count: int, reason: str, kind: str = "other") -> None:
        """So many frames that are in no block yet will never be sent.

        ``kind`` is one of ``common.metrics.LOSS_REASONS``; the reason may be any text.
        """
        self._gathering -= count
        self._count_lost(count, reason, kind)

    def configure(self, notice: ConfigurationNotice) -> None:
        """Make a configuration known; workers are told before the first frames that use it."""
        self._configurations[notice.configuration["config_id"]] = notice

    @property
    def next_number(self) -> int:
        """The number that the next block gets."""
        return self._next_block

    def add(self, header: Frames, buffers: Sequence[Buffer], *, on_disk: bool = False) -> None:
        """Queue a block of frames that were acquired; it gets its number here.

        ``on_disk``: the spool has it, so that it need not be kept in memory while the window is full.
        """
        if header.config_id not in self._configurations:
            raise KeyError(f"configuration {header.config_id} was never announced")
        header = msgspec.structs.replace(header, block=self._next_block)
        size = sum(len(as_bytes(buffer)) for buffer in buffers)
        self._next_block += 1
        self._gathering -= len(header.frame_ids)
        if on_disk and (self._waiting or not self.has_room(size)):
            entry = self._spooled[header.block] = Spooled(header.block, compact(header.frame_ids), size)
            self._waiting.append(entry)
            self._spooled_frames += entry.frames
            return
        frames = dict(zip(header.frame_ids, header.acquired_at, strict=True))
        block = self._blocks[header.block] = Block(header, buffers, size, frames)
        self._held_bytes += size
        if self._waiting:
            self._waiting.append(block)
            self._waiting_bytes += size
        else:
            self._queue.append(block)

    def drop(self, header: Frames, reason: str) -> None:
        """Give up a block of frames that were acquired, in place of adding it."""
        self._answers.append(Answer(block=self._next_block, frame_ids=header.frame_ids, reason=reason))
        self._next_block += 1
        self.lose(len(header.frame_ids), reason, "dropped")

    def complete(self) -> None:
        """No frame will be acquired any more."""
        self._complete = True

    def lose_gathering(self, reason: str, kind: str = "acquisition_failed") -> None:
        """The frames that are in no block yet will never be sent."""
        self.lose(self._gathering, reason, kind)

    def abandon(self, reason: str) -> None:
        """Give up what is still in flight, for the reason given."""
        self.lose_gathering(reason, "stopped")
        for block in list(self._blocks.values()):
            self._lose_of(block.header.block, list(block.open_frames), reason, "stopped")
            block.open_frames.clear()
            self._forget(block)
        for number in list(self._spooled):
            self.lose_spooled(number, reason, "stopped")

    @property
    def drained(self) -> bool:
        """Whether the series is complete and every frame has its verdict."""
        return self._complete and not self._blocks and not self._gathering and not self._spooled

    def end(self, last_frame_id: int) -> None:
        """Tell every worker that the series is over."""
        assert self._start is not None
        accounts = self.accounts()
        self._end = End(
            series=self._start.series,
            last_frame_id=last_frame_id,
            acquired=accounts.acquired,
            acknowledged=accounts.acknowledged,
            lost=sum(accounts.lost.values()),
        )
        for peer in self.peers.values():
            peer.notices.append(self._end)

    @property
    def in_flight(self) -> int:
        """Frames without a verdict that are in memory, counted one by one from what is held."""
        return self._gathering + sum(len(block.open_frames) for block in self._blocks.values())

    def totals(self) -> Totals:
        """What was counted since the process started; not checked, for whoever watches to see it as it is."""
        past = self._past
        return Totals(
            acquired=past.acquired + self._acquired,
            acknowledged=past.acknowledged + self._acknowledged,
            lost=past.lost + self._lost_kinds,
            blocks_sent=past.blocks_sent + self._blocks_sent,
            blocks_redelivered=past.blocks_redelivered + self.blocks_redelivered,
            late_answers=past.late_answers + self.late_answers,
            latency=past.latency.with_those_of(self._latency),
        )

    @property
    def latency(self) -> LatencyHistogram:
        """Of the series, from the exposure to the acknowledgement."""
        return self._latency_before.with_those_of(self._latency)

    @property
    def spooled(self) -> int:
        """Frames without a verdict that wait on disk only."""
        return self._spooled_frames

    def accounts(self) -> Accounts:
        """Where every frame is, each counted where it is held and none as a difference."""
        return Accounts(
            self._acquired, self._acknowledged, self.in_flight, self._spooled_frames, dict(self._lost)
        )

    @property
    def queued(self) -> int:
        """Frames in flight that no worker holds: gathering into a block, or in one that waits to be sent."""
        waiting = [block for block in (*self._queue, *self._waiting) if isinstance(block, Block)]
        return self._gathering + sum(len(block.open_frames) for block in waiting if self._is_open(block))

    def has_room(self, size: int) -> bool:
        """Whether the window of unacknowledged payload takes ``size`` bytes more (an empty one takes any)."""
        return not self._held_bytes or self._held_bytes + size <= self._window

    @property
    def is_roomy(self) -> bool:
        """Whether so much room has come free that it pays to wake whoever waits for it."""
        return self._held_bytes <= self._window * 7 // 8

    @property
    def is_overflowing(self) -> bool:
        """Whether blocks wait behind the window, so that new ones have to wait behind them."""
        return bool(self._waiting)

    @property
    def has_credit(self) -> bool:
        """Whether some worker would take a block now."""
        return any(peer.present and peer.credit > 0 for peer in self.peers.values())

    @property
    def held_bytes(self) -> int:
        """Payload that waits for its acknowledgement, queued or sent."""
        return self._held_bytes

    # ---- what workers say

    def hello(self, identity: bytes, hello: Hello, now: float) -> None:
        """A worker starts, or starts again over a new connection: what it held before goes to others."""
        self._recall(identity)
        self._take_back(hello.worker)
        peer = self.peers[identity] = Peer(name=hello.worker, last_seen=now)
        if self._start is not None:
            peer.notices.append(self._start)
        if self._end is not None:
            peer.notices.append(self._end)

    def heard(self, identity: bytes, now: float) -> bool:
        """A sign of life. True if the worker had been given up as silent, and is back."""
        peer = self.peers.get(identity)
        if peer is None:
            return False
        returned = not peer.present
        peer.last_seen, peer.present = now, True
        if returned:
            self._take_back(peer.name)
        return returned

    def credit(self, identity: bytes, blocks: int) -> None:
        """A worker takes this many blocks more."""
        peer = self.peers.get(identity)
        if peer is not None and blocks > 0:
            peer.credit += blocks

    def ack(self, ack: Ack, wall_now: float) -> int:
        """Results are durable, whoever recovered them; returns how many frames that is news for."""
        if ack.block in self._spooled and self._start is not None and ack.series == self._start.series:
            return self._ack_spooled(ack)
        block = self._block_of(ack)
        if block is None:
            return 0
        frames = [frame for frame in dict.fromkeys(ack.frame_ids) if frame in block.open_frames]
        times = [block.open_frames.pop(frame) for frame in frames]
        self._acknowledged += len(times)
        self.late_answers += len(ack.frame_ids) - len(times)
        self._latency.add([wall_now - time for time in times])
        if frames:
            self._answers.append(Answer(block=ack.block, frame_ids=frames))
        self._settle(block)
        return len(times)

    def _ack_spooled(self, ack: Ack) -> int:
        """A worker that was given the block by a process before has done it meanwhile."""
        entry = self._spooled[ack.block]
        frames = [f for f in dict.fromkeys(ack.frame_ids) if f in entry.frame_ids and f not in entry.answered]
        entry.answered.update(frames)
        self._acknowledged += len(frames)
        self._spooled_frames -= len(frames)
        self.late_answers += len(ack.frame_ids) - len(frames)
        if frames:
            self._answers.append(Answer(block=ack.block, frame_ids=frames))
        if not entry.frames:
            del self._spooled[ack.block]
        return len(frames)

    def reject(self, identity: bytes, reject: Reject) -> None:
        """Frames could not be recovered: they are tried again, with another worker if there is one.

        After ``ATTEMPTS`` rejections of the same frame it is lost, with the last reason. Only the worker that
        holds the block now is listened to: of the others' verdicts only the good ones count.
        """
        block = self._block_of(reject)
        if block is None or block.holder != identity:
            return
        reason = reject.reason[:REASON_CHARACTERS]
        lost: list[int] = []
        for frame in reject.frame_ids:
            if frame in block.open_frames and frame not in block.refused:
                block.refused[frame] = reason
                block.refused_by.add(identity)
                block.refusals[frame] += 1
                if block.refusals[frame] >= ATTEMPTS:
                    del block.open_frames[frame]
                    lost.append(frame)
        self._give_up(block, lost, reason, "rejected")
        self._settle(block)

    def goodbye(self, identity: bytes, *, died: bool = False) -> None:
        """A worker left, or its connection is gone (``died``): what it held goes to others."""
        self._recall(identity, died=died)
        self.peers.pop(identity, None)

    # ---- what goes out

    def tick(self, now: float) -> list[str]:
        """Take back the blocks of workers that fell silent; returns their names."""
        silent = [
            identity
            for identity, peer in self.peers.items()
            if peer.present and now - peer.last_seen >= self._silent_after
        ]
        for identity in silent:
            self.peers[identity].present = False
            self._recall(identity, died=True)
        return [self.peers[identity].name for identity in silent]

    def heartbeat(self) -> None:
        """Give every worker a sign of life."""
        for peer in self.peers.values():
            peer.notices.append(Heartbeat())

    def next_notices(self) -> Delivery | None:
        """What is to be told to some worker, apart from frames."""
        for identity, peer in self.peers.items():
            if peer.notices:
                messages = [(message, ()) for message in peer.notices]
                peer.notices.clear()
                return Delivery(identity, list(messages))
        return None

    def take_answers(self) -> list[Answer]:
        """The verdicts that came since the last call, to be written down."""
        answers, self._answers = self._answers, []
        return answers

    def wanted_from_spool(self) -> int | None:
        """The block that is to come back from disk now, in its turn; None: none, or there is no room."""
        while self._waiting and len(self._queue) < READ_AHEAD_BLOCKS:
            first = self._waiting[0]
            if isinstance(first, Block):
                self._waiting.popleft()
                self._waiting_bytes -= first.size
                self._queue.append(first)
            elif first.block not in self._spooled:  # answered late, while it waited
                self._waiting.popleft()
            else:
                outstanding = self._held_bytes - self._waiting_bytes
                return first.block if not outstanding or outstanding + first.size <= self._window else None
        return None

    def come_back(self, header: Frames, buffers: Sequence[Buffer]) -> None:
        """A block from disk is in flight from now on."""
        entry = self._spooled.pop(header.block, None)
        if entry is None:
            return  # it was given up or answered while it was read
        self._spooled_frames -= entry.frames
        times = zip(header.frame_ids, header.acquired_at, strict=True)
        open_frames = {f: time for f, time in times if f in entry.frame_ids and f not in entry.answered}
        self._blocks[header.block] = block = Block(header, buffers, entry.size, open_frames)
        self._held_bytes += block.size
        self._queue.append(block)

    def lose_spooled(self, number: int, reason: str, kind: str = "other") -> None:
        """A block on disk cannot be had any more, or is given up."""
        entry = self._spooled.pop(number, None)
        if entry is not None:
            self._spooled_frames -= entry.frames
            self._lose_of(number, [f for f in entry.frame_ids if f not in entry.answered], reason, kind)

    def next_block(self) -> Delivery | None:
        """The next block that some worker may have, with its configuration if that is news to the worker.

        From here on the worker holds it; if it cannot be sent after all, call ``goodbye``.
        """
        while self._queue and not self._is_open(self._queue[0]):
            self._queue.popleft()  # acknowledged late, while it waited to be sent again
        ready = [identity for identity, peer in self.peers.items() if peer.present and peer.credit > 0]
        if not ready or not self._queue:
            return None
        ready.sort(key=self._turn)
        if self._suspected:
            reserved = self._reserved()
            if reserved is not None:
                block, identity = reserved
                if identity in ready and not self.peers[identity].blocks:
                    self._queue.remove(block)
                    return self._hand_over(block, identity)
                ready = [other for other in ready if other != identity]
            ready = [other for other in ready if not self._works_alone(other)]
            if not ready:
                return None
        for position, block in enumerate(self._queue):
            if (
                self._is_open(block)
                and not block.deaths.is_suspected
                and (identity := self._taker(block, ready)) is not None
            ):
                del self._queue[position]
                return self._hand_over(block, identity)
        return None

    def _works_alone(self, identity: bytes) -> bool:
        """Whether a worker has a suspected block, beside which it gets no other."""
        return not self._suspected.isdisjoint(self.peers[identity].blocks)

    def _reserved(self) -> tuple[Block, bytes] | None:
        """The next suspected block, one at a time, and the worker kept free for it."""
        if any(self._works_alone(identity) for identity in self.peers):
            return None
        waiting = (block for block in self._queue if block.deaths.is_suspected and self._is_open(block))
        block = next(waiting, None)
        able = [
            identity
            for identity, peer in self.peers.items()
            if peer.present and (peer.credit > 0 or peer.blocks)
        ]
        if block is None or not able:
            return None
        untried = [identity for identity in able if identity not in block.refused_by]
        return block, min(untried or able, key=lambda identity: len(self.peers[identity].blocks))

    def _turn(self, identity: bytes) -> tuple[int, int]:
        """The most free worker first; of equally free ones the one that had least."""
        peer = self.peers[identity]
        return -peer.credit, peer.served

    def _taker(self, block: Block, ready: list[bytes]) -> bytes | None:
        """The worker to try: one that has not rejected it, unless all that are present have."""
        for identity in ready:
            if identity not in block.refused_by:
                return identity
        others = any(
            peer.present and identity not in block.refused_by for identity, peer in self.peers.items()
        )
        return None if others else ready[0]

    def _hand_over(self, block: Block, identity: bytes) -> Delivery:
        peer = self.peers[identity]
        peer.credit -= 1
        peer.served += 1
        self._blocks_sent += 1
        peer.blocks[block.header.block] = block
        block.holder = identity
        if len(block.open_frames) < len(block.header.frame_ids):  # some have their verdict from before
            block.header = msgspec.structs.replace(block.header, wanted=list(block.open_frames))
        if block.deaths.is_suspected != block.header.alone:
            block.header = msgspec.structs.replace(block.header, alone=not block.header.alone)
        messages: list[tuple[Message, Sequence[Buffer]]] = []
        if block.header.config_id not in peer.configurations:
            peer.configurations.add(block.header.config_id)
            messages.append((self._configurations[block.header.config_id], ()))
        messages.append((block.header, block.buffers))
        return Delivery(identity, messages)

    # ---- inside

    def _is_open(self, block: Block) -> bool:
        return self._blocks.get(block.header.block) is block

    def _block_of(self, answer: Ack | Reject) -> Block | None:
        block = self._blocks.get(answer.block)
        if block is None or answer.series != block.header.series:
            self.late_answers += len(answer.frame_ids)
            return None
        return block

    def _lose_of(self, number: int, frames: list[int], reason: str, kind: str) -> None:
        """Frames of a block are lost."""
        if frames:
            self._answers.append(Answer(block=number, frame_ids=frames, reason=reason))
            self._count_lost(len(frames), reason, kind)

    def _give_up(self, block: Block, frames: list[int], reason: str, kind: str) -> None:
        """Frames that were tried often enough are lost, and that is told."""
        if not frames:
            return
        self._lose_of(block.header.block, frames, reason, kind)
        self._losses_told += 1
        if self._losses_told <= LOSSES_TOLD:
            last = "; further ones are only counted" if self._losses_told == LOSSES_TOLD else ""
            self._event("frames_lost", f"{_named(frames)} lost: {reason}{last}")

    def _count_lost(self, count: int, reason: str, kind: str) -> None:
        if not count:
            return
        self._lost_kinds[kind] += count
        if reason not in self._lost and len(self._lost) >= REASONS_KEPT:
            reason = "other reasons"
        self._lost[reason] += count

    def _settle(self, block: Block) -> None:
        """After a verdict: forget the block if all are in; try again what was only rejected."""
        if not block.open_frames:
            self._forget(block)
        elif block.holder is not None and all(frame in block.refused for frame in block.open_frames):
            self._requeue(block)

    def _forget(self, block: Block) -> None:
        self._release(block)
        self._suspected.discard(block.header.block)
        del self._blocks[block.header.block]
        self._held_bytes -= block.size

    def _release(self, block: Block) -> None:
        if block.holder is not None and block.holder in self.peers:
            self.peers[block.holder].blocks.pop(block.header.block, None)
        block.holder = None

    def _requeue(self, block: Block) -> None:
        self._release(block)
        block.refused.clear()
        block.header = msgspec.structs.replace(block.header, attempt=block.header.attempt + 1)
        self._queue.appendleft(block)
        self.blocks_redelivered += 1

    def _recall(self, identity: bytes, *, died: bool = False) -> None:
        peer = self.peers.get(identity)
        if peer is None:
            return
        if died:
            self._dead.add(peer.name)
        for block in sorted(peer.blocks.values(), key=lambda b: b.header.block, reverse=True):
            if died:
                self._suspect(block, peer.name)
            if block.open_frames:
                self._requeue(block)
            else:
                self._forget(block)

    def _suspect(self, block: Block, worker: str) -> None:
        """A worker died with a block."""
        first = next((frame for frame in block.open_frames if frame not in block.refused), None)
        if first is None:
            return
        deaths, number = block.deaths, block.header.block
        if deaths.add(worker, first):
            del block.open_frames[first]
            self._give_up(block, [first], FATAL, "worker_died")
        if deaths.is_suspected and number not in self._suspected:
            self._suspected.add(number)
            count = len(deaths.with_block)
            told = f"{count} workers died with the block of {_named(list(block.open_frames))}"
            self._event("block_suspected", f"{told}: it is tried alone, frame by frame")

    def _take_back(self, worker: str) -> None:
        """A worker that was thought dead is not."""
        if worker not in self._dead:
            return
        self._dead.discard(worker)
        for number, block in self._blocks.items():
            block.deaths.take_back(worker)
            if not block.deaths.is_suspected:
                self._suspected.discard(number)


def _named(frames: Sequence[int]) -> str:
    """Frames as people are told of them: ``frame 7``, ``frames 3, 7``, ``64 frames from frame 128 on``."""
    if len(frames) == 1:
        return f"frame {frames[0]}"
    if len(frames) <= 5:
        return f"frames {', '.join(map(str, frames))}"
    return f"{len(frames)} frames from frame {frames[0]} on"
