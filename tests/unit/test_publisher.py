"""The accounts of a series: every frame in exactly one state, whatever workers do and in whatever order."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.wire.messages import (
    Ack,
    ArrayHeader,
    ConfigurationNotice,
    End,
    Frames,
    Heartbeat,
    Hello,
    Reject,
    Start,
)
from detector_sim.deaths import FATAL, FATAL_AFTER, SUSPECTED_AFTER
from detector_sim.ledger import ATTEMPTS, LOSSES_TOLD, REASON_CHARACTERS, REASONS_KEPT, Ledger

SILENT_AFTER = 3.0
SIZE = 100


def _start(series: str = "s1") -> Start:
    return Start(
        series=series,
        session="x",
        frames_expected=None,
        shape=(8, 8),
        dtype="uint8",
        pixel_size_angstrom=1.0,
        output="out",
        optics={},
        calibration={},
    )


def _frames(ids: list[int], config_id: str = "A", series: str = "s1") -> Frames:
    payload = ArrayHeader(shape=[len(ids), 1], dtype="uint8", coding="plain")
    return Frames(
        series=series,
        block=0,
        config_id=config_id,
        frame_ids=ids,
        acquired_at=[0.0] * len(ids),
        payload=payload,
    )


def _ledger(window_bytes: int = 1000) -> Ledger:
    ledger = Ledger(silent_after_seconds=SILENT_AFTER, window_bytes=window_bytes)
    ledger.open(_start())
    for config_id in "AB":
        ledger.configure(ConfigurationNotice(configuration={"config_id": config_id}))
    return ledger


def _add(ledger: Ledger, ids: list[int], config_id: str = "A") -> None:
    ledger.acquire(len(ids))
    ledger.add(_frames(ids, config_id), [bytes(SIZE)])


def _join(ledger: Ledger, name: str, credit: int = 1, now: float = 0.0) -> bytes:
    identity = name.encode()
    ledger.hello(identity, Hello(worker=name, host="h", pid=1), now)
    ledger.credit(identity, credit)
    return identity


def _sent(ledger: Ledger) -> tuple[bytes, Frames]:
    delivery = ledger.next_block()
    assert delivery is not None
    header = delivery.messages[-1][0]
    assert isinstance(header, Frames)
    return delivery.to, header


def _ack(header: Frames, ids: list[int] | None = None) -> Ack:
    return Ack(series=header.series, block=header.block, frame_ids=header.frame_ids if ids is None else ids)


def _reject(header: Frames, ids: list[int] | None = None, reason: str = "bad") -> Reject:
    frame_ids = header.frame_ids if ids is None else ids
    return Reject(series=header.series, block=header.block, frame_ids=frame_ids, reason=reason)


class AnyOrder(RuleBasedStateMachine):
    """Frames, workers, deaths and answers in any order; a model keeps what must be true of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = _ledger()
        self.now = 0.0
        self.next_frame = 0
        self.workers = 0
        self.status: dict[int, str] = {}  # frame -> open, acknowledged, lost
        self.rejections: dict[int, int] = {}
        self.refused: dict[int, set[int]] = {}  # block -> frames its holder has rejected
        self.holder: dict[int, bytes] = {}  # block -> who holds it now
        self.deliveries: list[tuple[bytes, Frames]] = []
        self.credit: dict[bytes, int] = {}
        self.told: dict[bytes, set[str]] = {}
        self.deaths: dict[int, set[str]] = {}  # block -> workers that died with it
        self.fatal: dict[int, set[str]] = {}  # frame -> workers that died at it, recovering it alone

    def _fate(self, *fates: str) -> int:
        return sum(status in fates for status in self.status.values())

    def _open_of(self, header: Frames) -> set[int]:
        return {frame for frame in header.frame_ids if self.status[frame] == "open"}

    def _settle(self, header: Frames) -> None:
        """The holder lets go of a block when it has answered for each of its frames."""
        if self._open_of(header) <= self.refused.get(header.block, set()):
            self._let_go(header.block)

    def _let_go(self, block: int) -> None:
        self.holder.pop(block, None)
        self.refused.pop(block, None)

    @initialize()
    def something_is_under_way(self) -> None:
        for _ in range(2):
            self.a_worker_joins(2)
            self.a_block_is_acquired(2, "A")
            self.a_block_goes_out()

    @rule(count=st.integers(1, 4), config_id=st.sampled_from("AB"))
    def a_block_is_acquired(self, count: int, config_id: str) -> None:
        ids = list(range(self.next_frame, self.next_frame + count))
        self.next_frame += count
        self.status.update(dict.fromkeys(ids, "open"))
        _add(self.ledger, ids, config_id)

    @rule(count=st.integers(1, 3))
    def frames_cannot_be_read_out(self, count: int) -> None:
        ids = range(self.next_frame, self.next_frame + count)
        self.next_frame += count
        self.ledger.acquire(count)
        self.ledger.lose(count, "not finite")
        self.status.update(dict.fromkeys(ids, "lost"))

    @rule(credit=st.integers(0, 4))
    def a_worker_joins(self, credit: int) -> None:
        identity = _join(self.ledger, f"w{self.workers}", credit, self.now)
        self.workers += 1
        self.credit[identity] = credit
        self.told[identity] = set()

    @precondition(lambda self: self.credit)
    @rule(data=st.data(), blocks=st.integers(1, 3))
    def a_worker_grants(self, data: st.DataObject, blocks: int) -> None:
        identity = data.draw(st.sampled_from(sorted(self.credit)))
        self.ledger.credit(identity, blocks)
        self.credit[identity] += blocks

    @rule()
    def a_block_goes_out(self) -> None:
        delivery = self.ledger.next_block()
        if delivery is None:
            return
        *notices, (header, _) = delivery.messages
        assert isinstance(header, Frames)
        assert self.credit[delivery.to] > 0, "sent without credit"
        self.credit[delivery.to] -= 1
        for notice, _ in notices:
            assert isinstance(notice, ConfigurationNotice)
            self.told[delivery.to].add(notice.configuration["config_id"])
        assert header.config_id in self.told[delivery.to], "sent before its configuration"
        assert header.block not in self.holder, "sent to two at a time"
        wanted = header.frame_ids if header.wanted is None else header.wanted
        assert set(wanted) == self._open_of(header), (
            "asked for frames that have their verdict, or not for all"
        )
        suspected = len(self.deaths.get(header.block, ())) >= SUSPECTED_AFTER
        assert header.alone == suspected
        beside = [block for block, holder in self.holder.items() if holder == delivery.to]
        assert not any(len(self.deaths.get(block, ())) >= SUSPECTED_AFTER for block in beside)
        assert not (suspected and beside), "a suspected block is handed out alone"
        self.holder[header.block] = delivery.to
        self.deliveries.append((delivery.to, header))

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def frames_are_acknowledged(self, data: st.DataObject) -> None:
        _, header = data.draw(st.sampled_from(self.deliveries))  # any delivery: late and repeated ones too
        ids = data.draw(st.lists(st.sampled_from(header.frame_ids), min_size=1, unique=True))
        news = self.ledger.ack(_ack(header, ids), wall_now=1.0)
        fresh = self._open_of(header) & set(ids)
        assert news == len(fresh)
        self.status.update(dict.fromkeys(fresh, "acknowledged"))
        self._settle(header)

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def frames_are_rejected_by_anyone(self, data: st.DataObject) -> None:
        self._rejected(*data.draw(st.sampled_from(self.deliveries)), data)

    @precondition(lambda self: self.holder)
    @rule(data=st.data())
    def frames_are_rejected_by_their_holder(self, data: st.DataObject) -> None:
        block, holder = data.draw(st.sampled_from(sorted(self.holder.items())))
        header = next(header for _, header in reversed(self.deliveries) if header.block == block)
        self._rejected(holder, header, data)

    def _rejected(self, identity: bytes, header: Frames, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(header.frame_ids), min_size=1, unique=True))
        self.ledger.reject(identity, _reject(header, ids))
        if self.holder.get(header.block) != identity:
            return  # of a worker that does not hold the block any more only acks count
        refused = self.refused.setdefault(header.block, set())
        for frame in (self._open_of(header) & set(ids)) - refused:
            refused.add(frame)
            self.rejections[frame] = self.rejections.get(frame, 0) + 1
            if self.rejections[frame] == ATTEMPTS:
                self.status[frame] = "lost"
        self._settle(header)

    @precondition(lambda self: self.credit)
    @rule(data=st.data(), died=st.booleans())
    def a_worker_leaves(self, data: st.DataObject, died: bool) -> None:
        identity = data.draw(st.sampled_from(sorted(self.credit)))
        self.ledger.goodbye(identity, died=died)
        del self.credit[identity], self.told[identity]
        self._recalled(identity, died=died)

    @precondition(lambda self: self.holder)
    @rule(data=st.data())
    def a_worker_dies_with_what_it_holds(self, data: st.DataObject) -> None:
        """And somebody takes its place: workers are started again."""
        identity = data.draw(st.sampled_from(sorted(self.holder.values())))
        self.ledger.goodbye(identity, died=True)
        del self.credit[identity], self.told[identity]
        self._recalled(identity, died=True)
        self.a_worker_joins(4)
        self.a_block_goes_out()

    @rule(seconds=st.floats(0.1, 2.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.ledger.tick(self.now)
        for identity, peer in self.ledger.peers.items():
            if not peer.present:
                self._recalled(identity, died=True)

    @precondition(lambda self: self.credit)
    @rule(data=st.data())
    def a_worker_is_heard(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.credit)))
        if self.ledger.heard(identity, self.now):
            self._lives(self.ledger.peers[identity].name)

    @precondition(lambda self: self.credit)
    @rule(data=st.data())
    def a_worker_connects_anew(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.credit)))
        name = self.ledger.peers[identity].name
        self._recalled(identity)
        self.ledger.hello(identity, Hello(worker=name, host="h", pid=2), self.now)
        self.credit[identity] = 0
        self.told[identity] = set()
        self._lives(name)

    def _lives(self, name: str) -> None:
        for names in (*self.deaths.values(), *self.fatal.values()):
            names.discard(name)

    def _recalled(self, identity: bytes, *, died: bool = False) -> None:
        for block in [block for block, holder in self.holder.items() if holder == identity]:
            if died:
                self._died_with(block, identity.decode())
            self._let_go(block)

    def _died_with(self, block: int, name: str) -> None:
        header = next(header for _, header in reversed(self.deliveries) if header.block == block)
        refused = self.refused.get(block, set())
        left = [f for f in header.frame_ids if self.status[f] == "open" and f not in refused]
        deaths = self.deaths.setdefault(block, set())
        if not left:
            return
        if len(deaths) < SUSPECTED_AFTER:
            deaths.add(name)
            return
        workers = self.fatal.setdefault(left[0], set())
        workers.add(name)
        if len(workers) >= FATAL_AFTER:
            self.status[left[0]] = "lost"

    @invariant()
    def every_frame_is_accounted_for(self) -> None:
        accounts = self.ledger.accounts()
        assert accounts.balanced
        assert accounts.acquired == len(self.status)
        assert accounts.acknowledged == self._fate("acknowledged")
        assert sum(accounts.lost.values()) == self._fate("lost")
        assert accounts.in_flight == self._fate("open")

    @invariant()
    def the_window_is_what_is_open(self) -> None:
        assert self.ledger.held_bytes % SIZE == 0
        assert (self.ledger.held_bytes > 0) == (self.ledger.accounts().in_flight > 0)

    def teardown(self) -> None:
        """One good worker is enough for every frame to get its verdict."""
        self.ledger.complete()
        for identity in list(self.ledger.peers):
            self.ledger.goodbye(identity)
        _join(self.ledger, "saviour", credit=10_000, now=self.now)
        while (delivery := self.ledger.next_block()) is not None:
            header = delivery.messages[-1][0]
            assert isinstance(header, Frames)
            assert self.ledger.ack(_ack(header, header.wanted), wall_now=1.0) > 0
        assert self.ledger.drained
        accounts = self.ledger.accounts()
        assert accounts.acquired == accounts.acknowledged + sum(accounts.lost.values())
        assert self.ledger.held_bytes == 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# ---- single promises


