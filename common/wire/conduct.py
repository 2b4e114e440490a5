"""Who sends what cannot be read, how often, and who is therefore not listened to for a while.

A peer now and then of another version is told so and forgotten. One that goes on is disconnected, and what it
sends is dropped unread until it has had time to come to its senses: reading garbage costs the others. One
that comes back under another name each time is known by where it comes from: its key, or else its address.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

OFFENCES_ALLOWED = 10  # within
OFFENCES_ALLOWED_OF_AN_ORIGIN = 100  # by whatever names: others may come from the same place
OFFENCE_SECONDS = 10.0  # a version mismatch offends once at each attempt to connect
IGNORED_SECONDS = 30.0
PEERS_KEPT = 1000  # one that changes its name at every message must not make this grow


@dataclass(slots=True)
class _Record:
    since: float
    offences: int = 0
    ignored_until: float = float("-inf")
    disconnected: float = float("-inf")


class Conduct:
    """The bad record of the peers of one socket. Times are passed in: seconds of a monotonic clock.

    ``allowed``: offences of one of them within ``OFFENCE_SECONDS``, one less.
    """

    def __init__(self, allowed: int = OFFENCES_ALLOWED) -> None:
        self._allowed = allowed
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether there is anyone with a record; where nobody has, nothing need be looked up."""
        return bool(self._records)

    def offend(self, who: bytes, now: float) -> bool:
        """Take note of something that could not be read; True if from now on ``who`` is not listened to."""
        record = self._records.pop(who, None)
        if record is None or (now - record.since > OFFENCE_SECONDS and now >= record.ignored_until):
            record = _Record(now)
        self._records[who] = record
        if len(self._records) > PEERS_KEPT:
            self._records.popitem(last=False)
        record.offences += 1
        if record.offences < self._allowed or now < record.ignored_until:
            return False
        record.ignored_until = now + IGNORED_SECONDS
        return True

    def ignores(self, who: bytes, now: float) -> bool:
        """Whether ``who`` is not listened to now."""
        record = self._records.get(who)
        if record is None or record.ignored_until == float("-inf"):
            return False
        if now < record.ignored_until:
            return True
        del self._records[who]
        return False

    def to_disconnect(self, who: bytes, now: float) -> bool:
        """Whether to cut the connection of one that is not listened to: once a second at most.

        What it sent before it was cut may still be coming in, by a descriptor that may be another's by then.
        """
        record = self._records.get(who)
        if record is None or now - record.disconnected < 1.0:
            return False
        record.disconnected = now
        return True
