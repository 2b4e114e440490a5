"""Ledger and spool together as the publisher uses them, killed at any moment: order, exactly once, bounds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.wire.messages import Ack, ArrayHeader, ConfigurationNotice, Frames, Hello, Start
from detector_sim.ledger import Ledger
from detector_sim.spool import Answer, Answers, Change, Exposed, Found, Head, Spool

WINDOW, LIMIT = 300, 20_000
SIZE = 100
CONFIGURATION = {"config_id": "A"}


def _head() -> Head:
    start = Start(
        series="s",
        session="x",
        frames_expected=None,
        shape=(8, 8),
        dtype="uint8",
        pixel_size_angstrom=1.0,
        output="out",
        optics={},
        calibration={},
    )
    return Head(start=start, spec={}, began_at=0.0)


class Killed(RuleBasedStateMachine):
    """Frames are exposed, gathered, spooled, delivered and answered; the process dies whenever it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.spool = Spool.create(self.root, _head(), LIMIT)
        self.spool.note(Change(configuration=CONFIGURATION, first_frame=0))
        self.recovered: set[int] = set()  # whose results are on disk, as workers' journals have it
        self.lost: set[int] = set()
        self.told = 0  # frames acquired, as the outside was told
        self.seen: list[Frames] = []  # every delivery of any process
        self._begin(None)

    def teardown(self) -> None:
        self._deliver_everything()
        self.spool.remove()
        shutil.rmtree(self.root)

    def _begin(self, found: Found | None) -> None:
        self.ledger = Ledger(silent_after_seconds=1e9, window_bytes=WINDOW)
        self.ledger.open(_head().start, found)
        self.ledger.configure(ConfigurationNotice(configuration=CONFIGURATION))
        self.gathering = [] if found is None else found.gathering
        self.exposed = 0 if found is None else found.exposed
        self.last_sent = -1
        self.delivered: list[Frames] = []
        self.ledger.hello(b"w", Hello(worker="w", host="h", pid=1), 0.0)

    @initialize()
    def some_are_there(self) -> None:
        for _ in range(3):
            self.frames_are_exposed(2)
            self.a_block_is_added()

    @rule(count=st.integers(1, 3))
    def frames_are_exposed(self, count: int) -> None:
        self.spool.note(Exposed(until=self.exposed + count))
        self.gathering += range(self.exposed, self.exposed + count)
        self.exposed += count
        self.ledger.acquire(count)

    @precondition(lambda self: self.gathering)
    @rule()
    def a_frame_is_not_finite(self) -> None:
        frame = self.gathering.pop()
        self.ledger.lose(1, "not finite")
        self.spool.note(Answers(answers=[Answer(block=None, frame_ids=[frame], reason="not finite")]))
        self.lost.add(frame)

    def _next(self) -> Frames:
        ids = list(self.gathering)
        payload = ArrayHeader(shape=[len(ids), 1], dtype="uint8", coding="plain")
        return Frames(
            series="s", block=self.ledger.next_number, config_id="A", frame_ids=ids,
            acquired_at=[0.0] * len(ids), payload=payload,
        )  # fmt: skip

    @precondition(lambda self: self.gathering)
    @rule()
    def a_block_is_added(self) -> None:
        if not self.gathering:
            return
        header = self._next()
        buffers = [bytes([header.frame_ids[0] % 256]) * SIZE]
        if self.spool.fits(SIZE):
            self.spool.append(header, buffers)
            self.ledger.add(header, buffers, on_disk=True)
        else:
            self.ledger.drop(header, "spool full")
            self.lost.update(header.frame_ids)
            self._note()
        self.gathering.clear()

    @rule(credit=st.integers(1, 3))
    def blocks_go_out(self, credit: int) -> None:
        self.ledger.credit(b"w", credit)
        self._send()

    def _send(self) -> None:
        while True:
            while (number := self.ledger.wanted_from_spool()) is not None:
                self.ledger.come_back(*self.spool.read(number))
            delivery = self.ledger.next_block()
            if delivery is None:
                return
            header, buffers = delivery.messages[-1]
            assert isinstance(header, Frames)
            assert bytes(buffers[0]) == bytes([header.frame_ids[0] % 256]) * SIZE
            assert header.block > self.last_sent, "out of order"
            self.last_sent = header.block
            self.delivered.append(header)
            self.seen.append(header)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), reaches=st.booleans())
    def a_worker_is_done(self, data: st.DataObject, reaches: bool) -> None:
        """With all or part of a block, of any process's delivery; its answer may get lost on the way."""
        header = data.draw(st.sampled_from(self.seen))
        ids = data.draw(st.lists(st.sampled_from(header.frame_ids), min_size=1, unique=True))
        self.recovered.update(ids)
        if reaches:
            self.ledger.ack(Ack(series="s", block=header.block, frame_ids=ids), wall_now=0.0)

    @rule()
    def verdicts_are_written_down(self) -> None:
        self._note()

    def _note(self) -> None:
        self.spool.note(Answers(answers=self.ledger.take_answers()))

    @rule()
    def somebody_asks(self) -> None:
        self.told = self.ledger.accounts().acquired

    @rule(torn=st.integers(0, 400), in_mid_block=st.booleans())
    def the_process_is_killed(self, torn: int, in_mid_block: bool) -> None:
        cut: tuple[Path, int] | None = None
        if in_mid_block and self.gathering:
            before = {path: path.stat().st_size for path in self.spool.folder.glob("blocks-*")}
            self.spool.append(self._next(), [bytes(SIZE)])
            for path in self.spool.folder.glob("blocks-*"):
                written = path.stat().st_size - before.get(path, 0)
                if written:
                    cut = path, before.get(path, 0) + min(torn, written - 1)
        self.spool.close()
        if cut is not None:
            with cut[0].open("r+b") as file:
                file.truncate(cut[1])
        self.spool, found = Spool.resume(self.spool.folder, LIMIT)
        assert found.damages == []
        assert found.exposed >= self.told
        assert found.exposed == self.exposed
        assert found.gathering == self.gathering
        self._begin(found)

    def _deliver_everything(self) -> None:
        if self.gathering:
            self.a_block_is_added()
        self.ledger.complete()
        self.ledger.goodbye(b"w")
        self.last_sent = -1
        self.ledger.hello(b"w", Hello(worker="w", host="h", pid=1), 0.0)
        self.ledger.credit(b"w", 10_000)
        while not self.ledger.drained:
            before = len(self.delivered)
            self._send()
            assert len(self.delivered) > before, "nothing comes any more"
            for header in self.delivered[before:]:
                self.recovered.update(header.frame_ids)
                self.ledger.ack(Ack(series="s", block=header.block, frame_ids=header.frame_ids), wall_now=0.0)
        accounts = self.ledger.accounts()
        assert accounts.balanced
        assert accounts.acquired == self.exposed
        assert accounts.in_flight == accounts.spooled == 0
        assert sum(accounts.lost.values()) == len(self.lost)
        assert self.recovered | self.lost == set(range(self.exposed))
        assert self.recovered.isdisjoint(self.lost)
        self._note()
        assert self.spool.open_blocks == 0

    @invariant()
    def every_frame_is_accounted_for(self) -> None:
        accounts = self.ledger.accounts()
        assert accounts.balanced
        assert accounts.acquired == self.exposed
        assert sum(accounts.lost.values()) == len(self.lost)
        assert accounts.acknowledged <= len(self.recovered)

    @invariant()
    def the_bounds_hold(self) -> None:
        assert self.ledger.held_bytes <= WINDOW
        assert self.spool.bytes <= LIMIT + 1000  # and the header of a block


TestKilled = Killed.TestCase
TestKilled.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