def test_a_frame_is_lost_after_three_rejections_and_not_before() -> None:
    ledger = _ledger()
    _add(ledger, [0, 1])
    for attempt in range(1, ATTEMPTS + 1):
        worker = _join(ledger, f"w{attempt}")
        _, header = _sent(ledger)
        assert header.attempt == attempt
        assert ledger.accounts().lost == {}
        if attempt == 1:
            ledger.ack(_ack(header, [1]), wall_now=0.0)
        else:
            assert header.wanted == [0]
        ledger.reject(worker, _reject(header, [0], f"no {attempt}"))
    assert ledger.accounts().lost == {"no 3": 1}
    assert ledger.accounts().acknowledged == 1
    assert ledger.held_bytes == 0


def _die(ledger: Ledger, name: str) -> None:
    ledger.goodbye(name.encode(), died=True)


def test_the_frame_that_workers_die_of_is_lost_and_those_beside_it_are_not() -> None:
    """The worst case: the bad block lies before and behind good ones in every worker's hands."""
    told: list[tuple[str, str]] = []
    ledger = Ledger(silent_after_seconds=3, window_bytes=10_000, event=lambda *line: told.append(line))
    ledger.open(_start())
    ledger.configure(ConfigurationNotice(configuration={"config_id": "A"}))
    for first in range(0, 40, 8):
        _add(ledger, list(range(first, first + 8)))
    poison, deaths = 19, 0
    while ledger.accounts().in_flight:
        worker = _join(ledger, f"w{deaths}", credit=3)
        held: list[Frames] = []
        alive = True
        while alive and (held or ledger.queued):
            while (delivery := ledger.next_block()) is not None:
                header = delivery.messages[-1][0]
                assert isinstance(header, Frames)
                held.append(header)
            header = held.pop(0)
            frames = header.wanted or header.frame_ids
            steps = [[frame] for frame in frames] if header.alone else [frames]
            for step in steps:
                if poison in step:
                    _die(ledger, f"w{deaths}")
                    deaths, alive = deaths + 1, False
                    break
                ledger.ack(_ack(header, step), wall_now=0.0)
            else:
                ledger.credit(worker, 1)
        assert ledger.accounts().balanced
        assert deaths < 10
    assert ledger.accounts().lost == {FATAL: 1}
    assert ledger.accounts().acknowledged == 39
    assert deaths == SUSPECTED_AFTER + FATAL_AFTER
    assert [kind for kind, _ in told][-1] == "frames_lost"
    assert told[-1][1] == f"frame 19 lost: {FATAL}"
    assert "its block is tried alone" not in told[0][1]
    assert ("block_suspected", told[0][1]) == told[0]
    assert ledger.totals().lost == {"worker_died": 1}


