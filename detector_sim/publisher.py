"""The detector's end of the data plane: a thread that sends what the ledger says, at the link's speed."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq

from common.clock import SteadyClock
from common.wire.keys import Security
from common.wire.link import Buffer, Link, LinkLimit, Malformed, PeerGone, Received, not_listened_to
from common.wire.messages import (
    Ack,
    ConfigurationNotice,
    Credit,
    Frames,
    Goodbye,
    Heartbeat,
    Hello,
    Refusal,
    Reject,
    Start,
)
from common.wire.waking import Bell, Pulse
from detector_sim.ledger import Ledger
from detector_sim.safekeeping import Kept, Safekeeping
from detector_sim.spool import Answer, Answers, Change, Exposed, Found, Head, Spool, SpoolDamaged, Turn
from detector_sim.tracing import BlockTraces

log = logging.getLogger(__name__)

LONGEST_POLL_SECONDS = 0.5
TOLD_SECONDS = 1.0  # between two lines about messages that are not understood
NOTED_EVERY_SECONDS = 0.05  # verdicts that a killed process had not yet written down are asked for again
FIGURES_EVERY_SECONDS = 0.2
SPOOL_FULL = "spool full"
GONE = "is gone"  # of a worker whose connection is, without a goodbye


class Publisher:
    """Serves workers on one socket, series after series.

    The acquisition thread hands over blocks; the publisher's own thread sends them, listens to workers and
    keeps the ledger. ``changed`` guards the ledger and is notified when room has come free.

    Parameters
    ----------
    safekeeping : Safekeeping
        Has every block before it is sent, and those that wait for room in the window.
    traces : BlockTraces, optional
        Makes spans of blocks that are queued, sent and acknowledged.
    event : callable
        ``event(kind, message)``: told about workers that come and go.
    drained : callable
        Called on the publisher's thread when a completed series has been delivered and *end* was sent.
    failed : callable
        Told if the publisher's thread fails; nothing moves any more.
    security : Security, optional
        Encrypts the data plane, and says which workers are let in.

    Raises
    ------
    OSError
        If ``bind`` cannot be bound, in one line.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        bind: str,
        *,
        heartbeat_seconds: float,
        silent_after_seconds: float,
        window_bytes: int,
        safekeeping: Safekeeping,
        traces: BlockTraces | None = None,
        event: Callable[[str, str], None],
        drained: Callable[[], None],
        failed: Callable[[Exception], None],
        security: Security | None = None,
    ) -> None:
        self._link = Link.router(context, bind, security)
        self._ledger = Ledger(
            silent_after_seconds=silent_after_seconds, window_bytes=window_bytes, event=event
        )
        self._safekeeping = safekeeping
        self._traces = traces
        self._limit = LinkLimit(None)
        self._heartbeat = Pulse(heartbeat_seconds)
        self._telling, self._shutting_out = Pulse(TOLD_SECONDS), Pulse(TOLD_SECONDS)
        self._watch = Pulse(silent_after_seconds / 10)
        self._event, self._drained, self._failed = event, drained, failed
        self._bell = Bell()
        self._closing = False
        self._series_open = False
        self._sent_before = 0
        self._noting = Pulse(NOTED_EVERY_SECONDS)
        self._figuring = Pulse(FIGURES_EVERY_SECONDS)
        self._unnoted: list[Answer] = []
        self.figures: Callable[[], dict[str, Any]] = dict  # what a successor goes on counting from
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self.window_bytes = window_bytes
        self.clock = SteadyClock()  # of the series: when its frames were acquired, and answered for
        if traces is not None:
            traces.clock = self.clock
        self.joined = self.refused = 0  # workers that came; messages of strangers
        self.departed: Counter[str] = Counter()  # workers that went, by common.metrics.DEPARTURES
        self.changed = threading.Condition()

    @property
    def endpoint(self) -> str:
        """The address really bound."""
        return self._link.endpoint

    def start(self) -> None:
        """Serve workers."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving; what is queued in the socket gets a moment to leave."""
        self._closing = True
        self._bell.ring()
        if self._thread.ident is not None:
            self._thread.join()
        self._link.close()
        self._bell.close()

    # ---- the acquisition side

    @property
    def ledger(self) -> Ledger:
        """The accounts; hold ``changed`` while looking at them."""
        return self._ledger

    @property
    def bytes_wire(self) -> int:
        """Bytes sent since the series was opened: headers, payloads, references, heartbeats, redeliveries."""
        return self._link.bytes_sent - self._sent_before

    @property
    def bytes_sent(self) -> int:
        """Bytes sent since the process started."""
        return self._link.bytes_sent

    @property
    def malformed(self) -> int:
        """Messages received that could not be read."""
        return self._link.malformed

    @property
    def turned_away(self) -> int:
        """How often somebody was not let in."""
        return self._link.turned_away

    def workers(self) -> list[dict[str, Any]]:
        """The workers as seen from here."""
        now = time.monotonic()
        with self.changed:
            return [
                {
                    "name": peer.name,
                    "credit": peer.credit,
                    "in_flight": sum(len(block.open_frames) for block in peer.blocks.values()),
                    "last_seen_s": now - peer.last_seen,
                    "present": peer.present,
                }
                for peer in self._ledger.peers.values()
            ]

    def open(self, head: Head, link_mbit_per_s: float | None, *, has_clock: bool) -> None:
        """Begin a series over a link of this speed (None: unlimited).

        ``has_clock``: the camera has a rate, so that what does not fit into the window goes to the spool. One
        that is as fast as the chain lets it be waits instead.
        """
        self._safekeeping.begin(head, has_clock=has_clock)
        self._open(head.start, link_mbit_per_s)

    def take_up(self, spool: Spool, found: Found, link_mbit_per_s: float | None, *, has_clock: bool) -> None:
        """Go on with a series that another process left, its configurations included."""
        self._safekeeping.take_up(spool, found, has_clock=has_clock)
        self._open(found.head.start, link_mbit_per_s, found)

    def _open(self, start: Start, link_mbit_per_s: float | None, found: Found | None = None) -> None:
        if self._traces is not None:
            self._traces.session = start.session
        self.clock.set()
        with self.changed:
            self._ledger.open(start, found)
            for change in found.changes if found is not None else ():
                self._ledger.configure(ConfigurationNotice(configuration=change.configuration))
            self._unnoted.clear()
            self._limit = LinkLimit(link_mbit_per_s)
            self._sent_before = self._link.bytes_sent
            self._series_open = True
        self._bell.ring()

    def spool_counters(self) -> dict[str, Any]:
        """How full the spool is, and what is wrong with it; for telemetry."""
        return self._safekeeping.counters()

    def expose(self, until: int) -> None:
        """All frames below ``until`` are exposed; to be said before anybody is told of them."""
        self._safekeeping.note(Exposed(until=until))

    def note(self, record: Change | Turn) -> None:
        """Write down what happened to the series, for whoever may have to go on with it."""
        self._safekeeping.note(record)

    def has_room(self, size: int) -> bool:
        """Whether a block of ``size`` bytes may be acquired now; hold ``changed``."""
        kept, fits_window = self._safekeeping, self._ledger.has_room(size)
        fits_window = fits_window and not self._ledger.is_overflowing
        if not kept.writes:
            return fits_window
        if not kept.takes(size):
            return kept.drops
        return fits_window or kept.has_clock

    def spool_lacks_room(self, size: int) -> bool:
        """Whether a block of ``size`` bytes has to wait because the spool is full; hold ``changed``."""
        kept = self._safekeeping
        return kept.writes and not kept.takes(size)

    def configure(self, notice: ConfigurationNotice) -> None:
        """Make a configuration known before the first block that uses it."""
        with self.changed:
            self._ledger.configure(notice)

    def add(self, header: Frames, buffers: Sequence[Buffer]) -> None:
        """Queue a block; its buffers must stay as they are until it is acknowledged."""
        with self.changed:
            header = msgspec.structs.replace(header, block=self._ledger.next_number)
        if self._traces is not None:
            header = self._traces.queued(header)
        kept = self._safekeeping.keep(header, buffers)  # nobody else adds, so the number stays
        with self.changed:
            if kept is Kept.NOWHERE:
                self._ledger.drop(header, SPOOL_FULL)
                return
            self._ledger.add(header, buffers, on_disk=kept is Kept.ON_DISK)
            is_awaited = self._ledger.has_credit
        if is_awaited:
            self._bell.ring()

    def lose(self, frame_ids: Sequence[int], reason: str, kind: str = "other") -> None:
        """Frames that are in no block yet will never be sent."""
        with self.changed:
            self._ledger.lose(len(frame_ids), reason, kind)
        answer = Answer(block=None, frame_ids=list(frame_ids), reason=reason)
        self._safekeeping.note(Answers(answers=[answer]))

    def complete(self) -> None:
        """No frame will be acquired any more: when all is delivered, the series ends."""
        with self.changed:
            self._ledger.complete()
        self._bell.ring()

    def abandon(self, reason: str) -> None:
        """Give up what is not yet delivered."""
        with self.changed:
            self._ledger.abandon(reason)
        self._bell.ring()

    # ---- the publisher's thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            log.exception("the publisher's thread failed")
            self._failed(error)

    def _serve(self) -> None:
        poller = zmq.Poller()
        self._link.register(poller)
        self._bell.register(poller)
        wait = 0.0
        while not self._closing:
            poller.poll(int(1000 * wait) + 1 if wait > 0 else 0)
            self._bell.clear()
            heard = self._receive()
            now = time.monotonic()
            while (news := self._link.news()) is not None:
                self._event("not_let_in", news)
            with self.changed:
                if self._watch.due(now):
                    for name in self._ledger.tick(now):
                        self.departed["silent"] += 1
                        self._event("worker_silent", f"worker {name} is silent: its frames go to others")
                if self._heartbeat.due(now):
                    self._ledger.heartbeat()
                ending = self._series_open and self._ledger.drained
                if ending:
                    self._series_open = False
                    self._ledger.end(self._ledger.accounts().acquired - 1)
                self._unnoted += self._ledger.take_answers()
                noted = self._noting.due(now) or ending
                if (heard and self._ledger.is_roomy) or noted:
                    self.changed.notify_all()
            if noted:
                self._note_answers(now, last=ending)
            self._send_notices()
            if ending:
                self._drained()
            self._fetch()
            pause = self._send_blocks()
            now = time.monotonic()
            wait = min(pause, self._heartbeat.wait(now), self._watch.wait(now))
            if self._unnoted:
                wait = min(wait, self._noting.wait(now))

    def _note_answers(self, now: float, *, last: bool) -> None:
        """Write down what became of frames; blocks that are settled make room in the spool."""
        figures = self.figures() if last or (self._series_open and self._figuring.due(now)) else None
        if self._unnoted or figures:
            answers, self._unnoted = self._unnoted, []
            self._safekeeping.note(Answers(answers=answers, figures=figures))

    def _fetch(self) -> None:
        """Have the next blocks back from the spool, as far as the window has room."""
        while True:
            with self.changed:
                number = self._ledger.wanted_from_spool()
            if number is None:
                return
            try:
                header, buffers = self._safekeeping.read(number)
            except (KeyError, OSError, SpoolDamaged) as error:
                reason = "damaged in the spool"
                log.error("block %d: %s", number, error)
                with self.changed:
                    self._ledger.lose_spooled(number, reason, "spool_damaged")
                self._event("spool_damaged", f"a block cannot be read back: {error}; its frames are lost")
            else:
                with self.changed:
                    self._ledger.come_back(header, buffers)

    def _receive(self) -> bool:
        heard = False
        for received in self._link.turn():
            heard = True
            with self.changed:
                self._hear(received)
        return heard

    def _hear(self, received: Received) -> None:
        identity, ledger = received.identity, self._ledger
        now = time.monotonic()
        if ledger.heard(identity, now):
            self._event("worker_back", f"worker {ledger.peers[identity].name} is heard again")
        match received.message:
            case Ack() as ack:
                if self._traces is not None:
                    self._traces.acknowledged(ack)
                ledger.ack(ack, self.clock.now())
                ledger.credit(identity, ack.credit)
            case Credit(blocks=blocks):
                ledger.credit(identity, blocks)
            case Heartbeat():
                pass
            case Reject() as reject:
                log.warning("frames %s rejected: %s", reject.frame_ids, reject.reason)
                ledger.reject(identity, reject)
            case Hello() as hello:
                ledger.hello(identity, hello, now)
                self.joined += 1
                self._event("worker_joined", f"worker {hello.worker} on {hello.host} (pid {hello.pid})")
            case Goodbye():
                self._lose_peer(identity, "left")
            case Malformed(reason, shut_out):
                self._refuse(identity, reason, shut_out)
            case other:
                reason = f"a detector does not take {type(other).__name__} messages"
                self._refuse(identity, reason, self._link.offend(identity))

    def _refuse(self, identity: bytes, reason: str, shut_out: bool) -> None:
        """Tell whoever sent it; people only so often, whatever comes in."""
        peer = self._ledger.peers.get(identity)
        told = self._telling.due(time.monotonic())
        if told or shut_out:
            log.warning("message from %r not understood: %s", identity, reason)
        if peer is None:
            self.refused += 1
            with contextlib.suppress(PeerGone):
                self._spend(self._link.send(Refusal(reason=reason), to=identity))
                if told and not shut_out:
                    self._event("worker_refused", reason)
        if shut_out and self._shutting_out.due(time.monotonic()):
            who = f"worker {peer.name}" if peer is not None else f"a stranger ({identity.hex()})"
            self._event("peer_ignored", not_listened_to(who))
        if shut_out:
            self._lose_peer(identity, "is not understood any more")

    def _lose_peer(self, identity: bytes, how: str) -> None:
        peer = self._ledger.peers.get(identity)
        if peer is not None:
            self._ledger.goodbye(identity, died=how == GONE)
            if peer.present:  # a silent one was counted when it fell silent
                self.departed["left" if how == "left" else "gone"] += 1
            self._event("worker_left", f"worker {peer.name} {how}")

    def _send_notices(self) -> None:
        """Everything but frames goes at once; it takes from the link's budget all the same."""
        while True:
            with self.changed:
                delivery = self._ledger.next_notices()
            if delivery is None:
                return
            try:
                for message, buffers in delivery.messages:
                    self._spend(self._link.send(message, buffers, to=delivery.to))
            except PeerGone:
                with self.changed:
                    self._lose_peer(delivery.to, GONE)
                    self.changed.notify_all()

    def _send_blocks(self) -> float:
        """Send what credit and the link allow; returns the seconds until the link is free again."""
        while True:
            wait = self._limit.wait(time.monotonic())
            if wait > 0:
                return wait
            with self.changed:
                delivery = self._ledger.next_block()
                overflows = self._ledger.is_overflowing
            if delivery is None:
                return LONGEST_POLL_SECONDS
            if overflows:
                self._fetch()
            try:
                for message, buffers in delivery.messages:
                    self._spend(self._link.send(message, buffers, to=delivery.to))
                    if self._traces is not None and isinstance(message, Frames):
                        self._traces.sent(message, self._ledger.peers[delivery.to].name)
            except PeerGone:
                with self.changed:
                    self._lose_peer(delivery.to, GONE)
                    self.changed.notify_all()

    def _spend(self, size: int) -> None:
        self._limit.spend(size, time.monotonic())
