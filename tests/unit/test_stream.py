"""Following a session: each thing once and in order, whatever happens to the connection or the server."""

import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.state.embedded import EmbeddedStore
from common.state.store import StoreError
from services.control_plane.stream import Cursor
from tests.unit.served import BASE, Reader, Served, eventually

CURRENT = f"{BASE}/current"


class FailingStore(EmbeddedStore):
    """A store that cannot be reached while ``away`` is set."""

    away = False

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        if FailingStore.away:
            raise StoreError("state store: connection refused")
        super()._write(*statements)

    def _read(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        if FailingStore.away:
            raise StoreError("state store: connection refused")
        return super()._read(statement, values)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    FailingStore.away = False
    opened = Served(tmp_path, lambda: FailingStore(tmp_path / "state.sqlite"))
    yield opened
    FailingStore.away = False
    opened.close()


def gapless(numbers: list[int]) -> bool:
    """Whether they count up by one."""
    return numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


def wait_for_points(served: Served, count: int) -> None:
    eventually(
        lambda: len(served.client.get(f"{CURRENT}/metrics/history").json()) >= count, f"{count} points"
    )


def test_the_session_comes_first_then_health_then_all_that_was_then_all_that_is(served: Served) -> None:
    detector, _ = served.detector(), served.worker()
    session = served.start()
    wait_for_points(served, 5)
    with served.follow() as reader:
        reader.until(lambda r: len(r.of("point")) > 10, "points go on")
        assert [told.event for told in reader.told[:2]] == ["session", "health"]
        assert reader.told[0].data["id"] == session["id"]
        assert reader.told[0].data == served.client.get(CURRENT).json()
        assert reader.of("health")[0] == served.client.get("/readyz").json()
        assert reader.numbers("point")[0] == reader.numbers("event")[0] == 1
        assert gapless(reader.numbers("point"))
        assert gapless(reader.numbers("event"))
        detector.client.event("bad_file", "torn.mrc: truncated")
        reader.until(lambda r: [e for e in r.of("event") if e["kind"] == "bad_file"], "the event comes")
        assert reader.of("metrics")[-1]["session"] == session["id"]
        told = [t for t in reader.told if t.event in ("event", "point")]
        assert [t.data["number"] for t in told if t.event == "point"] == reader.numbers("point")
        at = [t.data["at"] for t in told[:5]]
        assert at == sorted(at)
        cursors = [Cursor.parse(t.id) for t in told]
        assert all(c.session == session["id"] for c in cursors)
        assert all(b.event >= a.event and b.point >= a.point for a, b in itertools.pairwise(cursors))


def test_a_follower_that_reconnects_goes_on_without_gap_or_duplicate(served: Served) -> None:
    detector, _ = served.detector(), served.worker()
    served.start()
    points: list[int] = []
    events: list[int] = []
    cursor = ""
    for round_ in range(6):
        detector.client.event("note", f"round {round_}")
        with served.follow(after=cursor) as reader:
            reader.until(lambda r: len(r.of("point")) >= 3, "some points")
        points += reader.numbers("point")
        events += reader.numbers("event")
        cursor = reader.cursor
    assert points[0] == events[0] == 1
    assert gapless(points), points
    assert gapless(events), events


def test_the_cursor_may_be_given_in_the_address_and_the_header_goes_before_it(served: Served) -> None:
    served.detector(), served.worker()
    session = served.start()["id"]
    wait_for_points(served, 8)
    with served.follow(after=f"{session}/0/6") as reader:
        reader.until(lambda r: r.numbers("point"), "points come")
        assert reader.numbers("point")[0] == 7
    with Reader(f"{served.url}{CURRENT}/stream?after={session}/0/2") as reader:
        reader.until(lambda r: r.numbers("point"), "points come")
        assert reader.numbers("point")[0] == 3
        assert reader.numbers("event")[0] == 1
    with Reader(f"{served.url}{CURRENT}/stream?after={session}/0/2", after=f"{session}/0/6") as reader:
        reader.until(lambda r: r.numbers("point"), "points come")
        assert reader.numbers("point")[0] == 7


@pytest.mark.parametrize("cursor", ["x", "a/b/c", "a/1", "a/-1/2", "a/1/2/3", "/1/1", "a/1/1e3"])
def test_what_is_no_cursor_is_refused(served: Served, cursor: str) -> None:
    answer = served.client.get(f"{CURRENT}/stream", params={"after": cursor})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "after"
    with pytest.raises(ValueError, match="event number"):
        Cursor.parse(cursor)


def test_a_cursor_of_another_session_or_beyond_the_last_begins_anew(served: Served) -> None:
    served.detector(), served.worker()
    session = served.start()["id"]
    wait_for_points(served, 3)
    with served.follow(after="20200101-000000-abcdef/7/7") as reader:
        reader.until(lambda r: r.numbers("point"), "points come")
        assert reader.numbers("point")[0] == reader.numbers("event")[0] == 1
    with served.follow(after=f"{session}/999/999999") as reader:  # what a lost store had counted
        reader.until(lambda r: len(r.numbers("point")) > 2, "points come")
        assert gapless(reader.numbers("point"))
        assert reader.numbers("point")[0] < 999_999


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_numbers_go_on_over_a_restart_of_the_control_plane(
    served: Served, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, _ = served.detector(), served.worker()
    session = served.start()
    with served.follow() as reader:
        reader.until(lambda r: len(r.of("point")) >= 5, "some points")
        if how == "killed":  # nothing that waits to be stored is stored any more
            monkeypatch.setattr(served.recorder, "write", lambda operation, tried=None: None)
            served.recorder._waiting.clear()
        served.shut()
        assert reader.ended.wait(10)
    before = reader
    served.open()
    with served.follow(after=before.cursor) as reader:
        detector.client.event("note", "after the restart")
        reader.until(lambda r: len(r.of("point")) >= 5 and r.of("event"), "points go on")
        assert reader.told[0].data["id"] == session["id"]
    assert gapless(before.numbers("point") + reader.numbers("point"))
    assert gapless(before.numbers("event") + reader.numbers("event"))


def test_before_any_session_there_is_only_health_and_then_the_session(served: Served) -> None:
    with served.follow() as reader:
        reader.until(lambda r: r.of("health"), "health comes")
        assert reader.status == 200
        assert reader.of("health")[0]["status"] == "not ready"
        served.detector(), served.worker()
        reader.until(lambda r: r.of("health")[-1]["status"] == "ready", "health changes are told")
        assert {told.event for told in reader.told} == {"health"}
        session = served.start()
        reader.until(lambda r: r.of("point"), "points come")
        first = next(told for told in reader.told if told.event == "session")
        assert first.data["id"] == session["id"]
        assert reader.numbers("point")[0] == 1


def test_current_goes_on_with_the_next_session(served: Served) -> None:
    detector, _ = served.detector(), served.worker()
    first = served.start()["id"]
    with served.follow() as reader:
        reader.until(lambda r: len(r.of("point")) >= 3, "points of the first")
        detector.finish()
        served.becomes("completed")
        second = served.start()["id"]
        reader.until(lambda r: r.told[-1].event == "point" and r.cursor.startswith(second), "points come")
    views = reader.of("session")
    assert [view["state"] for view in views if view["id"] == first][-1] == "completed"
    told = [t for t in reader.told if t.id]
    of_second = [k for k, t in enumerate(told) if t.id.startswith(second)]
    assert of_second == list(range(of_second[0], len(told)))  # all of the first came before
    kinds = [t.data["kind"] for t in told[: of_second[0]] if t.event == "event"]
    assert kinds[-1] == "completed"
    assert next(t.data["number"] for t in told[of_second[0] :] if t.event == "point") == 1


def test_a_named_session_ends_with_its_end(served: Served) -> None:
    detector, _ = served.detector(), served.worker()
    session = served.start()["id"]
    with served.follow(session) as live:
        live.until(lambda r: len(r.of("point")) >= 2, "points come")
        detector.finish()
        assert live.ended.wait(10)
    assert live.broken is None
    assert live.told[-1].event == "end"
    assert live.told[-1].data["state"] == "completed"
    assert live.of("event")[-1]["kind"] == "completed"
    assert live.of("metrics")[-1]["state"] == "completed"
    for _ in range(2):  # from memory; then, when another session runs, from the store
        with served.follow(session) as later:
            assert later.ended.wait(10)
        assert later.told[-1].event == "end"
        for kind in ("event", "point"):
            assert later.of(kind) == live.of(kind)
        with served.follow(session, after=live.cursor) as nothing:
            assert nothing.ended.wait(10)
        assert [told.event for told in nothing.told] == ["session", "health", "metrics", "end"]
        if served.client.get(CURRENT).json()["state"] == "completed":
            served.start()


def test_an_unknown_session_cannot_be_followed(served: Served) -> None:
    answer = served.client.get(f"{BASE}/nobody/stream")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_session_that_the_detector_refuses_is_not_told(served: Served) -> None:
    detector, _ = served.detector(), served.worker()
    with served.follow() as reader:
        reader.until(lambda r: r.of("health"), "health comes")
        detector.refuse(ValueError("source.path: no such file"))
        assert served.client.post(BASE, json={}).status_code == 422
        detector.answer = None
        session = served.start()["id"]
        reader.until(lambda r: r.of("point"), "points come")
    assert {view["id"] for view in reader.of("session")} == {session}
    assert [view["id"] for view in served.client.get(BASE).json()] == [session]


def test_state_and_settings_are_told_as_they_change(served: Served) -> None:
    served.detector(), served.worker()
    served.start()
    with served.follow() as reader:
        served.client.post(f"{CURRENT}/pause")
        reader.until(lambda r: r.of("session") and r.of("session")[-1]["state"] == "paused", "paused")
        changed = served.client.patch(f"{CURRENT}/acquisition", json={"compression_factor": 4}).json()
        reader.until(lambda r: r.of("session")[-1]["acquisition"][-1] == changed, "the change is told")
        point = reader.until(
            lambda r: [p for p in r.of("point") if p["config_id"] == changed["config_id"]], "points have it"
        )[0]
        assert point["compression_factor"] == 4.0
        assert point["state"] == "paused"


def test_a_point_says_what_was_counted_and_judged_since_the_one_before(served: Served) -> None:
    detector, worker = served.detector(), served.worker()
    view = served.start(link_mbit_per_s=1.0)
    config_id = view["acquisition"][0]["config_id"]
    detector.tell(
        frames_acquired=100, frames_acknowledged=60, frames_in_flight=30, frames_queued=20, frames_spooled=7,
        frames_lost={"torn": 3}, bytes_raw=25600, bytes_wire=12800, bytes_raw_lossless_estimate=19200,
        latency_p50_seconds=0.1, latency_p99_seconds=0.4, idle_seconds=1.5,
        workers=[{"name": "journal-1", "credit": 3, "in_flight": 12}],
    )  # fmt: skip

    def judged(frames: float, psnr: float) -> dict[str, Any]:
        return {
            "frames": frames, "psnr_sum": frames * psnr, "ssim_sum": frames * 0.5,
            "frc_resolution_angstrom_sum": frames * 10.0, "free_frames": 0.0, "free_residual_sum": 0.0,
        }  # fmt: skip

    with served.follow() as reader:
        series = {"series": "series-1", "frame": 59, "reference": 4}
        worker.counters = {
            "frames_recovered": 60, "batches": 6, "quality": {config_id: judged(4.0, 20.0)}, "newest": series
        }  # fmt: skip
        reader.until(lambda r: [p for p in r.of("point") if p["recent_quality"]["references"] == 4], "judged")
        sums = judged(4.0, 20.0)
        for name, value in judged(2.0, 26.0).items():
            sums[name] += value
        worker.counters = {**worker.counters, "quality": {config_id: sums}}
        reader.until(lambda r: [p for p in r.of("point") if p["recent_quality"]["references"] == 2], "again")
        points = [p for p in reader.of("point") if p["recent_quality"]["references"]]
        assert [p["recent_quality"]["psnr"] for p in points] == pytest.approx([20.0, 26.0])
        assert all(p["recent_quality"]["free_residual"] is None for p in points)
        last = points[-1]
        assert last["frames"] == {
            "acquired": 100, "acknowledged": 60, "in_flight": 30, "queued": 20, "spooled": 7, "lost": 3,
            "lost_by_reason": {"torn": 3},
        }  # fmt: skip
        assert (last["throughput_gain"], last["gain_over_lossless"]) == (2.0, 1.5)
        assert last["latency"] == {"p50_seconds": 0.1, "p99_seconds": 0.4}
        assert (last["workers_present"], last["idle_seconds"]) == (1, 1.5)
        figures = reader.until(lambda r: r.of("metrics"), "figures come")[-1]
    assert (figures["newest_frame"], figures["newest_reference"]) == (59, 4)
    # 1 Mbit/s carries so many frames of 16 x 16 bytes; losslessly coded ones take 3/4 of that
    assert figures["raw_frames_per_s_limit"] == pytest.approx(1e6 / 8 / 256)
    assert figures["lossless_frames_per_s_limit"] == pytest.approx(1e6 / 8 / 192)
    (seen,) = figures["workers"]
    assert seen["batch_frames_mean"] == 10.0
    history = served.client.get(f"{CURRENT}/metrics/history").json()
    assert [p for p in history if p["number"] == last["number"]] == [last]


def test_quiet_is_told_in_comments(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.control_plane.stream.QUIET_SECONDS", 0.05)
    with served.follow() as reader:
        reader.until(lambda r: r.comments >= 3, "comments come")
        assert [told.event for told in reader.told] == ["health"]


def test_who_left_is_forgotten(served: Served) -> None:
    served.detector(), served.worker()
    served.start()
    followers = served.app.state.sessions.followers
    readers = [served.follow() for _ in range(5)]
    eventually(lambda: len(followers) == 5, "all follow")
    for reader in readers:
        reader.until(lambda r: r.told, "all are told")
        reader.leave()
    eventually(lambda: len(followers) == 0, "none is kept")


def test_a_follower_that_does_not_read_delays_nobody_and_keeps_its_place(served: Served) -> None:
    detector, _ = served.detector(), served.worker()
    session = served.start()["id"]
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = httpx.URL(served.url)
        stalled.connect((address.host, address.port))
        stalled.sendall(f"GET {BASE}/{session}/stream HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with served.follow() as reader:
            for _ in range(40):  # much more than the sockets' buffers take
                detector.client.event("note", "x" * 20_000)
            reader.until(lambda r: len([e for e in r.of("event") if e["kind"] == "note"]) == 40, "all come")
            count = len(reader.of("point"))
            reader.until(lambda r: len(r.of("point")) > count + 3, "and go on")
        text = b""
        stalled.settimeout(10)
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # now it reads as fast as it can
        while text.count(b"event: event") < 41:
            text += stalled.recv(1 << 16)
    lines = text.decode().splitlines()[:-1]
    told = [json.loads(data[6:]) for name, data in itertools.pairwise(lines) if name == "event: event"]
    numbers = [event["number"] for event in told]
    assert len(numbers) >= 40
    assert gapless(numbers)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux")
def test_a_follower_that_never_reads_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.control_plane.server.STALLED_SECONDS", 0.5)
    served = Served(tmp_path_factory.mktemp("stalled"))
    try:
        detector, _ = served.detector(), served.worker()
        served.start()
        followers = served.app.state.sessions.followers
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            address = httpx.URL(served.url)
            stalled.connect((address.host, address.port))
            stalled.sendall(f"GET {CURRENT}/stream HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            eventually(lambda: len(followers) == 1, "it follows")
            for _ in range(100):
                detector.client.event("note", "x" * 50_000)
            eventually(lambda: len(followers) == 0, "it is cut off")
    finally:
        served.close()


def test_streams_end_when_the_server_is_asked_to(served: Served) -> None:
    served.detector(), served.worker()
    session = served.start()["id"]
    readers = [served.follow(), served.follow(session)]
    for reader in readers:
        reader.until(lambda r: r.of("point"), "points come")
    began = time.monotonic()
    served.shut()
    assert time.monotonic() - began < 4.0  # not the patience for unanswered requests
    for reader in readers:
        assert reader.ended.wait(10)
        assert reader.broken is None
        assert not reader.of("end")  # the session goes on
    served.open()


def test_while_the_store_is_away_streams_go_on_and_say_so(served: Served) -> None:
    served.detector(), served.worker()
    session = served.start()["id"]
    wait_for_points(served, 3)
    FailingStore.away = True
    with served.follow() as reader:
        reader.until(lambda r: r.of("health")[-1:] and r.of("health")[-1]["store"] == "failing", "it is said")
        assert reader.of("health")[-1]["status"] == "degraded"
        count = len(reader.of("point"))
        reader.until(lambda r: len(r.of("point")) > count + 3, "points go on")
        with served.follow() as another:
            another.until(lambda r: len(r.of("point")) >= count, "what is in memory is told")
            assert another.numbers("point")[0] == another.numbers("event")[0] == 1
        FailingStore.away = False
        reader.until(lambda r: r.of("health")[-1]["store"] == "ok", "it is back")
        reader.until(lambda r: r.of("event")[-1]["kind"] == "store_back", "the history has it")
        assert "store_failing" in [event["kind"] for event in reader.of("event")]
        assert gapless(reader.numbers("point"))
        assert gapless(reader.numbers("event"))
        seen = len(reader.of("point"))
    store = EmbeddedStore(served.folder / "state.sqlite")
    eventually(lambda: len(store.telemetry(session)) >= seen, "what was told meanwhile is kept")
    assert gapless([record.number for record in store.telemetry(session)])
    assert gapless([record.number for record in store.events(session)])
    store.close()


def test_an_hour_is_replayed_quickly(served: Served) -> None:
    detector, _ = served.detector(), served.worker()
    served.start()
    wait_for_points(served, 1)
    chronicle = served.app.state.sessions.newest
    point = chronicle.last_points(1)[0]
    detector.close()  # no more points of its own
    served.fakes.remove(detector)
    eventually(lambda: not served.client.get("/readyz").json()["detector"], "the detector is missed")
    first = chronicle.points.last
    for number in range(first + 1, first + 3601):
        chronicle.add_point(point.model_copy(update={"number": number}))
    chronicle.points.show(first + 3600)
    with served.follow() as reader:
        reader.until(lambda r: len(r.of("point")) == 3600, "all points kept are replayed")
        assert gapless(reader.numbers("point"))
        assert reader.numbers("point")[-1] == first + 3600