def test_a_block_that_workers_merely_happened_to_hold_is_recovered_whoever_is_killed() -> None:
    ledger = _ledger()
    _add(ledger, [0, 1, 2])
    for death in range(10):
        _join(ledger, f"w{death}")
        _, header = _sent(ledger)
        if header.alone:  # it gets on by one frame before it is killed
            ledger.ack(_ack(header, (header.wanted or header.frame_ids)[:1]), wall_now=0.0)
        _die(ledger, f"w{death}")
        if ledger.accounts().acknowledged == 3:
            break
    assert ledger.accounts() == (3, 3, 0, 0, {})


@pytest.mark.parametrize("sign", ["heard", "hello", "elsewhere"])
def test_a_worker_that_only_lost_its_connection_has_not_died(sign: str) -> None:
    ledger = _ledger()
    _add(ledger, [0])
    worker = _join(ledger, "w", credit=1)
    for turn in range(10):
        _, header = _sent(ledger)
        assert not header.alone
        if sign == "heard":
            ledger.tick(now=SILENT_AFTER * (2 * turn + 1))
            assert ledger.heard(worker, now=SILENT_AFTER * (2 * turn + 2))
            ledger.credit(worker, 1)
        else:
            ledger.goodbye(worker, died=True)
            worker = b"w" if sign == "hello" else b"w%d" % turn
            ledger.hello(worker, Hello(worker="w", host="h", pid=1), 0.0)
            ledger.credit(worker, 1)
    assert ledger.accounts().lost == {}


