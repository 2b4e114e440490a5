"""Sessions kept in Redis: real processes, and a real server that is killed, frozen, emptied and back."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.state.redis import RedisStore
from tests.faults.installation import BASE, CURRENT, OVER, PATIENCE_SECONDS, Installation, eventually
from tests.faults.verdict import completed
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(400)


def gapless(numbers: list[int]) -> bool:
    return numbers == list(range(1, len(numbers) + 1))


class House(Installation):
    """An installation whose control plane keeps sessions in a Redis server."""

    def __init__(self, folder: Path) -> None:
        self.redis = RedisServer(folder)
        super().__init__(folder, state=self.redis.url)

    def kept(self, session: str) -> tuple[Any, list[Any], list[Any], list[Any]]:
        """What the Redis server has of a session."""
        store = RedisStore(self.redis.url)
        try:
            return (
                store.session(session),
                store.configurations(session),
                store.events(session),
                store.telemetry(session),
            )
        finally:
            store.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    installation = House(tmp_path_factory.mktemp("redis"))
    with installation.redis, installation:
        yield installation


@pytest.fixture
def running(house: House) -> Iterator[House]:
    """With a session that has begun; whatever befell it, it ends with every frame recovered once."""
    house.begin()
    house.reaches(50)
    yield house
    ended = house.current()
    completed(ended if ended["state"] in OVER else house.finish())


def assert_kept_completely(house: House, session: str) -> None:
    """The store has all that the control plane knows, each thing once."""
    events = house.client.get(f"{BASE}/{session}/events", params={"limit": 10_000}).json()
    eventually(lambda: len(house.kept(session)[2]) >= len(events), "all events are kept")
    record, configurations, kept, points = house.kept(session)
    assert [event.number for event in kept[: len(events)]] == [event["number"] for event in events]
    assert gapless([event.number for event in kept])
    assert gapless([point.number for point in points])
    view = house.client.get(f"{BASE}/{session}").json()
    assert configurations == view["acquisition"]
    assert record is not None
    assert record.state == view["state"]


@pytest.mark.parametrize("forgets", [False, True], ids=["with its data", "without its data"])
def test_a_redis_server_killed_in_mid_session_costs_no_frame(running: House, forgets: bool) -> None:
    session = running.client.get(CURRENT).json()["id"]
    running.redis.save()
    with running.follow() as reader:
        reader.until(lambda r: len(r.of("point")) > 3, "points come")
        running.redis.kill()
        running.becomes("degraded")
        assert running.client.get("/readyz").status_code == 200
        reader.until(lambda r: r.of("health")[-1]["store"] == "failing", "the stream says it")
        running.goes_on()
        changed = running.client.patch(f"{CURRENT}/acquisition", json={"compression_factor": 4})
        assert changed.status_code == 200, changed.text
        assert "store_failing" in running.kinds()
        if forgets:
            running.redis.forget()
        running.redis.start()
        running.becomes("ready")
        reader.until(lambda r: r.of("health")[-1]["store"] == "ok", "the stream says it")
        reader.until(lambda r: "store_back" in [e["kind"] for e in r.of("event")], "the history has it")
        running.goes_on()
        assert_kept_completely(running, session)
        assert gapless(reader.numbers("point"))
        assert gapless(reader.numbers("event"))
    view = running.finish()
    assert view["state"] == "completed", view["error"]
    frames = running.metrics()["frames"]
    assert (frames["lost"], frames["in_flight"]) == (0, 0)
    eventually(lambda: running.kept(session)[0].state == "completed", "the end is kept")
    assert_kept_completely(running, session)


def test_a_frozen_redis_server_stops_nothing(running: House) -> None:
    session = running.client.get(CURRENT).json()["id"]
    running.redis.freeze()
    try:
        running.becomes("degraded")
        slowest = 0.0
        for body in itertools.islice(itertools.cycle([{"method": "wiener"}, {"method": "dct"}]), 10):
            for ask in (
                lambda: running.client.get(CURRENT),
                lambda: running.client.get(f"{CURRENT}/metrics/history"),
                lambda body=body: running.client.patch(f"{CURRENT}/recovery", json=body),
            ):
                began = time.monotonic()
                assert ask().status_code == 200
                slowest = max(slowest, time.monotonic() - began)
        assert slowest < 1.0  # the store's timeout: none of these waits for it
        assert running.client.get(BASE).status_code == 503  # only the store knows all sessions
        running.goes_on()
    finally:
        running.redis.thaw()
    running.becomes("ready")
    assert_kept_completely(running, session)


def test_keys_deleted_in_mid_session_are_written_again(running: House) -> None:
    session = running.client.get(CURRENT).json()["id"]
    with running.redis.client() as client:
        client.flushall()
    eventually(lambda: len(running.kept(session)[2]) > 0, "the session is written again")
    assert_kept_completely(running, session)
    assert running.ready()["status"] == "ready"


def test_a_control_plane_killed_in_mid_session_goes_on_where_it_was(running: House) -> None:
    session = running.client.get(CURRENT).json()["id"]
    points: list[int] = []
    events: list[int] = []
    cursor = ""
    for _ in range(2):
        with running.follow(cursor) as reader:
            reader.until(lambda r: len(r.of("point")) > 5, "points come")
            running.kill("control")
            assert reader.ended.wait(PATIENCE_SECONDS)
        points += reader.numbers("point")
        events += reader.numbers("event")
        cursor = reader.cursor
        running.start("control")
        running.becomes("ready")
    with running.follow(cursor) as reader:
        running.client.patch(f"{CURRENT}/acquisition", json={"compression_factor": 4})
        reader.until(lambda r: len(r.of("point")) > 5 and r.of("event"), "points go on")
    assert reader.told[0].data["id"] == session
    assert gapless(points + reader.numbers("point"))
    assert gapless(events + reader.numbers("event"))
    completed(running.finish())
    assert running.metrics()["frames"]["lost"] == 0


def test_a_session_that_only_the_detector_remembers_still_ends_well(running: House) -> None:
    session = running.client.get(CURRENT).json()
    running.kill("control")
    with running.redis.client() as client:
        client.flushall()
    running.start("control")
    eventually(lambda: running.ready().get("detector"), "the detector registers again")
    eventually(lambda: running.client.get(CURRENT).status_code == 200, "the session is found at the detector")
    assert running.client.get(CURRENT).json()["id"] == session["id"]
    running.becomes("ready")
    running.goes_on()
    changed = running.client.patch(f"{CURRENT}/acquisition", json={"compression_factor": 4})
    assert changed.status_code == 200, changed.text
    view = running.finish()
    assert view["state"] == "completed", view["error"]
    account = completed(view)
    assert [known["compression_factor"] for known in account["configurations"]] == [2.0, 4.0]
    assert_kept_completely(running, session["id"])


def test_a_control_plane_starts_without_its_redis_server_and_catches_up(house: House) -> None:
    before = house.begin()
    house.reaches(20)
    view = house.finish()
    completed(view)
    eventually(lambda: house.kept(before)[0].state == "completed", "the end is kept")
    house.redis.save()
    house.terminate("control")
    house.redis.kill()
    house.start("control")
    house.becomes("degraded")
    assert house.client.get(CURRENT).status_code == 404
    house.redis.start()
    house.becomes("ready")
    eventually(lambda: house.client.get(CURRENT).status_code == 200, "the session before is known again")
    assert house.client.get(CURRENT).json() == view
    # and once more, but a session is started before the server is back
    house.terminate("control")
    house.redis.kill()
    house.start("control")
    house.becomes("degraded")
    session = house.begin()
    house.goes_on(20)
    house.redis.start()
    house.becomes("ready")
    assert house.client.get(CURRENT).json()["id"] == session
    assert [known["id"] for known in house.client.get(BASE).json()][-1] == session
    assert before in [known["id"] for known in house.client.get(BASE).json()]
    assert_kept_completely(house, session)
    completed(house.finish())


def test_many_follow_while_the_server_comes_and_goes(running: House) -> None:
    readers = [running.follow() for _ in range(8)]
    going = threading.Event()

    def come_and_go() -> None:
        for _ in range(3):
            running.redis.kill()
            going.wait(0.5)
            running.redis.start()
            going.wait(0.5)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    running.goes_on()
    thread.join()
    running.becomes("ready")
    last = running.client.get(f"{CURRENT}/metrics/history", params={"limit": 1}).json()[0]["number"]
    for reader in readers:
        reader.until(lambda r: r.numbers("point")[-1:] >= [last], "all points come")
        assert gapless(reader.numbers("point"))
        assert gapless(reader.numbers("event"))
        reader.leave()
    assert_kept_completely(running, running.client.get(CURRENT).json()["id"])
