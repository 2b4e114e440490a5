"""Traces of the detector's blocks: acquired, delivered, acknowledged."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from common.clock import SteadyClock
from common.tracing import Attributes, Tracing
from common.wire.messages import Ack, Frames

BLOCKS_KEPT = 4096  # whose times are remembered; of older ones some spans are missing


@dataclass(slots=True)
class _Times:
    traceparent: str
    queued_at: float
    sent_at: float
    open_frames: int


class BlockTraces:
    """Makes the detector's spans of each block; used from its threads."""

    def __init__(self, tracing: Tracing, session: str = "") -> None:
        self._tracing = tracing
        self.clock = SteadyClock()
        self._lock = threading.Lock()
        self._times: OrderedDict[int, _Times] = OrderedDict()
        self.session = session

    def queued(self, header: Frames) -> Frames:
        """A block that was acquired and is queued under its number; the header that carries its trace."""
        now = self.clock.now()
        traceparent = self._tracing.begin("acquire", header.acquired_at[0], now, self._attributes(header))
        with self._lock:
            self._times[header.block] = _Times(traceparent, now, now, len(header.frame_ids))
            if len(self._times) > BLOCKS_KEPT:
                self._times.popitem(last=False)
        return msgspec.structs.replace(header, trace=traceparent)

    def sent(self, header: Frames, worker: str) -> None:
        """A block was handed to the socket."""
        now = self.clock.now()
        with self._lock:
            times = self._times.get(header.block)
            if times is None:  # another process queued it
                times = self._times[header.block] = _Times(header.trace, now, now, len(header.frame_ids))
            waited_since, times.sent_at = times.queued_at, now
            times.queued_at = now  # if it is sent again, it has waited from here on
        attributes = {
            **self._attributes(header),
            "cryoflux.attempt": header.attempt,
            "cryoflux.worker": worker,
        }
        self._tracing.add(header.trace, "deliver", waited_since, now, attributes)

    def acknowledged(self, ack: Ack) -> None:
        """Results of frames of a block are on disk."""
        with self._lock:
            times = self._times.get(ack.block)
            if times is None:
                return
            times.open_frames -= len(ack.frame_ids)
            if times.open_frames <= 0:
                del self._times[ack.block]
        attributes: Attributes = {
            "cryoflux.session": self.session,
            "cryoflux.block": ack.block,
            "cryoflux.frames": len(ack.frame_ids),
        }
        self._tracing.add(times.traceparent, "acknowledge", times.sent_at, self.clock.now(), attributes)

    def close(self) -> None:
        """Send what is left."""
        self._tracing.close()

    def _attributes(self, header: Frames) -> Attributes:
        return {
            "cryoflux.session": self.session,
            "cryoflux.config": header.config_id,
            "cryoflux.block": header.block,
            "cryoflux.frames": len(header.frame_ids),
        }