def test_a_suspected_block_waits_for_a_worker_that_is_free_while_the_rest_go_on() -> None:
    ledger = _ledger(window_bytes=10_000)
    for frame in range(12):
        _add(ledger, [frame])
    _join(ledger, "x")
    assert _sent(ledger)[1].frame_ids == [0]
    held: dict[bytes, list[Frames]] = {}
    for name in ("a", "b"):
        _join(ledger, name, credit=2)
        held[name.encode()] = [_sent(ledger)[1], _sent(ledger)[1]]
    _die(ledger, "x")
    _join(ledger, "y")
    assert _sent(ledger)[1].frame_ids == [0]
    _die(ledger, "y")
    for identity in held:
        ledger.credit(identity, 1)
    to, header = _sent(ledger)  # one of them goes on, the other is kept free
    assert header.frame_ids == [5]
    assert ledger.next_block() is None
    other = b"a" if to == b"b" else b"b"
    for block in held[other]:
        ledger.ack(_ack(block), wall_now=0.0)
        ledger.credit(other, 1)
    assert _sent(ledger) == (
        other,
        msgspec.structs.replace(header, block=0, frame_ids=[0], attempt=3, alone=True),
    )
    assert ledger.next_block() is None  # beside it that worker gets nothing
    ledger.credit(to, 1)
    assert _sent(ledger)[0] == to
    ledger.ack(_ack(header, [0]), wall_now=0.0)  # of another block
    assert ledger.next_block() is None
    ledger.ack(Ack(series="s1", block=0, frame_ids=[0]), wall_now=0.0)
    assert _sent(ledger)[0] == other


def test_a_worker_that_goes_without_an_answer_but_says_so_casts_no_suspicion() -> None:
    ledger = _ledger()
    _add(ledger, [0])
    for name in "abcdefgh":
        worker = _join(ledger, name)
        assert not _sent(ledger)[1].alone
        ledger.goodbye(worker)
    assert ledger.accounts() == (1, 0, 1, 0, {})


def test_a_reason_from_outside_is_kept_short_and_each_loss_is_told_up_to_a_bound() -> None:
    told: list[str] = []
    ledger = Ledger(silent_after_seconds=3, window_bytes=10**9, event=lambda kind, line: told.append(line))
    ledger.open(_start())
    ledger.configure(ConfigurationNotice(configuration={"config_id": "A"}))
    worker = _join(ledger, "w", credit=1000)
    for frame in range(100):
        _add(ledger, [frame])
        for _ in range(ATTEMPTS):
            _, header = _sent(ledger)
            ledger.reject(worker, _reject(header, reason=f"{frame} " + "x" * 100_000))
    accounts = ledger.accounts()
    assert accounts.balanced
    assert sum(accounts.lost.values()) == 100
    assert len(accounts.lost) == REASONS_KEPT + 1
    assert max(map(len, accounts.lost)) <= REASON_CHARACTERS
    assert len(told) == LOSSES_TOLD
    assert told[0].startswith("frame 0 lost: 0 xxx")
    assert told[-1].endswith("only counted")


def test_what_one_worker_rejects_another_gets() -> None:
    ledger = _ledger()
    _add(ledger, [0])
    bad = _join(ledger, "bad", credit=100)
    to, header = _sent(ledger)
    ledger.reject(bad, _reject(header))
    good = _join(ledger, "good", credit=0)
    assert ledger.next_block() is None  # it waits for the good one, however much credit the bad one has
    ledger.credit(good, 1)
    to, header = _sent(ledger)
    assert to == good
    assert ledger.ack(_ack(header), wall_now=0.0) == 1


def test_a_block_that_waits_for_another_worker_does_not_stop_the_rest() -> None:
    ledger = _ledger()
    _add(ledger, [0])
    _add(ledger, [1])
    bad = _join(ledger, "bad", credit=100)
    _, header = _sent(ledger)
    ledger.reject(bad, _reject(header))
    _join(ledger, "good", credit=0)
    to, header = _sent(ledger)
    assert (to, header.frame_ids) == (bad, [1])


def test_a_silent_workers_blocks_go_to_others_oldest_first() -> None:
    ledger = _ledger()
    for frame in range(3):
        _add(ledger, [frame])
    _join(ledger, "dead", credit=2)
    _sent(ledger), _sent(ledger)
    assert ledger.tick(SILENT_AFTER - 0.01) == []
    assert ledger.tick(SILENT_AFTER) == ["dead"]
    assert ledger.tick(SILENT_AFTER + 1) == []
    _join(ledger, "alive", credit=3, now=SILENT_AFTER)
    assert [_sent(ledger)[1].frame_ids for _ in range(3)] == [[0], [1], [2]]
    assert ledger.blocks_redelivered == 2


def test_a_worker_that_was_only_slow_is_used_again() -> None:
    ledger = _ledger()
    _add(ledger, [0])
    slow = _join(ledger, "slow", credit=1)
    _, header = _sent(ledger)
    ledger.tick(SILENT_AFTER)
    assert ledger.heard(slow, 5.0)
    assert ledger.ack(_ack(header), wall_now=0.0) == 1  # late, but the first there is
    ledger.credit(slow, 1)
    _add(ledger, [1])
    assert _sent(ledger)[0] == slow


def test_a_late_ack_counts_once_and_spares_the_redelivery() -> None:
    ledger = _ledger()
    _add(ledger, [0])
    _join(ledger, "first")
    _, header = _sent(ledger)
    ledger.tick(SILENT_AFTER)
    assert ledger.ack(_ack(header), wall_now=0.0) == 1
    _join(ledger, "second", now=SILENT_AFTER)
    assert ledger.next_block() is None
    assert ledger.ack(_ack(header), wall_now=0.0) == 0
    assert ledger.accounts() == (1, 1, 0, 0, {})


def test_answers_for_another_series_count_for_nothing() -> None:
    ledger = _ledger()
    _add(ledger, [0])
    worker = _join(ledger, "w")
    _, header = _sent(ledger)
    ledger.ack(Ack(series="s0", block=header.block, frame_ids=[0]), wall_now=0.0)
    ledger.reject(worker, Reject(series="s0", block=header.block, frame_ids=[0], reason="x"))
    ledger.ack(Ack(series="s1", block=header.block + 1, frame_ids=[0]), wall_now=0.0)
    ledger.ack(_ack(header, [7]), wall_now=0.0)
    assert ledger.accounts() == (1, 0, 1, 0, {})


def test_the_window_is_bounded_and_takes_one_block_of_any_size() -> None:
    ledger = _ledger(window_bytes=3 * SIZE)
    assert ledger.has_room(10**9)
    for frame in range(3):
        assert ledger.has_room(SIZE)
        _add(ledger, [frame])
    assert not ledger.has_room(1)
    _join(ledger, "w")
    _, header = _sent(ledger)
    assert not ledger.has_room(1), "what is sent still waits for its acknowledgement"
    ledger.ack(_ack(header), wall_now=0.0)
    assert ledger.has_room(SIZE)


def test_late_joiners_get_start_and_end() -> None:
    ledger = _ledger()
    ledger.complete()
    assert ledger.drained
    ledger.end(-1)
    _join(ledger, "late")
    delivery = ledger.next_notices()
    assert delivery is not None
    assert [type(message) for message, _ in delivery.messages] == [Start, End]
    assert ledger.next_notices() is None


def test_every_worker_gets_start_heartbeat_and_end() -> None:
    ledger = _ledger()
    for name in "ab":
        _join(ledger, name)
    ledger.heartbeat()
    ledger.complete()
    ledger.end(-1)
    told: dict[bytes, list[type]] = {}
    while (delivery := ledger.next_notices()) is not None:
        told[delivery.to] = [type(message) for message, _ in delivery.messages]
    assert told == {b"a": [Start, Heartbeat, End], b"b": [Start, Heartbeat, End]}


def test_a_new_series_tells_configurations_again() -> None:
    ledger = _ledger()
    _add(ledger, [0])
    _join(ledger, "w", credit=5)
    _, header = _sent(ledger)
    ledger.ack(_ack(header), wall_now=0.0)
    ledger.open(_start("s2"))
    ledger.configure(ConfigurationNotice(configuration={"config_id": "A"}))
    ledger.acquire(1)
    ledger.add(_frames([0], series="s2"), [bytes(SIZE)])
    delivery = ledger.next_block()
    assert delivery is not None
    assert [type(message) for message, _ in delivery.messages] == [ConfigurationNotice, Frames]


def test_a_series_with_frames_in_flight_is_not_opened_over() -> None:
    ledger = _ledger()
    _add(ledger, [0])
    with pytest.raises(RuntimeError, match="in flight"):
        ledger.open(_start("s2"))
    ledger.abandon("stopped")
    assert ledger.accounts() == (1, 0, 0, 0, {"stopped": 1})
    ledger.open(_start("s2"))


def test_reasons_do_not_grow_without_bound() -> None:
    ledger = _ledger()
    for k in range(100):
        ledger.acquire(1)
        ledger.lose(1, f"reason {k}")
    accounts = ledger.accounts()
    assert len(accounts.lost) <= 33
    assert sum(accounts.lost.values()) == 100


def test_the_most_free_worker_is_served_first() -> None:
    ledger = _ledger()
    for frame in range(4):
        _add(ledger, [frame])
    _join(ledger, "busy", credit=1)
    _join(ledger, "free", credit=3)
    assert [_sent(ledger)[0] for _ in range(2)] == [b"free", b"free"]


def test_equally_free_workers_take_turns() -> None:
    ledger = _ledger()
    workers = [_join(ledger, name, credit=4) for name in "abc"]
    for frame in range(6):
        _add(ledger, [frame])
    served = []
    for _ in range(6):  # each is done before the next block comes
        to, header = _sent(ledger)
        ledger.ack(_ack(header), wall_now=0.0)
        ledger.credit(to, 1)
        served.append(to)
    assert served == workers * 2


def test_latency_is_from_acquisition_to_acknowledgement() -> None:
    ledger = _ledger()
    _add(ledger, [0, 1])
    _join(ledger, "w")
    _, header = _sent(ledger)
    ledger.ack(_ack(header, [0]), wall_now=0.010)
    ledger.ack(_ack(header, [1]), wall_now=10.0)
    assert ledger.latency.percentile(50) == pytest.approx(0.010, rel=0.13)
    assert ledger.latency.percentile(99) == pytest.approx(10.0, rel=0.13)
    assert ledger.latency.sum_seconds == pytest.approx(10.01)
